"""The whole chain: by every method, and on a folder of images, as on ImageNet."""

import csv
import json

import numpy as np
import pytest
from conftest import (
    HALVES,
    METHODS,
    ONE_REMOVAL,
    ask,
    folder_config,
    read_table,
    remove,
    score,
    train,
    write_experiment,
)

import linear_probing_train
import memorization_scores
import train_simclr
from memorization import load_pair
from memorization.checkpoint import read_checkpoint
from memorization.data.subsets import load_subsets


@pytest.mark.parametrize("method", METHODS)
def test_a_pair_of_any_method_is_trained_scored_asked_probed_and_retrained(
    method, tmp_path, in_process, no_pictures
):
    path = write_experiment(tmp_path, METHODS[method].changes | HALVES | {"seeds": [0]})
    run = tmp_path / "run"
    train(path, method=method)
    f, g = load_pair(run, seed=0)  # of their files alone
    assert f.identity != g.identity

    score(path)
    table = read_table(run / "scores")[1]
    losses = table["alignment_loss_f"], table["alignment_loss_g"]
    assert len(table["score"]) == 32 + 32 + 40 and all((loss > 0).all() for loss in losses)
    assert np.allclose(table["score"], losses[1] - losses[0]) and table["score"].std() > 0

    rows, _ = ask(path, run)
    assert len(rows) == 32 + 32
    assert any(row["confidence_f"] != row["confidence_g"] for row in rows)

    linear_probing_train.main(["--config", path])
    results = json.loads((run / "probe/summary.json").read_text())["results"]
    probed = {row["encoder"] for row in results}
    assert {"candidate seed 0", "independent seed 0", "random encoder"} <= probed

    remove((path, run), *ONE_REMOVAL)
    assert len(in_process) == 1
    (retrained,) = (run / "removal").rglob("encoder.pt")
    of_f = read_checkpoint(run / "seed_0/candidate/encoder.pt")
    assert read_checkpoint(retrained)["config"]["method"] == of_f["config"]["method"]
    (subsets,) = (run / "removal/subsets").iterdir()
    candidates = table["index"][table["subset"] == "candidate"]
    scores = table["score"][table["subset"] == "candidate"]
    left = np.setdiff1d(candidates, candidates[np.argsort(-scores)[:4]])
    assert load_subsets(subsets).candidate.tolist() == left.tolist()


def test_a_folder_of_images_is_prepared_once_trained_on_and_scored(tmp_path):
    path = folder_config(tmp_path)
    train_simclr.main(["--config", path])
    maps = sorted((tmp_path / "prepared").glob("*.npy"))
    assert [np.load(file, mmap_mode="r").shape for file in maps if "geometry" not in file.name] == [
        (10, 3, 16, 16),
        (32, 3, 16, 16),
    ]
    written = [file.stat().st_mtime_ns for file in maps]
    memorization_scores.main(["--config", path])
    assert [file.stat().st_mtime_ns for file in maps] == written  # not decoded again
    with open(tmp_path / "run/scores/scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 42 and {row["label"] for row in rows} == {"0", "1"}
    assert all(
        int(row["label"]) == 2 * int(row["index"]) // (60 if row["split"] == "train" else 20)
        for row in rows
    )
