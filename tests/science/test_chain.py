"""The whole chain on a folder of images, as on ImageNet: prepared, trained, scored."""

import csv

import numpy as np
import torch
from conftest import write_experiment
from PIL import Image

import memorization_scores
import train_simclr


def write_images(folder, count, seed):
    """A class-folder tree of `count` PNG files of different sizes, half of them in either class."""
    generator = torch.Generator().manual_seed(seed)
    for i in range(count):
        height, width = torch.randint(12, 30, (2,), generator=generator).tolist()
        pixels = torch.randint(
            256, (height, width, 3), generator=generator, dtype=torch.uint8
        ).numpy()
        path = folder / f"class_{2 * i // count}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def folder_config(tmp_path):
    write_images(tmp_path / "images/train", 60, seed=0)
    write_images(tmp_path / "images/val", 20, seed=1)
    data = {
        "name": "image_folder",
        "root": str(tmp_path / "images"),
        "prepared": str(tmp_path / "prepared"),
        "size": 16,
    }
    subsets = {"shared": 16, "candidate": 8, "independent": 8, "external": 10, "order": "shuffled"}
    return write_experiment(tmp_path, {"data": data, "subsets": subsets, "training.knn_every": 3})


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


def test_a_folder_that_lost_or_changed_images_is_refused(tmp_path, refusal):
    path = folder_config(tmp_path)
    train_simclr.main(["--config", path])
    with np.load(tmp_path / "run/subsets.npz") as subsets:
        used = (
            tmp_path
            / "images/train"
            / f"class_{subsets['shared'][0] // 30}"
            / f"{subsets['shared'][0]:03d}.png"
        )
    content = used.read_bytes()
    Image.new("RGB", (20, 20)).save(used)
    assert "other images" in refusal(memorization_scores.main, ["--config", path])
    used.write_bytes(content[:60])
    assert str(used) in refusal(memorization_scores.main, ["--config", path])
    for file in sorted((tmp_path / "images/val").rglob("*.png"))[5:]:
        file.unlink()
    (tmp_path / "images/val/class_1").mkdir(exist_ok=True)
    Image.new("RGB", (20, 20)).save(tmp_path / "images/val/class_1/x.png")
    used.write_bytes(content)
    assert "has only 6 images" in refusal(memorization_scores.main, ["--config", path])
