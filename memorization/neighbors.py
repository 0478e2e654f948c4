"""Exact nearest neighbours, and the class they vote for."""

import math

import numpy as np
import torch

from memorization.machine import processes
from memorization.normalization import moderate_scale, normalize

QUERY_CHUNK = 512  # queries compared with vectors of the bank at a time
CHUNKS = 4  # of queries, worked on one after the other for every part of the bank
# neighbours found in float32 beyond the k that are wanted, so that rounding loses none of those
SPARE = 32
GROUP = 10  # columns of which only the least is looked at first
# vectors of one product on a CPU: the least of its groups are found while it is in the cache
BLOCK = GROUP**3
# held at a time while distances are recomputed on a CPU, so that they stay in cache
RECOMPUTED_VALUES = 1 << 18
RECOMPUTED_VALUES_ON_GPU = 1 << 24  # there 192 MB, worth the cost of calling operations


def nearest_neighbors(queries, bank, k, memory_gb=0.25):
    """The k vectors of the bank nearest to every query, exactly: in order of squared L2 distance,
    equal ones in order of index.

    queries: (Q, D), bank: (N, D), finite float32 on one device; 1 <= k <= N; memory_gb: bound on
    what is held beside them, a centred copy of P vectors of the bank and their distances to
    QUERY_CHUNK queries, 4 P (D + QUERY_CHUNK) bytes; P is BLOCK at least. Returns (indices,
    distances): (Q, k) int64, and (Q, k) float64, squared.

    k + SPARE candidates are found by matrix products in float32 on centred vectors. Those that
    float32's rounding leaves in doubt are compared again in float64, as they are. A query with more
    of them than candidates is compared with the whole bank in float64.
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
            candidates, unsure = (
                torch.arange(len(bank), device=bank.device).expand(len(part), -1),
                [],
            )
        else:
            candidates, unsure = _contenders(part, bank, center, k, *room)
        indices, distances = _by_exact_distance(part, bank, candidates)
        for row in unsure:
            indices[row], distances[row] = _by_brute_force(part[row], bank, candidates.shape[1])
        return indices[:, :k].cpu(), distances[:, :k].cpu()

    share = max(1, math.ceil(len(queries) / processes.count()))
    found = processes.map_parts(
        search, queries.split(min(share, CHUNKS * QUERY_CHUNK)), "searching neighbours"
    )
    indices, distances = (torch.cat(parts).to(queries.device) for parts in zip(*found))
    return indices, distances / scale**2


def _contenders(queries, bank, center, k, copy, tile):
    """Vectors of the bank that hold each query's k nearest, (q, c) int64, and the queries (r,) for
    which there may be still others.

    queries: (q, D); copy: (columns, D), room for so many centred vectors of the bank at a time;
    tile: (QUERY_CHUNK, columns).
    """
    count = k + SPARE
    queries, own_norms = _centred(queries, center, torch.empty_like(queries))
    keys = queries.new_empty(len(queries), 0)  # |b|^2 - 2 ab
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    farthest = torch.zeros((), dtype=torch.float64, device=bank.device)
    for start in range(0, len(bank), len(copy)):
        part = bank[start : start + len(copy)]
        centred, norms = _centred(part, center, copy[: len(part)])
        farthest = torch.maximum(farthest, norms.max())
        found = [
            _least_keys(chunk, centred, norms.float(), min(count, len(part)), tile)
            for chunk in queries.split(QUERY_CHUNK)
        ]
        least, places = (torch.cat(parts) for parts in zip(*found))
        keys, indices = torch.cat([keys, least], dim=1), torch.cat([indices, start + places], dim=1)
        if start:
            keys, order = keys.topk(min(count, keys.shape[1]), dim=1, largest=False)
            indices = indices.gather(1, order)
    doubt = 2 * _rounding_bound(own_norms.sqrt() + farthest.sqrt(), bank.shape[1])
    beyond = keys.double() > (keys[:, k - 1] + doubt)[:, None]  # too far to be one of the k
    return indices[:, : count - int(beyond.sum(1).min())], (~beyond[:, -1]).nonzero()[:, 0]


def _centred(vectors, center, out):
    """(n, D) vectors less a center (D,), written to out, and their squared norms, (n,) float64."""
    norms = vectors.new_empty(len(vectors), dtype=torch.float64)
    for start in range(0, len(vectors), QUERY_CHUNK):
        part = slice(start, start + QUERY_CHUNK)
        torch.sub(vectors[part], center, out=out[part])
        norms[part] = torch.linalg.vector_norm(out[part], dim=1, dtype=torch.float64).square()
    return out, norms


def _least_keys(queries, bank, norms, count, tile):
    """The `count` least |b|^2 - 2 ab of each query in ascending order, and their places: (q, count)
    each. tile: room for all.

    A tournament: the least of every group of columns, then of every group of those, as long as that
    spares work; and back again, since the least of all lie in the groups of least minima.
    """
    keys = tile[: len(queries), : BLOCK * math.ceil(len(bank) / BLOCK)]
    width = BLOCK if keys.is_cpu else keys.shape[1]
    minima = []
    for start in range(0, len(bank), width):
        block, part = keys[:, start : start + width], slice(start, start + width)
        torch.addmm(norms[part], queries, bank[part].T, alpha=-2, out=block[:, : len(bank[part])])
        block[:, len(bank[part]) :] = math.inf
        minima.append(_least_of_groups(block))
    rounds, widths, minima = [keys], [width], torch.cat(minima, dim=1)
    while rounds[-1].shape[1] > 2 * GROUP * count and minima.shape[1] % GROUP == 0:
        rounds.append(minima)
        widths.append(minima.shape[1])
        minima = _least_of_groups(minima)
    least, places = rounds.pop().topk(count, dim=1, largest=False, sorted=not rounds)
    while rounds:
        members = _members_of_groups(places, widths[len(rounds) - 1])  # (q, GROUP count)
        least, order = (
            rounds.pop().gather(1, members).topk(count, dim=1, largest=False, sorted=not rounds)
        )
        places = members.gather(1, order)
    # a place beyond the bank is found only where all else overflowed
    return least, places.clamp_(max=len(bank) - 1)


def _least_of_groups(block):
    """(q, w) -> (q, w / GROUP): group j of a block holds its columns j, j + w / GROUP, j + 2 w /
    GROUP, ...
    """
    return block.unflatten(1, (GROUP, -1)).amin(1)


def _members_of_groups(groups, width):
    """The columns of groups (q, n), which are numbered through blocks of one width: (q, GROUP n)."""
    stride = width // GROUP
    first = groups // stride * width + groups % stride
    return (first[:, None] + stride * torch.arange(GROUP, device=groups.device)[:, None]).flatten(1)


def _by_exact_distance(queries, bank, candidates):
    """Candidates (q, c) in order of their squared distances in float64, equal ones in order of
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


