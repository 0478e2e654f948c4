"""Exact nearest neighbours, and the class they vote for."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from memorization import processes

QUERY_CHUNK = 512  # queries compared with the bank at a time
SPARE = 32  # neighbours found in float32 beyond the k that are wanted, so that rounding loses none of those
GROUP = 20  # columns of which only the least is looked at first
RECOMPUTED_VALUES = 1 << 19  # held at a time while distances are recomputed, so that they stay in cache


def nearest_neighbors(queries, bank, k, memory_gb=1.0):
    """The k vectors of the bank nearest to every query, exactly: in order of squared L2 distance, equal ones in order of index.

    queries: (Q, D), bank: (N, D), finite float32 on one device; 1 <= k <= N; memory_gb: bound on the tile of distances that is held at a
    time, beside a centred copy of the bank, 4 N D bytes. Returns (indices, distances): (Q, k) int64, and (Q, k) float64, squared.

    k + SPARE candidates are found by matrix products in float32 on centred vectors; their distances are computed again in float64 from the
    vectors as they are. Where the bound on float32's rounding cannot rule out that a nearer one was missed, the query is compared with the
    whole bank in float64.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"{k} neighbours are wanted of {len(bank)}")
    mean = sum(part.sum(0, dtype=torch.float64) for part in bank.split(QUERY_CHUNK)) / len(bank)
    centred, norms = _centred(bank, mean)
    largest = norms.max().sqrt()
    count = min(k + SPARE, len(bank))
    columns = max(GROUP * count, round(memory_gb * 2**30 / (4 * QUERY_CHUNK)) // GROUP * GROUP)

    def search(part):
        centred_part, own_norms = _centred(part, mean)
        keys, candidates = _candidates(centred_part, centred, norms, count, columns)
        indices, distances = _by_exact_distance(part, bank, candidates)
        if count < len(bank):
            slack = _rounding_bound(own_norms.sqrt() + largest, bank.shape[1])
            missed = distances[:, k - 1] >= keys[:, -1].double() + own_norms - slack
            for row in missed.nonzero()[:, 0]:
                indices[row], distances[row] = _by_brute_force(part[row], bank, count)
        return indices[:, :k].cpu(), distances[:, :k].cpu()

    found = processes.divided(search, queries.split(QUERY_CHUNK), "searching neighbours")
    return tuple(torch.cat(parts).to(queries.device) for parts in zip(*found))


def _centred(vectors, mean):
    """(n, D) vectors less a mean (D,) float64, as float32, and their squared norms (n,) float64."""
    centred = torch.cat([(part.double() - mean).float() for part in vectors.split(QUERY_CHUNK)])
    return centred, torch.cat([part.double().square().sum(1) for part in centred.split(QUERY_CHUNK)])


def _candidates(queries, bank, norms, count, columns):
    """The `count` vectors of the bank nearest to each query by float32 products, (q, count) each: |b|^2 - 2 ab, ascending, and indices."""
    keys = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), columns):
        part = slice(start, start + columns)
        tile = torch.addmm(norms[part].float(), queries, bank[part].T, alpha=-2)  # (q, columns)
        least, places = _least(tile, count)
        keys, indices = torch.cat([keys, least], dim=1), torch.cat([indices, start + places], dim=1)
        if start:
            keys, order = keys.topk(min(count, keys.shape[1]), dim=1, largest=False)
            indices = indices.gather(1, order)
    return keys, indices


def _least(tile, count):
    """The `count` least values of each row in ascending order, and their places. tile: (q, p). Returns (q, count) each, less where p is.

    First the least of every group of columns: the rows' least values lie in the groups with the least minima.
    """
    groups = tile.shape[1] // GROUP
    if groups <= 2 * count:
        return tile.topk(min(count, tile.shape[1]), dim=1, largest=False)
    grouped = tile[:, : groups * GROUP].view(len(tile), GROUP, groups)  # group j holds columns j, j + groups, j + 2 groups, ...
    chosen = grouped.amin(1).topk(count, dim=1, largest=False).indices  # (q, count)
    places = (chosen[:, None, :] + groups * torch.arange(GROUP, device=tile.device)[:, None]).flatten(1)  # (q, GROUP count)
    rest = torch.arange(groups * GROUP, tile.shape[1], device=tile.device).expand(len(tile), -1)
    places = torch.cat([places, rest], dim=1)
    least, order = tile.gather(1, places).topk(count, dim=1, largest=False)
    return least, places.gather(1, order)


