"""What remove_samples.py writes and prints, and what other scripts read of it."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import ONE_REMOVAL, read_table, remove

import linear_probing_train
import remove_samples
from memorization.checkpoint import read_checkpoint
from memorization.data.catalogue import DataSettings
from memorization.data.images import open_images
from memorization.data.subsets import load_subsets
from memorization.measuring.removal_order import duplicate_groups


def test_subset_files_are_named_by_their_removals_and_record_their_parents(halves_copy):
    _, run = halves_copy
    remove(halves_copy)
    subsets = {file.stem: load_subsets(file) for file in (run / "removal/subsets").iterdir()}
    names = ["memorized_{}_draw0", "random_{}_draw0", "random_{}_draw1"]
    assert set(subsets) == {name.format(count) for name in names for count in (4, 8)}
    parent = load_subsets(run / "subsets.npz")
    for count in (4, 8):
        kept = subsets[f"memorized_{count}_draw0"]
        assert kept.external.tolist() == parent.external.tolist()
        assert kept.parents["subsets"] == parent.fingerprint and len(kept.parents["scores"]) == 64


def test_percentages_are_of_the_ranked_samples(halves_copy):
    _, run = halves_copy
    remove(halves_copy, "--removal.counts", "8", "--removal.percentages", "25", "50")
    # 25 per cent are the 8 over again
    assert len(list((run / "removal/subsets").iterdir())) == 2 * 3
    names = {file.name for file in (run / "removal/subsets").glob("memorized*")}
    assert names == {"memorized_8_draw0.npz", "memorized_16_draw0.npz"}


def test_groups_of_near_duplicates_are_counted_on_the_screen_and_recorded(halves_copy, capsys):
    grouped = "--removal.group_duplicates true --removal.duplicate_similarity 0.6".split()
    policies = ["memorized", "least", "random", "random_matched", "typical"]
    remove(halves_copy, "--removal.policies", *policies, *grouped)
    assert "groups of near duplicates hold" in capsys.readouterr().out
    by = {"duplicates_in": "pixels", "duplicate_similarity": 0.6}
    for file in (halves_copy[1] / "removal/subsets").iterdir():
        assert load_subsets(file).parents["near_duplicates"] == by


def test_the_curve_holds_an_accuracy_for_every_removal_and_seed(halves_copy, in_process):
    _, run = halves_copy
    remove(halves_copy, "--retrain")
    with open(run / "removal/curve.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["dataset", "policy", "count", "draw", "seed", "top_1"]
    assert len(in_process) == 2 * 2 * (1 + 2) and len(rows) == len(in_process) + 2
    assert all(0 <= float(row["top_1"]) <= 1 for row in rows)
    assert len({row["top_1"] for row in rows}) > 2
    of = {(row["policy"], row["count"]): [] for row in rows}
    for row in rows:
        of[row["policy"], row["count"]].append(float(row["top_1"]))
    random, memorized = np.array(of["random", "8"]), np.array(of["memorized", "8"])
    summary = json.loads((run / "removal/summary.json").read_text())["datasets"]["fake"]
    expected = {"mean": random.mean(), "std": random.std(ddof=1), "n": 4}
    assert summary["policies"]["random"]["8"] == pytest.approx(expected)
    test, difference = summary["random_above_memorized"]["8"], random.mean() - memorized.mean()
    assert test["n"] == 2 and test["mean_difference"] == pytest.approx(difference)
    assert summary["nothing_removed"]["n"] == 2
    encoder = read_checkpoint(run / "removal/memorized_8_draw0/seed_1/candidate/encoder.pt")
    # of 1 step, in place of 2 of 2
    assert encoder["seed"] == 1 and encoder["config"]["training"]["epochs"] == 4


def test_a_smaller_set_is_trained_for_as_many_steps_unless_told_otherwise(
    halves_copy, in_process, capsys, refusal
):
    path, run = halves_copy
    options = [*ONE_REMOVAL, "--removal.counts", "16"]
    remove(halves_copy, *options)
    # 2 epochs of 2 steps are 4 of 1 step
    assert in_process[0][in_process[0].index("--training.epochs") + 1] == "4"
    reduced = "without 16 of 32 images: 4 epochs of 1 steps, 4 in all"
    whole = "with all of them: 2 epochs of 2 steps, 4 (+0.0 %)"
    assert f"{reduced}; {whole}" in capsys.readouterr().out
    (file,) = (run / "removal").glob("counts_16_*/summary.json")
    assert json.loads(file.read_text())["steps"] == {
        "0": {"epochs": 2, "steps_an_epoch": 2, "steps": 4},
        "16": {"epochs": 4, "steps_an_epoch": 1, "steps": 4},
    }
    fewer = [*options, "--removal.fixed_steps", "false"]
    line = refusal(remove_samples.main, ["--config", path, "--run", str(run), *fewer])
    assert f"trains {run}/removal/memorized_16_draw0 for 2 epochs, but it was trained for 4" in line
    shutil.rmtree(run / "removal/memorized_16_draw0")
    remove(halves_copy, *fewer)
    text = capsys.readouterr().out
    assert "without 16 of 32 images: 2 epochs of 1 steps, 2 in all" in text and "(-50.0 %)" in text
    assert "fewer steps cost accuracy by themselves" in text


def test_an_encoder_of_a_reduced_set_can_be_probed_by_itself(halves_copy, in_process):
    path, run = halves_copy
    remove(halves_copy, "--retrain", "--jobs", "0/12")
    encoder = next((run / "removal").rglob("encoder.pt"))
    linear_probing_train.main(["--config", path, "--run", str(run), "--encoder", str(encoder)])
    assert list((run / "probe").glob("encoder_*/summary.json"))


def test_a_subset_file_is_fs_training_set_without_the_most_memorized(halves_copy):
    _, run = halves_copy
    remove(halves_copy)
    parent, table = load_subsets(run / "subsets.npz"), read_table(run / "scores")[1]
    rows = table["subset"] == "candidate"
    scores = dict(zip(table["index"][rows], table["score"][rows]))
    for count in (4, 8):
        subset = load_subsets(run / f"removal/subsets/memorized_{count}_draw0.npz")
        assert subset.role == "candidate" and len(subset.independent) == 0
        kept, removed = set(subset.candidate), set(parent.candidate) - set(subset.candidate)
        assert len(removed) == count
        assert min(scores[i] for i in removed) >= max(scores[i] for i in kept)
    files = [run / f"removal/subsets/random_8_draw{draw}.npz" for draw in (0, 1)]
    one, other = (set(load_subsets(file).candidate) for file in files)
    assert one != other and len(one) == len(other) == 24


def test_every_policy_and_grouped_duplicates_end_at_the_same_number(halves_copy):
    policies = ["memorized", "least", "random", "random_matched", "typical"]
    grouped = "--removal.group_duplicates true --removal.duplicate_similarity 0.6".split()
    remove(halves_copy, "--removal.policies", *policies, *grouped)
    _, run = halves_copy
    parent, fake = load_subsets(run / "subsets.npz"), DataSettings(name="fake", size=16)
    pixels = open_images(fake).train.pixels[torch.from_numpy(parent.candidate)]
    groups = duplicate_groups(pixels.flatten(1).numpy() / 255.0, 0.6)
    assert len(np.unique(groups)) < 32  # so that there are some
    files = list((run / "removal/subsets").iterdir())
    assert len(files) == 2 * (1 + 1 + 2 + 2 + 1)
    for file in files:
        kept = load_subsets(file)
        assert len(kept.candidate) == 32 - int(file.stem.split("_draw")[0].split("_")[-1])
        counts = np.bincount(groups, weights=np.isin(parent.candidate, kept.candidate))
        assert set(counts / np.bincount(groups)) == {0, 1}  # together, or not at all
