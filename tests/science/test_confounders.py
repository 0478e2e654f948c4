"""Subsets that differ in more than membership: images that stand in two of them, and classes that
hardly overlap.
"""

import dataclasses

import numpy as np
import pytest

from memorization.data.catalogue import DataSettings
from memorization.data.confounders import count_twins, find_distant_classes, warn_of_confounders
from memorization.data.images import open_images
from memorization.data.subsets import Subsets, SubsetSettings
from memorization.errors import Caution

FAKE = open_images(DataSettings(name="fake", size=8))


def subsets_of(shared, candidate, independent, external):
    return Subsets(
        *(
            np.array(indices, dtype=np.int64)
            for indices in (shared, candidate, independent, external)
        )
    )


def with_twins(pairs, test_pairs=()):
    """The fake images, with the pixels of some training images put in the place of others."""
    train, test = FAKE.train.pixels.clone(), FAKE.test.pixels.clone()
    for one, other in pairs:
        train[other] = train[one]
    for one, other in test_pairs:
        test[other] = train[one]
    splits = {
        "train": dataclasses.replace(FAKE.train, pixels=train),
        "test": dataclasses.replace(FAKE.test, pixels=test),
    }
    return dataclasses.replace(FAKE, **splits)


def test_images_with_the_same_pixels_in_two_subsets_are_counted_for_every_pair():
    images = with_twins([(0, 10), (1, 20), (10, 21), (2, 3)], [(11, 0), (11, 1), (22, 2)])
    subsets = subsets_of(range(10), range(10, 20), range(20, 30), range(3))
    expected = {  # 2 and 3 are both shared
        ("shared", "candidate"): 1, ("shared", "independent"): 2, ("candidate", "independent"): 1,
        ("candidate", "external"): 1, ("independent", "external"): 1,
    }  # fmt: skip
    assert count_twins(subsets, images) == expected
    assert count_twins(subsets, FAKE) == {}


def test_one_line_warns_of_twins():
    images, subsets = (
        with_twins([(0, 10)]),
        subsets_of(range(10), range(10, 20), range(20, 30), range(10)),
    )
    settings = SubsetSettings(shared=10, candidate=10, independent=10, external=10)
    with pytest.warns(
        Caution,
        match="the same image .equal pixels. stands in two subsets: 1 of shared in candidate",
    ):
        warn_of_confounders(subsets, images, settings)


def of_classes(**labels):
    """(Subsets, Images) with these labels, of as many images as there are."""
    train = np.concatenate([labels[name] for name in ("shared", "candidate", "independent")])
    counts = np.cumsum([0, *(len(labels[name]) for name in ("shared", "candidate", "independent"))])
    splits = {
        "train": dataclasses.replace(FAKE.train, labels=_tensor(train)),
        "test": dataclasses.replace(FAKE.test, labels=_tensor(labels["external"])),
    }
    indices = [np.arange(start, stop) for start, stop in zip(counts, counts[1:])] + [
        np.arange(len(labels["external"]))
    ]
    return Subsets(*indices), dataclasses.replace(FAKE, **splits)


def _tensor(labels):
    import torch

    return torch.tensor(labels, dtype=torch.int64)


def test_classes_that_do_not_overlap_are_found_and_those_of_random_draws_are_not():
    mixed = np.arange(100) % 10
    ordered = of_classes(
        shared=mixed, candidate=mixed // 2, independent=5 + mixed // 2, external=mixed
    )
    found = find_distant_classes(*ordered)
    assert found["candidate", "independent"] == 1 and ("shared", "external") not in found
    chance = np.random.default_rng(0)
    for size in (2, 5, 20, 100):  # a few images of ten classes differ by chance
        for _ in range(20):
            draws = {
                name: chance.integers(0, 10, size)
                for name in ("shared", "candidate", "independent", "external")
            }
            assert find_distant_classes(*of_classes(**draws)) == {}


def test_classes_that_mostly_overlap_are_not_found_although_chance_hardly_makes_them_so():
    more, less = np.repeat([0, 1], [700, 300]), np.repeat([0, 1], [300, 700])
    mixed = np.repeat([0, 1], [500, 500])
    parts = of_classes(shared=mixed, candidate=more, independent=less, external=mixed)
    assert find_distant_classes(*parts) == {}


def test_images_without_labels_and_empty_subsets_have_no_classes():
    none = np.full(20, -1)
    assert (
        find_distant_classes(
            *of_classes(shared=[], candidate=none, independent=none, external=np.zeros(20))
        )
        == {}
    )
