import numpy as np
import pytest

from memorization.measuring.removal_order import (
    RankedSamples,
    distances_to_centres,
    duplicate_groups,
    removal_order,
    remove_in_order,
)

SCORES = np.array([0.1, 0.9, -0.5, 0.4, 0.9, 0.0])
LABELS = np.array([0, 1, 0, 0, 1, 1])


def order_of(policy, count=3, seed=0, typicality=None):
    samples = RankedSamples(np.arange(6), LABELS, SCORES, [0], typicality)
    return removal_order(policy, samples, count, seed).tolist()


def test_the_most_and_the_least_memorized_come_first():
    assert order_of("memorized") == [1, 4, 3, 0, 5, 2]  # of equals, the first in the training set
    assert order_of("least") == [2, 5, 0, 3, 1, 4]


def test_chance_depends_on_the_draw_alone_and_meets_everything():
    orders = [order_of("random", seed=seed) for seed in range(50)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert order_of("random", seed=7) == orders[7] and len({tuple(order) for order in orders}) > 40
    assert {order[0] for order in orders} == set(range(6))


def test_no_draw_of_one_policy_is_that_of_another():
    samples = RankedSamples(np.arange(50), np.zeros(50, dtype=int), np.arange(50.0), [0])
    policies = ("random", "random_matched")
    random, matched = (set(removal_order(name, samples, 10, seed=0)[:10]) for name in policies)
    assert len(random & matched) < 8


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count, classes", [(2, [0, 2]), (3, [1, 2]), (5, [2, 3])])
def test_matched_chance_removes_the_classes_of_the_most_memorized(count, classes, seed):
    order = order_of("random_matched", count=count, seed=seed)
    assert np.bincount(LABELS[order[:count]], minlength=2).tolist() == classes
    assert sorted(order) == list(range(6))


def test_the_most_typical_are_closest_to_the_centres_of_their_clusters():
    # two clusters on the circle, each with one outlier
    angles = np.array([0.0, 0.02, 0.3, 1.5, 1.52, 1.9])
    values = 5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    distances = distances_to_centres(values, clusters=2, seed=0)
    assert set(np.argsort(-distances)[:2].tolist()) == {2, 5}
    assert order_of("typical", typicality=distances)[-2:] == np.argsort(distances)[-2:].tolist()


def test_near_duplicates_are_linked_over_others():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(50, 20))
    for twin, sample in ((7, 3), (9, 7)):
        values[twin] = values[sample] + 0.05 * generator.normal(size=20)
    groups = duplicate_groups(values, threshold=0.95)
    assert groups[3] == groups[7] == groups[9] and len(np.unique(groups)) == 48


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_duplicates_and_typicality_do_not_depend_on_the_size_of_representations(size):
    values = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32)
    values[7] = values[3] + 0.01
    scaled = values * np.float32(size)
    assert duplicate_groups(scaled, 0.95).tolist() == duplicate_groups(values, 0.95).tolist()
    assert len(np.unique(duplicate_groups(scaled, 0.95))) == 49
    distances = distances_to_centres(values, clusters=3, seed=0)
    assert np.allclose(distances_to_centres(scaled, clusters=3, seed=0), distances, atol=1e-5)


def test_groups_go_together_and_every_policy_ends_at_the_same_number():
    groups, in_order = np.array([0, 1, 0, 2, 3, 0]), np.arange(6)
    assert remove_in_order(in_order, 2).tolist() == [0, 1]
    assert remove_in_order(in_order, 3, groups).tolist() == [0, 2, 5]
    assert remove_in_order(in_order, 2, groups).tolist() == [1, 3]  # a group of three does not fit
    assert remove_in_order(np.array([4, 5, 1, 2, 3, 0]), 4, groups).tolist() == [0, 2, 4, 5]
    with pytest.raises(ValueError, match="add up to 3, not to 5"):
        remove_in_order(in_order, 5, np.array([0, 0, 0, 1, 1, 1]))
