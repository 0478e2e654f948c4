"""Drawing subsets that divide no group."""

import dataclasses
import time

import numpy as np
import pytest
from conftest import fake_images

from memorization.data.groups import Sizes, draw_by_groups, pair_groups
from memorization.data.subsets import (
    SubsetSettings,
    check_subsets,
    draw_subsets,
    load_subsets,
    save_subsets,
)
from memorization.errors import WrongUse


def draw(train, test, sizes, seed=None):
    """A GroupedDraw. train, test: the group of each image; seed: of the order, None for that of
    the images.
    """
    groups = {"train": np.array(train), "test": np.array(test)}
    order = {split: np.arange(len(of_split)) for split, of_split in groups.items()}
    if seed is not None:
        generator = np.random.default_rng(seed)
        order = {split: generator.permutation(indices) for split, indices in order.items()}
    return draw_by_groups(order, groups, Sizes(*sizes)), groups


def groups_of(one, groups):
    """{subset: the groups that it has images of, a set}."""
    return {
        "shared": set(groups["train"][one.shared]),
        "candidate": set(groups["train"][one.pairs[:, 0]]),
        "independent": set(groups["train"][one.pairs[:, 1]]),
        "external": set(groups["test"][one.external]),
    }


def groups_of_patients(generator, n_groups, largest):
    sizes = generator.integers(1, largest + 1, n_groups)
    return np.repeat(np.arange(n_groups), sizes)


@pytest.mark.parametrize("seed", range(20))
def test_no_group_is_in_two_subsets_and_the_sizes_are_exact(seed):
    generator = np.random.default_rng(seed)
    numbers = generator.permutation(groups_of_patients(generator, 120, largest=9))
    train, test = numbers[: len(numbers) * 2 // 3], numbers[len(numbers) * 2 // 3 :]
    one, groups = draw(train, test, (60, 80, 30), seed)
    assert (len(one.shared), one.pairs.shape, len(one.external)) == (60, (40, 2), 30)
    of = groups_of(one, groups)
    assert sum(map(len, of.values())) == len(set.union(*of.values()))
    assert len(set([*one.shared, *one.pairs.flatten()])) == 140


@pytest.mark.parametrize("seed", range(20))
def test_a_block_of_pairs_has_whole_groups_on_either_side_so_that_sides_can_be_swapped(seed):
    generator = np.random.default_rng(seed)
    one, groups = draw(groups_of_patients(generator, 90, largest=7), range(900, 910), (0, 90, 2))
    assert one.blocks[0] == 0 and set(np.diff(one.blocks)) <= {0, 1}
    owners = {}
    for (left, right), block in zip(groups["train"][one.pairs], one.blocks):
        assert owners.setdefault(left, (block, "left")) == (block, "left")
        assert owners.setdefault(right, (block, "right")) == (block, "right")


def test_images_that_are_groups_of_their_own_are_paired_one_by_one():
    one, _ = draw(range(12), range(100, 104), (4, 8, 2))
    assert one.shared.tolist() == [0, 1, 2, 3] and one.external.tolist() == [0, 1]
    assert sorted(one.pairs.flatten()) == list(range(4, 12))
    assert one.blocks.tolist() == [0, 1, 2, 3]


def test_groups_are_drawn_in_the_order_of_their_first_images():
    one, _ = draw([5, 3, 5, 3, 8, 8, 9, 9], [20, 21], (4, 4, 2))
    assert one.shared.tolist() == [0, 2, 1, 3]


def test_all_images_are_used_if_whole_groups_allow_it():
    # 4 faces 2 + 2, and 3 faces 1 + 1 + 1
    train = [0] * 4 + [1] * 2 + [2] * 2 + [3] * 3 + [4, 5, 6] + [7] * 3
    one, groups = draw(train, [50, 51], (3, 14, 2))
    assert len(np.unique(np.concatenate([one.shared, one.pairs.flatten()]))) == 17
    of = groups_of(one, groups)
    assert not of["candidate"] & of["independent"] and not of["shared"] & of["candidate"]


def test_a_part_of_a_group_is_drawn_if_no_whole_one_fits_and_the_rest_is_in_no_subset():
    one, groups = draw([0] * 5 + [1] * 4 + [2] * 5, [50] * 3, (3, 6, 2))
    assert one.shared.tolist() == [5, 6, 7]  # of the smallest group
    assert groups_of(one, groups)["candidate"] | groups_of(one, groups)["independent"] == {0, 2}
    assert one.pairs.shape == (3, 2) and one.external.tolist() == [0, 1]


def test_neither_side_has_all_the_larger_groups():
    sizes = [9, 8, 7, 6, 5, 4]
    members = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    pairs, blocks = pair_groups(members, 18)
    firsts = [pairs[blocks == block][0] for block in range(3)]
    assert [left < right for left, right in firsts] == [False, True, False]
    assert np.bincount(blocks).tolist() == [8, 6, 4]


def test_the_groups_of_a_pool_are_the_first_ones_and_not_the_largest():
    train = np.repeat(np.arange(100), [1] * 50 + [9] * 50)
    one, groups = draw(train, [500, 501], (0, 40, 2))
    assert groups_of(one, groups)["candidate"] | groups_of(one, groups)["independent"] == set(
        range(40)
    )


@pytest.mark.parametrize(
    ("train", "test", "n_shared"),
    [
        ([0, 1, 2, 3, 4, 5], [0, 6, 7], 2),  # the test image of group 0 is left out
        ([0, 1, 2, 3, 4, 5, 6], [0, 7], 2),  # the training image of group 0 is left out
    ],
)
def test_a_group_in_both_splits_is_drawn_where_the_sizes_allow(train, test, n_shared):
    one, groups = draw(train, test, (n_shared, 4, 2))
    of = groups_of(one, groups)
    assert not of["external"] & (of["shared"] | of["candidate"] | of["independent"])


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ((0, 8, 2), "candidate + independent (pool) is 8, but 4 is the most"),
        ((9, 2, 2), "shared is 9, but 8 is the most"),
        ((0, 4, 3), "external is 3, but 2 is the most"),
    ],
)
def test_too_few_images_are_refused_with_what_can_be_had(sizes, reason):
    with pytest.raises(WrongUse) as error:
        draw([0] * 6 + [1] * 2, [2, 3], sizes)
    assert reason in str(error.value) and "4 groups" in str(error.value)


