"""Exact nearest neighbours, and the class they vote for."""

import torch
import torch.nn.functional as F

QUERY_CHUNK = 1024  # queries compared with the whole bank at a time


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
