"""Exact nearest neighbours, and the class they vote for."""

import math

import numpy as np
import torch

from memorization.machine import processes
from memorization.normalization import moderate_scale, normalize

QUERY_CHUNK = 512  # queries compared with vectors of the bank at a time
CHUNKS = 4  # of queries, worked on one after the other for every part of the bank
# Candidates beyond k that are searched in float32, so that rounding loses none of the k nearest.
SPARE = 32
GROUP = 10  # columns in a group; first only the least of each group is compared
# Vectors in one product on a CPU: the minima of its groups are computed while it is in the cache.
BLOCK = GROUP**3
# Values in memory while distances are recomputed: on a CPU few enough for its cache, on a GPU
# 192 MB, so that few operations are called.
RECOMPUTED_VALUES = 1 << 18
RECOMPUTED_VALUES_ON_GPU = 1 << 24


def nearest_neighbors(queries, bank, k, memory_gb=0.25):
    """The exact k nearest vectors of the bank for every query, in order of squared L2 distance,
    equal distances in order of index.

    queries: (Q, D), bank: (N, D), finite float32 on one device; 1 <= k <= N. memory_gb: bound on
    the memory beside them: a centred copy of P vectors of the bank and their distances to
    QUERY_CHUNK queries, 4 P (D + QUERY_CHUNK) bytes, with P at least BLOCK. Returns (indices,
    distances): (Q, k) int64, and (Q, k) float64, squared.

    Matrix products of centred vectors in float32 give k + SPARE candidates. Distances that the
    rounding of float32 leaves in doubt are computed again in float64, from the vectors without
    centring. If all candidates of a query are in doubt, it is compared with the whole bank in
    float64.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"{k} neighbours are wanted of {len(bank)}")
    scale = min(moderate_scale(queries), moderate_scale(bank))
    if scale != 1:
        queries, bank = queries * scale, bank * scale
    center = bank.mean(0)
    fitting = int(memory_gb * 2**30 / (4 * (bank.shape[1] + QUERY_CHUNK)))
    columns = BLOCK * max(1, min(fitting // BLOCK, math.ceil(len(bank) / BLOCK)))
    room = (
        bank.new_empty(columns, bank.shape[1]),
        bank.new_empty(min(QUERY_CHUNK, len(queries)), columns),
    )

    def search(part):
        if len(bank) <= k + SPARE:
            everything = torch.arange(len(bank), device=bank.device)
            candidates, unsure = everything.expand(len(part), -1), []
        else:
            candidates, unsure = _contenders(part, bank, center, k, *room)
        indices, distances = _by_exact_distance(part, bank, candidates)
        for row in unsure:
            indices[row], distances[row] = _by_brute_force(part[row], bank, candidates.shape[1])
        return indices[:, :k].cpu(), distances[:, :k].cpu()

    share = max(1, math.ceil(len(queries) / processes.count()))
    parts = processes.map_in_processes(
        search, queries.split(min(share, CHUNKS * QUERY_CHUNK)), "searching neighbours"
    )
    indices, distances = (torch.cat(part).to(queries.device) for part in zip(*parts))
    return indices, distances / scale**2


def _contenders(queries, bank, center, k, copy, tile):
    """Candidates that contain the k nearest of each query, (q, c) int64, and the queries (r,) for
    which the bank may have others.

    queries: (q, D); copy: (columns, D), room for so many centred vectors of the bank at a time;
    tile: (QUERY_CHUNK, columns).
    """
    n_keys = k + SPARE
    queries, own_norms = _center_vectors(queries, center, torch.empty_like(queries))
    keys = queries.new_empty(len(queries), 0)  # |b|^2 - 2 ab
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    farthest = torch.zeros((), dtype=torch.float64, device=bank.device)
    for start in range(0, len(bank), len(copy)):
        part = bank[start : start + len(copy)]
        centred, norms = _center_vectors(part, center, copy[: len(part)])
        farthest = torch.maximum(farthest, norms.max())
        nearest = [
            _least_keys(chunk, centred, norms.float(), min(n_keys, len(part)), tile)
            for chunk in queries.split(QUERY_CHUNK)
        ]
        least, places = (torch.cat(parts) for parts in zip(*nearest))
        keys, indices = torch.cat([keys, least], dim=1), torch.cat([indices, start + places], dim=1)
        if start:
            keys, order = keys.topk(min(n_keys, keys.shape[1]), dim=1, largest=False)
            indices = indices.gather(1, order)
    doubt = 2 * _rounding_bound(own_norms.sqrt() + farthest.sqrt(), bank.shape[1])
    beyond = keys.double() > (keys[:, k - 1] + doubt)[:, None]  # too far to be one of the k
    return indices[:, : n_keys - int(beyond.sum(1).min())], (~beyond[:, -1]).nonzero()[:, 0]


def _center_vectors(vectors, center, out):
    """(n, D) vectors less a center (D,), written to out, and their squared norms, (n,) float64."""
    norms = vectors.new_empty(len(vectors), dtype=torch.float64)
    for start in range(0, len(vectors), QUERY_CHUNK):
        part = slice(start, start + QUERY_CHUNK)
        torch.sub(vectors[part], center, out=out[part])
        norms[part] = torch.linalg.vector_norm(out[part], dim=1, dtype=torch.float64).square()
    return out, norms


def _least_keys(queries, bank, norms, n_keys, tile):
    """The n_keys least keys |b|^2 - 2 ab of each query in ascending order, and their columns:
    (q, n_keys) each. tile: memory for all keys.

    The least keys lie in the groups with the least minima, so only those groups are searched.
    """
    keys = tile[: len(queries), : BLOCK * math.ceil(len(bank) / BLOCK)]
    width = BLOCK if keys.is_cpu else keys.shape[1]
    minima = []
    for start in range(0, len(bank), width):
        block, part = keys[:, start : start + width], slice(start, start + width)
        torch.addmm(norms[part], queries, bank[part].T, alpha=-2, out=block[:, : len(bank[part])])
        block[:, len(bank[part]) :] = math.inf
        minima.append(_least_of_groups(block))
    minima = torch.cat(minima, dim=1)  # (q, columns / GROUP)
    groups = minima.topk(min(n_keys, minima.shape[1]), dim=1, largest=False, sorted=False).indices
    members = _members_of_groups(groups, width)  # (q, GROUP * n_keys)
    least, order = keys.gather(1, members).topk(n_keys, dim=1, largest=False)
    # a column beyond the bank is taken only if the keys of the bank overflowed
    return least, members.gather(1, order).clamp_(max=len(bank) - 1)


def _least_of_groups(block):
    """(q, w) -> (q, w / GROUP): group j of a block holds its columns j, j + w / GROUP, j + 2 w /
    GROUP, ...
    """
    return block.unflatten(1, (GROUP, -1)).amin(1)


def _members_of_groups(groups, width):
    """The columns of groups (q, n), numbered through blocks of one width: (q, GROUP n)."""
    stride = width // GROUP
    first = groups // stride * width + groups % stride
    return (first[:, None] + stride * torch.arange(GROUP, device=groups.device)[:, None]).flatten(1)


def _by_exact_distance(queries, bank, candidates):
    """Candidates (q, c) in order of their squared distances in float64, equal distances in order of
    index, and those distances.
    """
    candidates = candidates.sort(dim=1).values
    values = RECOMPUTED_VALUES if bank.is_cpu else RECOMPUTED_VALUES_ON_GPU
    at_once = max(1, values // (candidates.shape[1] * bank.shape[1]))
    distances = []
    for part, rows in zip(queries.split(at_once), candidates.split(at_once)):
        vectors = bank.index_select(0, rows.flatten()).double().view(*rows.shape, -1)
        distances.append(vectors.sub_(part[:, None].double()).square_().sum(2))
    distances, order = torch.cat(distances).sort(dim=1, stable=True)
    return candidates.gather(1, order), distances


def _by_brute_force(query, bank, k):
    """The k vectors of the bank nearest to one query (D,): indices and squared distances,
    computed in float64.
    """
    distances = torch.cat(
        [(part.double() - query.double()).square().sum(1) for part in bank.split(QUERY_CHUNK)]
    )
    distances, indices = distances.sort(stable=True)
    return indices[:k], distances[:k]


def _rounding_bound(norm, dimensions):
    """Bound on the error of |b|^2 - 2 ab in float32, infinite if it may overflow.

    norm: |a| + |b|, centred; after Higham (2002), section 3.1.
    """
    bound = (dimensions / 2 + 8) * 2.0**-24 * norm.square()
    return torch.where(norm.square() < torch.finfo(torch.float32).max, bound, math.inf)


def count_votes(labels, distances, classes):
    """The number of neighbours of each class, and the sum of their distances: (Q, classes) int64
    and float64. labels, distances: (Q, k).
    """
    cells = (np.arange(len(labels))[:, None] * classes + labels).ravel()
    shape = len(labels), classes
    votes = np.bincount(cells, minlength=math.prod(shape))
    sums = np.bincount(cells, distances.ravel(), minlength=math.prod(shape))
    return votes.reshape(shape), sums.reshape(shape)


def elect(votes, distances):
    """The class with the most votes. If several have equally many, the one with the smallest sum of
    distances, then the lowest.

    votes, distances: of `count_votes`. Returns the class, (Q,) int64, and whether there was a tie,
    (Q,) bool.
    """
    ahead = votes == votes.max(1, keepdims=True)
    return np.where(ahead, distances, np.inf).argmin(1), ahead.sum(1) > 1


def vote_confidence(votes):
    """Minus the entropy of the shares of the votes, in nats: 0 if all agree. votes: (Q, classes).
    Returns (Q,) float64.
    """
    # sorted, so that equal shares give equal sums whatever the classes
    shares = np.sort(votes, axis=1) / votes.sum(1, keepdims=True)
    return (shares * np.log(np.where(shares > 0, shares, 1.0))).sum(1) + 0.0  # not -0.0


def knn_accuracy(queries, query_labels, bank, bank_labels, k, temperature=None):
    """Share of queries whose k most similar images of the bank vote for their label.

    queries: (Q, D), bank: (N, D), representations, compared by cosine; labels: (Q,) and (N,) int64.
    k is at most N: a larger one is lowered. temperature: a vote weighs exp(cosine / temperature)
    (Wu et al. 2018), or 1 if it is None. A tie goes to the lower label. Returns a float.
    """
    queries, bank = normalize(queries, dim=1), normalize(bank, dim=1)
    classes = int(bank_labels.max()) + 1
    right = torch.zeros((), dtype=torch.int64, device=queries.device)
    for start in range(0, len(queries), QUERY_CHUNK):
        similarity = queries[start : start + QUERY_CHUNK] @ bank.T  # (q, N)
        nearest = similarity.topk(min(k, len(bank)), dim=1)  # (q, k)
        if temperature is None:
            weights = torch.ones_like(nearest.values)
        else:
            weights = (nearest.values / temperature).exp()
        votes = weights.new_zeros(len(weights), classes)  # (q, classes)
        votes.scatter_add_(1, bank_labels[nearest.indices], weights)
        right += (votes.argmax(1) == query_labels[start : start + QUERY_CHUNK]).sum()
    return right.item() / len(queries)
