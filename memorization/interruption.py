"""Being told to stop: Ctrl-C and SIGTERM end a training once it is saved; one process alone trains in a folder."""

import fcntl
import json
import os
import signal
import socket
import time
from contextlib import contextmanager

from memorization.errors import WrongUse

STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Which of STOPPING has come, its number, or None."""

    number = None

    @property
    def name(self):
        return signal.Signals(self.number).name


@contextmanager
def stop_requests():
    """Note Ctrl-C and SIGTERM in the StopRequest that is given, in place of ending; the second one ends at once.

    What is ignored already, as Ctrl-C is by a job in the background, stays ignored.
    """
    request = StopRequest()
    previous = {number: signal.getsignal(number) for number in STOPPING}
    previous = {number: handler for number, handler in previous.items() if handler != signal.SIG_IGN}

    def note(number, _):
        request.number = number
        for other, handler in previous.items():
            signal.signal(other, handler)

    for number in previous:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def sole_process(path):
    """Hold a lock file, which names this host and process; it is deleted in the end.

    A lock that a process of this host left behind is taken over. Raises WrongUse where another process holds it, or another host does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(path)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": time.time()}).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path):
    """A descriptor of the lock file, locked by this process. Raises WrongUse where it is another's."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise WrongUse(f"{path.parent}: process {holder['process']} of {holder['host']} is writing here; wait for it to end") from None
        if not _names(path, descriptor):  # deleted by its holder in between: lock the new one
            os.close(descriptor)
            continue
        holder = _holder(descriptor)
        if holder["host"] not in (None, socket.gethostname()):
            os.close(descriptor)
            hours = (time.time() - holder["since"]) / 3600
            raise WrongUse(
                f"{path.parent}: process {holder['process']} of {holder['host']} has written here for {hours:.1f} hours; if it has ended: "
                f"rm {path}"
            )
        return descriptor


def _names(path, descriptor):
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor):
    """{"host", "process", "since"} in a lock file; host is None where it holds nothing that can be read."""
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        return {"host": str(content["host"]), "process": int(content["process"]), "since": float(content["since"])}
    except (ValueError, KeyError, TypeError):
        return {"host": None, "process": "another", "since": time.time()}
