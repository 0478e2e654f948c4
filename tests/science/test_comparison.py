"""How well rankings of several runs agree, against simulations of known truth and slow sums."""

import dataclasses

import numpy as np
import pytest
from compared import scored_run

from memorization.measuring.comparison import (
    bands_of,
    common_rankings,
    compare_runs,
    describe_run,
    draw_halves,
    seeds_of_a_half,
    share_above,
    thresholds_of,
)
from memorization.significance import interval_of_share

N = 3000


def rows_of(*runs):
    """{(run, run): row of comparison.csv}."""
    rows = compare_runs(runs, common_rankings(runs))
    return {(row["run_a"], row["run_b"]): row for row in rows}


def noise(rng, seeds=4, n=N):
    return rng.normal(size=(seeds, n))


def normal_tau(correlation):
    """Kendall's tau of bivariate normal scores (Greiner 1909)."""
    return 2 / np.pi * np.arcsin(correlation)


def test_equal_rankings_agree_and_opposite_ones_disagree():
    rng = np.random.default_rng(0)
    image, external = rng.normal(size=(1, 200)), rng.normal(size=(1, 100))
    scores, of_external = np.repeat(image, 4, 0), np.repeat(external, 4, 0)
    a = scored_run("a", scores, of_external)
    b = scored_run("b", 7 * scores + 1, of_external)  # another scale of scores
    c = scored_run("c", -scores, of_external)
    rows = rows_of(a, b, c)
    equal, opposite = rows["a", "b"], rows["a", "c"]
    for key in ("tau", "overlap", "halves_tau", "halves_overlap", "ceiling_tau_a"):
        assert equal[key] == pytest.approx(1)
    assert opposite["tau"] == opposite["halves_tau"] == pytest.approx(-1)
    assert opposite["overlap"] == opposite["halves_overlap"] == 0
    assert opposite["external_tau"] == pytest.approx(1)


def test_planted_images_give_the_tau_of_normal_scores():
    rng = np.random.default_rng(0)
    image, external = rng.normal(size=N), rng.normal(size=(4, 500))
    a, b = (scored_run(name, image + noise(rng), external) for name in "ab")
    rows = rows_of(a, b)
    of_all, of_halves = 1 / (1 + 1 / 4), 1 / (1 + 1 / 2)  # correlations of means over 4 and 2 seeds
    assert rows["a", "b"]["tau"] == pytest.approx(normal_tau(of_all), abs=0.02)
    for key in [("a", "a"), ("a", "b"), ("b", "b")]:
        assert rows[key]["halves_tau"] == pytest.approx(normal_tau(of_halves), abs=0.02)
    assert rows["a", "b"]["ceiling_tau_a"] == rows["a", "a"]["halves_tau"]
    assert rows["a", "b"]["ceiling_tau_b"] == rows["b", "b"]["halves_tau"]
    assert rows["a", "b"]["ceiling_overlap_b"] == rows["b", "b"]["halves_overlap"]
    assert rows["a", "a"]["tau"] is rows["a", "a"]["overlap"] is None


def test_unrelated_runs_agree_by_chance_below_their_ceilings():
    rng = np.random.default_rng(1)
    external = noise(rng, n=500)
    a, b = (scored_run(n, rng.normal(size=N) + 0.5 * noise(rng), external) for n in "ab")
    row = rows_of(a, b)["a", "b"]
    assert row["tau"] == pytest.approx(0, abs=0.03)
    assert row["halves_tau"] == pytest.approx(0, abs=0.03)
    assert row["overlap"] == pytest.approx(0.1, abs=0.04)
    assert row["halves_overlap"] == pytest.approx(0.1, abs=0.04)
    assert (row["chance_tau"], row["chance_overlap"]) == (0, 0.1)
    assert row["ceiling_tau_a"] > 0.6


def test_what_equal_seeds_share_is_no_agreement_about_images():
    rng = np.random.default_rng(2)
    shared, shared_external = noise(rng), noise(rng, n=1000)  # of the halves that a seed draws
    a, b = (
        scored_run(name, shared + 0.5 * noise(rng), shared_external + 0.5 * noise(rng, n=1000))
        for name in "ab"
    )
    rows = rows_of(a, b)
    row = rows["a", "b"]
    assert row["tau"] == pytest.approx(normal_tau(1 / 1.25), abs=0.03)
    assert row["external_tau"] == pytest.approx(normal_tau(1 / 1.25), abs=0.03)
    # with the same seeds in both halves this would be .59, too
    for key in [("a", "a"), ("a", "b"), ("b", "b")]:
        assert rows[key]["halves_tau"] == pytest.approx(0, abs=0.04)
        assert rows[key]["external_halves_tau"] == pytest.approx(0, abs=0.05)


