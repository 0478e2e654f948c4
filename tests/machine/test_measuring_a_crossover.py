"""Deja Vu and probes of a crossover: every seed has its own halves of the pool."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import QUICK_PROBE, ask, score
from scipy import stats

import linear_probing_train
from memorization.data.catalogue import DataSettings
from memorization.data.images import open_images
from memorization.data.subsets import load_subsets
from memorization.measuring import attacks
from memorization.measuring.attacks import public_images
from memorization.measuring.deja_vu import DejaVuSettings

ROLES = ("candidate", "independent")


def tau(one, other):
    """Kendall's tau of two {image: value} of the same images."""
    return stats.kendalltau(
        *([of[index] for index in sorted(one)] for of in (one, other))
    ).statistic


def scores_per_seed(folder, run):
    """{seed: {image: L of the encoder without it less L of the one with it}} of the pool."""
    subsets, scores = load_subsets(run / "subsets.npz"), {}
    with np.load(folder / "scores.npz") as file:
        index, pool = file["index"], file["subset"] == "candidate"
        for seed, (f, g) in enumerate(zip(file["L_f"], file["L_g"])):
            in_f = np.isin(index, subsets.of_seed(seed).candidate)
            signed = np.where(in_f, g - f, f - g)
            scores[seed] = dict(zip(index[pool].tolist(), signed[pool].tolist()))
    return scores


def margins_per_seed(rows):
    """{seed: {image: how much more of the vote of the encoder with it goes to its label}}."""
    margins = {}
    for row in rows:
        f, g = float(row["label_share_f"]), float(row["label_share_g"])
        margin = f - g if row["subset"] == "candidate" else g - f
        margins.setdefault(int(row["seed"]), {})[int(row["index"])] = margin
    return margins


@pytest.fixture(scope="module")
def attacked_pool(pool, tmp_path_factory):
    """(run folder, rows of dejavu.csv, summary) of the crossover. Not to be changed."""
    run = shutil.copytree(pool[1], tmp_path_factory.mktemp("attacked") / "run")
    return run, *ask(pool[0], run)


def test_deja_vu_attacks_the_halves_of_every_seed(attacked_pool):
    run, rows, summary = attacked_pool
    subsets = load_subsets(run / "subsets.npz")
    for seed in (0, 1):
        halves = subsets.of_seed(seed)
        for subset in ROLES:
            attacked = [
                int(row["index"])
                for row in rows
                if (row["seed"], row["subset"]) == (str(seed), subset)
            ]
            assert attacked == sorted(getattr(halves, subset).tolist())
        assert summary["seeds"][seed]["images"] == {"candidate": 32, "independent": 32}


def test_deja_vu_and_scores_are_compared_by_the_encoder_with_the_image(attacked_pool):
    run, rows, summary = attacked_pool
    margins, scores = margins_per_seed(rows), scores_per_seed(run / "scores", run)
    compared = summary["memorization_scores"]
    assert compared["candidates"] == 64 and compared["top"] == 32
    expected = {
        "deja_vu_and_score": np.mean([tau(margins[seed], scores[seed]) for seed in (0, 1)]),
        "deja_vu_between_seeds": tau(margins[0], margins[1]),
        "score_between_seeds": tau(scores[0], scores[1]),
    }
    for name, value in expected.items():
        assert compared[name]["kendall_tau"]["mean"] == pytest.approx(value, abs=1e-12), name


def test_deja_vu_is_compared_with_the_scores_of_the_same_settings(pool_copy):
    path, run = pool_copy
    few = ["--scores.views", "3", "--scores.per_subset", "8"]
    score(path, "--run", str(run), *few)
    for options, folder, count in ((few, "scores/views_3_per_subset_8", 8), ([], "scores", 64)):
        rows, summary = ask(path, run, *options)
        scores, compared = scores_per_seed(run / folder, run), summary["memorization_scores"]
        assert compared["candidates"] == count
        margins = {
            seed: {index: margin for index, margin in of.items() if index in scores[seed]}
            for seed, of in margins_per_seed(rows).items()
        }
        expected = np.mean([tau(margins[seed], scores[seed]) for seed in (0, 1)])
        mean = compared["deja_vu_and_score"]["kendall_tau"]["mean"]
        assert mean == pytest.approx(expected, abs=1e-12)


def test_no_public_image_is_of_the_pool(pool):
    subsets = load_subsets(pool[1] / "subsets.npz")
    images = open_images(DataSettings(name="fake", size=16))
    settings = DejaVuSettings(public_split="train", k=20)
    public = public_images(images, subsets, settings, torch.device("cpu"))
    pool = set(subsets.candidate.tolist())
    assert set(public.rows.tolist()) == set(range(1024)) - pool and len(pool) == 64


def test_a_classifier_of_parts_learns_from_what_f_of_its_seed_never_saw(pool_copy, monkeypatch):
    path, run = pool_copy
    calls, train = [], attacks.train_classifier
    monkeypatch.setattr(
        attacks,
        "train_classifier",
        lambda *arguments: [calls.append(arguments[1]), train(*arguments)][1],
    )
    options = ["--dejavu.reference", "crops", "--dejavu.reference_epochs", "2"]
    rows, summary = ask(path, run, *options)
    subsets, compared = load_subsets(run / "subsets.npz"), summary["memorization_scores"]
    for seed, training in enumerate(calls):
        halves = subsets.of_seed(seed)
        assert sorted(training.rows.tolist()) == sorted(halves.independent.tolist())
        attacked = [int(row["index"]) for row in rows if row["seed"] == str(seed)]
        assert attacked == sorted(halves.candidate.tolist())
    assert len(calls) == 2 and summary["trained_on"] == {"f": 32, "reference": 32}
    assert compared["candidates"] == 32 and compared["deja_vu_between_seeds"] is None
    of_first = set(subsets.of_seed(0).candidate.tolist())
    scores = scores_per_seed(run / "scores", run)
    first, second = (
        {index: value for index, value in of.items() if index in of_first} for of in scores.values()
    )
    agreement = compared["score_between_seeds"]["kendall_tau"]["mean"]
    assert agreement == pytest.approx(tau(first, second), abs=1e-12)


def test_encoders_of_a_crossover_are_probed(pool_copy):
    path, run = pool_copy
    linear_probing_train.main(["--config", path, "--run", str(run), *QUICK_PROBE])
    (folder,) = (file.parent for file in (run / "probe").rglob("summary.json"))
    summary = json.loads((folder / "summary.json").read_text())
    encoders = [row["encoder"] for row in summary["results"]]
    trained = [f"{role} seed {seed}" for seed in (0, 1) for role in ROLES]
    assert encoders == [*trained, "random encoder", "raw pixels"]
    assert summary["over_pairs"]["fake"]["paired"]["f > g"]["n"] == 2