def _by_exact_distance(queries, bank, candidates):
    """Candidates (q, c) in order of their squared distances in float64, equal ones in order of index, and those distances."""
    candidates = candidates.sort(dim=1).values
    at_once = max(1, RECOMPUTED_VALUES // (candidates.shape[1] * bank.shape[1]))
    distances = torch.cat([
        (bank[rows].double() - part[:, None].double()).square_().sum(2)
        for part, rows in zip(queries.split(at_once), candidates.split(at_once))
    ])  # fmt: skip
    distances, order = distances.sort(dim=1, stable=True)
    return candidates.gather(1, order), distances


def _by_brute_force(query, bank, count):
    """The `count` vectors of the bank nearest to one query (D,): indices and squared distances, computed in float64."""
    distances = torch.cat([(part.double() - query.double()).square().sum(1) for part in bank.split(QUERY_CHUNK)])
    distances, indices = distances.sort(stable=True)
    return indices[:count], distances[:count]


def _rounding_bound(norm, dimensions):
    """How far |b|^2 - 2 ab, computed in float32, may be from the true value. norm: |a| + |b|, centred; after Higham (2002), section 3.1."""
    return (dimensions / 2 + 8) * 2.0**-24 * norm.square()


def count_votes(labels, distances, classes):
    """How many neighbours each class has, and how far they are in sum: (Q, classes) int64 and float64. labels, distances: (Q, k)."""
    places = (np.arange(len(labels))[:, None] * classes + labels).ravel()
    shape = len(labels), classes
    votes = np.bincount(places, minlength=math.prod(shape)).reshape(shape)
    return votes, np.bincount(places, distances.ravel(), minlength=math.prod(shape)).reshape(shape)


def elected(votes, distances):
    """The class with the most votes; of equals the one with the smaller summed distance, then the lower one.

    votes, distances: of `count_votes`. Returns (Q,) int64, and (Q,) bool, where there was a tie.
    """
    ahead = votes == votes.max(1, keepdims=True)
    return np.where(ahead, distances, np.inf).argmin(1), ahead.sum(1) > 1


def vote_confidence(votes):
    """Minus the entropy of the shares of the votes, in nats: 0 where all agree. votes: (Q, classes). Returns (Q,) float64."""
    shares = np.sort(votes, axis=1) / votes.sum(1, keepdims=True)  # sorted, so that equal shares give equal sums whatever the classes
    return (shares * np.log(np.where(shares > 0, shares, 1.0))).sum(1) + 0.0  # not -0.0


def knn_accuracy(queries, query_labels, bank, bank_labels, k, temperature=None):
    """Share of queries whose k most similar images of the bank vote for their label.

    queries: (Q, D), bank: (N, D), representations, compared by cosine; labels: (Q,) and (N,) int64. k is lowered to N where N is less.
    temperature: every vote weighs exp(cosine / temperature) (Wu et al. 2018), or 1 where it is None. A tie goes to the lower label.
    Returns a float.
    """
    queries, bank = F.normalize(queries, dim=1), F.normalize(bank, dim=1)
    classes = int(bank_labels.max()) + 1
    right = 0
    for start in range(0, len(queries), QUERY_CHUNK):
        similarity = queries[start : start + QUERY_CHUNK] @ bank.T  # (q, N)
        nearest = similarity.topk(min(k, len(bank)), dim=1)  # (q, k)
        weights = torch.ones_like(nearest.values) if temperature is None else (nearest.values / temperature).exp()
        votes = weights.new_zeros(len(weights), classes).scatter_add_(1, bank_labels[nearest.indices], weights)  # (q, classes)
        right += (votes.argmax(1) == query_labels[start : start + QUERY_CHUNK]).sum().item()
    return right / len(queries)
