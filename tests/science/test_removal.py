import csv
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import ONE_REMOVAL, remove

import linear_probing_train
import remove_samples
from memorization.checkpoint import read_checkpoint
from memorization.data.catalogue import DataSettings
from memorization.data.images import open_images
from memorization.data.subsets import load_subsets
from memorization.machine.files import json_text
from memorization.measuring.removal_curve import CurveSummary, KeptProbe
from memorization.measuring.removal_order import (
    RankedSamples,
    distances_to_centres,
    duplicate_groups,
    removal_order,
    remove_in_order,
)

SCORES = np.array([0.1, 0.9, -0.5, 0.4, 0.9, 0.0])


LABELS = np.array([0, 1, 0, 0, 1, 1])


FAKE = DataSettings(name="fake", size=16)


def samples_of(scores, labels, **more):
    return RankedSamples(np.arange(len(scores)), labels, scores, [0], **more)


def order_of(policy, count=3, seed=0, **more):
    return removal_order(policy, samples_of(SCORES, LABELS, **more), count, seed).tolist()


def test_the_most_and_the_least_memorized_come_first():
    assert order_of("memorized") == [1, 4, 3, 0, 5, 2]  # of equals, the first in the training set
    assert order_of("least") == [2, 5, 0, 3, 1, 4]


def test_chance_depends_on_the_draw_alone_and_meets_everything():
    orders = [order_of("random", seed=seed) for seed in range(50)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert order_of("random", seed=7) == orders[7] and len({tuple(order) for order in orders}) > 40
    assert {order[0] for order in orders} == set(range(6))


def test_no_draw_of_one_policy_is_that_of_another():
    samples = samples_of(np.arange(50.0), np.zeros(50, dtype=int))
    random, matched = (
        removal_order(policy, samples, 10, seed=0)[:10].tolist()
        for policy in ("random", "random_matched")
    )
    assert len(set(random) & set(matched)) < 8


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count, classes", [(2, [0, 2]), (3, [1, 2]), (5, [2, 3])])
def test_matched_chance_removes_the_classes_of_the_most_memorized(count, classes, seed):
    order = order_of("random_matched", count=count, seed=seed)
    assert np.bincount(LABELS[order[:count]], minlength=2).tolist() == classes
    assert sorted(order) == list(range(6))


def test_the_most_typical_are_closest_to_the_centres_of_their_clusters():
    # two clusters on the circle, each with one outlier
    angles = np.array([0.0, 0.02, 0.3, 1.5, 1.52, 1.9])
    values = 5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    distances = distances_to_centres(values, clusters=2, seed=0)
    assert set(np.argsort(-distances)[:2].tolist()) == {2, 5}
    assert order_of("typical", typicality=distances)[-2:] == np.argsort(distances)[-2:].tolist()


def test_near_duplicates_are_linked_over_others():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(50, 20))
    values[7] = values[3] + 0.05 * generator.normal(size=20)
    values[9] = values[7] + 0.05 * generator.normal(size=20)
    groups = duplicate_groups(values, threshold=0.95)
    assert groups[3] == groups[7] == groups[9] and len(np.unique(groups)) == 48


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_duplicates_and_typicality_do_not_depend_on_the_size_of_representations(size):
    values = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32)
    values[7] = values[3] + 0.01
    scaled = values * np.float32(size)
    assert duplicate_groups(scaled, 0.95).tolist() == duplicate_groups(values, 0.95).tolist()
    assert len(np.unique(duplicate_groups(scaled, 0.95))) == 49
    distances = distances_to_centres(values, clusters=3, seed=0)
    assert np.allclose(distances_to_centres(scaled, clusters=3, seed=0), distances, atol=1e-5)


def test_groups_go_together_and_every_policy_ends_at_the_same_number():
    groups = np.array([0, 1, 0, 2, 3, 0])
    assert remove_in_order(np.array([0, 1, 2, 3, 4, 5]), 2).tolist() == [0, 1]
    assert remove_in_order(np.array([0, 1, 2, 3, 4, 5]), 3, groups).tolist() == [0, 2, 5]
    # a group of three does not fit
    assert remove_in_order(np.array([0, 1, 2, 3, 4, 5]), 2, groups).tolist() == [1, 3]
    assert remove_in_order(np.array([4, 5, 1, 2, 3, 0]), 4, groups).tolist() == [0, 2, 4, 5]
    with pytest.raises(ValueError, match="add up to 3, not to 5"):
        remove_in_order(np.array([0, 1, 2, 3, 4, 5]), 5, np.array([0, 0, 0, 1, 1, 1]))


# --- the script -----------------------------------------------------------------------------------


def scores_of(run):
    with open(run / "scores/scores.csv", newline="") as file:
        return {
            int(row["index"]): float(row["score"])
            for row in csv.DictReader(file)
            if row["subset"] == "candidate"
        }