def test_two_hundred_thousand_images_are_drawn_in_seconds():
    generator, start = np.random.default_rng(0), time.monotonic()
    groups = generator.permutation(np.r_[np.arange(190000), np.arange(5000), np.arange(5000)])
    one, _ = draw(groups, np.arange(200000, 201000), (100000, 99000, 1000), seed=0)
    assert one.pairs.size == 99000 and time.monotonic() - start < 20


# --- subsets of a config --------------------------------------------------------------------------


def images_in_groups(size=5, subsets=None):
    """The fake images, of which every `size` that follow each other are a group; the last groups
    of the training set go on in the test set. subsets: {split: the subset of each image}.
    """
    images, parts = fake_images(), {}
    for name, first in (("train", 0), ("test", 1000)):
        split = getattr(images, name)
        groups = (np.arange(len(split)) + first) // size
        of_split = None if subsets is None else np.array(subsets[name])
        parts[name] = dataclasses.replace(split, groups=groups, subsets=of_split)
    return dataclasses.replace(images, **parts)


def draw_from(images, **settings):
    sizes = {"shared": 32, "external": 40, "order": "shuffled"}
    subsets = draw_subsets(SubsetSettings(**(sizes | settings)), images)
    check_subsets(subsets)
    return subsets


def test_a_fixed_split_divides_no_group():
    images = images_in_groups()
    subsets = draw_from(images, candidate=60, independent=60)
    of = {
        name: set(getattr(images, split).groups[getattr(subsets, name)])
        for name, split in (
            ("shared", "train"), ("candidate", "train"), ("independent", "train"),
            ("external", "test"),
        )
    }  # fmt: skip
    assert [len(getattr(subsets, name)) for name in of] == [32, 60, 60, 40]
    assert sum(map(len, of.values())) == len(set.union(*of.values()))


def test_every_seed_of_a_crossover_draws_halves_of_whole_groups(tmp_path):
    images, path = images_in_groups(), tmp_path / "subsets.npz"
    subsets = draw_from(images, scheme="crossover", pool=120)
    save_subsets(dataclasses.replace(subsets, data=images.fingerprint), path, [0, 1])
    loaded, times = load_subsets(path), np.zeros(120)
    for seed in range(200):
        of_seed = loaded.of_seed(seed)
        f, g = (set(images.train.groups[half]) for half in (of_seed.candidate, of_seed.independent))
        assert len(of_seed.candidate) == len(of_seed.independent) == 60 and not f & g
        check_subsets(of_seed)
        in_f = np.isin(subsets.candidate, of_seed.candidate)
        assert (loaded.signs("candidate", subsets.candidate, seed) > 0).tolist() == in_f.tolist()
        times += in_f
    assert np.abs(times - 100).max() < 4.5 * 50**0.5 and len(np.unique(times)) > 5


def test_blocks_are_part_of_the_fingerprint_and_are_checked(tmp_path):
    images, path = images_in_groups(), tmp_path / "subsets.npz"
    subsets = draw_from(images, scheme="crossover", pool=120)
    subsets = dataclasses.replace(subsets, data=images.fingerprint)
    assert dataclasses.replace(subsets, blocks=None).fingerprint != subsets.fingerprint
    for blocks in (subsets.blocks[1:], subsets.blocks + 1, subsets.blocks[::-1].copy()):
        save_subsets(dataclasses.replace(subsets, blocks=blocks), path)
        with pytest.raises(WrongUse, match="blocks are not those of the 60 pairs"):
            load_subsets(path)


def test_balanced_classes_and_whole_groups_are_not_promised_together():
    with pytest.raises(WrongUse, match="subsets.order: 'balanced' is not allowed: .* groups"):
        draw_from(images_in_groups(), candidate=60, independent=60, order="balanced")
