import math

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import stats

from memorization import significance
from memorization.significance import (
    false_share,
    interval_of_share,
    p_against,
    p_within,
    q_values,
)

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


def test_p_of_a_value_counts_the_null_values_that_reach_it():
    null, values = [3.0, 1.0, math.nan, 2.0, 2.0], [0.0, 2.0, 2.5, 3.0, 4.0, math.nan]
    assert_array_equal(p_against(null, values), [5 / 5, 4 / 5, 2 / 5, 2 / 5, 1 / 5, math.nan])
    assert_array_equal(p_within(null), [1 / 4, 4 / 4, math.nan, 3 / 4, 3 / 4])
    assert_array_equal(p_against([math.nan], values[:1]), [1.0])
    assert p_within([]).shape == p_against(null, []).shape == (0,)


def test_p_of_each_null_value_is_that_against_the_others():
    null = np.random.default_rng(0).integers(0, 30, 50).astype(float)
    slow = [p_against(np.delete(null, i), null[i : i + 1])[0] for i in range(50)]
    np.testing.assert_allclose(p_within(null), slow)


def test_p_of_values_like_the_null_is_uniform_and_no_more():
    rng = np.random.default_rng(0)
    p = np.concatenate([p_against(rng.normal(size=99), rng.normal(size=20)) for _ in range(500)])
    for level in (0.01, 0.05, 0.2, 0.5):
        assert np.mean(p <= level + 1e-9) == pytest.approx(level, abs=5 * level**0.5 / 99)
    assert p.min() == 1 / 100


def test_q_by_hand():
    p = np.array(
        [0.04, 0.01, math.nan, 0.02, 0.9]
    )  # ordered: .01 * 4 / 1, .02 * 4 / 2, .04 * 4 / 3
    np.testing.assert_allclose(q_values(p), [0.16 / 3, 0.04, math.nan, 0.04, 0.9])
    assert_array_equal(q_values([math.nan]), [math.nan])
    assert q_values([]).shape == (0,)


def draw_scores(rng, memorized, count=200, external=400):
    """p and truth of candidates, the first of which are memorized."""
    scores = rng.normal(size=count) + 3 * (np.arange(count) < memorized)
    return p_against(rng.normal(size=external), scores), np.arange(count) >= memorized


@pytest.mark.parametrize("memorized", [0, 20, 100])
def test_of_those_with_a_small_q_few_are_false(memorized):
    rng, shares, found = np.random.default_rng(0), [], []
    for _ in range(400):
        p, is_false = draw_scores(rng, memorized, external=4000)
        chosen = q_values(p) <= 0.1
        shares.append(is_false[chosen].mean() if chosen.any() else 0)
        found.append((chosen & ~is_false).sum())
    assert np.mean(shares) <= 0.1 + 2 * np.std(shares) / 20  # 400 sets
    assert np.mean(found) >= 0.5 * memorized
    if not memorized:  # as many as it says, so it is not safe by finding nothing
        assert np.mean(shares) == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("memorized, k", [(20, 16), (20, 40), (100, 16), (0, 16), (0, 100)])
def test_the_share_of_false_ones_in_the_first_k_is_bounded_and_close(memorized, k):
    rng, shares, expected = np.random.default_rng(0), [], []
    for _ in range(400):
        p, is_false = draw_scores(rng, memorized)
        shares.append(is_false[np.lexsort((rng.random(len(p)), p))[:k]].mean())
        expected.append(false_share(p, k))
    if memorized:
        # the bound takes all 200 for false, not 200 - memorized
        factor = 200 / (200 - memorized)
        assert np.mean(shares) <= np.mean(expected) <= factor * np.mean(shares) + 0.03
    else:
        assert np.mean(shares) == 1 and np.mean(expected) >= 0.85


def test_the_share_of_false_ones_by_hand():
    p = np.array([0.5, 0.1, 0.1, 0.1, 0.6, math.nan])
    assert false_share(p, 1) == false_share(p, 3) == pytest.approx(5 * 0.1 / 3)
    assert false_share(p, 4) == pytest.approx(5 * 0.5 / 4)
    assert false_share(p, 5) == false_share(p, 99) == pytest.approx(0.6)
    assert false_share([0.9, 0.8], 1) == 1
    assert math.isnan(false_share([math.nan], 1))
    with pytest.raises(ValueError, match="k is 0"):
        false_share(p, 0)


# --- the share of candidates above the 95th percentile of S_E -------------------------------------


def scores_of_seeds(rng, effects, candidates=64, external=128):
    """Scores of candidates (S, n) and of S_E (S, m). effects: (S,), what is added to candidates."""
    of_candidates = rng.normal(size=(len(effects), candidates)) + np.reshape(effects, (-1, 1))
    return of_candidates, rng.normal(size=(len(effects), external))


def share(candidates, external):
    return (candidates > np.quantile(external, 0.95)).mean()


def width(candidates, external):
    low, high = interval_of_share(candidates, external)
    return high - low


def test_the_interval_of_a_share_is_that_of_resampled_images_and_of_left_out_seeds():
    rng = np.random.default_rng(0)
    candidates, external = scores_of_seeds(rng, [0.4, 0.5, 0.6, 0.7, 0.8], 200, 300)
    means, resampled = (candidates.mean(0), external.mean(0)), []
    for _ in range(4000):
        resampled.append(share(*(rng.choice(values, len(values)) for values in means)))
    left_out = []
    for seed in range(5):
        rest = [other for other in range(5) if other != seed]
        left_out.append(share(candidates[rest].mean(0), external[rest].mean(0)))
    of_seeds = 4 / 5 * sum((value - np.mean(left_out)) ** 2 for value in left_out)
    of_images = np.var(resampled)
    total = of_images + of_seeds
    freedom = total**2 / (of_images**2 / 199 + of_seeds**2 / 4)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(total)
    expected = [share(*means) - half, share(*means) + half]
    assert of_seeds > 0.3 * of_images
    assert interval_of_share(candidates, external) == pytest.approx(expected, abs=0.012)


@pytest.mark.parametrize("effect", [0.0, 2.0])
def test_the_interval_of_a_share_holds_the_true_share(effect):
    rng, held = np.random.default_rng(0), []
    expected = stats.norm.sf(stats.norm.ppf(0.95) - effect)
    for _ in range(40):
        low, high = interval_of_share(*scores_of_seeds(rng, [effect], external=512))
        held.append(low <= expected <= high)
    assert np.mean(held) >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / 40)


def test_a_percentile_of_few_external_images_makes_the_interval_of_a_share_wide():
    rng = np.random.default_rng(0)
    candidates, external = scores_of_seeds(rng, [1.5], candidates=400, external=4000)
    assert width(candidates, external[:, :40]) > 1.5 * width(candidates, external)


def test_seeds_that_differ_make_the_interval_of_a_share_wide():
    rng = np.random.default_rng(0)
    candidates, external = scores_of_seeds(rng, [1.5] * 4, candidates=400, external=400)
    strengths = np.array([[-1.0], [1.0], [-0.5], [0.5]])  # their mean is 0: the share is the same
    assert width(candidates + strengths, external) > 1.5 * width(candidates, external)


def test_a_share_of_all_or_of_none_still_has_an_interval():
    external = np.zeros((3, 50))
    none, all_above = external[:, :20], external[:, :20] + 1
    least = stats.binomtest(20, 20).proportion_ci(0.95, "exact").low
    assert interval_of_share(all_above, external) == pytest.approx([least, 1])
    assert interval_of_share(none, external) == pytest.approx([0, 1 - least])
    assert interval_of_share(all_above[:, :1], external) == [0, 1]
