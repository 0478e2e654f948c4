"""How fast is exact search for 100 neighbours? Against scikit-learn's brute force, flat FAISS, and
the matrix product that all need.

    python -m benchmarks.neighbors [--device cpu]

Also: the peak of memory of a search, beside what its docstring promises.
"""

import torch

from benchmarks.contest import Contestant, chosen_device, contest, peer, save
from benchmarks.memory import measure
from memorization.measuring.deja_vu import DejaVuSettings
from memorization.neighbors import QUERY_CHUNK, nearest_neighbors

CASES = [(5_000, 40_000, 512), (2_000, 100_000, 2048)]  # queries, vectors in the bank, dimensions
K = 100
MEMORY_GB = DejaVuSettings().memory_gb
ROUNDS = 3


def main():
    device = chosen_device(__doc__)
    sklearn, faiss = peer("sklearn.neighbors"), peer("faiss")
    # before peers run, whose freed memory would be used again
    memory = [memory_of(*case, device) for case in CASES]
    results = []
    for (Q, N, D), (taken, promised) in zip(CASES, memory):
        queries, bank = vectors(Q, D, device), vectors(N, D, device)
        question = f"{K} neighbours of {Q:,} among {N:,} vectors of {D}"
        searches = searches_of(queries, bank, sklearn, faiss)
        contestants = [Contestant(name, search, Q) for name, search in searches.items()]
        result = contest(question, "queries", contestants, device, ROUNDS)
        formula = f"{promised:,.0f} MB by the formula of nearest_neighbors"
        print(f"  memory: {taken:,.0f} MB at most, beside {formula}")
        results.append(result | {"megabytes": taken, "megabytes_promised": promised})
    save("neighbors", results, device)


def searches_of(queries, bank, sklearn, faiss):
    """{contestant: its search}, ours first. sklearn, faiss: modules, or None."""
    searches = {
        "this project": lambda: nearest_neighbors(queries, bank, K, MEMORY_GB),
        "the matrix product alone": lambda: product(queries, bank),
    }
    arrays = queries.cpu().numpy(), bank.cpu().numpy()
    if sklearn:
        searches["scikit-learn, brute force"] = by_sklearn(sklearn, *arrays)
    if faiss:
        searches["FAISS, flat, float32"] = by_faiss(faiss, *arrays)
    return searches


def vectors(count, dimensions, device):
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(count)).to(device)


def memory_of(Q, N, D, device):
    """The peak of memory of a search, and that of the formula in the docstring of
    nearest_neighbors, in megabytes.
    """
    queries, bank = vectors(Q, D, device), vectors(N, D, device)
    _, taken = measure(lambda: nearest_neighbors(queries, bank, K, MEMORY_GB), device)
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
