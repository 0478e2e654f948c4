"""Classes of the subsets: their numbers, and what is said where they are not equally frequent."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from conftest import draw_crossover, draw_few, fake_images
from scipy.stats import kstest

from memorization.data.confounders import (
    class_counts,
    compare_classes,
    count_repeated,
    find_unequal_classes,
    print_class_counts,
    warn_of_confounders,
)
from memorization.data.subsets import Subsets, SubsetSettings
from memorization.errors import Caution

SETTINGS = SubsetSettings(shared=0, candidate=2, independent=2, external=2)  # order: file
PAIRS_OF_CANDIDATE = [
    ("shared", "candidate"),
    ("candidate", "independent"),
    ("candidate", "external"),
]


def of_classes(shared, candidate, independent, external, classes=3):
    """(Subsets, Images) of images with these labels, with other pixels each."""
    labels = [np.asarray(part, dtype=np.int64) for part in (shared, candidate, independent)]
    bounds = np.cumsum([0, *map(len, labels)])
    indices = [np.arange(*pair) for pair in zip(bounds, bounds[1:])]
    images = fake_images()
    splits = {}
    of_splits = {"train": np.concatenate(labels), "test": np.asarray(external)}
    for seed, (name, values) in enumerate(of_splits.items()):
        shape = (len(values), 3, 2, 2)
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        split = getattr(images, name)
        splits[name] = dataclasses.replace(
            split, pixels=torch.from_numpy(pixels), labels=torch.from_numpy(values.astype(np.int64))
        )
    names = tuple("abcdefghij"[:classes])
    images = dataclasses.replace(images, **splits, classes=names)
    return Subsets(*indices, np.arange(len(external))), images


def cautions_of(subsets, images, settings=SETTINGS):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_confounders(subsets, images, settings)
    assert all(warning.category is Caution for warning in caught)
    return [str(warning.message) for warning in caught]


def test_the_images_of_each_class_are_counted_in_every_subset_that_has_images():
    parts = of_classes([], [0, 0, 2], [2, 0, -1], [0, -1, 0])
    assert class_counts(*parts) == {
        "candidate": {"a": 2, "c": 1, "(no label)": 0},
        "independent": {"a": 1, "c": 1, "(no label)": 1},
        "external": {"a": 2, "c": 0, "(no label)": 1},
    }
    crossover = class_counts(draw_crossover(), fake_images())
    assert {name: sum(of.values()) for name, of in crossover.items()} == {
        "shared": 4,
        "candidate": 12,
        "external": 5,
    }


def test_two_classes_of_one_name_are_counted_together():
    subsets, images = of_classes([0], [1, 1], [0, 1], [0])
    counts = class_counts(subsets, dataclasses.replace(images, classes=("crane", "crane")))
    assert counts["candidate"] == {"crane": 2} and counts["shared"] == {"crane": 1}


def test_the_chi_square_and_its_effect_are_those_of_the_definition():
    table = np.array([[30, 10], [20, 20], [0, 0]])  # expected 25 and 15 in both rows
    test = compare_classes(table)
    chi_square = 2 * 25 / 25 + 2 * 25 / 15
    assert test["chi_square"] == pytest.approx(chi_square)
    assert test["degrees_of_freedom"] == 1
    assert test["cramers_v"] == pytest.approx((chi_square / 80) ** 0.5)
    assert compare_classes([[3, 4], [0, 0]]) is None and compare_classes([[3, 0], [9, 0]]) is None


def test_p_of_random_draws_is_uniform():
    generator, shares = np.random.default_rng(0), np.arange(1, 11) / 55
    draws = [generator.multinomial([800, 200, 200, 200], shares) for _ in range(400)]
    assert kstest([compare_classes(draw)["p"] for draw in draws], "uniform").pvalue > 0.01


def test_classes_that_differ_are_said_once_with_their_effect_and_the_remedy():
    mixed, more = np.arange(600) % 3, np.repeat([0, 1, 2], [300, 150, 150])
    parts = of_classes(mixed, more, mixed, mixed)
    assert list(find_unequal_classes(*parts)) == PAIRS_OF_CANDIDATE
    (caution,) = cautions_of(*parts)
    assert "not equally frequent: shared and candidate (Cramer's V 0.17)" in caution
    assert caution.endswith("the classes' doing; set subsets.order to shuffled")
    shuffled = SETTINGS.model_copy(update={"order": "shuffled"})
    assert cautions_of(*parts, shuffled)[0].endswith("the classes' doing")
    (caution,) = cautions_of(*of_classes(mixed, np.zeros(600), mixed, mixed))
    assert "hardly overlap" in caution  # and not that they are not equally frequent, too


def test_a_small_effect_and_a_difference_by_chance_are_not_worth_a_warning():
    mixed = np.arange(60_000) % 3
    slightly_more = np.concatenate([mixed, np.zeros(6_000)])  # p 1e-70, V .06
    parts = of_classes(mixed, slightly_more, mixed, mixed)
    assert find_unequal_classes(*parts) == {}
    generator, unequal = np.random.default_rng(0), 0
    for _ in range(40):
        draws = [generator.integers(10, size=size) for size in (400, 50, 50, 50)]
        unequal += bool(find_unequal_classes(*of_classes(*draws, classes=10)))
    assert unequal <= 1


def test_twins_within_a_pool_are_counted_and_said_and_those_within_s_c_are_not():
    images, subsets = fake_images(), draw_crossover(pool=200)
    pixels = images.train.pixels.clone()
    for one, other in ((10, 11), (10, 12), (20, 21), (0, 1)):  # 0 and 1 are shared
        pixels[other] = pixels[one]
    with_twins = dataclasses.replace(images, train=dataclasses.replace(images.train, pixels=pixels))
    assert count_repeated(subsets, images) == 0 and count_repeated(subsets, with_twins) == 5
    (caution,) = cautions_of(subsets, with_twins)
    assert "5 images of the pool are the same (equal pixels) as another one of it" in caution
    assert cautions_of(subsets, images) == []
    in_candidates = draw_few(candidate=200, independent=200)
    assert cautions_of(in_candidates, with_twins) == []


def test_the_table_of_counts_is_left_out_if_there_are_many_classes(capsys):
    counts = {"candidate": {"cat": 30, "dog": 10}, "external": {"cat": 20, "dog": 20}}
    print_class_counts(counts)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[2:4]] == [["cat", "30", "20"], ["dog", "10", "20"]]
    assert lines[4].endswith("chi-square 5.3 (1 degrees of freedom), p 0.021, Cramer's V 0.26")
    many = {name: {str(i): 5 for i in range(21)} for name in ("candidate", "external")}
    print_class_counts(many)
    (line,) = capsys.readouterr().out.splitlines()
    assert "chi-square 0.0 (20 degrees of freedom), p 1," in line
    print_class_counts({"candidate": {"(no label)": 4}, "external": {"(no label)": 4}})
    assert "chi-square" not in capsys.readouterr().out
