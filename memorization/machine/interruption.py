"""Interruption: Ctrl-C, SIGTERM and a closed terminal end long work once it is saved, here and in
child processes.
"""

import os
import re
import select
import signal
import stat
import subprocess
import threading
import time
from contextlib import contextmanager, suppress

from memorization.errors import Interrupted
from memorization.machine import processes
from memorization.machine.screen import loss_of_screen

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A variable of the environment: the pipe whose other end the parent holds.
PIPE_OF_PARENT = "MEMORIZATION_PIPE_OF_PARENT"
# Seconds within which a second SIGTERM is the same one: `timeout` sends it to the process and to
# its group.
ECHO = 1


class StopRequest:
    """The signal by which this process has to stop: the number of one of STOPPING, or None.

    The number is also SIGTERM's once the parent of `run_child` has ended or has to stop, and
    SIGPIPE's once nothing can be printed any more.
    """

    _number = None

    @property
    def number(self):
        if self._number:
            return self._number
        if _parent_is_gone():
            return int(signal.SIGTERM)
        return int(signal.SIGPIPE) if loss_of_screen() else None

    @number.setter
    def number(self, number):
        self._number = number

    @property
    def name(self):
        if self.number == signal.SIGPIPE:
            reason = getattr(loss_of_screen(), "strerror", "Broken pipe")
            return f"nothing can be printed ({reason})"
        return signal.Signals(self.number).name

    def check(self, done):
        """Raise Interrupted if a signal has come. done: what is saved, in words."""
        if self.number:
            advice = "the same command goes on from here"
            raise Interrupted(f"{self.name}: {done}; {advice}", self.number)


@contextmanager
def stop_requests():
    """Yield a StopRequest. In the body Ctrl-C, SIGTERM and SIGHUP are noted in it, in place of
    ending the process. A second Ctrl-C or SIGTERM ends the process at once.

    Each of several processes gets signals twice, from the terminal and from torchrun: there the
    second one is noted, too. Ignored signals, as Ctrl-C in a background job, stay ignored. Python
    hands signals to its main thread alone: in another thread nothing is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    previous = {number: old for number, old in handlers.items() if old != signal.SIG_IGN}
    signals = []  # (number, time)

    def note(number, _):
        request.number = number
        # Of a closed terminal SIGHUP comes twice, from the system and from the shell: it never ends
        # at once.
        if processes.count() > 1 or number == signal.SIGHUP:
            return
        signals.append((number, time.monotonic()))
        (first, start), (_, end) = signals[0], signals[-1]
        is_echo = number == first == signal.SIGTERM and end - start < ECHO
        if len(signals) > 1 and not is_echo:
            signal.signal(number, previous[number])
            os.kill(os.getpid(), number)

    for number in previous:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# --- child processes ------------------------------------------------------------------------------


def run_child(command, stop):
    """Run a command of this project as a child process, and return its exit code.

    The child saves and stops once a signal has come to this process, or this process has ended in
    any way: the child holds one end of a pipe, whose other end closes then. stop: of
    `stop_requests`.
    """
    reading, writing = os.pipe()
    try:
        environment = os.environ | {PIPE_OF_PARENT: str(reading)}
        process = subprocess.Popen(command, pass_fds=[reading], env=environment)
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        try:
            while process.poll() is None:
                if stop.number:
                    pipe.close()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.5)
        except BaseException:  # a second Ctrl-C
            process.kill()
            process.wait()
            raise
    return process.returncode


def _parent_is_gone():
    """Whether this process is a child of `run_child` whose parent has ended or has to stop."""
    text = os.environ.get(PIPE_OF_PARENT, "")
    if not re.fullmatch("[0-9]{1,4}", text):
        return False
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(int(text)).st_mode)
    except OSError:
        return False  # a program in between did not pass the pipe on
    # Nothing is ever written: a pipe that can be read is at its end.
    return is_pipe and bool(select.select([int(text)], [], [], 0)[0])
