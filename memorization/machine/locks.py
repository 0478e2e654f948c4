"""Locks: folders in which one process at a time writes."""

import errno
import json
import os
import re
import secrets
import socket
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from memorization.errors import WrongUse, escape
from memorization.machine.files import (
    AS_IT_IS,
    closing_descriptor,
    refuse_unwritable,
    regular_status,
    temporary_file,
    try_flock,
)
from memorization.machine.processes import is_first
from memorization.machine.screen import say

PATIENCE = 3  # seconds of waiting before a line says so
LONGEST_PAUSE = 0.5  # seconds between two tries
MOST_RECORD = 1024  # bytes of a lock file
# What lock files hold: ours name their holder as JSON, those of SoftFileLock in lines.
JSON_START, LINES = b'{"host": ', re.compile(rb"([0-9]{1,10})\n([^\n]*)\n([0-9]+\n)?")


@contextmanager
def sole_process(path, wait=False):
    """Hold a lock file, which names this host and process; it is deleted in the end.

    The kernel releases the lock of a process that is killed. If the file system has no locks, the
    file's existence is the lock; then a lock is taken over if its process on this host has ended,
    and that of another host has to be removed by hand. If another process holds the lock, this one
    waits, with a line on the screen after PATIENCE, or, unless `wait`, raises WrongUse. Raises
    WrongUse also if the lock file cannot be written.
    """
    if not is_first():
        yield
        return
    path = Path(path)
    with refuse_unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_soft = not _has_flock(path)
        lock = (SoftFileLock if is_soft else FileLock)(path)
    _acquire(lock, path, wait, is_soft)
    record = json.dumps(
        {"host": socket.gethostname(), "process": os.getpid(), "token": secrets.token_hex(8)}
    ).encode()
    try:
        if not is_soft:
            with refuse_unwritable(path):
                _write_record(path, record)
        yield
    except BaseException:
        with suppress(WrongUse):  # the first error matters
            _release(lock, path, record)
        raise
    _release(lock, path, record)


def _has_flock(path):
    """Whether files beside path can be locked."""
    with temporary_file(path) as (file, _):
        return try_flock(file.fileno()) is not None


def _acquire(lock, path, wait, is_soft):
    start, pause, is_silent = time.monotonic(), 0.01, True
    while not _try_to_acquire(lock, path, is_soft):
        holder, hours, is_alive = _read_holder(path)
        advice = "" if is_alive or not is_soft else f"; if it has ended: rm {path}"
        if not wait and advice:
            raise WrongUse(
                f"{path.parent}: {holder} has written here for {hours:.1f} hours{advice}"
            )
        if not wait:
            raise WrongUse(f"{path.parent}: {holder} is writing here; wait for it to end")
        if is_silent and time.monotonic() - start > PATIENCE:
            waiting = f"{holder} is writing here; waiting for it to end{advice}"
            say(escape(f"{path.parent}: {waiting}"))
            is_silent = False
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _try_to_acquire(lock, path, is_soft):
    with refuse_unwritable(path):
        # SoftFileLock takes one of an earlier version for a broken one, which it takes over.
        if _check_is_lock(path).startswith(JSON_START) and is_soft:
            return False
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        return True


def _check_is_lock(path):
    """The record in a lock file, empty if there is none. Raises OSError if something else than a
    lock file lies at path.
    """
    try:
        record = _read_record(path)
    except FileNotFoundError:
        return b""
    is_json = record.startswith(JSON_START) or JSON_START.startswith(record.rstrip(b"\0"))
    if not is_json and not LINES.match(record):
        raise OSError(errno.EEXIST, "it is no lock, but a file of something else", str(path))
    return record


def _read_record(path):
    with closing_descriptor(os.open(path, os.O_RDONLY | AS_IT_IS)) as descriptor:
        regular_status(descriptor, path)
        return os.pread(descriptor, MOST_RECORD, 0)


def _write_record(path, record):
    with closing_descriptor(os.open(path, os.O_WRONLY | AS_IT_IS)) as descriptor:
        os.ftruncate(descriptor, 0)
        if os.pwrite(descriptor, record, 0) < len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _release(lock, path, record):
    """Delete a lock file, unless another one is in its place, and release its lock.

    It is held until the file is gone: whoever waits for it sees that, and takes a new one.
    """
    with refuse_unwritable(path):
        try:
            with suppress(FileNotFoundError):
                # the disk may have been full; a SoftFileLock deletes its file itself
                if record.startswith(_read_record(path)):
                    path.unlink()
        finally:
            lock.release()


def _read_holder(path):
    """(who holds a lock, in words; the hours since then; whether SoftFileLock knows it alive)."""
    try:
        record, since = _read_record(path), os.lstat(path).st_mtime
        lines = LINES.match(record)
        if lines:
            process, host = lines[1].decode(), lines[2].decode(errors="replace")
        else:
            content = json.loads(record)
            process, host = content["process"], content["host"]
    except (OSError, ValueError, KeyError, TypeError):  # released meanwhile, or half written
        return "another process", 0.0, False
    is_alive = lines is not None and host == socket.gethostname()
    return f"process {process} of {host}", (time.time() - since) / 3600, is_alive
