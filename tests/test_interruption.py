import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import METHODS, write_experiment

import memorization_scores
import remove_samples
import train_simclr
from memorization import training
from memorization.interruption import stop_requests
from memorization.storage import sole_process

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def in_the_foreground():
    """Ctrl-C as in a terminal, wherever the tests run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_two_trainings_of_one_encoder_do_not_meet(write_config, tmp_path, refusal):
    path = write_config({"training.epochs": 1})
    with sole_process(tmp_path / "run/seed_0/independent/lock"):
        assert "is writing here" in refusal(train_simclr.main, ["--config", path])
        assert not (tmp_path / "run/seed_0/independent/encoder.pt").exists()
    train_simclr.main(["--config", path])
    assert (tmp_path / "run/seed_0/independent/encoder.pt").exists()


def test_a_signal_is_noted_once_and_the_next_one_acts_as_before():
    before = signal.getsignal(signal.SIGINT)
    with stop_requests() as stop:
        assert stop.number is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.number, stop.name) == (signal.SIGTERM, "SIGTERM")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) == before


def test_what_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number is None
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


@pytest.mark.parametrize("stopped_at", [4, 6])  # within an epoch of three steps, and at its end
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_at_the_next_step_and_the_run_goes_on_bit_identical(number, stopped_at, tmp_path, monkeypatch, capsys):
    whole, stopped = (write_experiment(tmp_path / name, {}) for name in ("whole", "stopped") if not (tmp_path / name).mkdir())
    train_simclr.main(["--config", whole])
    calls, step = [], training.train_step

    def signalling(*arguments, **named):
        calls.append(named)
        if len(calls) == stopped_at:
            os.kill(os.getpid(), number)
        return step(*arguments, **named)

    monkeypatch.setattr(training, "train_step", signalling)
    with pytest.raises(SystemExit) as ending:
        train_simclr.main(["--config", stopped])
    line = capsys.readouterr().err
    assert ending.value.code == 128 + number and len(calls) == stopped_at
    assert line.startswith("stopped: ") and line.count("\n") == 1 and f"candidate is saved after step {stopped_at} of 9" in line
    train_simclr.main(["--config", stopped])
    assert len(calls) == 18 and f"going on after step {stopped_at}" in capsys.readouterr().out
    for role in ("candidate", "independent"):
        name = f"run/seed_0/{role}/encoder.pt"
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


def test_a_real_process_ends_with_one_line_and_its_own_code(tmp_path):
    script, _, changes = METHODS["mae"]
    path = write_experiment(tmp_path, changes | {"training.epochs": 5000, "training.checkpoint_minutes": 60})
    process = subprocess.Popen(
        [sys.executable, script.__file__, "--config", path], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    log = tmp_path / "run/seed_0/candidate/log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.1)
    process.terminate()
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM and error.startswith("stopped: ") and error.count("\n") == 1, error
    assert (log.parent / "last.pt").exists() and not (log.parent / "lock").exists()


def test_a_retraining_that_is_told_to_stop_passes_it_on_and_ends_once_it_is_saved(tmp_path):
    changes = {"training.epochs": 60, "subsets.shared": 0, "removal": {"counts": [4], "policies": ["least"]}}
    path = write_experiment(tmp_path, changes)  # long enough to be told before it ends
    train_simclr.main(["--config", path])
    memorization_scores.main(["--config", path])
    remove = [sys.executable, remove_samples.__file__, "--config", path, "--retrain"]
    started = tmp_path / "run/removal/least_4_draw0/environment.json"
    process = subprocess.Popen(remove, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while process.poll() is None and not started.exists():
        time.sleep(0.01)
    process.terminate()
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM, error
    assert error.splitlines()[-1] == "stopped: SIGTERM: what was retrained so far is kept; the same command goes on from here"
    assert not list((tmp_path / "run/removal").rglob("lock")) and not list((tmp_path / "run/removal").rglob("encoder.pt"))
    assert list((tmp_path / "run/removal").rglob("last.pt")) and not (tmp_path / "run/removal/curve.csv").exists()


def test_a_retraining_that_nobody_reads_ends_the_others_too(tmp_path, monkeypatch, capsys):
    changes = {"training.epochs": 1, "subsets.shared": 0, "removal": {"counts": [4], "policies": ["least", "memorized"]}}
    path = write_experiment(tmp_path, changes)
    train_simclr.main(["--config", path])
    memorization_scores.main(["--config", path])
    started = []
    code = 128 + signal.SIGPIPE
    monkeypatch.setattr(remove_samples, "run_script", lambda *arguments: started.append(arguments) or code)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        remove_samples.main(["--config", path, "--retrain"])
    assert (ending.value.code, len(started)) == (code, 1)
    line = "stopped: nothing can be printed (Broken pipe): what was retrained so far is kept; the same command goes on from here\n"
    assert capsys.readouterr().err == line
