"""Files that are either whole or not there."""

import fcntl
import io
import json
import math
import os
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

MOST_TEXT = 2**26  # bytes of a text file that is read at once


def write_atomically(path, content):
    """Write bytes or text to path: a temporary file in the same folder, flushed, synced, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode()
    temporary = path.with_name(f".{path.name}.partial")  # always the same: what an interrupted write left is written over
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


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
    """Raise ValueError unless the members of an open zip file are stored as they are, each once, and no larger than the file."""
    size, members = os.path.getsize(file.filename), file.infolist()
    if len({member.filename for member in members}) < len(members):
        raise ValueError("a member stands twice")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size or member.file_size > size:
            raise ValueError(f"{member.filename}: {member.file_size} bytes, compressed or cut off")


def array_in(content):
    """The array in the bytes of an .npy file, to be read only. Raises ValueError where its header claims another size than they have."""
    file = io.BytesIO(content)
    shape, fortran_order, dtype = array_header(file)
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"{dtype} of shape {shape} is claimed, but {len(content) - file.tell()} bytes are there")
    values = np.frombuffer(content, dtype, offset=file.tell())
    return values.reshape(shape, order="F" if fortran_order else "C")


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


@contextmanager
def only_process(path):
    """Hold a lock file; another process that asks for it waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync_folder(folder):
    """Make a rename in this folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
