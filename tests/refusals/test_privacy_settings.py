"""What private training refuses. None of it needs the package Opacus."""

import sys

import pytest
import torch.nn as nn
from conftest import METHODS

from memorization.config import read_config
from memorization.machine import processes
from models.private_loss import check_private

PRIVACY = {"noise_multiplier": 1.0, "clip": 0.1, "delta": 0.001}
MAE = METHODS["mae"].changes


def read(path, *options):
    """The Config of a script that trains MAE."""
    return read_config("", ["--config", path, *options], METHODS["mae"].schema)


def refuse(refusal, path, method="mae", options=()):
    return refusal(METHODS[method].script.main, ["--config", path, *options])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"noise_multiplier": 0}, ["training.privacy.noise_multiplier: 0", "0.01"]),
        ({"noise_multiplier": "much"}, ["training.privacy.noise_multiplier: 'much'", "number"]),
        ({"clip": 0.0}, ["training.privacy.clip: 0.0", "greater than 0"]),
        ({"delta": 1.0}, ["training.privacy.delta: 1.0", "less than 1"]),
        ({"delta": 0.0}, ["training.privacy.delta: 0.0", "greater than 0"]),
        ({"epsilon": 8.0}, ["training.privacy.epsilon: no such setting"]),
    ],
)
def test_a_wrong_value_is_named(changes, words, write_config, refusal, tmp_path):
    path = write_config(MAE | {"training.privacy": PRIVACY | changes})
    line = refuse(refusal, path)
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_a_part_alone_is_refused(write_config, refusal):
    line = refuse(refusal, write_config(MAE), options=["--training.privacy.clip", "1"])
    assert "training.privacy.noise_multiplier: is missing" in line


def test_the_command_line_leaves_privacy_out_by_null(write_config):
    path = write_config(MAE | {"training.privacy": PRIVACY})
    assert read(path, "--training.privacy", "null").training.privacy is None
    assert read(path).training.privacy.clip == 0.1


def test_the_command_line_puts_privacy_in_the_place_of_null(write_config):
    path = write_config(MAE | {"training.privacy": None})
    options = [word for key in PRIVACY for word in (f"--training.privacy.{key}", str(PRIVACY[key]))]
    assert read(path, *options).training.privacy.model_dump() == PRIVACY


@pytest.mark.parametrize("options, words", [
    (["null", "--training.privacy.clip", "1"],
     "command line: --training.privacy null is not allowed beside --training.privacy.clip"),
    (["off"], "command line: training.privacy: 'off' is not allowed"),
])  # fmt: skip
def test_privacy_that_is_left_out_and_set_is_refused(options, words, write_config, refusal):
    path = write_config(MAE | {"training.privacy": PRIVACY})
    assert words in refuse(refusal, path, options=["--training.privacy", *options])


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("clip_gradient", 1.0, "clip_gradient is 1.0, but not allowed beside privacy"),
        ("compile", True, "compile is True, but not allowed beside privacy"),
    ],
)
def test_what_does_not_go_with_privacy_is_refused(
    key, value, words, write_config, refusal, tmp_path
):
    path = write_config(MAE | {"training.privacy": PRIVACY, f"training.{key}": value})
    assert words in refuse(refusal, path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "mae"])
def test_a_method_that_compares_images_is_refused_by_name(method, write_config, refusal, tmp_path):
    path = write_config(METHODS[method].changes | {"training.privacy": PRIVACY})
    line = refuse(refusal, path, method)
    assert f"training.privacy: not allowed: {method} compares the images of a batch" in line
    assert not (tmp_path / "run").exists()


def test_a_batch_norm_is_refused_by_name():
    method = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.BatchNorm1d(4)))
    method.is_mean_over_images = True
    with pytest.raises(ValueError, match=r"training.privacy: .* has a batch norm \(1\.0\)"):
        check_private(method, "mean")


def test_a_missing_opacus_is_one_line_that_says_how_to_install_it(
    write_config, refusal, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "opacus", None)
    line = refuse(refusal, write_config(MAE | {"training.privacy": PRIVACY}))
    missing = "the package opacus is missing; pip install -r requirements-optional.txt"
    assert f"training.privacy: {missing}" in line
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(write_config, refusal, tmp_path, monkeypatch):
    monkeypatch.setattr("memorization.training.door.check_private", lambda method, name: None)
    monkeypatch.setattr(processes, "count", lambda: 2)
    line = refuse(refusal, write_config(MAE | {"training.privacy": PRIVACY}))
    assert "training.privacy: not allowed with 2 processes; set it to null, or start one" in line
    assert not (tmp_path / "run").exists()
