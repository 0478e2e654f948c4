"""How well scores repeat, against slow sums and simulations of known truth."""

import numpy as np
import pytest

from memorization.reliability import (
    agreement,
    agreement_of_halves,
    components,
    expected_overlap,
    predicted_reliability,
    rank_intervals,
    reliability_of_mean,
    seeds_for,
    spearman_brown,
)

IMAGE, TRAINING, VIEWS = 0.5, 1.0, 0.5  # variances of the simulated scores


def simulate(seeds, images, rng, offset=0.1):
    """Scores and their errors over views, and the means of the seeds, which images vary about."""
    means = offset * rng.normal(size=(seeds, 1))
    errors = np.sqrt(VIEWS * rng.chisquare(9, (seeds, images)) / 9)  # of jackknives over 10 views
    noise = np.sqrt(TRAINING + VIEWS) * rng.normal(size=(seeds, images))
    return means + np.sqrt(IMAGE) * rng.normal(size=images) + noise, errors, means


def variances(image, training, views):
    return {"image": {"value": image}, "training": {"value": training}, "views": {"value": views}}


def test_agreement_by_hand():
    first, second = np.arange(20.0) ** 3, np.arange(20.0) ** 2
    second[[19, 0]] = second[[0, 19]]  # highest and lowest change places
    of_three = agreement([first, first, second])
    rho, tau = 1 - 6 * 2 * 19**2 / 7980, 1 - 2 * (2 * 18 + 1) / 190  # 37 of 190 pairs in disorder
    assert of_three["spearman"]["mean"] == pytest.approx((1 + 2 * rho) / 3)
    assert of_three["kendall"]["mean"] == pytest.approx((1 + 2 * tau) / 3)
    spread = {"mean": 2 / 3, "std": 12**-0.5, "n": 3}  # of 1, 1/2 and 1/2
    assert of_three["overlap"] == pytest.approx(spread) and of_three["overlap_by_chance"] == 0.1
    assert agreement([first, second])["kendall"]["std"] is None


def test_ties_share_the_places_that_are_left_of_the_first_tenth():
    scores = np.array([3.0] + 39 * [1.0])  # one above 39 that share 3 places
    of_ties = agreement([scores, scores])
    assert of_ties["overlap"]["mean"] == pytest.approx((1 + 39 * (3 / 39) ** 2) / 4)
    correlations = [of_ties[name]["mean"] for name in ("spearman", "kendall")]
    assert correlations == pytest.approx([1, 1])  # tau-a would be .05


