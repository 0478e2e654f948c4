import errno
import fcntl
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest
from conftest import write_experiment

import train_simclr
from memorization.checkpoint import read_checkpoint
from memorization.errors import WrongUse
from memorization.machine import processes
from memorization.machine.archives import read_arrays
from memorization.machine.files import (
    append,
    atomically,
    check_writable,
    delete_file,
    exists,
    is_folder,
    make_folder,
    names_in,
    read_bytes,
    read_text,
    refuse_broken,
    rename,
    size_in_words,
    stage,
    sync_folder,
    temporary_file,
    write_atomically,
    write_json,
)
from memorization.machine.locks import sole_process


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
    with pytest.raises(
        WrongUse, match=f"{path}: cannot be written .disk full.: it needs 3 bytes, .* free"
    ):
        write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


def test_a_file_that_is_filled_piece_by_piece_is_whole_or_not_there(tmp_path):
    path = tmp_path / "new" / "file"
    with atomically(path) as file:
        file.write(b"..two")
        assert not path.exists()
        file.seek(0)
        file.write(b"on")
    assert path.read_bytes() == b"ontwo" and os.listdir(path.parent) == ["file"]
    with pytest.raises(ZeroDivisionError), atomically(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"ontwo" and os.listdir(path.parent) == ["file"]


def test_a_write_that_fails_keeps_no_hold_on_what_was_to_be_written(tmp_path, monkeypatch):
    """Python 3.12.1 crashes if a buffer of a BytesIO is still held by the traceback of an error."""

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WrongUse) as failure, atomically(tmp_path / "file") as file:
        file.write(b"content")
    file.truncate(0)  # a BufferError while a buffer is held
    assert "No space left" in str(failure.value)


def test_processes_beside_the_first_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "rank", lambda: 1)
    write_atomically(tmp_path / "file", "text")
    write_json(tmp_path / "file", 1)
    append(tmp_path / "file", "line")
    make_folder(tmp_path / "folder")
    check_writable("/proc/nothing can be written here")
    with atomically(tmp_path / "file") as file:
        file.write(b"bytes")
    with stage(tmp_path / "file", b"bytes") as staged:
        rename(staged, tmp_path / "file")
    with sole_process(tmp_path / "lock"), sole_process(tmp_path / "lock"):
        assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("of the first process")
    delete_file(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]


def test_a_line_is_appended_to_what_is_there(tmp_path):
    for line in ("one\n", "two\n"):
        append(tmp_path / "log", line)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    with pytest.raises(WrongUse, match=f"{tmp_path}: cannot be written .Is a directory"):
        append(tmp_path, "three\n")


def test_a_run_that_meets_a_full_disk_is_one_line_and_goes_on_bit_identical_once_there_is_room(
    tmp_path,
):
    whole, short = (
        write_experiment(tmp_path / name, {})
        for name in ("whole", "short")
        if not (tmp_path / name).mkdir()
    )
    train_simclr.main(["--config", whole])
    folder = tmp_path / "short/run/seed_0/candidate"
    folder.parent.mkdir(parents=True)
    # all but encoder.pt is written
    shutil.copytree(tmp_path / "whole/run/seed_0/candidate", folder)
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
    assert (
        f"error: {folder}/next.pt: cannot be written (File too large): it needs 287.2 kB"
        in ended.stderr
    )
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    assert read_checkpoint(folder / "last.pt")["step"] == 9
    assert sorted(os.listdir(folder)) == ["last.pt", "log.jsonl"]
    train_simclr.main(["--config", short])
    for role in ("candidate", "independent"):
        name = f"run/seed_0/{role}/encoder.pt"
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "short" / name).read_bytes()


def test_json_has_null_for_what_is_no_number(tmp_path):
    write_json(
        tmp_path / "a.json", {"t": float("inf"), "list": [1.5, {"p": float("nan")}], "text": "nan"}
    )
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "t": None,
        "list": [1.5, {"p": None}],
        "text": "nan",
    }


def test_a_second_process_is_refused_with_the_first_ones_host_and_number(tmp_path):
    with sole_process(tmp_path / "lock"):
        with pytest.raises(
            WrongUse, match=f"process {os.getpid()} of {socket.gethostname()} is writing here"
        ):
            with sole_process(tmp_path / "lock"):
                pass
        # the refused one left it alone
        assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()
    assert not (tmp_path / "lock").exists()
    with sole_process(tmp_path / "lock"):
        pass


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "\0\0\0",
        json.dumps({"host": socket.gethostname(), "process": 4_000_000, "since": 0}),
    ],
)
def test_a_lock_left_behind_on_this_host_is_taken_over(content, tmp_path):
    (tmp_path / "lock").write_text(content)
    with sole_process(tmp_path / "lock"):
        assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()


