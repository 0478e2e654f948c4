"""Errors and warnings whose message is one clear line."""

import errno
import re

import torch

MOST_SHOWN = 1000  # characters of a message; a name or a value from a file may have any number
MOST_OF_A_VALUE = 200  # characters of one value in a message
# What a terminal obeys or hides: control characters, marks of the direction of text, and bytes of a
# name that are not UTF-8.
UNPRINTED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
# The words by which RuntimeErrors say that memory ran out: those of torch's allocators, of CUDA,
# and of libraries with other allocators. CUDA allocates memory of the host, too.
OUT_OF_MEMORY = re.compile(
    "out of memory|(can't|cannot) allocate memory|not enough memory|bad_alloc|"
    "MemoryAllocation|ALLOC(ATION)?_FAILED",
    re.IGNORECASE,
)
OF_A_GPU = re.compile("cuda|cu[a-z]+_status|cufft|nccl|gpu", re.IGNORECASE)
OF_THE_HOST = re.compile("CPUAllocator|host|pin_memory|pinned", re.IGNORECASE)
GPU_MEMORY, HOST_MEMORY = "the GPU's memory has left", "memory has left in the host"


def escape(text):
    """Write the control characters of a text or of a file's name as escapes, so that it can be
    printed.
    """
    return UNPRINTED.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def shorten(text, most=MOST_OF_A_VALUE):
    """The text, or the beginning and the end of one that has more characters than `most`."""
    kept = most - len(" ... ")
    return text if len(text) <= most else f"{text[: kept - kept // 3]} ... {text[-(kept // 3) :]}"


def short_form(value):
    """A value in a message: the first 12 digits of a SHA-256, the beginning and the end of a long
    value.
    """
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return f"{value[:12]}..."
    return shorten(repr(value))


def one_line(message):
    """A message as one short line without control characters."""
    return shorten(escape(" ".join(str(message).splitlines())), MOST_SHOWN)


class WrongUse(ValueError):
    """Something the user can put right. The message is one line: the key or path, its value, and
    what is allowed.
    """

    def __init__(self, message):
        super().__init__(one_line(message))


class Broken(WrongUse):
    """A file that was read and is not whole. One that cannot be read is WrongUse alone."""


class Interrupted(Exception):
    """A signal stopped a training, which is saved. The message is one line; `exit_code` is 128 +
    the signal's number, as in shells.
    """

    def __init__(self, message, number):
        super().__init__(one_line(message))
        self.exit_code = 128 + number


class Caution(UserWarning):
    """A warning of one line: the work goes on, but its result may not be what the user expects."""

    def __init__(self, message):
        super().__init__(one_line(message))


def exhausted_memory(error):
    """Which memory has too little left, in words, if an error says that; else None.

    RuntimeErrors are known by their text: torch has a type only for errors of its own allocator.
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
