"""training.tensorboard: event files say what log.jsonl says, also after an interruption."""

import os
import signal
import sys

import pytest
from conftest import log_without_times, train

from memorization.training import read_log
from memorization.training.board import FOLDER


def scalars_in(folder):
    """{key: {epoch: value}} in the event files of a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / FOLDER))
    events.Reload()
    keys = events.Tags()["scalars"]
    return {key: {one.step: one.value for one in events.Scalars(key)} for key in keys}


def scalars_of(log):
    """The same as a log.jsonl says it."""
    scalars = {}
    for line in read_log(log):
        for key, value in line.items():
            if key != "epoch" and value is not None:
                scalars.setdefault(key, {})[line["epoch"]] = pytest.approx(value, rel=1e-6)
    return scalars


def test_event_files_say_what_the_log_says(write_config, tmp_path):
    pytest.importorskip("tensorboard")
    train(write_config({"training.tensorboard": True, "training.knn_every": 2}))
    for role in ("candidate", "independent"):
        folder = tmp_path / "run/seed_0" / role
        scalars = scalars_in(folder)
        assert scalars == scalars_of(folder / "log.jsonl")
        assert list(scalars["loss"]) == [1, 2, 3] and list(scalars["knn_accuracy"]) == [2]


def test_after_an_interruption_every_epoch_stands_once(write_config, tmp_path, at_step):
    pytest.importorskip("tensorboard")
    path, folder = write_config({"training.tensorboard": True}), tmp_path / "run/seed_0/candidate"
    at_step([7], lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        train(path)
    assert list(scalars_in(folder)["loss"]) == [1, 2]
    train(path)
    assert scalars_in(folder) == scalars_of(folder / "log.jsonl")
    assert len(list((folder / FOLDER).iterdir())) == 1


def test_without_it_nothing_is_written_and_the_package_is_not_imported(
    write_config, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    train(write_config())
    assert not (tmp_path / "run/seed_0/candidate" / FOLDER).exists()
    assert "tensorboard" not in (tmp_path / "run/config.yaml").read_text()


def test_it_changes_no_number_of_the_training(write_config, tmp_path):
    pytest.importorskip("tensorboard")
    train(write_config())
    encoder = (tmp_path / "run/seed_0/candidate/encoder.pt").read_bytes()
    log = log_without_times(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "first")
    train(write_config({"training.tensorboard": True}))
    assert (tmp_path / "run/seed_0/candidate/encoder.pt").read_bytes() == encoder
    assert log_without_times(tmp_path / "run") == log


def test_a_missing_package_is_refused_before_the_training(
    write_config, tmp_path, refusal, monkeypatch
):
    import train_simclr

    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    path = write_config({"training.tensorboard": True})
    line = refusal(train_simclr.main, ["--config", path])
    assert "training.tensorboard: the package tensorboard is missing; pip install" in line
    assert not (tmp_path / "run").exists()
