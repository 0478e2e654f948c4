"""How fast is exact search for 100 neighbours? Against scikit-learn's brute force, flat FAISS, and
the matrix product that all need.

    python -m benchmarks.neighbors [--device cpu]

Also: the memory that a search takes at most, beside what its docstring promises.
"""

import torch

from benchmarks.contest import Contestant, chosen_device, contest, peer, save
from benchmarks.memory import measured
from memorization.measuring.deja_vu import DejaVuSettings
from memorization.neighbors import QUERY_CHUNK, nearest_neighbors

CASES = [(5_000, 40_000, 512), (2_000, 100_000, 2048)]  # queries, vectors in the bank, dimensions
K = 100
MEMORY_GB = DejaVuSettings().memory_gb
ROUNDS = 3


def main():
    device = chosen_device(__doc__)
    sklearn, faiss = peer("sklearn.neighbors"), peer("faiss")
    # before peers have run, and left memory behind that is used again
    memory = [memory_of(*case, device) for case in CASES]
    results = []
    for (Q, N, D), (taken, promised) in zip(CASES, memory):
        queries, bank = vectors(Q, D, device), vectors(N, D, device)
        contestants = [
            Contestant(
                "this project",
                lambda queries=queries, bank=bank: nearest_neighbors(queries, bank, K, MEMORY_GB),
                Q,
            ),
            Contestant(
                "the matrix product alone",
                lambda queries=queries, bank=bank: product(queries, bank),
                Q,
            ),
        ]
        if sklearn:
            contestants.append(
                Contestant(
                    "scikit-learn, brute force",
                    by_sklearn(sklearn, queries.cpu().numpy(), bank.cpu().numpy()),
                    Q,
                )
            )
        if faiss:
            contestants.append(
                Contestant(
                    "FAISS, flat, float32",
                    by_faiss(faiss, queries.cpu().numpy(), bank.cpu().numpy()),
                    Q,
                )
            )
        result = contest(
            f"{K} neighbours of {Q:,} among {N:,} vectors of {D}",
            "queries",
            contestants,
            device,
            ROUNDS,
        )
        print(
            f"  memory: {taken:,.0f} MB at most, beside {promised:,.0f} MB by the formula of nearest_neighbors"
        )
        results.append(result | {"megabytes": taken, "megabytes_promised": promised})
    save("neighbors", results, device)


def vectors(count, dimensions, device):
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(count)).to(device)


def memory_of(Q, N, D, device):
    """Megabytes that a search takes at most, and those of the formula that nearest_neighbors is
    documented with.
    """
    queries, bank = vectors(Q, D, device), vectors(N, D, device)
    _, taken = measured(lambda: nearest_neighbors(queries, bank, K, MEMORY_GB), device)
    return taken, min(4 * N * (D + QUERY_CHUNK), MEMORY_GB * 2**30) / 1e6


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
