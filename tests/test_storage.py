import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import write_experiment

import train_simclr
from memorization.checkpoint import read_checkpoint
from memorization.errors import WrongUse
from memorization.storage import append, sole_process, write_atomically, write_json


def test_a_file_is_written_with_its_folder(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_atomically(path, "text")
    write_atomically(tmp_path / "new" / "bytes", b"\x00\xff")
    assert path.read_text() == "text" and (tmp_path / "new" / "bytes").read_bytes() == b"\x00\xff"
    assert sorted(os.listdir(path.parent)) == ["bytes", "file.txt"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(failing, tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")

    def fail(*_):
        assert path.read_text() == "old"  # until the rename, whatever was written went elsewhere
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(WrongUse, match=f"{path}: cannot be written .disk full.: it needs 0.0 MB, .* free"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


def test_a_line_is_appended_to_what_is_there(tmp_path):
    for line in ("one\n", "two\n"):
        append(tmp_path / "log", line)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    with pytest.raises(WrongUse, match=f"{tmp_path}: cannot be written .Is a directory"):
        append(tmp_path, "three\n")


def test_a_run_that_meets_a_full_disk_is_one_line_and_goes_on_bit_identical_once_there_is_room(tmp_path):
    whole, short = (write_experiment(tmp_path / name, {}) for name in ("whole", "short") if not (tmp_path / name).mkdir())
    train_simclr.main(["--config", whole])
    folder = tmp_path / "short/run/seed_0/candidate"
    folder.parent.mkdir(parents=True)
    shutil.copytree(tmp_path / "whole/run/seed_0/candidate", folder)  # all but encoder.pt is written
    for name in ("config.yaml", "subsets.npz"):
        shutil.copy(tmp_path / "whole/run" / name, tmp_path / "short/run")
    (folder / "encoder.pt").unlink()
    kept = {name: (folder / name).read_bytes() for name in ("last.pt", "log.jsonl")}
    command = [sys.executable, train_simclr.__file__, "--config", short]
    limit = len(kept["last.pt"]) // 2

    def few_bytes():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    ended = subprocess.run(command, preexec_fn=few_bytes, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
    assert f"error: {folder}/next.pt: cannot be written (File too large): it needs 0.3 MB" in ended.stderr
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    assert read_checkpoint(folder / "last.pt")["step"] == 9
    assert sorted(os.listdir(folder)) == ["last.pt", "log.jsonl"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    for role in ("candidate", "independent"):
        name = f"run/seed_0/{role}/encoder.pt"
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "short" / name).read_bytes()


def test_json_has_null_for_what_is_no_number(tmp_path):
    write_json(tmp_path / "a.json", {"t": float("inf"), "list": [1.5, {"p": float("nan")}], "text": "nan"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"t": None, "list": [1.5, {"p": None}], "text": "nan"}


def test_a_second_process_is_refused_with_the_first_ones_host_and_number(tmp_path):
    with sole_process(tmp_path / "lock"):
        with pytest.raises(WrongUse, match=f"process {os.getpid()} of {socket.gethostname()} is writing here"):
            with sole_process(tmp_path / "lock"):
                pass
        assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()  # the refused one left it alone
    assert not (tmp_path / "lock").exists()
    with sole_process(tmp_path / "lock"):
        pass


@pytest.mark.parametrize("content", ["", "{", json.dumps({"host": socket.gethostname(), "process": 4_000_000, "since": 0})])
def test_a_lock_left_behind_on_this_host_is_taken_over(content, tmp_path):
    (tmp_path / "lock").write_text(content)
    with sole_process(tmp_path / "lock"):
        assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()


def test_a_lock_of_another_host_is_refused_with_its_age_and_the_line_that_removes_it(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text(json.dumps({"host": "elsewhere", "process": 7, "since": time.time() - 7200}))
    for _ in range(2):
        with pytest.raises(WrongUse, match=f"process 7 of elsewhere has written here for 2.0 hours; if it has ended: rm {lock}"):
            with sole_process(lock):
                pass
    lock.unlink()
    with sole_process(lock):
        pass


def test_who_waits_goes_on_once_the_first_one_has_ended(tmp_path, capsys):
    order = []

    def second():
        with sole_process(tmp_path / "lock", wait=True):
            order.append("second")

    with sole_process(tmp_path / "lock"):
        waiting = threading.Thread(target=second)
        waiting.start()
        while f"process {os.getpid()} of {socket.gethostname()} is writing here; waiting" not in capsys.readouterr().out:
            time.sleep(0.01)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"] and not (tmp_path / "lock").exists()