def test_what_kinds_of_images_give_shows_in_external_images():
    rng = np.random.default_rng(3)
    kind = rng.normal(size=1000)
    a, b = (scored_run(n, noise(rng, n=500), kind + noise(rng, n=1000)) for n in "ab")
    row = rows_of(a, b)["a", "b"]
    assert row["external_halves_tau"] == pytest.approx(normal_tau(2 / 3), abs=0.03)
    assert row["halves_tau"] == pytest.approx(0, abs=0.06)
    assert (row["images"], row["external_images"]) == (500, 1000)


@pytest.mark.parametrize(
    "first, second, size, ways",
    [
        ([0, 1], [0, 1], 1, 2),  # seed against other seed, in both directions
        ([0, 1], [5, 7], 1, 4),
        ([0, 1, 2, 3], [0, 1, 2, 3], 2, 6),
        ([0, 1, 2, 3], [2, 3, 9, 11], 2, 6 + 4 * 3 + 1),
        ([0], [0, 1, 2], 2, 1),  # all that there are
        ([0], [0], 1, 0),
        ([0], [3], 1, 1),
        (list(range(12)), list(range(12)), 6, 50),
    ],
)
def test_halves_are_disjoint_seeds_of_two_runs(first, second, size, ways):
    halves = draw_halves(first, second, size)
    assert len(set(halves)) == len(halves) == ways
    for of_first, of_second in halves:
        seeds = [first[place] for place in of_first], [second[place] for place in of_second]
        assert not set(seeds[0]) & set(seeds[1])
        assert len(set(seeds[0])) == min(size, len(first))
        assert len(set(seeds[1])) == size


def test_a_run_is_halved_in_each_way_once():
    seeds = [0, 1, 2, 3]
    assert draw_halves(seeds, seeds, 2) == [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))]
    assert draw_halves([5], [5], 1) == []


def test_all_cells_are_means_over_equally_many_seeds():
    rng = np.random.default_rng(0)
    runs = [
        scored_run(name, noise(rng, count, 50), noise(rng, count, 50))
        for name, count in (("a", 8), ("b", 4), ("c", 1))
    ]
    assert seeds_of_a_half(runs) == 2
    assert seeds_of_a_half(runs[:1]) == 4 and seeds_of_a_half(runs[2:]) is None
    rows = rows_of(*runs)
    sizes = {key: (row["seeds_of_half_a"], row["seeds_of_half_b"]) for key, row in rows.items()}
    assert sizes == {
        ("a", "a"): (2, 2), ("a", "b"): (2, 2), ("b", "b"): (2, 2),
        ("a", "c"): (2, 1), ("b", "c"): (2, 1), ("c", "c"): (0, 0),
    }  # fmt: skip
    assert rows["c", "c"]["halves_tau"] is rows["a", "c"]["ceiling_tau_b"] is None
    assert rows["a", "c"]["ceiling_tau_a"] is not None


def test_a_halving_takes_its_own_seeds_of_either_run():
    rng = np.random.default_rng(4)
    image = rng.normal(size=500)
    scores = noise(rng, 2, 500)
    scores[0] = image
    others = noise(rng, 2, 500)
    others[1] = image  # seed 0 of a ranks as seed 7 of b, whose places differ
    a = scored_run("a", scores, noise(rng, 2, 50), seeds=[0, 7])
    b = scored_run("b", others, noise(rng, 2, 50), seeds=[0, 7])
    row = rows_of(a, b)["a", "b"]
    assert row["halvings"] == 2
    assert row["halves_tau"] == pytest.approx(0.5, abs=0.06)  # of 1 and about 0


def test_local_scores_rank_if_all_runs_rank_by_them():
    rng = np.random.default_rng(5)
    scores, external = noise(rng, 2, 40), noise(rng, 2, 30)
    local = noise(rng, 2, 70)
    local[1, 3], local[0, 40 + 7] = np.nan, np.nan
    a = scored_run("a", scores, external, headline="score_local", local=local)
    of_b = noise(rng, 2, 70)
    of_b[0, 9] = np.nan
    b = scored_run("b", scores, external, headline="score_local", local=of_b)
    rankings = common_rankings([a, b])
    assert rankings.column == "score_local"
    assert rankings.candidate.tolist() == [i for i in range(40) if i not in (3, 9)]
    assert rankings.external.tolist() == [i for i in range(30) if i != 7]
    assert rankings.left_out == {"candidate": 2, "external": 1}
    c = scored_run("c", scores, external, headline="score", local=of_b)
    raw = common_rankings([a, c])
    assert (raw.column, len(raw.candidate), raw.left_out["candidate"]) == ("score", 40, 0)
    assert np.array_equal(raw.scores(a, "external"), external)


