"""The lines of a training on the screen."""

import re

import pytest
import torch
from conftest import log_of, train

from memorization.errors import Caution
from memorization.training import diagnostics
from memorization.training.progress import epochs_between_lines


def printed_epochs(text):
    return [int(epoch) for epoch in re.findall(r"candidate seed 0  epoch (\d+)/", text)]


@pytest.mark.parametrize("epochs, knn_every", [(60, 0), (60, 2), (60, 20)])
def test_a_long_training_logs_every_epoch_and_prints_about_25(
    epochs, knn_every, write_config, tmp_path, capsys
):
    changes = {"training.epochs": epochs, "training.knn_every": knn_every}
    train(write_config(changes), "--role", "candidate")
    printed, log = printed_epochs(capsys.readouterr().out), log_of(tmp_path / "run")
    assert [line["epoch"] for line in log] == list(range(1, epochs + 1))
    assert 10 <= len(printed) <= 27 and {1, epochs} <= set(printed)
    with_accuracy = {line["epoch"] for line in log if line["knn_accuracy"] is not None}
    assert with_accuracy <= set(printed) or set(printed) - with_accuracy <= {1, epochs}


@pytest.mark.parametrize("epochs", [1, 25, 26, 100, 250, 800, 1000, 5000])
@pytest.mark.parametrize("knn_every", [0, 1, 3, 7, 10, 25, 60, 100])
def test_the_screen_has_about_25_lines_however_long_a_training_is(epochs, knn_every):
    period = epochs_between_lines(epochs, knn_every)
    assert epochs / period <= 25
    if knn_every:  # either every accuracy is printed, or nothing else is
        assert knn_every % period == 0 or period % knn_every == 0


def test_a_training_of_few_epochs_prints_them_all(write_config, capsys):
    train(write_config({"training.knn_every": 2}), "--role", "candidate")
    assert printed_epochs(capsys.readouterr().out) == [1, 2, 3]


def test_a_resumed_training_prints_its_first_epoch(write_config, at_step, capsys):
    path = write_config({"training.epochs": 60, "training.checkpoint_minutes": 1e-9})

    def interrupt():
        raise KeyboardInterrupt

    at_step([20], interrupt)  # in epoch 7
    with pytest.raises(SystemExit):
        train(path, "--role", "candidate")
    assert printed_epochs(capsys.readouterr().out) == [1, 5]
    train(path, "--role", "candidate")
    assert printed_epochs(capsys.readouterr().out) == [7, *range(10, 61, 5)]


def test_a_collapse_is_warned_of_once(write_config, tmp_path, monkeypatch):
    monkeypatch.setattr(diagnostics, "spread", lambda representations: torch.tensor(0.005))
    with pytest.warns(Caution) as warned:
        train(write_config())
    assert [str(warning.message) for warning in warned] == [
        f"{tmp_path}/run/seed_0/{role}: collapsed after epoch 1: spread 0.005"
        for role in ("candidate", "independent")
    ]