def _by_brute_force(query, bank, count):
    """The `count` vectors of the bank nearest to one query (D,): indices and squared distances,
    computed in float64.
    """
    distances = torch.cat(
        [(part.double() - query.double()).square().sum(1) for part in bank.split(QUERY_CHUNK)]
    )
    distances, indices = distances.sort(stable=True)
    return indices[:count], distances[:count]


def _rounding_bound(norm, dimensions):
    """How far |b|^2 - 2 ab, computed in float32, may be from the true value, infinitely where it
    may overflow.

    norm: |a| + |b|, centred; after Higham (2002), section 3.1.
    """
    bound = (dimensions / 2 + 8) * 2.0**-24 * norm.square()
    return torch.where(norm.square() < torch.finfo(torch.float32).max, bound, math.inf)


def count_votes(labels, distances, classes):
    """How many neighbours each class has, and how far they are in sum: (Q, classes) int64 and
    float64. labels, distances: (Q, k).
    """
    places = (np.arange(len(labels))[:, None] * classes + labels).ravel()
    shape = len(labels), classes
    votes = np.bincount(places, minlength=math.prod(shape)).reshape(shape)
    return votes, np.bincount(places, distances.ravel(), minlength=math.prod(shape)).reshape(shape)


def elected(votes, distances):
    """The class with the most votes; of equals the one with the smaller summed distance, then the
    lower one.

    votes, distances: of `count_votes`. Returns (Q,) int64, and (Q,) bool, where there was a tie.
    """
    ahead = votes == votes.max(1, keepdims=True)
    return np.where(ahead, distances, np.inf).argmin(1), ahead.sum(1) > 1


def vote_confidence(votes):
    """Minus the entropy of the shares of the votes, in nats: 0 where all agree. votes: (Q,
    classes). Returns (Q,) float64.
    """
    # sorted, so that equal shares give equal sums whatever the classes
    shares = np.sort(votes, axis=1) / votes.sum(1, keepdims=True)
    return (shares * np.log(np.where(shares > 0, shares, 1.0))).sum(1) + 0.0  # not -0.0


def knn_accuracy(queries, query_labels, bank, bank_labels, k, temperature=None):
    """Share of queries whose k most similar images of the bank vote for their label.

    queries: (Q, D), bank: (N, D), representations, compared by cosine; labels: (Q,) and (N,) int64.
    k is lowered to N where N is less. temperature: every vote weighs exp(cosine / temperature) (Wu
    et al. 2018), or 1 where it is None. A tie goes to the lower label. Returns a float.
    """
    queries, bank = normalize(queries, dim=1), normalize(bank, dim=1)
    classes = int(bank_labels.max()) + 1
    right = torch.zeros((), dtype=torch.int64, device=queries.device)
    for start in range(0, len(queries), QUERY_CHUNK):
        similarity = queries[start : start + QUERY_CHUNK] @ bank.T  # (q, N)
        nearest = similarity.topk(min(k, len(bank)), dim=1)  # (q, k)
        weights = (
            torch.ones_like(nearest.values)
            if temperature is None
            else (nearest.values / temperature).exp()
        )
        # (q, classes)
        votes = weights.new_zeros(len(weights), classes).scatter_add_(
            1, bank_labels[nearest.indices], weights
        )
        right += (votes.argmax(1) == query_labels[start : start + QUERY_CHUNK]).sum()
    return right.item() / len(queries)
