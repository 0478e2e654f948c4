"""The whole chain on a folder of images, as on ImageNet: prepared, trained, scored."""

import csv

import numpy as np
from conftest import folder_config

import memorization_scores
import train_simclr


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