@pytest.mark.parametrize("seeds, ways", [(4, 3), (5, 15), (6, 10), (8, 35), (7, 50), (12, 50)])
def test_halves_are_disjoint_and_taken_in_all_ways_or_in_fifty(monkeypatch, seeds, ways):
    halvings = set()

    def record(first, second):
        sums = sorted(round(half[0] * (seeds // 2)) for half in (first, second))
        halvings.add(tuple(sums))
        digits = np.base_repr(sum(sums), 4)  # digit s says how many halves have seed s
        assert set(digits) <= {"0", "1"} and digits.count("1") == 2 * (seeds // 2)
        return 0.0

    monkeypatch.setattr("memorization.reliability._spearman", record)
    scores = 4.0 ** np.arange(seeds)[:, None] + [0.0, 1e-3]
    assert agreement_of_halves(scores)["spearman"]["n"] == len(halvings) == ways


def test_reliability_of_a_mean_is_its_correlation_with_a_repetition():
    scores, _, _ = simulate(10, 4000, np.random.default_rng(0))
    repetition = agreement([scores[:5].mean(0), scores[5:].mean(0)])["spearman"]["mean"]
    reliability = reliability_of_mean(scores[:5])
    assert reliability["from_seeds"] == pytest.approx(repetition, abs=0.04)
    assert (reliability["seeds"], reliability["seeds_of_halves"]) == (5, 4)
    halves = agreement_of_halves(scores[:5])["spearman"]["mean"]
    assert halves == pytest.approx(spearman_brown(0.25, 2), abs=0.03)
    assert reliability["from_halves"] == spearman_brown(halves, 2)
    assert reliability_of_mean(scores[:3])["from_halves"] is agreement_of_halves(scores[:3]) is None


def test_components_equal_the_slow_sums():
    scores, errors, _ = simulate(3, 8, np.random.default_rng(0))
    of_images = 3 * sum((scores[:, x].mean() - scores.mean()) ** 2 for x in range(8)) / 7
    of_seeds = 8 * sum((scores[s].mean() - scores.mean()) ** 2 for s in range(3)) / 2
    rest = 0.0
    for s, x in np.ndindex(3, 8):
        expected = scores[s].mean() + scores[:, x].mean() - scores.mean()
        rest += (scores[s, x] - expected) ** 2 / (2 * 7)
    image, views = (of_images - rest) / 3, (errors**2).mean()
    slow = [image, rest - views, views, (of_seeds - rest) / 8, image / (image + rest)]
    values = components(scores, errors).values()
    assert [of["value"] for of in values] == pytest.approx(slow)


def test_intervals_cover_the_truth_of_a_simulation_as_often_as_they_say():
    rng, hits = np.random.default_rng(0), np.zeros(5)
    for repeat in range(100):
        scores, errors, means = simulate(20, 200, rng)
        truth = [IMAGE, TRAINING, VIEWS, means.var(ddof=1), IMAGE / (IMAGE + TRAINING + VIEWS)]
        intervals = [of["interval_95"] for of in components(scores, errors, repeat).values()]
        hits += [low <= value <= high for value, (low, high) in zip(truth, intervals)]
    assert (hits >= 88).all() and (hits <= 99).all()


def test_nothing_stays_of_scores_whose_images_are_shuffled():
    rng = np.random.default_rng(0)
    scores, errors, _ = simulate(4, 500, rng)
    values = components([rng.permutation(of_seed) for of_seed in scores], errors)
    for name in ("image", "reliability"):
        assert np.prod(values[name]["interval_95"]) < 0  # from below 0 to above it


def test_predictions_by_hand():
    assert spearman_brown(0.31, 9) == pytest.approx(0.802, abs=1e-3)
    assert (spearman_brown(0.5, 1), spearman_brown(0.0, 7), spearman_brown(1, 3)) == (0.5, 0, 1)
    assert spearman_brown(-0.1, 3) == pytest.approx(-0.375) and np.isnan(spearman_brown(-0.9, 3))
    three = variances(1.0, 2.0, 0.5)
    assert predicted_reliability(three, 5) == pytest.approx(1 / (1 + 2.5 / 5))
    assert predicted_reliability(three, 5, views_ratio=2) == pytest.approx(1 / (1 + 2.25 / 5))
    assert seeds_for(three, 0.8) == 10 and seeds_for(three, 0.8, views_ratio=2) == 9
    assert seeds_for(three, 1 / (1 + 2.5 / 7)) == 7 and seeds_for(three, 0.01) == 1
    large_errors, nothing = variances(1.0, -0.5, 1.5), variances(-0.1, 1.0, 0.5)
    assert predicted_reliability(large_errors, 1) == pytest.approx(1 / 2)
    assert predicted_reliability(large_errors, 1, views_ratio=4) == pytest.approx(1 / 1.25)
    assert predicted_reliability(nothing, 3) == 0 and seeds_for(nothing, 0.8) is None


def test_expected_overlap_is_that_of_simulated_rankings():
    assert [expected_overlap(r) for r in (-1, 0, 1)] == pytest.approx([0, 0.1, 1])
    for r in (0.0, 0.3, 0.8):
        first, noise = np.random.default_rng(0).normal(size=(2, 100_000))
        simulated = agreement([first, r * first + np.sqrt(1 - r**2) * noise])["overlap"]["mean"]
        assert expected_overlap(r) == pytest.approx(simulated, abs=0.01)
    assert np.isnan(expected_overlap(float("nan"))) and np.isnan(expected_overlap(-3.0))


@pytest.mark.parametrize("scores", [np.full((4, 20), 0.1), np.ones((2, 1)), np.zeros((2, 0))])
@pytest.mark.filterwarnings("error")
def test_scores_without_a_ranking_give_nan(scores):
    measures, values = agreement(scores), components(scores, 0 * scores)
    assert np.isnan([measures[name]["mean"] for name in ("spearman", "kendall", "overlap")]).all()
    assert np.isnan(reliability_of_mean(scores)["from_seeds"]) and seeds_for(values, 0.8) is None
    assert np.isnan([values["reliability"]["value"], predicted_reliability(values, 3)]).all()


@pytest.mark.filterwarnings("error:divide by zero")
def test_resamples_of_a_single_image_divide_by_zero_without_a_warning():
    scores = np.random.default_rng(1).normal(size=(2, 3)).round(1)
    assert np.isfinite(components(scores, 0 * scores)["reliability"]["value"])


def test_an_image_without_a_score_in_one_seed_is_left_out():
    scores, errors, _ = simulate(4, 50, np.random.default_rng(0))
    less = [np.delete(values, [3, 7], axis=1) for values in (scores, errors)]
    scores[1, 3] = errors[2, 7] = np.nan
    assert agreement(scores) == agreement(np.delete(scores, 3, axis=1))
    assert components(scores, errors) == components(*less)


@pytest.mark.parametrize("reliability", [0.0, 0.25, 0.75, 0.95])
def test_intervals_of_ranks_hold_the_true_rank_in_95_of_100_cases(reliability):
    chance, held = np.random.default_rng(0), []
    for _ in range(5):
        true = np.sqrt(reliability) * chance.normal(size=400)
        measured = true + np.sqrt(1 - reliability) * chance.normal(size=400)
        ranks = 1 + np.argsort(np.argsort(-true))
        low, high = rank_intervals(0.1 + 0.02 * measured, reliability).T
        held.append((low <= ranks) & (ranks <= high))
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_a_perfect_ranking_has_no_doubt_and_one_without_reliability_tells_nothing():
    scores = np.random.default_rng(1).normal(size=200)
    ranks = 1 + np.argsort(np.argsort(-scores))
    assert (rank_intervals(scores, 1.2) == ranks[:, None]).all()
    low, high = rank_intervals(scores, -0.3).T
    assert low.max() < 20 and high.min() > 180
