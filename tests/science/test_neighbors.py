import numpy as np
import pytest
import torch

from memorization import neighbors
from memorization.neighbors import (
    count_votes,
    elect,
    knn_accuracy,
    nearest_neighbors,
    vote_confidence,
)


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
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(50, 4, generator=generator), torch.randn(30, 4, generator=generator)
    labels, wanted = (
        torch.randint(3, (50,), generator=generator),
        torch.randint(3, (30,), generator=generator),
    )
    right = 0
    for query, label in zip(queries, wanted):
        nearest = sorted(
            range(50), key=lambda i: -torch.cosine_similarity(query, bank[i], dim=0).item()
        )[:7]
        votes = [sum(labels[i].item() == c for i in nearest) for c in range(3)]
        right += votes.index(max(votes)) == label
    assert knn_accuracy(queries, wanted, bank, labels, k=7) == pytest.approx(right / 30)


# --- exact search ---------------------------------------------------------------------------------


def by_brute_force(queries, bank, k):
    """Indices and squared distances of the k nearest, in float64, equal distances in order of
    index.
    """
    distances = torch.stack([(bank.double() - query.double()).square().sum(1) for query in queries])
    distances, indices = distances.sort(dim=1, stable=True)
    return indices[:, :k], distances[:, :k]


def random_vectors(count, dim, seed):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


# of 5,000 vectors 1,000 at a time, 3,000, all
@pytest.mark.parametrize("memory_gb", [1e-9, 0.0005, 1.0])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("count", [40, 5000])
def test_neighbours_equal_a_float64_brute_force(memory_gb, offset, count, monkeypatch):
    monkeypatch.setattr(neighbors, "QUERY_CHUNK", 17)
    bank, queries = (
        offset + random_vectors(count, 24, seed=0),
        offset + random_vectors(50, 24, seed=1),
    )
    indices, distances = nearest_neighbors(queries, bank, 30, memory_gb)
    wanted, how_far = by_brute_force(queries, bank, 30)
    assert torch.equal(indices, wanted)
    assert torch.allclose(distances, how_far, rtol=1e-12, atol=0)


def test_equal_distances_are_ordered_by_index_however_many_there_are():
    # every vector 200 times: far more equals than are found beyond k
    bank = random_vectors(20, 6, seed=0).repeat(200, 1)
    queries = random_vectors(9, 6, seed=1)
    indices, _ = nearest_neighbors(queries, bank, 150)
    assert torch.equal(indices, by_brute_force(queries, bank, 150)[0])


# 67 blocks: no more whole groups of ten
@pytest.mark.parametrize("count, k", [(30_000, 1), (30_000, 20), (30_000, 40), (67_000, 1)])
def test_the_nearest_are_found_however_they_share_groups(count, k):
    bank, queries = random_vectors(count, 8, seed=0), random_vectors(9, 8, seed=1)
    # the same place in all blocks, ten in one group
    near = torch.cat([torch.arange(500, 30_000, 1000), torch.arange(3005, 4000, 100)])
    bank[near] = queries[4] + 0.1 * random_vectors(40, 8, seed=2)
    assert torch.equal(nearest_neighbors(queries, bank, k)[0], by_brute_force(queries, bank, k)[0])


def test_one_query_with_many_vectors_that_float32_cannot_tell_apart_is_served_beside_clear_ones():
    bank, queries = random_vectors(3000, 16, seed=0), random_vectors(20, 16, seed=1)
    # their squared distances differ by 1e-9 of a norm
    bank[1000:1030] = queries[7] + 1e-5 * random_vectors(30, 16, seed=2)
    assert torch.equal(
        nearest_neighbors(queries, bank, 10)[0], by_brute_force(queries, bank, 10)[0]
    )


@pytest.mark.parametrize("factor", [1e6, 1e30])  # 1e60 is more than float32 holds
@pytest.mark.parametrize("count", [12, 4010])
def test_a_few_vectors_far_away_do_not_cost_exactness(factor, count):
    bank = random_vectors(count, 16, seed=0)
    bank[::500] *= factor
    queries = random_vectors(20, 16, seed=1)
    for memory_gb in (1e-9, 1.0):
        assert torch.equal(
            nearest_neighbors(queries, bank, 10, memory_gb)[0], by_brute_force(queries, bank, 10)[0]
        )