def test_a_subset_file_is_fs_training_set_without_the_most_memorized(halves_copy):
    _, run = halves_copy
    remove(halves_copy)
    parent, scores = load_subsets(run / "subsets.npz"), scores_of(run)
    files = sorted(file.stem for file in (run / "removal/subsets").iterdir())
    assert files == sorted(
        f"{policy}_{count}_draw{draw}"
        for policy, draws in (("memorized", 1), ("random", 2))
        for count in (4, 8)
        for draw in range(draws)
    )
    for count in (4, 8):
        kept = load_subsets(run / f"removal/subsets/memorized_{count}_draw0.npz")
        removed = set(parent.candidate.tolist()) - set(kept.candidate.tolist())
        assert len(removed) == count and min(scores[i] for i in removed) >= max(
            scores[i] for i in kept.candidate.tolist()
        )
        assert (
            kept.role == "candidate"
            and len(kept.independent) == 0
            and kept.external.tolist() == parent.external.tolist()
        )
        assert kept.parents["subsets"] == parent.fingerprint and len(kept.parents["scores"]) == 64
    draws = [
        set(load_subsets(run / f"removal/subsets/random_8_draw{draw}.npz").candidate.tolist())
        for draw in (0, 1)
    ]
    assert draws[0] != draws[1] and len(draws[0]) == len(draws[1]) == 24


def test_percentages_are_of_the_ranked_samples(halves_copy):
    remove(halves_copy, "--removal.counts", "8", "--removal.percentages", "25", "50")
    # 25 per cent are the 8 over again
    assert len(list((halves_copy[1] / "removal/subsets").iterdir())) == 2 * 3
    names = {file.name for file in (halves_copy[1] / "removal/subsets").glob("memorized*")}
    assert names == {"memorized_8_draw0.npz", "memorized_16_draw0.npz"}


def test_every_policy_and_grouped_duplicates_end_at_the_same_number(halves_copy, capsys):
    policies = ["memorized", "least", "random", "random_matched", "typical"]
    grouped = "--removal.group_duplicates true --removal.duplicate_similarity 0.6".split()
    remove(halves_copy, "--removal.policies", *policies, *grouped)
    assert "groups of near duplicates hold" in capsys.readouterr().out
    _, run = halves_copy
    images, parent = open_images(FAKE), load_subsets(run / "subsets.npz")
    pixels = images.train.pixels[torch.from_numpy(parent.candidate)].flatten(1).numpy()
    groups = duplicate_groups(pixels / 255.0, 0.6)
    assert len(np.unique(groups)) < 32  # so that there are some
    files = list((run / "removal/subsets").iterdir())
    assert len(files) == 2 * (1 + 1 + 2 + 2 + 1)
    for file in files:
        kept = load_subsets(file)
        assert len(kept.candidate) == 32 - int(file.stem.split("_draw")[0].split("_")[-1])
        is_kept = np.isin(parent.candidate, kept.candidate)
        # together, or not at all
        assert all(len(set(is_kept[groups == group])) == 1 for group in groups)
        by = {"duplicates_in": "pixels", "duplicate_similarity": 0.6}
        assert kept.parents["near_duplicates"] == by


def test_the_curve_holds_an_accuracy_for_every_removal_and_seed(halves_copy, in_process):
    _, run = halves_copy
    remove(halves_copy, "--retrain")
    with open(run / "removal/curve.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["dataset", "policy", "count", "draw", "seed", "top_1"]
    assert len(in_process) == 2 * 2 * (1 + 2) and len(rows) == len(in_process) + 2
    assert all(0 <= float(row["top_1"]) <= 1 for row in rows)
    assert len({row["top_1"] for row in rows}) > 2
    summary = json.loads((run / "removal/summary.json").read_text())["datasets"]["fake"]

    def top_1_of(policy):
        chosen = [row for row in rows if (row["policy"], row["count"]) == (policy, "8")]
        return [float(row["top_1"]) for row in chosen]

    random, memorized = top_1_of("random"), top_1_of("memorized")
    assert summary["policies"]["random"]["8"] == {
        "mean": pytest.approx(np.mean(random)),
        "std": pytest.approx(np.std(random, ddof=1)),
        "n": 4,
    }
    test, difference = summary["random_above_memorized"]["8"], np.mean(random) - np.mean(memorized)
    assert test["n"] == 2 and test["mean_difference"] == pytest.approx(difference)
    assert summary["nothing_removed"]["n"] == 2
    assert (run / "removal/curve.png").stat().st_size > 5000
    encoder = read_checkpoint(run / "removal/memorized_8_draw0/seed_1/candidate/encoder.pt")
    # of 1 step, in place of 2 of 2
    assert encoder["seed"] == 1 and encoder["config"]["training"]["epochs"] == 4
    text = (run / "removal/summary.json").read_text()
    read = CurveSummary.parse(text)
    assert json_text(read.plain() | {"files": read.files}) == text
    for file in (run / "removal/probes").iterdir():
        assert json_text(KeptProbe.parse(file.read_text()).plain()) == file.read_text()


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
    (summary,) = [
        json.loads(file.read_text()) for file in (run / "removal").glob("counts_16_*/summary.json")
    ]
    assert summary["steps"] == {
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
