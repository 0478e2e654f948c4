"""Images of a folder that are broken, lost or changed."""

import json

import numpy as np
import pytest
from conftest import folder_config, four_classes_config
from PIL import Image

import memorization_scores
import train_simclr
from memorization.config import read_run_config
from memorization.data.catalogue import DataSettings
from memorization.data.images import open_images
from memorization.data.subsets import SubsetSettings, draw_subsets, load_subsets
from memorization.errors import WrongUse


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


def break_images(four_classes):
    broken = [
        four_classes / "images/train/a/03.png",
        four_classes / "images/train/c/11.png",
        four_classes / "images/val/b/05.png",
    ]
    for path in broken:
        path.write_bytes(path.read_bytes()[:100])
    return broken


def test_broken_images_are_skipped_counted_and_listed_and_the_sizes_stay(
    four_classes, capsys, refusal
):
    broken = break_images(four_classes)
    path = four_classes_config(four_classes, {"subsets.shared": 38, "subsets.external": 31})
    line = refusal(train_simclr.main, ["--config", path])
    assert all(str(file) in line for file in broken)
    train_simclr.main(["--config", path, "--data.skip_broken", "true"])
    assert "3 broken images are left out" in capsys.readouterr().out
    skipped = json.loads((four_classes / "run/skipped_images.json").read_text())
    assert [entry["file"] for split in ("train", "test") for entry in skipped[split]] == list(
        map(str, broken)
    )
    subsets = load_subsets(four_classes / "run/subsets.npz")
    assert (len(subsets.train), len(subsets.external)) == (78, 31)
    assert not {entry["index"] for entry in skipped["train"]} & set(subsets.train.tolist())
    assert (
        not list((four_classes / "prepared").glob("*.partial"))
        and len(list((four_classes / "prepared").glob("train*.json"))) == 1
    )

    train_simclr.main(["--config", path, "--data.skip_broken", "true"])  # finished already
    memorization_scores.main(["--config", path])
    assert read_run_config(four_classes / "run").data.skip_broken


def test_subsets_without_broken_images_are_those_of_a_folder_without_them(four_classes):
    broken = break_images(four_classes)
    settings = SubsetSettings(shared=20, candidate=20, independent=20, external=20)
    data = DataSettings(
        name="image_folder",
        root=str(four_classes / "images"),
        prepared=str(four_classes / "prepared"),
        size=16,
        skip_broken=True,
    )
    images = open_images(data)
    faults = images.find_broken(np.arange(80), np.arange(32))
    left = draw_subsets(settings, images.leave_out(faults))
    files = [images.train.files[index] for index in left.train]
    for path in broken:
        path.unlink()
    images = open_images(data)
    assert files == [images.train.files[index] for index in draw_subsets(settings, images).train]


def test_too_few_images_that_are_not_broken_are_refused(four_classes):
    break_images(four_classes)
    path = four_classes_config(four_classes, {"subsets.shared": 39, "data.skip_broken": True})
    with pytest.raises(SystemExit):
        train_simclr.main(["--config", path])
    assert not (four_classes / "run").exists()


def test_an_image_that_may_not_be_read_is_not_skipped(four_classes, monkeypatch):
    def refuse(path, size):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("memorization.data.decoding.decode_image", refuse)
    data = DataSettings(
        name="image_folder",
        root=str(four_classes / "images"),
        prepared=str(four_classes / "prepared"),
        size=16,
        skip_broken=True,
    )
    with pytest.raises(WrongUse, match="cannot be read .Permission denied."):
        open_images(data).find_broken(np.arange(3), np.arange(1))
