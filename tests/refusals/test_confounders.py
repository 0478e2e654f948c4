"""Subsets that differ in more than membership: images that stand in two of them, and classes that
hardly overlap.
"""

from dataclasses import replace

import numpy as np
import torch
from conftest import fake_images, with_twins

from memorization.data.confounders import count_twins, find_distant_classes
from memorization.data.subsets import Subsets

FAKE = fake_images()


def distant_classes(*labels):
    """The distant classes of shared, candidate, independent and external images of these labels."""
    cuts = np.cumsum([len(part) for part in labels[:3]])
    train, test = (torch.tensor(np.concatenate(p)).long() for p in (labels[:3], labels[3:]))
    indices = np.split(np.arange(len(train)), cuts[:2])
    images = replace(
        FAKE, train=replace(FAKE.train, labels=train), test=replace(FAKE.test, labels=test)
    )
    return find_distant_classes(Subsets(*indices, np.arange(len(test))), images)


def test_images_with_the_same_pixels_in_two_subsets_are_counted_for_every_pair():
    images = with_twins([(0, 10), (1, 20), (10, 21), (2, 3)], [(11, 0), (11, 1), (22, 2)])
    subsets = Subsets(*np.split(np.arange(30), 3), np.arange(3))
    expected = {  # 2 and 3 are both shared
        ("shared", "candidate"): 1, ("shared", "independent"): 2, ("candidate", "independent"): 1,
        ("candidate", "external"): 1, ("independent", "external"): 1,
    }  # fmt: skip
    assert count_twins(subsets, images) == expected
    assert count_twins(subsets, FAKE) == {}


def test_classes_that_do_not_overlap_are_found_and_those_of_random_draws_are_not():
    mixed = np.arange(100) % 10
    found = distant_classes(mixed, mixed // 2, 5 + mixed // 2, mixed)
    assert found["candidate", "independent"] == 1 and ("shared", "external") not in found
    chance = np.random.default_rng(0)
    for size in (2, 5, 20, 100):  # a few images of ten classes differ by chance
        for _ in range(20):
            assert distant_classes(*chance.integers(0, 10, (4, size))) == {}


def test_classes_that_mostly_overlap_are_not_found_although_chance_hardly_makes_them_so():
    mixed, more, less = (np.repeat([0, 1], [n, 1000 - n]) for n in (500, 700, 300))
    assert distant_classes(mixed, more, less, mixed) == {}


def test_images_without_labels_and_empty_subsets_have_no_classes():
    none = np.full(20, -1)
    assert distant_classes([], none, none, np.zeros(20)) == {}
