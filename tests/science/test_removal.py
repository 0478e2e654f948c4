import numpy as np
import pytest
import torch
from conftest import read_table, remove

from memorization.data.catalogue import DataSettings
from memorization.data.images import open_images
from memorization.data.subsets import load_subsets
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


def test_a_subset_file_is_fs_training_set_without_the_most_memorized(halves_copy):
    _, run = halves_copy
    remove(halves_copy)
    parent, table = load_subsets(run / "subsets.npz"), read_table(run / "scores")[1]
    rows = table["subset"] == "candidate"
    scores = dict(zip(table["index"][rows], table["score"][rows]))
    for count in (4, 8):
        subset = load_subsets(run / f"removal/subsets/memorized_{count}_draw0.npz")
        assert subset.role == "candidate" and len(subset.independent) == 0
        kept, removed = set(subset.candidate), set(parent.candidate) - set(subset.candidate)
        assert len(removed) == count
        assert min(scores[i] for i in removed) >= max(scores[i] for i in kept)
    files = [run / f"removal/subsets/random_8_draw{draw}.npz" for draw in (0, 1)]
    one, other = (set(load_subsets(file).candidate) for file in files)
    assert one != other and len(one) == len(other) == 24


def test_every_policy_and_grouped_duplicates_end_at_the_same_number(halves_copy):
    policies = ["memorized", "least", "random", "random_matched", "typical"]
    grouped = "--removal.group_duplicates true --removal.duplicate_similarity 0.6".split()
    remove(halves_copy, "--removal.policies", *policies, *grouped)
    _, run = halves_copy
    parent, fake = load_subsets(run / "subsets.npz"), DataSettings(name="fake", size=16)
    pixels = open_images(fake).train.pixels[torch.from_numpy(parent.candidate)]
    groups = duplicate_groups(pixels.flatten(1).numpy() / 255.0, 0.6)
    assert len(np.unique(groups)) < 32  # so that there are some
    files = list((run / "removal/subsets").iterdir())
    assert len(files) == 2 * (1 + 1 + 2 + 2 + 1)
    for file in files:
        kept = load_subsets(file)
        assert len(kept.candidate) == 32 - int(file.stem.split("_draw")[0].split("_")[-1])
        counts = np.bincount(groups, weights=np.isin(parent.candidate, kept.candidate))
        assert set(counts / np.bincount(groups)) == {0, 1}  # together, or not at all
