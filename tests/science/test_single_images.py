"""What the score of one image is worth: its error, and images that nobody trained on beside it."""

import numpy as np
import pytest
from scipy import stats

from memorization.measuring.calibration import against_external, headline, standard_errors
from memorization.measuring.score_tables import ScoredSeed, table_of_scores
from memorization.measuring.scores import ImageScores

SUBSET = np.repeat(["shared", "candidate", "independent", "external"], [3, 5, 5, 7])
ROWS = {
    "index": np.arange(20),
    "split": np.repeat(["train", "test"], [13, 7]),
    "subset": SUBSET,
    "label": np.zeros(20, dtype=np.int64),
}


def scored_seed(seed, signs=1):
    """A ScoredSeed of made-up losses; signs: one for all images, or one for each."""
    generator = np.random.default_rng(seed)
    scores = ImageScores(*generator.uniform(0.1, 0.9, size=(3, 20)))
    offset = generator.normal(scale=0.1, size=20)
    return ScoredSeed(scores, np.broadcast_to(signs, 20).astype(np.int64), offset, explained=0.1)


def test_the_error_of_one_pair_is_how_far_external_scores_are_from_0():
    scores = np.full((1, 20), 9.0)
    scores[0, SUBSET == "external"] = [-4, -1, 0, 1, 2, 3, 50]  # the median distance from 0 is 2
    assert standard_errors(scores, SUBSET) == pytest.approx(np.full(20, 2 * 1.4826))


def test_the_error_of_one_pair_covers_95_percent_of_normal_external_scores():
    subset = np.repeat(["candidate", "external"], [1, 20_000])
    scores = np.random.default_rng(0).normal(scale=3.0, size=(1, 20_001))
    covered = np.abs(scores[0]) <= 1.96 * standard_errors(scores, subset)
    assert covered.mean() == pytest.approx(0.95, abs=0.01)


def test_the_error_over_seeds_is_pooled_over_the_images_of_a_subset():
    subset = np.array(["candidate", "candidate", "external"])
    scores = np.array([[0.0, 5.0, 1.0], [2.0, 5.0, 4.0]])  # variances over seeds 2, 0 and 4.5
    assert standard_errors(scores, subset) == pytest.approx([0.5**0.5, 0.5**0.5, 1.5])


def test_p_counts_the_external_images_that_score_as_high():
    subset = np.array(["candidate"] * 3 + ["external"] * 4)
    p, q = against_external(np.array([9.0, 3.0, 0.0, 1.0, 2.0, 3.0, 4.0]), subset)
    assert p[:3] == pytest.approx([1 / 5, 3 / 5, 5 / 5])
    assert p[3:] == pytest.approx([4 / 4, 3 / 4, 2 / 4, 1 / 4])  # of the other external ones
    # 3 / 5 times 3 / 2 is .9, and 1 / 5 times 3 is .6
    assert q[:3] == pytest.approx([0.6, 0.9, 1.0]) and np.isnan(q[3:]).all()


def test_external_images_in_place_of_candidates_have_uniform_p_and_none_is_memorized():
    generator, all_p, free = np.random.default_rng(1), [], 0
    subset = np.repeat(["candidate", "external"], [200, 500])
    for _ in range(100):
        p, q = against_external(generator.standard_t(4, size=700), subset)
        all_p.append(p[:200])
        free += not (q[:200] < 0.1).any()
    assert free >= 95 and stats.kstest(np.concatenate(all_p)[::20], "uniform").pvalue > 0.01


def test_in_a_crossover_a_score_is_the_loss_without_the_image_less_the_loss_with_it():
    signs = np.where(np.arange(20) % 2, 1, -1)
    seed = scored_seed(0, signs)
    table, losses = table_of_scores(ROWS, [seed]), seed.scores
    assert np.array_equal(table["score"], signs * (losses.loss_g - losses.loss_f))
    odd = np.arange(20) % 2 == 1
    assert np.array_equal(table["alignment_loss_f"][odd], losses.loss_f[odd])
    assert np.array_equal(table["alignment_loss_f"][~odd], losses.loss_g[~odd])
    local = table["score"] - signs * seed.local_offset
    assert table["score_local"] == pytest.approx(local, abs=1e-15)


def test_seeds_with_equal_halves_score_as_the_fixed_scheme_does():
    """If g has all images in every seed, the table is that of the fixed scheme with f and g
    exchanged.
    """
    crossover = table_of_scores(ROWS, [scored_seed(0, -1), scored_seed(1, -1)])
    exchanged = [exchange_encoders(scored_seed(seed)) for seed in (0, 1)]
    fixed = table_of_scores(ROWS, exchanged)
    for name in (
        "alignment_loss_f",
        "alignment_loss_g",
        "score",
        "score_range",
        "score_ratio",
        "stderr",
        "stderr_views",
        "p",
        "q",
        "score_local",
        "p_local",
        "q_local",
    ):
        assert np.array_equal(crossover[name], fixed[name], equal_nan=True), name


def exchange_encoders(seed):
    losses = seed.scores
    scores = ImageScores(losses.loss_g, losses.loss_f, losses.error)
    return ScoredSeed(scores, seed.signs, -seed.local_offset, seed.explained)


def test_the_error_of_views_is_the_jackknifes_of_the_mean_over_seeds():
    seeds = [scored_seed(seed) for seed in range(3)]
    errors = np.stack([seed.scores.error for seed in seeds])
    by_hand = np.sqrt((errors**2).sum(0)) / 3
    assert table_of_scores(ROWS, seeds)["stderr_views"] == pytest.approx(by_hand)
    assert np.array_equal(table_of_scores(ROWS, seeds[:1])["stderr_views"], errors[0])


@pytest.mark.parametrize("unlike, column", [(0, "score_local"), (2, "score_local"), (3, "score")])
def test_local_scores_are_the_headline_unless_more_than_a_tenth_of_candidates_have_none(
    unlike, column
):
    subset = np.repeat(["shared", "candidate", "external"], [5, 20, 5])
    scores = np.zeros(30)
    scores[subset != "candidate"] = np.nan  # others do not count
    scores[5 : 5 + unlike] = np.nan
    assert headline(scores, subset) == column


def test_local_scores_of_every_seed_have_the_mean_that_is_reported():
    signs = np.where(np.arange(20) % 2, 1, -1)
    seeds = [scored_seed(0, signs), scored_seed(1, -signs)]
    table = table_of_scores(ROWS, seeds)
    by_hand = [
        seed.signs * (seed.scores.loss_g - seed.scores.loss_f - seed.local_offset) for seed in seeds
    ]
    assert table["per_seed_local"] == pytest.approx(np.stack(by_hand))
    assert np.array_equal(table["per_seed_local"].mean(0), table["score_local"])


def test_images_unlike_all_external_ones_have_no_local_score_and_no_local_p():
    seed = scored_seed(0)
    seed.local_offset[4] = np.nan
    table = table_of_scores(ROWS, [seed, scored_seed(1)])
    for name in ("score_local", "p_local", "q_local"):
        assert np.isnan(table[name][4]) and np.isfinite(table[name][[3, 5, 6, 7]]).all()
    assert np.isfinite(table["score"]).all() and np.isfinite(table["p"]).all()