def test_a_lock_of_another_host_that_has_ended_is_taken_over(tmp_path):
    (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "process": 7, "since": 0}))
    with sole_process(tmp_path / "lock"):  # its kernel has released it
        assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()
    assert os.listdir(tmp_path) == []


def test_a_lock_of_a_killed_process_is_free_at_once(tmp_path):
    code = (
        "import os, signal, sys\nfrom memorization.machine.locks import sole_process\n"
        "with sole_process(sys.argv[1]):\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    lock = tmp_path / "lock"
    killed = subprocess.run([sys.executable, "-c", code, str(lock)]).returncode
    assert killed == -signal.SIGKILL and lock.exists()
    with sole_process(lock):
        assert json.loads(lock.read_text())["process"] == os.getpid()
    assert os.listdir(tmp_path) == []


def test_who_waits_goes_on_once_the_first_one_has_ended(tmp_path, capsys):
    order = []

    def second():
        with sole_process(tmp_path / "lock", wait=True):
            order.append("second")

    with sole_process(tmp_path / "lock"):
        waiting = threading.Thread(target=second)
        waiting.start()
        while (
            f"process {os.getpid()} of {socket.gethostname()} is writing here; waiting"
            not in capsys.readouterr().out
        ):
            time.sleep(0.01)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"] and not (tmp_path / "lock").exists()


# --- links, special files and what killed writers leave behind ------------------------------------


def test_a_temporary_file_has_a_name_that_cannot_be_guessed_and_is_new(tmp_path, monkeypatch):
    names, opened = set(), os.open

    def noted(path, flags, *mode):
        if ".partial" in str(path):
            names.add(str(path))
            assert flags & os.O_EXCL and flags & os.O_CREAT and flags & os.O_NOFOLLOW
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", noted)
    for _ in range(3):
        write_atomically(tmp_path / "file", "text")
    assert len(names) == 3 and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", [".file.partial", ".file.0123456789abcdef.partial"])
def test_no_link_in_a_folder_leads_a_write_to_another_file(name, tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / name).symlink_to("victim")
    write_atomically(tmp_path / "file", "text")
    assert (tmp_path / "victim").read_text() == "precious" and (
        tmp_path / "file"
    ).read_text() == "text"
    assert (tmp_path / name).is_symlink()  # not ours


def test_a_link_in_the_place_of_a_file_is_replaced_and_its_target_left_alone(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "file").symlink_to("victim")
    write_atomically(tmp_path / "file", "text")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "file").is_symlink() and (tmp_path / "file").read_text() == "text"


def test_nothing_is_appended_through_a_link_and_no_lock_is_taken_through_one(tmp_path):
    (tmp_path / "victim").write_text("precious")
    for target in ("victim", "nowhere"):
        (tmp_path / "link").symlink_to(target)
        with pytest.raises(WrongUse, match="link: cannot be written .it is a link"):
            append(tmp_path / "link", "line")
        with (
            pytest.raises(WrongUse, match="link: cannot be written .it is a link"),
            sole_process(tmp_path / "link"),
        ):
            pass
        (tmp_path / "link").unlink()
    assert (tmp_path / "victim").read_text() == "precious" and not (tmp_path / "nowhere").exists()


def test_a_file_of_something_else_under_the_name_of_a_lock_is_left_as_it_is(tmp_path):
    (tmp_path / "victim").write_text("precious")
    os.link(tmp_path / "victim", tmp_path / "lock")
    with (
        pytest.raises(WrongUse, match="lock: cannot be written .it is no lock"),
        sole_process(tmp_path / "lock", wait=True),
    ):
        pass
    assert (tmp_path / "lock").read_text() == (tmp_path / "victim").read_text() == "precious"


