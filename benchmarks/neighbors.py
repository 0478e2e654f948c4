"""How fast is exact search for 100 neighbours? Against scikit-learn's brute force, flat FAISS, and the matrix product that all need.

    python -m benchmarks.neighbors [--device cpu]

Also: the memory that a search takes at most, beside what its docstring promises.
"""

import torch

from benchmarks.contest import Contestant, chosen_device, contest, peer, save
from benchmarks.memory import measured
from memorization.neighbors import QUERY_CHUNK, nearest_neighbors

CASES = [(5_000, 40_000, 512), (2_000, 100_000, 2048)]  # queries, vectors in the bank, dimensions
K = 100
MEMORY_GB = 0.25
ROUNDS = 3


def main():
    device = chosen_device(__doc__)
    sklearn, faiss = peer("sklearn.neighbors"), peer("faiss")
    generator = torch.Generator().manual_seed(0)
    results = []
    for Q, N, D in CASES:
        queries, bank = (torch.randn(count, D, generator=generator).to(device) for count in (Q, N))
        contestants = [
            Contestant("this project", lambda queries=queries, bank=bank: nearest_neighbors(queries, bank, K, MEMORY_GB), Q),
            Contestant("the matrix product alone", lambda queries=queries, bank=bank: product(queries, bank), Q),
        ]
        if sklearn:
            contestants.append(Contestant("scikit-learn, brute force", by_sklearn(sklearn, queries.cpu().numpy(), bank.cpu().numpy()), Q))
        if faiss:
            contestants.append(Contestant("FAISS, flat, float32", by_faiss(faiss, queries.cpu().numpy(), bank.cpu().numpy()), Q))
        result = contest(f"{K} neighbours of {Q:,} among {N:,} vectors of {D}", "queries", contestants, device, ROUNDS)
        _, taken = measured(contestants[0].work, device)
        promised = min(4 * N * (D + QUERY_CHUNK), MEMORY_GB * 2**30) / 1e6
        print(f"  memory: {taken:,.0f} MB at most, beside {promised:,.0f} MB by the formula of nearest_neighbors")
        results.append(result | {"megabytes": taken, "megabytes_promised": promised})
    save("neighbors", results, device)


def product(queries, bank):
    for part in queries.split(512):
        part @ bank.T


def by_sklearn(neighbors, queries, bank):
    index = neighbors.NearestNeighbors(n_neighbors=K, algorithm="brute").fit(bank)
    return lambda: index.kneighbors(queries)


def by_faiss(faiss, queries, bank):
    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank)
    return lambda: index.search(queries, K)


if __name__ == "__main__":
    main()
