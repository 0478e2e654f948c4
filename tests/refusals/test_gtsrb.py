"""Data sets of image files that torchvision lists, on GTSRB in the format of its files: prepared
like a folder of images, downloaded if they are missing, refused in one line.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from memorization.data.augmentations import Draw, augment
from memorization.data.catalogue import IN_FILES, DataSettings
from memorization.data.image_files import decode_image
from memorization.data.images import open_images
from memorization.data.recipes import ViewRecipe
from memorization.errors import WrongUse

COLUMNS = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"


pytestmark = pytest.mark.usefixtures("no_network")


def write_image(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (20 + seed, 30 - seed, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path, "ppm")


def write_gtsrb(root):
    """Two classes with two training images each, and two test images, of changing shape."""
    training, test = root / "gtsrb/GTSRB/Training", root / "gtsrb/GTSRB/Final_Test/Images"
    for label in range(2):
        for track in range(2):
            file = training / f"{label:05}" / f"{track:05}_00000.ppm"
            write_image(file, seed=2 * label + track)
        (training / f"{label:05}" / f"GT-{label:05}.csv").write_text(COLUMNS)
    rows = ""
    for i, label in enumerate((1, 0)):
        write_image(test / f"{i:05}.ppm", seed=4 + i)
        rows += f"{i:05}.ppm;30;20;5;5;25;15;{label}\n"
    (root / "gtsrb/GT-final_test.csv").write_text(COLUMNS + rows)


def open_gtsrb(root, **settings):
    settings = {"size": 12, "prepared": str(root / "prepared"), **settings}
    return open_images(DataSettings(name="gtsrb", root=str(root), **settings))


def test_its_files_are_those_of_torchvision_and_are_decoded_like_those_of_a_folder(tmp_path):
    write_gtsrb(tmp_path)
    images = open_gtsrb(tmp_path)
    samples = datasets.GTSRB(tmp_path, "train")._samples
    assert list(zip(images.train.files, images.train.labels.tolist())) == samples
    assert images.test.labels.tolist() == [1, 0] and images.classes == ("0", "1")
    for split in (images.train, images.test):  # their names are paths below data.root
        assert [str(tmp_path / name) for name in split.names] == list(split.files)
    images = images.prepare([0, 3], [1])
    for split, indices in ((images.train, [0, 3]), (images.test, [1])):
        expected = [decode_image(split.files[i], 12).pixels for i in indices]
        assert torch.equal(split.gather(torch.tensor(indices)), torch.tensor(np.array(expected)))
    view = augment(
        images.train,
        torch.tensor([3]),
        ViewRecipe(size=8, crop_scale=[0.5, 1.0]),
        images.normalization,
        Draw(0, "training"),
    )
    assert view.pixels.shape == (1, 3, 8, 8)
    assert images.fingerprint["name"] == "gtsrb" and images.train.geometry.shape == (2, 3)


def test_it_needs_a_size_and_comes_class_by_class(tmp_path):
    with pytest.raises(ValueError, match="size is missing: gtsrb needs one"):
        DataSettings(name="gtsrb")
    assert "gtsrb" in IN_FILES and "cifar10" not in IN_FILES


def test_a_missing_one_is_downloaded_once_and_leaves_nothing_else(tmp_path, monkeypatch):
    downloads = []

    def download(self):
        downloads.append(self._split)
        write_gtsrb(Path(self.root))

    monkeypatch.setattr(datasets.GTSRB, "download", download)
    for _ in range(2):
        assert len(open_gtsrb(tmp_path / "data").train) == 4
    assert downloads == ["train", "test"] and os.listdir(tmp_path / "data") == ["gtsrb"]


def test_what_is_there_of_a_half_unpacked_one_is_never_written_over(tmp_path, monkeypatch):
    write_gtsrb(tmp_path)
    (tmp_path / "gtsrb/GT-final_test.csv").unlink()
    kept = tmp_path / "gtsrb/GTSRB/Training/00000/00000_00000.ppm"
    write_image(kept, seed=9)
    content = kept.read_bytes()
    monkeypatch.setattr(datasets.GTSRB, "download", lambda self: write_gtsrb(Path(self.root)))
    assert len(open_gtsrb(tmp_path).test) == 2 and kept.read_bytes() == content


def test_a_failed_download_is_wrong_use_with_data_set_root_and_reason(tmp_path):
    (tmp_path / "data").mkdir()
    words = f"^gtsrb: cannot be read .*not found.*no network.*; looked for in {tmp_path}/data, then"
    with pytest.raises(WrongUse, match=words):
        open_gtsrb(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("rows, words", [
    ("00000.ppm;30;20;5;5;25;15\n", "gtsrb: cannot be read"),
    ("00000.ppm;30;20;5;5;25;15;one\n", "invalid literal"),
    ("00000.ppm;30;20;5;5;25;15;-2\n", "a test label outside of the 2 classes"),
    ("", "gtsrb: cannot be read .0 test images"),
])  # fmt: skip
def test_a_damaged_table_is_wrong_use(tmp_path, rows, words):
    write_gtsrb(tmp_path)
    (tmp_path / "gtsrb/GT-final_test.csv").write_text(COLUMNS + rows)
    with pytest.raises(WrongUse, match=words) as refusal:
        open_gtsrb(tmp_path)
    assert str(tmp_path) in str(refusal.value)


def test_an_image_that_is_missing_or_broken_is_named(tmp_path):
    write_gtsrb(tmp_path)
    images = open_gtsrb(tmp_path)
    Path(images.train.files[1]).write_bytes(b"no image")
    Path(images.test.files[0]).unlink()
    with pytest.raises(WrongUse, match="00001_00000.ppm: cannot be decoded.*00000.ppm"):
        images.prepare(range(4), range(2))
    assert images.prepare([0, 2, 3], [1]).train.pixels.shape == (3, 3, 12, 12)
