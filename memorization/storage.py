"""Files that are either whole or not there, and folders in which one process alone writes."""

import fcntl
import io
import json
import math
import os
import shutil
import socket
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from memorization.errors import WrongUse, visible

MOST_TEXT = 2**26  # bytes of a text file that is read at once


def write_atomically(path, content):
    """Write bytes or text to path: a temporary file in the same folder, flushed, synced, then renamed.

    Raises WrongUse where the disk does not take it; the file is then as it was before.
    """
    path = Path(path)
    if isinstance(content, str):
        content = content.encode()
    temporary = path.with_name(f".{path.name}.partial")  # always the same: what an interrupted write left is written over
    with named_on_failure(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                _write_through(file, content)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def append(path, text):
    """Write text behind what a file holds, flushed and synced. Raises WrongUse where the disk does not take it."""
    content = text.encode()
    with named_on_failure(path, len(content)), open(path, "ab") as file:
        _write_through(file, content)


def _write_through(file, content):
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def named_on_failure(path, size):
    """Turn an error of the file system into WrongUse that names the file and its size in bytes."""
    try:
        yield
    except OSError as error:
        reason, free = error.strerror or str(error), megabytes(free_bytes(Path(path).parent))
        raise WrongUse(f"{path}: cannot be written ({reason}): it needs {megabytes(size)}, {free} are free there") from None


def free_bytes(folder):
    """Room on the disk that holds a folder, which may still have to be made."""
    folder = Path(folder).absolute()
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free


def megabytes(size):
    """A size in bytes, in words."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def write_json(path, value):
    """Write a nested value of plain types as JSON, with null in the place of NaN and infinity, which JSON does not know."""
    write_atomically(path, json.dumps(_finite_or_none(value), indent=2) + "\n")


def _finite_or_none(value):
    if isinstance(value, dict):
        return {key: _finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_text(path, most=MOST_TEXT):
    """The text in a file. Raises ValueError where it has more than `most` bytes, or is not UTF-8."""
    if os.path.getsize(path) > most:
        raise ValueError(f"{os.path.getsize(path)} bytes, but at most {most} are expected")
    return Path(path).read_text(encoding="utf-8")


def parse_json(text):
    """The value of a JSON text. Raises ValueError also where it is nested too deeply, or has NaN or infinity in it."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name):
    raise ValueError(f"{name} is no JSON")


def read_arrays(path):
    """{name: array} of an .npz file of np.savez. Raises ValueError where it is broken, compressed or claims more than it holds."""
    try:
        with zipfile.ZipFile(path) as file:
            check_members(file)
            return {member.filename.removesuffix(".npy"): array_in(file.read(member)) for member in file.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:  # also of encrypted and of foreign archives
        raise ValueError(str(error)) from None


def check_members(file):
    """Raise ValueError unless the members of an open zip file are stored as they are, each once, together no larger than the file."""
    size, members = os.path.getsize(file.filename), file.infolist()
    if len({member.filename for member in members}) < len(members):
        raise ValueError("a member stands twice")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"{member.filename} is compressed")
    if sum(member.file_size for member in members) > size:  # several may lie in the same place
        raise ValueError(f"its members claim more than its {size} bytes")


def array_in(content):
    """The array in the bytes of an .npy file. Raises ValueError where its header claims another size than they have."""
    file = io.BytesIO(content)
    shape, fortran_order, dtype = array_header(file)
    values = np.frombuffer(content, dtype, offset=file.tell())
    return values.reshape(shape, order="F" if fortran_order else "C").copy()  # of its own memory, which may be written to


def array_header(file):
    """(shape, whether in Fortran's order, dtype) at the start of an open .npy file. Raises ValueError for what np.save of numbers and text
    does not write: nothing of it is executed."""
    try:
        version = np.lib.format.read_magic(file)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception:  # numpy reads the header as Python's literals, and raises many kinds for broken ones
        raise ValueError("no header of an array") from None
    if version != (1, 0) or dtype.kind not in "biufU" or dtype.itemsize == 0 or dtype.subdtype or min(shape, default=0) < 0:
        raise ValueError(f"{dtype} of shape {shape} is no array of numbers or text")
    return shape, fortran_order, dtype


def sync_folder(folder):
    """Make a rename in this folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- one process at a time --------------------------------------------------------------------------------------------------------


@contextmanager
def sole_process(path, wait=False):
    """Hold a lock file, which names this host and process; it is deleted in the end.

    A lock that a process of this host left behind is taken over. Where another process of this host holds it, wait for that to end, or
    raise WrongUse; raises it in any case where another host does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(path, wait)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": time.time()}).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path, wait):
    """A descriptor of the lock file, locked by this process. Raises WrongUse where it is another's."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            who = f"{path.parent}: process {holder['process']} of {holder['host']} is writing here"
            if not wait:
                os.close(descriptor)
                raise WrongUse(f"{who}; wait for it to end") from None
            print(f"{visible(who)}; waiting for it to end", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
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
