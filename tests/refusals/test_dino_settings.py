"""Views, encoders and temperatures that DINO cannot be trained with: one line, nothing written."""

import pytest
import torch
from conftest import OF_OTHERS, random_pixels, run_out_of_memory

import train_dino
from models.encoders import encoder_settings, make_encoder

SMALL = {"name": "dino", "hidden_dim": 8, "projection_dim": 8, "prototypes": 8}


def views(*sizes):
    return {"augmentation.views": [{"size": size} for size in sizes], "data.size": max(sizes)}


@pytest.fixture
def refused(write_config, refusal, tmp_path):
    """refused(changes) -> the line that train_dino.py ends with."""

    def refuse(changes):
        line = refusal(train_dino.main, ["--config", write_config({"method": SMALL} | changes)])
        assert not (tmp_path / "run").exists()
        return line

    return refuse


@pytest.mark.parametrize("sizes", [[16], [16, 8], [8, 16, 8]])
def test_one_view_of_full_size_alone(sizes, refused):
    line = refused(views(*sizes))
    words = "DINO needs two large views or more, but 1 of the largest size, 16 pixels, is drawn"
    assert line == f"error: augmentation.views: {words}\n"


@pytest.mark.parametrize("encoder, sizes, words", [
    ({"name": "convnext_tiny", "stem": "standard"}, (32, 32, 16),
     "encoder.stem: standard takes images of at least 32 pixels, not of 16"),
    ({"name": "vit_mini"}, (16, 16, 10),
     "encoder.patch: 4 does not divide the 10 pixels of a view in augmentation.views"),
])  # fmt: skip
def test_small_crops_that_an_encoder_cannot_take(encoder, sizes, words, refused):
    assert words in refused({"encoder": encoder} | views(*sizes))


NETWORK_OF_ONE_SIZE = """
import torch.nn as nn

def make(channels, size):
    patches = nn.Conv2d(channels, 2, kernel_size=4, stride=4)
    return nn.Sequential(patches, nn.Flatten(), nn.Linear(2 * (size // 4) ** 2, 8))
"""


@pytest.mark.parametrize("small, words", [
    (8, "takes images of 16 pixels, not of 8 x 8"),
    (10, "its patches of 4 pixels do not divide 10 pixels"),
])  # fmt: skip
def test_small_crops_that_a_network_of_others_cannot_take(small, words, refused, tmp_path):
    (tmp_path / "network.py").write_text(NETWORK_OF_ONE_SIZE)
    encoder = {"name": "function", "file": str(tmp_path / "network.py"), "function": "make"}
    assert words in refused({"encoder": encoder} | views(16, 16, small))


def test_small_crops_for_which_memory_is_short_are_not_blamed_on_the_network(monkeypatch):
    encoder = make_encoder(encoder_settings("function", **OF_OTHERS["function"]), 3, 32)
    monkeypatch.setattr(encoder.network, "forward", run_out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        encoder(random_pixels(2, 3, 16))


@pytest.mark.parametrize("settings, words", [
    ({"teacher_temperature": 0.2}, "teacher_temperature is 0.2, but is at most"),
    ({"student_temperature": 0.03}, "teacher_temperature is 0.04, but is at most"),
    ({"warmup_teacher_temperature": 0.11, "warmup_temperature_epochs": 1},
     "warmup_teacher_temperature is 0.11, but is at most student_temperature (0.1)"),
])  # fmt: skip
def test_a_teacher_less_sure_than_its_student(settings, words, refused):
    line = refused({"method": SMALL | settings})
    assert f"method: {words}" in line


@pytest.mark.parametrize("key", ["frozen_epochs", "warmup_temperature_epochs"])
def test_a_schedule_longer_than_the_training(key, refused):
    settings = {"method": SMALL | {key: 4}, "training.epochs": 3}
    line = refused(settings | views(16, 16))
    assert line == f"error: method.{key}: 4, but is at most training.epochs (3)\n"
