import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import METHODS, ROOT, write_experiment
from started import Started, run_script

import memorization_scores
import remove_samples
import train_simclr
from memorization.machine.interruption import PIPE_OF_PARENT, stop_requests
from memorization.machine.locks import sole_process
from memorization.measuring import retraining
from memorization.training import loop as training


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])  # in the background, under nohup
def test_what_is_ignored_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    with stop_requests() as stop:
        os.kill(os.getpid(), number)
        assert stop.number is None
    assert signal.signal(number, before) == signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_one_end_that_is_told_twice_is_one(number):
    """A closed terminal and its shell send SIGHUP each; `timeout` sends SIGTERM to the process and
    to its group.
    """
    with stop_requests() as stop:
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert stop.number == number
        with pytest.raises(KeyboardInterrupt):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)


CHILD = """
import sys, time
from pathlib import Path
from memorization.machine.interruption import PIPE_OF_PARENT, stop_requests
with stop_requests() as stop:
    Path(sys.argv[1], "ready").touch()
    while not stop.number:
        time.sleep(0.02)
Path(sys.argv[1], "saved").write_text(stop.name)
"""
PARENT = """
import sys
from memorization.machine.interruption import run_child, stop_requests
with stop_requests() as stop:
    sys.exit(run_child([sys.executable, "-c", sys.argv[2], sys.argv[1]], stop))
"""


def start_parent(folder, child):
    """The process of a script that runs this code as a child process, which is at work: it has
    written "ready" into the folder.
    """
    (folder / "parent.py").write_text(PARENT)
    parent = Started(folder / "parent.py", folder, child, PYTHONPATH=str(ROOT))
    while parent.poll() is None and not (folder / "ready").exists():
        time.sleep(0.02)
    assert parent.poll() is None, parent.stderr
    return parent


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_child_stops_with_its_parent_however_that_ends(number, tmp_path):
    parent = start_parent(tmp_path, CHILD)
    parent.send_signal(number)  # to the parent alone
    parent.wait(60)
    for _ in range(500):
        if (tmp_path / "saved").exists() and (tmp_path / "saved").read_text():
            break
        time.sleep(0.02)
    assert (tmp_path / "saved").read_text() == "SIGTERM"
    assert parent.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 0)


def test_a_second_ctrl_c_takes_the_child_along(tmp_path):
    stubborn = CHILD.replace("while not stop.number", "while True")
    parent = start_parent(tmp_path, stubborn)
    for _ in range(2):
        parent.send_signal(signal.SIGINT)
        time.sleep(1)
    parent.wait(60)
    with pytest.raises(ProcessLookupError):
        os.killpg(parent.pid, 0)  # nobody is left of them


@pytest.mark.parametrize("stopped_at", [4, 6])  # within an epoch of three steps, and at its end
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_at_the_next_step_and_the_run_goes_on_bit_identical(
    number, stopped_at, tmp_path, monkeypatch, capsys
):
    whole, stopped = (
        write_experiment(tmp_path / name, {})
        for name in ("whole", "stopped")
        if not (tmp_path / name).mkdir()
    )
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
    assert (
        line.startswith("stopped: ")
        and line.count("\n") == 1
        and f"candidate is saved after step {stopped_at} of 9" in line
    )
    train_simclr.main(["--config", stopped])
    assert len(calls) == 18 and f"going on after step {stopped_at}" in capsys.readouterr().out
    for role in ("candidate", "independent"):
        name = f"run/seed_0/{role}/encoder.pt"
        assert (tmp_path / "whole" / name).read_bytes() == (
            tmp_path / "stopped" / name
        ).read_bytes()


def test_a_real_process_ends_with_one_line_and_its_own_code(tmp_path):
    method = METHODS["mae"]
    endless = {"training.epochs": 5000, "training.checkpoint_minutes": 60}
    path = write_experiment(tmp_path, method.changes | endless)
    process = subprocess.Popen(
        [sys.executable, method.script.__file__, "--config", path],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    log = tmp_path / "run/seed_0/candidate/log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.1)
    process.terminate()
    error = process.communicate(timeout=60)[1]
    assert (
        process.returncode == 128 + signal.SIGTERM
        and error.startswith("stopped: ")
        and error.count("\n") == 1
    ), error
    assert (log.parent / "last.pt").exists() and not (log.parent / "lock").exists()


def test_a_retraining_that_is_told_to_stop_passes_it_on_and_ends_once_it_is_saved(tmp_path):
    changes = {
        "training.epochs": 60,
        "subsets.shared": 0,
        "removal": {"counts": [4], "policies": ["least"]},
    }
    path = write_experiment(tmp_path, changes)  # long enough to be told before it ends
    train_simclr.main(["--config", path])
    memorization_scores.main(["--config", path])
    started = tmp_path / "run/removal/least_4_draw0/environment.json"
    process = Started(remove_samples.__file__, "--config", path, "--retrain")
    while process.poll() is None and not started.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM, process.stderr
    assert (
        process.stderr.splitlines()[-1]
        == "stopped: SIGTERM: what was retrained so far is kept; the same command goes on from here"
    )
    assert not list((tmp_path / "run/removal").rglob("lock")) and not list(
        (tmp_path / "run/removal").rglob("encoder.pt")
    )
    assert (
        list((tmp_path / "run/removal").rglob("last.pt"))
        and not (tmp_path / "run/removal/curve.csv").exists()
    )


def test_a_retraining_that_nobody_reads_ends_the_others_too(tmp_path, monkeypatch, capsys):
    changes = {
        "training.epochs": 1,
        "subsets.shared": 0,
        "removal": {"counts": [4], "policies": ["least", "memorized"]},
    }
    path = write_experiment(tmp_path, changes)
    train_simclr.main(["--config", path])
    memorization_scores.main(["--config", path])
    started = []
    code = 128 + signal.SIGPIPE
    monkeypatch.setattr(
        retraining, "run_script", lambda *arguments: started.append(arguments) or code
    )
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        remove_samples.main(["--config", path, "--retrain"])
    assert (ending.value.code, len(started)) == (code, 1)
    reason, state = "nothing can be printed (Broken pipe)", "what was retrained so far is kept"
    line = f"stopped: {reason}: {state}; the same command goes on from here\n"
    assert capsys.readouterr().err == line


def test_a_retraining_whose_parent_was_killed_ends_and_can_be_restarted_at_once(tmp_path):
    changes = {
        "training.epochs": 40,
        "subsets.shared": 0,
        "removal": {"counts": [4], "policies": ["least"]},
    }
    path = write_experiment(tmp_path, changes)
    train_simclr.main(["--config", path])
    memorization_scores.main(["--config", path])
    remove = [remove_samples.__file__, "--config", path, "--retrain", "--jobs", "0/1"]
    started = tmp_path / "run/removal/least_4_draw0/environment.json"
    process = Started(*remove)
    while process.poll() is None and not started.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    ended = run_script(*remove)
    assert ended.returncode == 0, ended.stderr
    assert "candidate: going on after step" in ended.stdout
    assert (tmp_path / "run/removal/least_4_draw0/seed_0/candidate/encoder.pt").exists()


def test_a_child_whose_parent_is_gone_before_it_trains_takes_no_lock(tmp_path, monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(writing)
    monkeypatch.setenv(PIPE_OF_PARENT, str(reading))
    with pytest.raises(SystemExit) as ending:
        train_simclr.main(["--config", write_experiment(tmp_path, {})])
    os.close(reading)
    assert ending.value.code == 128 + signal.SIGTERM
    assert "seed_0/candidate was not begun; the same command" in capsys.readouterr().err
    assert not (tmp_path / "run/seed_0").exists()
