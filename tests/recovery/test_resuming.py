import json

import pytest
import torch
from conftest import METHODS, log_without_times, train, trained_bytes

import train_simclr
from memorization.checkpoint import read_checkpoint
from memorization.data.subsets import ROLES
from memorization.errors import Caution
from memorization.training import diagnostics, loop, progress, run_files
from memorization.training.run_files import note_machine


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "method, optimizer",
    [("simclr", "sgd"), ("simclr", "lars"), *((name, "adamw") for name in METHODS)],
)
def test_an_interrupted_run_goes_on_and_ends_bit_identical(
    method, optimizer, write_config, tmp_path, at_step, capsys
):
    """Interrupted in the middle of an epoch, of f and then of g, with a save before every step."""
    changes = {
        "training.optimizer": optimizer,
        "training.knn_every": 1,
        "training.checkpoint_minutes": 1e-9,
    }
    path = write_config(METHODS[method].changes | changes)
    train(path, "--run", str(tmp_path / "whole"), method=method)

    steps = at_step((6, 14), interrupt)
    for _ in range(2):
        with pytest.raises(SystemExit, match="130"):
            train(path, method=method)
    train(path, method=method)
    assert len(steps) == 2 * 9 + 2
    printed = capsys.readouterr().out
    assert "candidate: going on after step 5" in printed
    assert "independent: going on after step 3" in printed
    assert trained_bytes(tmp_path / "run") == trained_bytes(tmp_path / "whole")
    for role in ROLES:
        logs = [log_without_times(tmp_path / run, role) for run in ("run", "whole")]
        assert logs[0] == logs[1]


def test_a_finished_run_says_so_and_does_nothing(write_config, tmp_path, capsys, monkeypatch):
    path = write_config()
    train(path)
    before = trained_bytes(tmp_path / "run")
    monkeypatch.setattr(loop, "train_step", None)  # would be called
    capsys.readouterr()
    train(path)
    assert capsys.readouterr().out.count("finished already") == 2
    assert trained_bytes(tmp_path / "run") == before


def test_a_run_that_goes_on_elsewhere_says_so_and_names_both_machines(
    write_config, tmp_path, monkeypatch, at_step, capsys
):
    path = write_config({"training.checkpoint_minutes": 1e-9})
    at_step((2, 5, 8), interrupt)

    def train_on(**machine):
        monkeypatch.setattr(run_files, "describe_machine", lambda device: machine)
        with pytest.raises(SystemExit, match="130"):
            train(path)

    train_on(torch="2.14", threads=1)
    train_on(torch="2.14", threads=1)  # the same one: no new entry, no word
    assert "resumed with" not in capsys.readouterr().out
    train_on(torch="2.15", threads=1)
    resumed = "resumed with torch '2.15' (was '2.14'): its bytes may differ from"
    assert resumed in capsys.readouterr().out
    machines = json.loads((tmp_path / "run/environment.json").read_text())
    assert machines == {
        "seed_0/candidate": [{"torch": "2.14", "threads": 1}, {"torch": "2.15", "threads": 1}]
    }


def test_an_encoder_trained_anew_names_its_own_machine_alone_and_older_files_are_read(
    tmp_path, monkeypatch
):
    path = tmp_path / "environment.json"
    of_earlier_version = {f"seed_0/{role}": {"threads": 2} for role in ROLES}
    path.write_text(json.dumps(of_earlier_version))
    monkeypatch.setattr(run_files, "describe_machine", lambda device: {"threads": 3})
    note_machine(tmp_path, "seed_0/candidate", None, is_resumed=False)
    note_machine(tmp_path, "seed_0/independent", None, is_resumed=True)
    machines = json.loads(path.read_text())
    assert machines == {
        "seed_0/candidate": [{"threads": 3}],
        "seed_0/independent": [{"threads": 2}, {"threads": 3}],
    }


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    write_config, tmp_path, refusal, monkeypatch
):
    path = write_config({"training.checkpoint_minutes": 1e-9})
    step, steps = loop.train_step, []

    def diverging_step(*arguments, **named):
        steps.append(None)
        return step(*arguments, **named) * (float("nan") if len(steps) == 5 else 1)

    monkeypatch.setattr(loop, "train_step", diverging_step)
    line = refusal(train_simclr.main, ["--config", path])
    folder = tmp_path / "run/seed_0/candidate"
    for words in (str(folder), "step 5", "rate 0.00586824", "last good checkpoint: last.pt"):
        assert words in line
    assert read_checkpoint(folder / "last.pt")["step"] == 4


