import numpy as np
import pytest
import torch
import torch.nn.functional as F

from memorization import neighbors
from memorization.neighbors import knn_accuracy, nearest_neighbors, vote_confidence


def test_the_nearest_by_angle_vote():
    bank = torch.tensor([[1.0, 0.0], [5.0, 0.5], [0.0, 1.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 2])
    queries = torch.tensor([[1.0, 0.1], [0.1, 9.0], [-3.0, 0.2]])
    assert knn_accuracy(queries, torch.tensor([0, 1, 2]), bank, labels, k=1) == 1.0
    assert knn_accuracy(queries, torch.tensor([0, 0, 2]), bank, labels, k=1) == pytest.approx(2 / 3)


def test_a_tie_goes_to_the_lower_label_and_k_is_at_most_the_bank():
    bank, labels = torch.eye(2), torch.tensor([1, 0])
    assert knn_accuracy(torch.tensor([[1.0, 0.2]]), torch.tensor([0]), bank, labels, k=20) == 1.0


def test_votes_equal_a_slow_count():
    bank, queries = random_vectors(50, 4, seed=0), random_vectors(30, 4, seed=1)
    labels, query_labels = torch.arange(50) % 3, torch.arange(30) % 3
    similarity = F.cosine_similarity(queries[:, None], bank, dim=2)
    nearest = labels[similarity.argsort(dim=1, descending=True)[:, :7]]
    elected = [np.bincount(row).argmax() for row in nearest]  # the lowest of equals
    accuracy = np.mean(query_labels.numpy() == elected)
    assert knn_accuracy(queries, query_labels, bank, labels, k=7) == pytest.approx(accuracy)


# --- exact search ---------------------------------------------------------------------------------


def random_vectors(count, dim, seed):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def by_brute_force(queries, bank, k):
    """Indices and squared distances of the k nearest in float64, of equal ones the first."""
    distances = torch.stack([(bank.double() - query).square().sum(1) for query in queries.double()])
    distances, indices = distances.sort(dim=1, stable=True)
    return indices[:, :k], distances[:, :k]


def check_neighbors(queries, bank, k, memory_gb=0.25):
    found, distances = nearest_neighbors(queries, bank, k, memory_gb)
    indices, exact = by_brute_force(queries, bank, k)
    assert torch.equal(found, indices)
    assert torch.allclose(distances, exact, rtol=1e-12, atol=0)


# of 5,000 vectors 1,000 at a time, 3,000, all
@pytest.mark.parametrize("memory_gb", [1e-9, 0.0005, 1.0])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("count", [40, 5000])
def test_neighbours_equal_a_float64_brute_force(memory_gb, offset, count, monkeypatch):
    monkeypatch.setattr(neighbors, "QUERY_CHUNK", 17)
    bank, queries = random_vectors(count, 24, seed=0), random_vectors(50, 24, seed=1)
    check_neighbors(offset + queries, offset + bank, 30, memory_gb)


def test_equal_distances_are_ordered_by_index_however_many_there_are():
    # every vector 200 times: far more equals than are found beyond k
    bank = random_vectors(20, 6, seed=0).repeat(200, 1)
    check_neighbors(random_vectors(9, 6, seed=1), bank, 150)


# 67 blocks: no more whole groups of ten
@pytest.mark.parametrize("count, k", [(30_000, 1), (30_000, 20), (30_000, 40), (67_000, 1)])
def test_the_nearest_are_found_however_they_share_groups(count, k):
    bank, queries = random_vectors(count, 8, seed=0), random_vectors(9, 8, seed=1)
    # the same place in all blocks, ten in one group
    near = torch.cat([torch.arange(500, 30_000, 1000), torch.arange(3005, 4000, 100)])
    bank[near] = queries[4] + 0.1 * random_vectors(40, 8, seed=2)
    check_neighbors(queries, bank, k)


def test_one_query_with_many_vectors_that_float32_cannot_tell_apart_is_served_beside_clear_ones():
    bank, queries = random_vectors(3000, 16, seed=0), random_vectors(20, 16, seed=1)
    # their squared distances differ by 1e-9 of a norm
    bank[1000:1030] = queries[7] + 1e-5 * random_vectors(30, 16, seed=2)
    check_neighbors(queries, bank, 10)


@pytest.mark.parametrize("factor", [1e6, 1e30])  # 1e60 is more than float32 holds
@pytest.mark.parametrize("count", [12, 4010])
def test_a_few_vectors_far_away_do_not_cost_exactness(factor, count):
    bank = random_vectors(count, 16, seed=0)
    bank[::500] *= factor
    for memory_gb in (1e-9, 1.0):
        check_neighbors(random_vectors(20, 16, seed=1), bank, 10, memory_gb)


@pytest.mark.parametrize("scale", [3e18, 1e30])  # squares near the largest float32, and beyond it
def test_an_overflow_does_not_cost_exactness(scale):
    bank, queries = random_vectors(4000, 16, seed=0), random_vectors(20, 16, seed=1)
    check_neighbors(scale * queries, scale * bank, 10)


def test_candidates_in_float32_suffice_if_vectors_are_well_apart(monkeypatch):
    monkeypatch.setattr(neighbors, "_by_brute_force", None)  # the whole bank is not searched again
    bank, queries = random_vectors(3013, 8, seed=0), random_vectors(30, 8, seed=1)
    # many tiles, one and a half, one; the last columns of none fill a group
    for memory_gb in (1e-9, 0.0045, 1.0):
        check_neighbors(1000 + queries, 1000 + bank, 10, memory_gb)


@pytest.mark.parametrize("size", [1e-30, 1e25, 1e37])
def test_neighbours_and_accuracies_do_not_depend_on_the_size_of_representations(size):
    bank, queries = random_vectors(300, 4, seed=0), random_vectors(20, 4, seed=1)
    labels, query_labels = torch.arange(300) % 3, torch.arange(20) % 3
    indices, _ = nearest_neighbors(queries, bank, k=5)
    found, distances = nearest_neighbors(size * queries, size * bank, k=5)
    assert torch.equal(found, indices) and distances.isfinite().all()
    accuracy = knn_accuracy(queries, query_labels, bank, labels, k=5)
    assert knn_accuracy(size * queries, query_labels, size * bank, labels, k=5) == accuracy


def test_votes_counted_by_hand():
    labels = np.array([[0, 2, 2, 1], [1, 1, 0, 0], [2, 2, 1, 1], [3, 3, 3, 3], [0, 0, 3, 3]])
    distances = np.array([[1.0, 2, 3, 4], [1, 4, 2, 2], [1, 3, 2, 2], [1, 1, 1, 1], [5, 1, 2, 3]])
    votes, sums = neighbors.count_votes(labels, distances, 4)
    assert votes.tolist() == [[1, 1, 2, 0], [2, 2, 0, 0], [0, 2, 2, 0], [0, 0, 0, 4], [2, 0, 0, 2]]
    assert sums.tolist() == [[1, 4, 5, 0], [4, 5, 0, 0], [0, 4, 4, 0], [0, 0, 0, 4], [6, 0, 0, 5]]
    predictions, tied = neighbors.elect(votes, sums)
    # most votes; the smaller distance; the lower label; the smaller distance, though higher
    assert predictions.tolist() == [2, 0, 1, 3, 3]
    assert tied.tolist() == [False, True, True, False, True]
    entropies = np.array([1.5, 1, 1, 0, 1]) * np.log(2)
    assert vote_confidence(votes) == pytest.approx(-entropies)


def test_equal_shares_of_votes_give_equal_confidence_whatever_the_classes():
    generator = np.random.default_rng(0)
    votes = generator.integers(0, 30, (500, 10))
    shuffled = generator.permuted(votes, axis=1)
    assert np.array_equal(vote_confidence(votes), vote_confidence(shuffled))
    assert not np.array_equal(votes, shuffled)