def test_even_a_few_queries_are_shared_among_processes(monkeypatch):
    shares = []

    def map_parts(search, parts, _):
        shares.extend(map(len, parts))
        return [search(part) for part in parts]

    monkeypatch.setattr(neighbors.processes, "count", lambda: 3)
    monkeypatch.setattr(neighbors.processes, "map_in_processes", map_parts)
    bank, queries = random_vectors(300, 8, seed=0), random_vectors(20, 8, seed=1)
    assert torch.equal(nearest_neighbors(queries, bank, 5)[0], by_brute_force(queries, bank, 5)[0])
    assert shares == [7, 7, 6]


@pytest.mark.parametrize("scale", [3e18, 1e30])  # squares near the largest float32, and beyond it
def test_an_overflow_does_not_cost_exactness(scale):
    bank, queries = scale * random_vectors(4000, 16, seed=0), scale * random_vectors(20, 16, seed=1)
    assert torch.equal(
        nearest_neighbors(queries, bank, 10)[0], by_brute_force(queries, bank, 10)[0]
    )


def test_more_neighbours_than_the_bank_holds_are_refused():
    assert nearest_neighbors(torch.zeros(1, 2), torch.eye(2), 2)[0].tolist() == [[0, 1]]
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"{k} neighbours are wanted of 2"):
            nearest_neighbors(torch.zeros(1, 2), torch.eye(2), k)


def test_votes_counted_by_hand():
    labels = np.array([[0, 2, 2, 1], [1, 1, 0, 0], [2, 2, 1, 1], [3, 3, 3, 3], [0, 0, 3, 3]])
    distances = np.array([[1.0, 2, 3, 4], [1, 4, 2, 2], [1, 3, 2, 2], [1, 1, 1, 1], [5, 1, 2, 3]])
    votes, sums = count_votes(labels, distances, 4)
    assert votes.tolist() == [[1, 1, 2, 0], [2, 2, 0, 0], [0, 2, 2, 0], [0, 0, 0, 4], [2, 0, 0, 2]]
    assert sums.tolist() == [[1, 4, 5, 0], [4, 5, 0, 0], [0, 4, 4, 0], [0, 0, 0, 4], [6, 0, 0, 5]]
    predictions, tied = elect(votes, sums)
    # most votes; the smaller distance; the lower label; the smaller distance, though higher
    assert predictions.tolist() == [2, 0, 1, 3, 3]
    assert tied.tolist() == [False, True, True, False, True]
    entropies = [1.5 * np.log(2), np.log(2), np.log(2), 0, np.log(2)]
    assert vote_confidence(votes) == pytest.approx(-np.array(entropies))


def test_equal_shares_of_votes_give_equal_confidence_whatever_the_classes():
    generator = np.random.default_rng(0)
    votes = generator.integers(0, 30, (500, 10))
    shuffled = generator.permuted(votes, axis=1)
    assert np.array_equal(vote_confidence(votes), vote_confidence(shuffled)) and not np.array_equal(
        votes, shuffled
    )


def test_candidates_found_in_float32_suffice_where_vectors_are_well_apart(monkeypatch):
    def needless(*_):
        raise AssertionError("the whole bank was searched again")

    monkeypatch.setattr(neighbors, "_by_brute_force", needless)
    bank, queries = 1000 + random_vectors(3013, 8, seed=0), 1000 + random_vectors(30, 8, seed=1)
    # many tiles, one and a half, one; the last columns of none fill a group
    for memory_gb in (1e-9, 0.0045, 1.0):
        assert torch.equal(
            nearest_neighbors(queries, bank, 10, memory_gb)[0], by_brute_force(queries, bank, 10)[0]
        )


@pytest.mark.parametrize("size", [1e-30, 1e25, 1e37])
def test_neighbours_and_accuracies_do_not_depend_on_the_size_of_representations(size):
    generator = torch.Generator().manual_seed(0)
    bank, labels = torch.randn(300, 4, generator=generator), torch.arange(300) % 3
    queries, query_labels = torch.randn(20, 4, generator=generator), torch.arange(20) % 3
    indices, _ = nearest_neighbors(queries, bank, k=5)
    found, distances = nearest_neighbors(size * queries, size * bank, k=5)
    assert torch.equal(found, indices) and distances.isfinite().all()
    accuracy = knn_accuracy(queries, query_labels, bank, labels, k=5)
    assert knn_accuracy(size * queries, query_labels, size * bank, labels, k=5) == accuracy