def test_weights_that_are_not_finite_stop_the_run_before_they_are_kept(
    write_config, tmp_path, refusal, monkeypatch
):
    step, steps = loop.train_step, []

    def poisoning_step(method, *rest, **named):
        loss = step(method, *rest, **named)
        steps.append(None)
        if len(steps) == 9:  # the last step of f: its loss was finite
            next(method.encoder.parameters()).data.fill_(float("nan"))
        return loss

    monkeypatch.setattr(loop, "train_step", poisoning_step)
    line = refusal(train_simclr.main, ["--config", write_config()])
    assert "a weight after step 9 is not finite" in line and "last good checkpoint: none" in line
    assert not list((tmp_path / "run").rglob("*.pt"))


def test_a_representation_that_is_not_finite_stops_the_run(
    write_config, tmp_path, refusal, monkeypatch
):
    infinite = lambda representations: representations.sum() * float("inf")  # noqa: E731
    monkeypatch.setattr(diagnostics, "spread", infinite)
    path = write_config({"training.checkpoint_minutes": 1e-9})
    line = refusal(train_simclr.main, ["--config", path])
    assert "a representation after step 3 is not finite (learning rate 0.00883022)" in line
    assert "last good checkpoint: last.pt" in line
    assert not (tmp_path / "run/seed_0/candidate/log.jsonl").read_text()


def broken(how, content):
    """The bytes of a checkpoint, broken."""
    half = len(content) // 2
    flipped = bytes([content[half] ^ 16])
    contents = {
        "truncated": content[:half],
        "bit-flipped": content[:half] + flipped + content[half + 1 :],
        "empty": b"",
    }
    return contents[how]


@pytest.mark.parametrize("how", ["truncated", "bit-flipped", "empty"])
def test_a_broken_last_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(
    how, write_config, tmp_path, capsys
):
    path = write_config({"training.checkpoint_minutes": 1e-9})
    train(path)
    folder = tmp_path / "run/seed_0/candidate"
    whole, last = (folder / "encoder.pt").read_bytes(), folder / "last.pt"
    before = read_checkpoint(folder / "previous.pt")["step"]
    last.write_bytes(broken(how, last.read_bytes()))
    (folder / "encoder.pt").unlink()
    with pytest.warns(Caution, match=f"{last}: .*; going on from {folder}/previous.pt"):
        train(path)
    assert f"candidate: going on after step {before}" in capsys.readouterr().out
    assert (folder / "encoder.pt").read_bytes() == whole


def test_checkpoints_are_saved_every_so_many_minutes(write_config, monkeypatch):
    now, saved = [0.0], []
    step, save = loop.train_step, progress.save_progress

    def step_of_40_seconds(*arguments, **named):
        now[0] += 40
        return step(*arguments, **named)

    def watched_save(folder, content):
        saved.append((folder.name, content["step"]))
        save(folder, content)

    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(loop, "train_step", step_of_40_seconds)
    monkeypatch.setattr(progress, "save_progress", watched_save)
    # more than 150 seconds: after every fourth step, and at the end
    train(write_config({"training.checkpoint_minutes": 2.5}))
    assert saved == [(role, step) for role in ROLES for step in (4, 8, 9)]


def test_the_same_command_gives_the_same_bytes(write_config, tmp_path):
    path = write_config()
    for run in ("a", "b"):
        train(path, "--run", str(tmp_path / run))
    contents = trained_bytes(tmp_path / "a")
    assert contents == trained_bytes(tmp_path / "b")
    assert contents["candidate"] != contents["independent"]
    train(path, "--run", str(tmp_path / "c"), "--seeds", "1")
    weights = [
        read_checkpoint(tmp_path / folder / "candidate/encoder.pt")["weights"]["layers.0.weight"]
        for folder in ("a/seed_0", "c/seed_1")
    ]
    assert not torch.equal(*weights)
