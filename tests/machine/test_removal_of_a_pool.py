"""Removal from the pool of a crossover, what of the removed is beyond chance, and which scores rank
the samples.
"""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import read_table, remove, score

import memorization_scores
import remove_samples
from memorization.checkpoint import load_pair, read_checkpoint
from memorization.data.catalogue import DataSettings
from memorization.data.images import open_images
from memorization.data.subsets import load_subsets
from memorization.measuring.removal import Removal, count_beyond_chance
from memorization.measuring.removal_curve import CurveSummary
from memorization.measuring.removal_order import RankedSamples, distances_to_centres
from memorization.measuring.representations import encode_images
from memorization.run import open_run

WITH_16 = "--removal.counts 16 --removal.policies memorized --retrain".split()


def candidates_of(folder):
    """The candidates in scores.csv, as columns."""
    table = read_table(folder)[1]
    rows = table["subset"] == "candidate"
    return {name: values[rows] for name, values in table.items()}


def test_a_reduced_set_is_the_whole_pool_without_the_most_memorized(pool_copy):
    _, run = pool_copy
    remove(pool_copy)
    parent, scored = load_subsets(run / "subsets.npz"), candidates_of(run / "scores")
    order = np.argsort(-scored["score"], kind="stable")
    for count in (4, 8):
        kept = load_subsets(run / f"removal/subsets/memorized_{count}_draw0.npz")
        removed = scored["index"][order[:count]]
        assert set(kept.candidate) == set(parent.candidate) - set(removed) and len(removed) == count
        assert (kept.scheme, kept.role, len(kept.independent)) == ("fixed", "candidate", 0)
    whole = load_subsets(run / "removal/subsets/none_0_draw0.npz")
    assert whole.candidate.tolist() == parent.candidate.tolist() and len(whole.candidate) == 64


def test_the_curve_of_a_pool_begins_at_encoders_that_were_trained_on_all_of_it(
    pool_copy, in_process, capsys
):
    _, run = pool_copy
    remove(pool_copy, *WITH_16)
    runs = [command[command.index("--run") + 1] for command in in_process]
    assert [path.rpartition("/")[2] for path in runs] == (
        ["none_0_draw0"] * 2 + ["memorized_16_draw0"] * 2
    )
    reduced = "without 16 of 64 images: 3 epochs of 3 steps, 9 in all"
    assert f"{reduced}; with all of them: 2 epochs of 4 steps, 8 " in capsys.readouterr().out
    for name, epochs in (("none_0_draw0", 2), ("memorized_16_draw0", 3)):
        encoder = read_checkpoint(run / f"removal/{name}/seed_1/candidate/encoder.pt")
        assert encoder["config"]["training"]["epochs"] == epochs
    (folder,) = (file.parent for file in (run / "removal").glob("*/curve.csv"))
    with open(folder / "curve.csv", newline="") as file:
        rows = [(row["policy"], row["count"], row["seed"]) for row in csv.DictReader(file)]
    assert rows == [("none", "0", "0"), ("none", "0", "1")] + [
        ("memorized", "16", "0"),
        ("memorized", "16", "1"),
    ]
    summary = CurveSummary.parse((folder / "summary.json").read_text())
    assert summary.datasets["fake"].nothing_removed.n == 2
    assert summary.steps[0].steps == 8 and summary.beyond_chance.removed["memorized"].keys() == {16}
    assert {name.split("/seed")[0] for name in summary.fingerprints["encoders"]} == {
        "removal/none_0_draw0",
        "removal/memorized_16_draw0",
    }


def test_retrainings_of_a_pool_are_shared_and_kept(pool_copy, in_process, capsys):
    _, run = pool_copy
    remove(pool_copy, *WITH_16, "--jobs", "list")
    assert capsys.readouterr().out.splitlines() == [
        f"{name} seed {seed}" for name in ("none_0_draw0", "memorized_16_draw0") for seed in (0, 1)
    ]
    remove(pool_copy, *WITH_16, "--jobs", "0/2")
    trained = {file: file.stat().st_mtime_ns for file in (run / "removal").rglob("encoder.pt")}
    assert [file.parents[2].name for file in trained] == ["none_0_draw0"] * 2
    remove(pool_copy, *WITH_16)
    assert all(file.stat().st_mtime_ns == time for file, time in trained.items())
    assert len(list((run / "removal").rglob("encoder.pt"))) == 4


def test_typical_images_of_a_pool_are_told_by_the_encoders_without_them(pool_copy):
    _, run = pool_copy
    remove(pool_copy, "--removal.policies", "typical", "--removal.clusters", "3")
    pool, images = (
        load_subsets(run / "subsets.npz"),
        open_images(DataSettings(name="fake", size=16)),
    )
    typicality = dict.fromkeys(pool.candidate.tolist(), 0.0)
    for seed in (0, 1):
        halves, pair = pool.of_seed(seed), load_pair(run, seed)
        for subset, encoder in (("candidate", pair.g), ("independent", pair.f)):
            # in the order of the pool, on which the first centres depend
            half = pool.candidate[np.isin(pool.candidate, getattr(halves, subset))]
            rows = torch.from_numpy(half)
            values = encode_images(encoder, images.train, rows, torch.device("cpu")).numpy()
            for index, distance in zip(half.tolist(), distances_to_centres(values, 3, seed=0)):
                typicality[index] += distance / 2
    kept = load_subsets(run / "removal/subsets/typical_8_draw0.npz").candidate
    removed = set(typicality) - set(kept.tolist())
    assert removed == set(sorted(typicality, key=typicality.get)[:8])


# --- beyond chance --------------------------------------------------------------------------------