def test_external_images_are_compared_if_they_are_the_same():
    rng = np.random.default_rng(6)
    scores = noise(rng, 2, 40)
    a, b = (scored_run(name, scores, noise(rng, 2, m)) for name, m in (("a", 30), ("b", 20)))
    assert common_rankings([a, b]).external.tolist() == list(range(20))
    other = dataclasses.replace(b, data=b.data | {"test": {"sha256": "c"}})
    rankings = common_rankings([a, other])
    assert len(rankings.external) == 0 and len(rankings.candidate) == 40
    row = compare_runs([a, other], rankings)[1]
    assert row["external_images"] == 0 and np.isnan(row["external_tau"]) and row["tau"] == 1


def test_shares_above_thresholds_by_hand():
    scores = np.array([3.0, -1.0, 0.0, 1.0])
    assert share_above(scores, np.array([-2, -1, 0, 0.5, 3])).tolist() == [1, 0.75, 0.5, 0.5, 0]


def test_a_line_of_thresholds_has_its_mark_where_five_percent_of_external_images_are_above():
    external = np.arange(101.0)[None] / 100  # the 95th percentile is .95
    candidates = np.array([[-1.0, 0.5, 0.96, 1.0]])
    run = scored_run("a", candidates, external)
    rows = thresholds_of([run], common_rankings([run]))
    (mark,) = (row for row in rows if row["mark"])
    assert mark["mark"] == "external_95"
    assert mark["threshold_score"] == pytest.approx(0.95)
    assert mark["threshold"] == pytest.approx(0.95 / 2)  # max - min is 2
    assert mark["candidates_above"] == 0.5
    assert mark["external_above"] == pytest.approx(5 / 101)
    grid = [row for row in rows if not row["mark"]]
    assert [row["threshold"] for row in grid] == [number / 100 for number in range(-50, 51)]
    by_threshold = {row["threshold"]: row for row in grid}
    assert by_threshold[0.0]["candidates_above"] == 0.75
    assert by_threshold[0.25]["candidates_above"] == 0.5  # .5 is not above .5
    assert by_threshold[0.0]["external_above"] == pytest.approx(100 / 101)


def test_a_run_in_numbers_by_hand():
    candidate = np.array([[1.0, 3.0], [2.0, 6.0]])
    external = np.array([[0.0, 2.0], [0.0, 2.0]])
    run = scored_run("a", candidate, external)
    row = describe_run(run, common_rankings([run]))
    assert (row["mean_candidate"], row["mean_external"]) == (3, 1)
    of_seeds = [1 / np.sqrt(2), 3 / np.sqrt((8 + 2) / 2)]
    assert row["d_of_one_seed"] == pytest.approx(np.mean(of_seeds))
    assert row["d_of_one_seed_std"] == pytest.approx(np.std(of_seeds, ddof=1))
    assert row["external_95"] == pytest.approx(1.9)
    assert row["above_external_95"] == 0.5  # of 1.5 and 4.5
    ends = [row["above_external_95_low"], row["above_external_95_high"]]
    assert ends == interval_of_share(candidate, external)
    assert row["q_below_0.1"] == 1  # of 0 and 1/3
    assert (row["d"], row["p"], row["reliability"], row["accuracy"]) == (0.25, 0.5, None, None)


def test_bands_are_the_ends_the_upper_quarter_and_the_middle():
    scores = np.random.default_rng(0).permutation(100).astype(float)
    bands = {name: scores[places].tolist() for name, places in bands_of(scores, 4).items()}
    assert bands == {
        "the highest": [99, 98, 97, 96],
        "around the 75th percentile": [76, 75, 74, 73],
        "around the median": [51, 50, 49, 48],
        "the lowest": [3, 2, 1, 0],
    }
    assert len(bands_of(scores, 40)["the lowest"]) == 10  # no more than a tenth
    assert [len(band) for band in bands_of(np.array([1.0, 2.0]), 4).values()] == [1, 1, 1, 1]
