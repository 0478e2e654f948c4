"""The screen: what a script prints. A missing character or a reader that leaves never ends the
work.
"""

import io
import math
import os
import sys
import warnings
from contextlib import contextmanager, suppress

from memorization.errors import Caution
from memorization.machine import processes

STANDARD_FILES = (1, 2)  # the numbers of stdout and stderr


def say(line):
    """Print a line at once, on the first of several processes alone."""
    if processes.is_heard():
        print(line, flush=True)


def percent(bound):
    """The upper bound of a share in whole percent, rounded up."""
    return "nan%" if math.isnan(bound) else f"{math.ceil(100 * bound - 1e-9)}%"


def caution(message):
    """Warn with a Caution, on the first of several processes alone."""
    if processes.is_heard():
        warnings.warn(Caution(message), stacklevel=2)


class Screen:
    """A text stream to print to, in the place of `stream`.

    A character that the stream's encoding lacks is printed as an escape. Once the stream cannot be
    written to, `loss` is its OSError, and all further text is dropped.
    """

    def __init__(self, stream):
        self.stream, self.loss = stream, None

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        if self.loss is None:
            try:
                self._write(text)
            except UnicodeEncodeError:
                encoding = self.stream.encoding
                self._write(text.encode(encoding, "backslashreplace").decode(encoding))
        if "\n" in text:
            self.flush()
        return len(text)

    def _write(self, text):
        try:
            self.stream.write(text)
        except BlockingIOError:
            self._wait_for_reader()
        except OSError as error:
            self._lose(error)

    def flush(self):
        while self.loss is None:
            try:
                return self.stream.flush()
            except BlockingIOError:
                self._wait_for_reader()
            except OSError as error:
                self._lose(error)

    def _wait_for_reader(self):
        """Let writing wait for a slow reader from now on, as is usual; another program had changed
        that.
        """
        os.set_blocking(self.stream.fileno(), True)

    def _lose(self, error):
        """Note an error. Python would write what the stream still holds at its end: it goes
        nowhere.
        """
        self.loss = error
        with suppress(io.UnsupportedOperation):
            number = self.stream.fileno()
            if number in STANDARD_FILES:
                with open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), number)


@contextmanager
def open_screens():
    """Make sys.stdout and sys.stderr Screens. Without a terminal at all, they lead nowhere."""
    _occupy_standard_files()
    before = sys.stdout, sys.stderr
    nowhere = open(os.devnull, "w")
    sys.stdout, sys.stderr = screens = [
        Screen(nowhere if file is None else file) for file in before
    ]
    try:
        yield
    finally:
        for screen in screens:
            screen.flush()
        sys.stdout, sys.stderr = before
        nowhere.close()


def loss_of_screen():
    """Why nothing can be printed any more, an OSError, or None."""
    return getattr(sys.stdout, "loss", None)


def _occupy_standard_files():
    """Open the files 0, 1 and 2 if they are closed: else the next file opened would get what is
    printed.
    """
    file = 0
    while file <= 2:
        file = os.open(os.devnull, os.O_RDWR)
    os.close(file)
