"""Trainings under an alignment penalty, and those without one, which are as they were before it."""

import pytest
import yaml
from conftest import METHODS, read_table, score, train, trained_bytes

from memorization.checkpoint import load_pair, read_checkpoint

PENALTY = {"training.alignment_penalty": 0.3}


def changes_of(method):
    """What a method changes in the tiny experiment under a penalty, which takes two views."""
    first, *others = METHODS[method].views
    views = [first | {"count": 2}, *others]
    return METHODS[method].changes | PENALTY | {"augmentation.views": views}


def interrupt():
    raise KeyboardInterrupt


def test_a_run_without_a_penalty_keeps_the_bytes_of_before_the_setting(write_config, tmp_path):
    path = write_config()
    train(path)
    train(path, "--run", str(tmp_path / "zero"), "--training.alignment_penalty", "0.0")
    assert trained_bytes(tmp_path / "run") == trained_bytes(tmp_path / "zero")
    assert "alignment_penalty" not in (tmp_path / "zero/config.yaml").read_text()
    record = read_checkpoint(tmp_path / "zero/seed_0/candidate/encoder.pt")
    assert "alignment_penalty" not in record["config"]["training"]


@pytest.mark.parametrize("method", ["dino", "mae"])
def test_a_penalized_run_goes_on_and_ends_bit_identical(method, write_config, tmp_path, at_step):
    path = write_config(changes_of(method) | {"training.checkpoint_minutes": 1e-9})
    train(path, "--run", str(tmp_path / "whole"), method=method)
    at_step((6, 14), interrupt)
    for _ in range(2):
        with pytest.raises(SystemExit, match="130"):
            train(path, method=method)
    train(path, method=method)
    assert trained_bytes(tmp_path / "run") == trained_bytes(tmp_path / "whole")


def test_a_penalized_run_differs_from_the_plain_one_records_its_penalty_and_is_scored(
    write_config, tmp_path
):
    path = write_config(PENALTY)
    train(path)
    train(path, "--run", str(tmp_path / "plain"), "--training.alignment_penalty", "0.0")
    penalized, plain = (load_pair(tmp_path / run, seed=0) for run in ("run", "plain"))
    assert penalized.f.identity != plain.f.identity
    assert penalized.f.record["config"]["training"]["alignment_penalty"] == 0.3
    run = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert run["training"]["alignment_penalty"] == 0.3
    score(path)
    assert len(read_table(tmp_path / "run/scores")[1]["score"]) == 32 + 24 + 24 + 40


def test_another_penalty_than_that_of_the_run_is_refused(write_config, tmp_path, refusal):
    path = write_config(PENALTY)
    train(path)
    before = trained_bytes(tmp_path / "run")
    other = ["--config", path, "--training.alignment_penalty", "0.2"]
    line = refusal(METHODS["simclr"].script.main, other)
    assert "training.alignment_penalty" in line and "0.2" in line and "0.3" in line
    assert trained_bytes(tmp_path / "run") == before
