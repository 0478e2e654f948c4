import math

import numpy as np
import pytest
from scipy import stats

from memorization import significance

A, B = np.array([1.0, 2.0, 3.0, 6.0]), np.array([0.0, 1.0, 2.0])


def test_describe_by_hand():
    error = pytest.approx(1 / math.sqrt(3))
    assert significance.describe(B) == {"n": 3, "mean": 1.0, "std": 1.0, "standard_error": error}


def test_cohens_d_uses_the_pooled_standard_deviation():
    pooled = math.sqrt((14 + 2) / 5)  # sums of squares 14 and 2, on 3 + 2 degrees of freedom
    assert significance.cohens_d(A, B) == pytest.approx((3 - 1) / pooled)
    assert significance.cohens_d(B, A) == -significance.cohens_d(A, B)


def test_welch_by_hand_is_one_sided():
    error = math.sqrt((14 / 3) / 4 + 1 / 3)
    freedom = error**4 / (((14 / 3) / 4) ** 2 / 3 + (1 / 3) ** 2 / 2)
    test = significance.welch_test(A, B)
    assert test["t"] == pytest.approx(2 / error)
    assert test["p"] == pytest.approx(stats.t.sf(2 / error, freedom))
    assert significance.welch_test(B, A)["p"] == pytest.approx(1 - test["p"])


def test_one_sample_test_follows_its_alternative():
    greater, less = (significance.one_sample_test(A, side) for side in ("greater", "less"))
    assert greater["t"] == pytest.approx(3 / (math.sqrt(14 / 3) / 2))
    assert greater["d"] == pytest.approx(3 / math.sqrt(14 / 3))
    assert greater["p"] < 0.05 < less["p"] and greater["p"] + less["p"] == pytest.approx(1)


def test_paired_test_takes_one_value_a_seed():
    test = significance.paired_test([1.0, 2.0, 4.0], [0.0, 1.5, 2.0])
    differences = np.array([1.0, 0.5, 2.0])
    assert test["n"] == 3 and test["mean_difference"] == pytest.approx(differences.mean())
    assert test["t"] == pytest.approx(differences.mean() / (differences.std(ddof=1) / math.sqrt(3)))
    assert test["p"] == pytest.approx(stats.t.sf(test["t"], 2))


def test_bootstrap_interval_of_a_large_sample_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(5, 2, 2000)
    interval = significance.bootstrap_interval(lambda a, axis=-1: a.mean(axis), values)
    error = values.std(ddof=1) / math.sqrt(2000)
    expected = [values.mean() - 1.96 * error, values.mean() + 1.96 * error]
    assert interval == pytest.approx(expected, abs=0.1 * error)


def test_bootstrap_interval_covers_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0

    def difference(a, b, axis=-1):
        return a.mean(axis) - b.mean(axis)

    for repeat in range(100):
        samples = rng.normal(1, 1, 40), rng.normal(0, 1, 40)
        low, high = significance.bootstrap_interval(difference, *samples, seed=repeat)
        covered += low <= 1 <= high
    assert 88 <= covered <= 99