def test_a_folder_that_is_reached_through_a_link_is_written_and_read_as_any(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    write_atomically(tmp_path / "run/file", "text")
    append(tmp_path / "run/file", " and more")
    with sole_process(tmp_path / "run/lock"):
        assert read_text(tmp_path / "run/file") == "text and more"
    (tmp_path / "link").symlink_to("disk/file")  # a reader may follow a link
    assert read_text(tmp_path / "link") == "text and more" and is_folder(tmp_path / "run")


def make_special(path, kind):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(os.path.relpath(path))  # such paths are short
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a device", "folder"])
def test_what_is_no_file_is_refused_at_once_and_never_waited_for(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "special"
    make_special(path, kind)
    for read in (read_bytes, read_text, read_arrays):
        with (
            pytest.raises(WrongUse, match="special: cannot be read") as refusal,
            refuse_broken(path, "not whole", "; delete it"),
        ):
            read(path)
        assert "delete" not in str(refusal.value)
    writers = [append, lambda path, _: sole_process(path).__enter__()]
    writers += [] if kind == "link to a device" else [write_atomically]
    for write in writers:
        with pytest.raises(WrongUse, match="special: cannot be written"):
            write(path, "text")
    assert os.listdir(tmp_path) == ["special"] and not stat.S_ISREG(os.lstat(path).st_mode)


def test_a_link_that_leads_nowhere_is_not_taken_for_a_missing_file(tmp_path):
    (tmp_path / "last.pt").symlink_to("nowhere")
    with pytest.raises(WrongUse, match="last.pt: a link that leads nowhere"):
        exists(tmp_path / "last.pt")
    assert (
        not exists(tmp_path / "missing")
        and not exists(tmp_path / "missing/below")
        and exists(tmp_path)
    )


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path):
    write_atomically(tmp_path / "b/file", "")
    assert names_in(tmp_path / "missing") == [] and names_in(tmp_path) == ["b"]
    with pytest.raises(WrongUse, match="file: cannot be listed .Not a directory"):
        names_in(tmp_path / "b/file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
def test_a_folder_that_may_not_be_entered_is_told_as_such(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    for look in (exists, is_folder):
        with pytest.raises(WrongUse, match="closed/file: cannot be read .Permission denied"):
            look(tmp_path / "closed/file")
    with pytest.raises(WrongUse, match="closed: cannot be written .Permission denied"):
        check_writable(tmp_path / "closed")


def killed_in_the_middle_of_a_write(folder):
    """The temporary file that a killed writer of folder / "file" leaves behind."""
    code = (
        "import os, signal\nfrom memorization.machine.files import *\n"
        f"with temporary_file(Path({str(folder / 'file')!r})) as (file, _):\n"
        "    file.write(b'half')\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    (temporary,) = folder.glob(".file.*.partial")
    return temporary


def test_what_a_killed_writer_left_is_deleted_by_the_next_one_and_what_one_at_work_has_is_not(
    tmp_path,
):
    dead = killed_in_the_middle_of_a_write(tmp_path)
    write_atomically(tmp_path / "other", "text")
    assert dead.exists()
    with temporary_file(tmp_path / "file") as (_, living):
        write_atomically(tmp_path / "file", "text")
        assert not dead.exists() and living.exists()
    assert sorted(os.listdir(tmp_path)) == ["file", "other"]


def test_without_locks_what_is_left_behind_is_deleted_after_a_day(tmp_path, monkeypatch):
    dead = killed_in_the_middle_of_a_write(tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse_locks)
    write_atomically(tmp_path / "file", "text")
    assert dead.exists()
    os.utime(dead, (0, 0))
    write_atomically(tmp_path / "file", "text")
    assert os.listdir(tmp_path) == ["file"]


# --- file systems that cannot do something --------------------------------------------------------


def refuse_locks(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
def test_a_folder_that_cannot_be_synced_is_passed_over_and_another_error_is_not(
    code, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(code, "no")))
    sync_folder(tmp_path)
    with pytest.raises(WrongUse, match="file: cannot be written"):
        write_atomically(tmp_path / "file", "text")  # of the file itself
    monkeypatch.setattr(
        os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error"))
    )
    with pytest.raises(WrongUse, match="cannot be written .Input/output error"):
        sync_folder(tmp_path)


def test_without_flock_a_lock_is_a_file_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse_locks)
    with sole_process(tmp_path / "lock"):
        with (
            pytest.raises(WrongUse, match=f"process {os.getpid()} of .* is writing here"),
            sole_process(tmp_path / "lock"),
        ):
            pass
        assert (tmp_path / "lock").exists()
    assert not (tmp_path / "lock").exists()
    # ended; or its number is ours, as in a container that starts anew
    for process in ("4000000\n{}\n", f"{os.getpid()}\n{{}}\n1\n"):
        (tmp_path / "lock").write_text(process.format(socket.gethostname()))
        with sole_process(tmp_path / "lock", wait=True):
            pass
    assert os.listdir(tmp_path) == []


def test_without_flock_a_lock_of_another_host_is_refused_with_its_age_and_the_line_that_removes_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(fcntl, "flock", refuse_locks)
    lock = tmp_path / "lock"
    for process in (4_000_000, os.getpid()):  # there, or in that container, it may be at work
        lock.write_text(f"{process}\n3f2a77c01b9e\n")
        os.utime(lock, (time.time() - 7200,) * 2)
        holder = f"process {process} of 3f2a77c01b9e has written here for 2.0 hours"
        for _ in range(2):
            with (
                pytest.raises(WrongUse, match=f"{holder}; if it has ended: rm {lock}"),
                sole_process(lock),
            ):
                pass
        lock.unlink()
    with sole_process(lock):
        pass


@pytest.mark.parametrize(
    "record", ['{"host": "HOST", "process": 4000000}', "4000000\nelsewhere\n", ""]
)
def test_without_flock_who_waits_for_a_lock_that_may_be_left_behind_is_told_how_to_remove_it(
    record, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(fcntl, "flock", refuse_locks)
    monkeypatch.setattr("memorization.machine.locks.PATIENCE", 2.5)
    lock, taken = tmp_path / "lock", []
    lock.write_text(record.replace("HOST", socket.gethostname()))
    with pytest.raises(WrongUse, match=f"; if it has ended: rm {lock}"), sole_process(lock):
        pass

    def wait():
        with sole_process(lock, wait=True):
            taken.append(True)

    waiting, screen = threading.Thread(target=wait), ""
    waiting.start()
    while "waiting" not in screen:
        screen += capsys.readouterr().out
        time.sleep(0.01)
    assert f"waiting for it to end; if it has ended: rm {lock}" in screen and not taken
    lock.unlink()
    waiting.join()
    assert taken


def test_a_lock_that_cannot_be_had_is_one_line_and_nothing_is_left(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with (
        pytest.raises(WrongUse, match="lock: cannot be written .No space left on device"),
        sole_process(tmp_path / "lock"),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_a_disk_that_deletes_nothing_is_found_before_the_work(tmp_path, monkeypatch):
    """A trial that passed over it would leave its file for good."""

    def fail(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as failing:
        failing.setattr(os, "unlink", fail)
        with pytest.raises(WrongUse, match="cannot be written .Input/output error"):
            check_writable(tmp_path)
        with pytest.raises(WrongUse), sole_process(tmp_path / "lock"):
            pass
    check_writable(tmp_path)
    with sole_process(tmp_path / "lock"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_found_before_the_work(tmp_path, monkeypatch):
    check_writable(tmp_path / "not/yet/made")
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr(
        os,
        "fsync",
        lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")),
    )
    with pytest.raises(WrongUse, match=f"{tmp_path}: cannot be written .No space left on device"):
        check_writable(tmp_path / "not/yet/made")
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_place_of_a_folder_is_found_before_the_work(tmp_path):
    write_atomically(tmp_path / "scores", "")
    for folder in ("scores", "scores/epoch_0100"):
        with pytest.raises(
            WrongUse, match=f"{tmp_path}/scores: cannot be written to .it is a file"
        ):
            check_writable(tmp_path / folder)


def test_half_a_line_is_not_left_in_a_log(tmp_path, monkeypatch):
    append(tmp_path / "log", "one\n")
    monkeypatch.setattr(
        os,
        "fsync",
        lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")),
    )
    with pytest.raises(WrongUse, match="log: cannot be written .No space left on device"):
        append(tmp_path / "log", "two\n")
    assert (tmp_path / "log").read_text() == "one\n"


# --- who holds a lock -----------------------------------------------------------------------------


def test_a_lock_that_another_has_taken_over_is_left_to_it(tmp_path):
    for content in (json.dumps({"host": "elsewhere", "process": 7}), "another file"):
        with sole_process(tmp_path / "lock"):
            (tmp_path / "lock").rename(tmp_path / "aside")
            (tmp_path / "lock").write_text(content)
        assert (tmp_path / "lock").read_text() == content
        (tmp_path / "lock").unlink()


def add_ten(path):
    for _ in range(10):
        with sole_process(path.with_name("lock"), wait=True):
            write_atomically(path, str(int(read_text(path)) + 1))


def test_many_processes_change_a_file_one_after_the_other_without_a_word(tmp_path, capfd):
    write_atomically(tmp_path / "number", "0")
    writers = [
        multiprocessing.get_context("fork").Process(target=add_ten, args=(tmp_path / "number",))
        for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == 4 * [0] and capfd.readouterr() == ("", "")
    assert read_text(tmp_path / "number") == "40" and os.listdir(tmp_path) == ["number"]


@pytest.mark.parametrize(
    "size, words",
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2e6, "2.0 MB"), (3e10, "30.0 GB")],
)
def test_a_size_is_told_in_the_unit_that_shows_it(size, words):
    assert size_in_words(size) == words