def test_of_the_removed_those_beyond_chance_are_counted():
    q = np.array([0.01, 0.09, 0.1, 0.5, 1.0, 1.0])
    scores = np.array([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    samples = RankedSamples(np.arange(6), np.zeros(6), scores, [0], q=q)
    removals = [Removal("none", 0, 0)]
    removals += [Removal(policy, count, 0) for policy in ("memorized", "least") for count in (1, 3)]
    removals += [Removal("random", 5, draw) for draw in range(40)]
    beyond = count_beyond_chance(removals, samples)
    assert beyond.ranked == 2
    of_random = beyond.removed.pop("random")[5]  # one image stays, one of the two in a third
    assert beyond.removed == {"memorized": {1: 1, 3: 2}, "least": {1: 0, 3: 0}}
    assert of_random == pytest.approx(2 - 1 / 3, abs=0.3) and of_random % 1


def with_planted_candidates(scores):
    """Score candidates with an image as f has it, ten of them far above all others."""

    def planted(pair, images, rows, recipes, scoring):
        of = scores(pair, images, rows, recipes, scoring)
        candidate = np.flatnonzero(rows["subset"] == "candidate")[:10]
        of.loss_f[candidate], of.loss_g[candidate] = 0.0, 1.9
        return of

    return planted


@pytest.mark.parametrize("run_of", ["halves_copy", "pool_copy"])
def test_q_is_that_of_the_table(run_of, request):
    path, run = request.getfixturevalue(run_of)
    scores = open_run("", ["--config", path, "--run", str(run)], "removal").candidate_scores()
    scored = candidates_of(run / "scores")
    assert np.array_equal(scores.index, scored["index"])
    assert np.array_equal(scores.q, scored["q"]) and len(np.unique(scores.q)) > 1
    assert np.array_equal(scores.score, scored["score"])


def test_the_memorized_beyond_chance_are_on_the_screen_and_in_the_summary(
    halves_copy, in_process, monkeypatch, capsys
):
    path, run = halves_copy
    planted = with_planted_candidates(memorization_scores.score_rows)
    monkeypatch.setattr(memorization_scores, "score_rows", planted)
    options = ["--scores.views", "3"]
    score(path, "--run", str(run), *options)
    capsys.readouterr()
    policies = ["--removal.policies", "memorized", "least", "--removal.counts", "2", "16"]
    remove(halves_copy, *options, *policies, "--seeds", "0", "--retrain")
    printed = capsys.readouterr().out
    (folder,) = (file.parent for file in (run / "removal").glob("*/summary.json"))
    beyond = json.loads((folder / "summary.json").read_text())["beyond_chance"]
    least = beyond["removed"]["least"]
    assert beyond["ranked"] == 10 and beyond["q"] == 0.1
    assert beyond["removed"]["memorized"] == {"2": 2, "16": 10} and least == {"2": 0, "16": 0}
    assert "10 of 32 ranked samples are memorized beyond chance (q < 0.1)" in printed
    assert "memorized  2 of 2, 10 of 16\n" in printed and "least  0 of 2, 0 of 16\n" in printed


# --- scores by name -------------------------------------------------------------------------------


@pytest.mark.parametrize("run_of", ["halves_copy", "pool_copy"])
def test_scores_of_other_settings_leave_the_full_ones_alone(run_of, request):
    path, run = request.getfixturevalue(run_of)
    full = {file: file.read_bytes() for file in (run / "scores").iterdir()}
    score(path, "--run", str(run), "--scores.views", "3", "--scores.per_subset", "8")
    assert all(file.read_bytes() == content for file, content in full.items())
    assert (run / "scores/views_3_per_subset_8/scores.csv").exists()


def test_samples_are_ranked_by_the_scores_of_the_same_settings(halves_copy):
    path, run = halves_copy
    options = ["--scores.views", "3", "--scores.per_subset", "32"]
    score(path, "--run", str(run), *options)
    remove(halves_copy, *options)
    assert not (run / "removal/subsets").exists()
    remove(halves_copy)
    subsets, removed = load_subsets(run / "subsets.npz"), {}
    for place, folder in (
        ("removal", "scores"),
        ("removal/scores_views_3_per_subset_32", "scores/views_3_per_subset_32"),
    ):
        scored = candidates_of(run / folder)
        kept = load_subsets(run / place / "subsets/memorized_8_draw0.npz").candidate
        removed[place] = set(subsets.candidate) - set(kept)
        highest = np.argsort(-scored["score"], kind="stable")[:8]
        assert removed[place] == set(scored["index"][highest])
    assert len(set(map(frozenset, removed.values()))) == 2


def test_encoders_of_other_scores_lie_apart(halves_copy, in_process):
    path, run = halves_copy
    quick = [*"--removal.counts 4 --removal.policies memorized --seeds 0 --retrain".split()]
    remove(halves_copy, *quick)
    encoder = run / "removal/memorized_4_draw0/seed_0/candidate/encoder.pt"
    first = encoder.read_bytes()
    score(path, "--run", str(run), "--scores.views", "3")
    remove(halves_copy, *quick, "--scores.views", "3")
    assert encoder.read_bytes() == first
    assert (run / "removal/scores_views_3/memorized_4_draw0/seed_0/candidate/encoder.pt").exists()


def test_some_scores_are_not_enough_to_rank_all(halves_copy, refusal):
    path, run = halves_copy
    options = ["--run", str(run), "--scores.views", "3", "--scores.per_subset", "8"]
    score(path, *options)
    line = refusal(remove_samples.main, ["--config", path, *options])
    assert f"{run}/scores/views_3_per_subset_8: 24 of 32 candidates have no score" in line
    assert not (run / "removal").exists()
