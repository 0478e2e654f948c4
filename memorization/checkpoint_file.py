"""The file of a checkpoint: plain types and tensors, a checksum, and nothing that is executed on
loading.
"""

import errno
import os
import pickletools
import re
import tempfile
from contextlib import contextmanager

import torch

from memorization.errors import Broken, WrongUse, shorten
from memorization.fingerprints import checksum, on_cpu
from memorization.machine.archives import open_archive
from memorization.machine.files import atomically, open_regular, refuse_broken
from memorization.machine.processes import on_first_process

FORMAT = "memorization checkpoint 1"
# The names in a pickle that torch.save makes of tensors.
GLOBALS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage")
# Bounds on what is not tensors, in bytes and in parts of a pickle. Most of it is the losses of an
# unfinished epoch, 100 bytes and 20 parts a step.
MOST_PICKLED, MOST_PARTS = 2**23, 2**21
# Errors of the system, whatever a file's content is.
OF_SYSTEM = (
    errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENODEV, errno.EACCES, errno.ENOSPC,
)  # fmt: skip
DEEPEST = 50  # of dicts and lists in each other


class _Foreign(ValueError):
    """A whole file, but not one of ours; the message says of what."""


@on_first_process
def save_checkpoint(path, content):
    """Write a dict of plain types and tensors, with its checksum; equal dicts give equal bytes."""
    content = on_cpu({"format": FORMAT, **content})
    with atomically(path) as file:
        torch.save({**content, "checksum": checksum(content)}, file)


def read_checkpoint(path):
    """The dict in a checkpoint.

    Raises WrongUse if the file is missing, foreign or cannot be read, and Broken if it is truncated
    or changed.
    """
    with refuse_broken(path, "not a whole checkpoint"):
        try:
            content = _load(path)
        except (OSError, MemoryError):
            raise
        except _Foreign as error:
            raise WrongUse(f"{path}: a checkpoint of another program ({error})") from None
        # torch raises many kinds for foreign and broken files, with advice that is none here
        except Exception as error:
            _raise_if_of_system(error)
            fault = "truncated, broken, or another kind of file"
            raise Broken(f"{path}: not a whole checkpoint: {fault}") from None
    if content.pop("checksum", None) != checksum(content):
        raise Broken(f"{path}: its checksum does not fit; the file is broken")
    return content


def _load(path):
    _check_first_bytes(path)
    with open_archive(path) as archive:
        _check_pickle_of_tensors(archive)
        with _copy_of(archive.fp, path) as copy:
            # Mapped, a tensor cannot claim more than the file holds; read into memory, torch takes
            # its word.
            content = torch.load(copy, map_location="cpu", weights_only=True, mmap=True)
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                raise _Foreign(f"{FORMAT!r} is missing")
            _check_plain(content, 4 * os.path.getsize(copy))
    return _in_memory(content)


def _check_first_bytes(path):
    """Raise _Foreign if a file begins as other programs' checkpoints do; ours are zip files."""
    with open_regular(path) as file:
        start = file.read(10)
    if start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5" and len(start) > 2:
        raise _Foreign("a pickle, as torch.save wrote before 1.6")
    if start[8:10] == b'{"':
        raise _Foreign("safetensors")
    if start.startswith(b"\x89HDF\r\n"):
        raise _Foreign("HDF5")


def _raise_if_of_system(error):
    """Raise OSError if an error of torch quotes one of the system."""
    for code in OF_SYSTEM:
        if os.strerror(code) in str(error):
            raise OSError(code, os.strerror(code)) from None


@contextmanager
def _copy_of(file, path):
    """Copy an open file, and give the copy's path, to be mapped into memory. path: of the file.

    The file's own file system may not map files, and a mapped page that cannot be read would end
    the process. A copy in memory may be larger than a limit on the size of files; then path itself
    is given.
    """
    in_memory = None
    if hasattr(os, "memfd_create"):
        in_memory = os.fdopen(os.memfd_create("checkpoint"), "r+b", 0)
    with in_memory or tempfile.NamedTemporaryFile(buffering=0) as copy:
        place = f"/proc/self/fd/{copy.fileno()}" if in_memory else copy.name
        file.seek(0)
        while block := memoryview(file.read(2**20)):
            try:
                while block:
                    block = block[copy.write(block) :]
            except OSError as error:
                if error.errno != errno.EFBIG:
                    raise
                place = os.fspath(path)
                break
        yield place


def _in_memory(value):
    """The same nested value, with its tensors copied out of the file."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _in_memory(item) for key, item in value.items()}
    return [_in_memory(item) for item in value] if isinstance(value, list) else value


def _check_pickle_of_tensors(archive):
    """Raise _Foreign unless an open zip file is one of torch.save, whose pickle names only tensors.

    Raises ValueError if the pickle is broken.
    """
    pickles = [m for m in archive.infolist() if m.filename.endswith("data.pkl")]
    if len(pickles) != 1:
        raise _Foreign("a zip file, but not one of torch.save")
    if pickles[0].file_size > MOST_PICKLED:
        raise _Foreign(f"{pickles[0].file_size} bytes beside its tensors")
    pickled = archive.read(pickles[0])
    for number, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if number == MOST_PARTS:
            raise _Foreign(f"more than {MOST_PARTS} parts beside its tensors")
        if opcode.name in ("STACK_GLOBAL", "INST"):
            raise _Foreign("it names more than tensors")
        if opcode.name == "GLOBAL" and not GLOBALS.fullmatch(argument):
            raise _Foreign(f"it names {shorten(argument)}")


def _check_plain(content, most):
    """Raise ValueError unless a value is what save_checkpoint writes: a tree of dicts and lists of
    numbers, text and whole tensors, of at most so many bytes. A pickle may hold a list in itself,
    or a small tensor a million times.
    """
    visited, size = set(), 0
    waiting = [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        if type(value) in (dict, list):
            if id(value) in visited or depth > DEEPEST:
                raise ValueError("its parts hold each other")
            visited.add(id(value))
            parts = [*value, *value.values()] if type(value) is dict else value
            waiting += [(part, depth + 1) for part in parts]
        elif type(value) is torch.Tensor:
            if value.requires_grad or not value.is_contiguous():
                raise ValueError("a tensor that was not saved so")
            size += value.nbytes
        elif type(value) is str:
            size += len(value)
        elif type(value) is int and abs(value) >= 2**64:
            raise ValueError("an int of more than 64 bits")
        elif value is not None and type(value) not in (bool, float, int):
            raise ValueError(f"a {type(value).__name__}")
        if size > most:
            raise ValueError("it holds more than its bytes")
