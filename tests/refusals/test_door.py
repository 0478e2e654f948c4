"""What training refuses."""

import dataclasses
import shutil

import pytest
from conftest import run_out_of_memory, train

import train_simclr
from memorization.config import read_config
from memorization.data.images import open_images
from memorization.errors import WrongUse
from memorization.training import loop, pair
from models.encoders import make_encoder
from models.simclr import SimCLR, SimCLRSettings


def test_another_encoder_in_the_place_of_a_finished_one_is_refused(write_config, tmp_path, refusal):
    path = write_config({"training.epochs": 1})
    train(path)
    folder = tmp_path / "run/seed_0"
    shutil.copy(folder / "candidate/encoder.pt", folder / "independent/encoder.pt")
    line = refusal(train_simclr.main, ["--config", path])
    assert "role is 'candidate', but 'independent' belongs here" in line


def test_a_run_folder_of_other_images_is_refused(write_config, tmp_path, refusal, monkeypatch):
    path = write_config({"training.epochs": 1})
    train(path)
    before = (tmp_path / "run/subsets.npz").read_bytes()

    def changed(settings):
        images = open_images(settings)
        images.train.pixels[0, 0, 0, 0] ^= 1
        return images

    monkeypatch.setattr(pair, "open_images", changed)
    assert "drawn from other images" in refusal(train_simclr.main, ["--config", path])
    assert (tmp_path / "run/subsets.npz").read_bytes() == before


def test_a_batch_beyond_the_memory_names_the_setting_to_lower(
    write_config, tmp_path, refusal, monkeypatch
):
    monkeypatch.setattr(loop, "train_step", run_out_of_memory)
    line = refusal(train_simclr.main, ["--config", write_config()])
    words = "training.batch_size: 16 needs more than the GPU's memory has left; lower it"
    assert line == f"error: {words}\n"


def test_a_run_folder_that_is_a_file_is_refused(write_config, tmp_path, refusal):
    (tmp_path / "file").write_text("text")
    for run in (tmp_path / "file", tmp_path / "file" / "below"):
        line = refusal(train_simclr.main, ["--config", write_config(), "--run", str(run)])
        assert f"{tmp_path}/file is a file" in line


def test_nothing_is_prepared_for_a_config_that_is_refused(write_config, refusal, monkeypatch):
    monkeypatch.setattr("memorization.data.images.Images.prepare", None)  # would be called
    path = write_config({"training.batch_size": 57})
    assert "training.batch_size" in refusal(train_simclr.main, ["--config", path])


@pytest.mark.parametrize("split, unlabelled, who", [
    ("train", slice(None), "the candidate encoder"),
    # as in STL-10, whose labelled images come first
    ("train", slice(24, None), "the independent encoder"),
    ("test", slice(None), "external image"),
])  # fmt: skip
def test_labels_are_needed_for_a_knn_accuracy(
    split, unlabelled, who, write_config, refusal, tmp_path, monkeypatch
):
    def partly_unlabelled(settings):
        images = open_images(settings)
        getattr(images, split).labels[unlabelled] = -1
        return images

    monkeypatch.setattr(pair, "open_images", partly_unlabelled)
    path = write_config({"training.knn_every": 1, "subsets.shared": 0})
    line = refusal(train_simclr.main, ["--config", path])
    assert "training.knn_every" in line and "labels" in line and who in line
    assert not (tmp_path / "run").exists()


def test_progress_of_another_training_is_refused(write_config, refusal, tmp_path):
    train(write_config({"training.epochs": 1}))
    folder = tmp_path / "run/seed_0"
    (folder / "independent/encoder.pt").unlink()
    (folder / "candidate/last.pt").replace(folder / "independent/last.pt")
    line = refusal(train_simclr.main, ["--config", write_config({"training.epochs": 1})])
    assert "role is 'candidate'" in line and "'independent' belongs here" in line


def test_unequal_subsets_never_train(write_config, monkeypatch):
    """A pair is refused when it is trained, too, not only when its config is read."""
    config = read_config("", ["--config", write_config()], method=SimCLRSettings)
    images = open_images(config.data)
    draw = pair.draw_subsets

    def unequal(*arguments):
        subsets = draw(*arguments)
        return dataclasses.replace(subsets, candidate=subsets.candidate[1:])

    monkeypatch.setattr(pair, "draw_subsets", unequal)

    def make_method():
        return SimCLR(make_encoder(config.encoder, 3, 16), **config.method.arguments())

    with pytest.raises(WrongUse, match="equally many"):
        pair.train_pair(make_method, images, config)
