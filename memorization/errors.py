"""Wrong use: one clear line and exit code 2, never a traceback; the same for being told to stop, with the exit code of its signal."""

import errno
import functools
import os
import re
import sys
import warnings

import torch

from memorization import processes
from memorization.screen import loss_of_screen, open_screens

MOST_SHOWN = 1000  # characters of a message; a name or a value from a file may have any number
MOST_OF_A_VALUE = 200  # characters of one value in a message
# What a terminal obeys or hides: control characters, marks of the direction of text, and bytes of a
# name that are not UTF-8.
UNPRINTED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# The words by which RuntimeErrors say that memory ran out: those of torch's allocators, of CUDA,
# and of libraries with allocators of their own. CUDA allocates memory of the host, too.
OUT_OF_MEMORY = re.compile(
    "out of memory|(can't|cannot) allocate memory|not enough memory|bad_alloc|"
    "MemoryAllocation|ALLOC(ATION)?_FAILED",
    re.IGNORECASE,
)
OF_A_GPU = re.compile("cuda|cu[a-z]+_status|cufft|nccl|gpu", re.IGNORECASE)
OF_THE_HOST = re.compile("CPUAllocator|host|pin_memory|pinned", re.IGNORECASE)
GPU_MEMORY, HOST_MEMORY = "the GPU's memory has left", "memory has left in the host"


def visible(text):
    """A text of a file, or a file's name, as it may be printed: control characters as escapes."""
    return UNPRINTED.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def shorten(text, most=MOST_OF_A_VALUE):
    """The text, or the beginning and the end of one that has more characters than `most`."""
    kept = most - len(" ... ")
    return text if len(text) <= most else f"{text[: kept - kept // 3]} ... {text[-(kept // 3) :]}"


def one_line(message):
    """A message as one short line without control characters."""
    return shorten(visible(" ".join(str(message).splitlines())), MOST_SHOWN)


class WrongUse(ValueError):
    """Something the user can put right. The message is one line: the key or path, its value, and what is allowed."""

    def __init__(self, message):
        super().__init__(one_line(message))


class Broken(WrongUse):
    """A file that was read and is not whole. One that cannot be read is WrongUse alone."""


class Interrupted(Exception):
    """A training was told to stop, and is saved. The message is one line; `exit_code` is 128 + the signal's number, as in shells."""

    def __init__(self, message, number):
        super().__init__(one_line(message))
        self.exit_code = 128 + number


class Caution(UserWarning):
    """A warning of ours, one line: the work goes on, but its result may not be what was wanted."""

    def __init__(self, message):
        super().__init__(one_line(message))


def exhausted_memory(error):
    """Which memory has too little left, in words, if an error says that; else None.

    RuntimeErrors are known by their text: torch has a type of its own only for its own allocator.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return GPU_MEMORY
    if isinstance(error, MemoryError):
        return HOST_MEMORY
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return HOST_MEMORY
    text = str(error)
    if not isinstance(error, RuntimeError) or not OUT_OF_MEMORY.search(text):
        return None
    return GPU_MEMORY if OF_A_GPU.search(text) and not OF_THE_HOST.search(text) else HOST_MEMORY


def one_line_errors(main):
    """Decorate a script's main(argv=None): errors that are not the program's become one line on stderr.

    WrongUse, memory that ran out and other errors of the system end it with exit code 2,
    Interrupted with its own. A Caution is one line too. A reader of the screen that leaves, as
    `head` does, changes no exit code; a screen that cannot be written to for another reason is
    wrong use.
    """

    @functools.wraps(main)
    @open_screens()
    def run(argv=None):
        before, warnings.formatwarning = warnings.formatwarning, _one_line
        try:
            result = main(argv)
            processes.leave()
            _check_screen()
            return result
        except WrongUse as error:
            if processes.tells():
                print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except processes.Parted:
            raise SystemExit(2) from None
        except (MemoryError, RuntimeError, OSError) as error:
            memory = exhausted_memory(error)
            if memory is not None:
                reason = f"this needs more than {memory}; end what else uses it, or take less at a time"
            elif isinstance(error, OSError):
                place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
                reason = one_line(f"{place}{error.strerror or error}")
            elif processes.is_lost(error):
                reason = f"one of the {processes.count()} processes has ended before its work was done"
            else:
                raise
            if processes.tells():
                print(f"error: {reason}", file=sys.stderr)
            raise SystemExit(2) from None
        except Interrupted as stop:
            if processes.is_first():  # all processes are interrupted together
                print(f"stopped: {stop}", file=sys.stderr)
            raise SystemExit(stop.exit_code) from None
        except KeyboardInterrupt:
            print("stopped: the same command starts again, from what was kept", file=sys.stderr)
            raise SystemExit(130) from None
        finally:
            warnings.formatwarning = before

    return run


def _check_screen():
    """Raise WrongUse if something could not be printed, unless the reader had left."""
    loss = loss_of_screen()
    if loss is not None and not isinstance(loss, BrokenPipeError):
        raise WrongUse(f"the screen (stdout): cannot be written to ({loss.strerror}); the work is done, and its files are whole")


_as_python_does = warnings.formatwarning


def _one_line(message, category, *place, **line):
    return f"warning: {message}\n" if issubclass(category, Caution) else _as_python_does(message, category, *place, **line)
