"""Images, and maps of prepared ones, that are broken or made to do harm."""

import io

import numpy as np
import pytest
from hostile import HOSTILE_JSON, fuzz, hostile_arrays
from PIL import Image

from memorization.data.catalogue import DataSettings
from memorization.data.images import open_images


@pytest.fixture
def folder(tmp_path):
    """A folder of eight images of 30 x 20 pixels, prepared."""
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    for place in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / place).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(pixels + i).save(tmp_path / place / f"{i}.png")
    prepared_images(tmp_path)
    return tmp_path


def prepared_images(folder):
    settings = DataSettings(
        name="image_folder", root=str(folder), prepared=str(folder / "prepared"), size=8
    )
    images = open_images(settings).prepare(range(4), range(1))
    return images.fingerprint["train"], images.train.pixels.tolist(), images.train.geometry.tolist()


@pytest.mark.parametrize("suffix", [".npy", ".geometry.npy", ".json"])
def test_a_map_of_prepared_images(suffix, folder):
    (path,) = (
        path
        for path in (folder / "prepared").glob(f"train*{suffix}")
        if path.name.count(".") == suffix.count(".")
    )
    hostile = HOSTILE_JSON if suffix == ".json" else hostile_arrays(path.read_bytes())
    fuzz(path, lambda: prepared_images(folder), hostile)


def test_an_image(folder):
    path = folder / "train/cat/0.png"
    large = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(large, "png")  # 0.8 GB once it is decoded and converted

    def read():
        for kept in (folder / "prepared").iterdir():
            kept.unlink()
        return np.shape(prepared_images(folder)[1])

    fuzz(
        path,
        read,
        [large.getvalue(), b"", b"GIF89a", b"\x89PNG\r\n\x1a\n"],
        valid=lambda shape: shape == (4, 3, 8, 8),
    )
