"""Files of weights that other programs wrote: safetensors, and those of torch.save in its formats
of today and before torch 1.6. Nothing in them is executed or trusted.
"""

import functools
import hashlib
import io
import math
import mmap
import zlib
from pathlib import PurePosixPath

import torch

from memorization.errors import WrongUse, shorten
from memorization.imports.pickles import MOST_DIMENSIONS, MOST_PICKLED, Opaque, plain, read_pickle
from memorization.machine.archives import open_archive
from memorization.machine.files import is_folder, open_regular, parse_json, refuse_broken

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch.save before torch 1.6
SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
MOST_ELEMENTS = 2**40  # of a tensor; its product with the size of an element has 64 bits
READ_HERE = "files of torch.save and safetensors are read"


class _Foreign(ValueError):
    """A file of another kind; the message says of which."""


def read_weights_file(path):
    """What a file of weights holds: nested dicts and lists of tensors, numbers, text and Opaque.

    The content tells the format, not the suffix (.pth, .pt, .ckpt, .bin, .safetensors). Nothing is
    executed, and no class that the file names is imported: objects other than tensors, dicts, lists
    and plain values become `Opaque`, which knows their name. Tensors have the type in which they
    were stored. They are mapped from the file, so that only those in use need memory.

    Raises WrongUse if the file is missing, cannot be read or is of another kind, and Broken if it
    is truncated or changed. Formats: https://github.com/huggingface/safetensors#format and
    torch/serialization.py.
    """
    if is_folder(path):
        raise WrongUse(f"{path}: a folder; a file of weights is expected ({READ_HERE})")
    with refuse_broken(path, "not a whole file of weights"):
        try:
            with open_regular(path) as file:
                start = file.read(512)
                _check_first_bytes(start)
                buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            if start.startswith(b"PK\3\4"):
                return _read_zip(path, buffer)
            if start.startswith(b"\x80"):
                return _read_legacy(buffer)
            return _read_safetensors(buffer)
        except _Foreign as error:
            raise WrongUse(f"{path}: {error}; {READ_HERE}") from None


def file_checksum(path):
    """SHA-256 of a file's bytes, hexadecimal. Raises WrongUse if it cannot be read."""
    with refuse_broken(path, "not a whole file of weights"), open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_first_bytes(start):
    """Raise _Foreign unless a file begins as one of those that are read."""
    if not start:
        raise _Foreign("an empty file")
    if start.startswith(b"version https://git-lfs"):
        raise _Foreign("a pointer of Git LFS, not the file itself, which `git lfs pull` fetches")
    if start.startswith(b"\x89HDF\r\n"):
        raise _Foreign("an HDF5 file, as Keras writes")
    if start.startswith(b"\x1f\x8b"):
        raise _Foreign("compressed by gzip; unpack it first")
    if start[257:262] == b"ustar":
        raise _Foreign("a tar file, as torch.save wrote before torch 0.1.10")
    if start.startswith((b"PK\3\4", b"\x80")) or start[8:9] == b"{":
        return
    first = start.split(b"\n")[0].decode("utf-8", "replace")
    if "\0" not in first and first.isprintable() and "\ufffd" not in first:
        raise _Foreign(f"a text, not weights: it begins with {shorten(first, 60)!r}")
    raise _Foreign(f"a file of another kind: it begins with {start[:8]!r}")


# --- safetensors ----------------------------------------------------------------------------------


def _read_safetensors(buffer):
    """{key: tensor}. Its header, in JSON, has each tensor's type, shape and place behind it."""
    size = int.from_bytes(buffer[:8], "little")
    if size > min(MOST_PICKLED, len(buffer) - 8):
        raise ValueError(f"a header of {size} bytes in a file of {len(buffer)}")
    header = parse_json(buffer[8 : 8 + size].decode("utf-8"))
    header.pop("__metadata__", None)
    first, end, tensors = 8 + size, 0, {}
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, after = entry["data_offsets"]
        if begin != end:
            raise ValueError(f"the bytes of {shorten(key)} do not follow those before them")
        end = after
        if first + end > len(buffer):
            raise ValueError(f"{shorten(key)} ends at byte {first + end} of {len(buffer)}")
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            tensors[key] = Opaque(f"safetensors {entry['dtype']}")
            continue
        dtype, shape = SAFETENSORS_DTYPES[entry["dtype"]], entry["shape"]
        count = _elements(shape)
        if count * dtype.itemsize != after - begin:
            raise ValueError(f"{shorten(key)} has {after - begin} bytes and shape {shape}")
        tensors[key] = _numbers(buffer, first + begin, dtype, count).view(shape)
    if first + end != len(buffer):
        raise ValueError(f"it has {len(buffer)} bytes, and its tensors end at {first + end}")
    return {key: tensors[key] for key in header}  # in the file's order


# --- torch.save -----------------------------------------------------------------------------------


def _read_zip(path, buffer):
    """The value in a zip file: data.pkl, and beside it data/<key>, the bytes of each storage."""
    with open_archive(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
    view = memoryview(buffer)
    pickles = [name for name in members if PurePosixPath(name).name == "data.pkl"]
    if any(PurePosixPath(name).name == "constants.pkl" for name in members):
        raise _Foreign("a TorchScript program, not weights; save its state_dict()")
    if len(pickles) != 1:
        raise _Foreign("a zip file, but not one of torch.save")
    folder = pickles[0].removesuffix("data.pkl")

    @functools.cache
    def place(name):
        """(first byte, size) of a member of the archive, whose checksum fits."""
        member = members[folder + name]
        header = buffer[member.header_offset : member.header_offset + 30]
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = member.header_offset + 30 + names
        if header[:4] != b"PK\3\4" or start + member.file_size > len(buffer):
            raise ValueError(f"its member {shorten(name)} is not whole")
        # torch writes 0 if it is told to write no checksums
        if member.CRC and zlib.crc32(view[start : start + member.file_size]) != member.CRC:
            raise ValueError(f"the checksum of its member {shorten(name)} does not fit")
        return start, member.file_size

    def content(name):
        start, size = place(name)
        if size > MOST_PICKLED:
            raise ValueError(f"{size} bytes beside its tensors")
        return buffer[start : start + size]

    if folder + "byteorder" in members and content("byteorder") != b"little":
        raise _Foreign("written by a machine of another byte order")
    value = read_pickle(io.BytesIO(content("data.pkl")))
    return plain(
        value, lambda stored: _tensor(buffer, stored, *place(f"data/{stored.storage.key}"))
    )


def _read_legacy(buffer):
    """The value in a file of torch.save before 1.6: five pickles, then the storages' bytes."""
    file = io.BytesIO(buffer[:MOST_PICKLED])
    try:
        is_ours = read_pickle(file) == MAGIC and read_pickle(file) == PROTOCOL
    except (ValueError, LookupError, TypeError, AttributeError):
        is_ours = False
    if not is_ours:
        raise _Foreign("a pickle that torch.save did not write")
    system = read_pickle(file)
    if system.get("little_endian") is not True:
        raise _Foreign("written by a machine of another byte order")
    dtypes = {}
    value, keys = read_pickle(file, dtypes), read_pickle(file)
    places, start = {}, file.tell()
    for key in keys:  # the number of elements in 8 bytes, then the elements
        if key not in dtypes:
            raise _Foreign("it has tensors of a type that is not read")
        size = int.from_bytes(buffer[start : start + 8], "little") * dtypes[key].itemsize
        places[key] = start + 8, size
        start += 8 + size
    if start != len(buffer):
        raise ValueError(f"it has {len(buffer)} bytes, and its tensors end at {start}")
    return plain(value, lambda stored: _tensor(buffer, stored, *places[stored.storage.key]))


# --- tensors --------------------------------------------------------------------------------------


def _tensor(buffer, stored, start, size):
    """The tensor of a StoredTensor, whose storage begins at byte `start` and has `size` bytes."""
    storage, offset = stored.storage, stored.offset
    shape, stride = list(stored.shape), list(stored.stride)
    if len(shape) != len(stride) or any(type(n) is not int or n < 0 for n in (*stride, offset)):
        raise ValueError(f"a tensor of shape {shape} and stride {stride}")
    numbers = (storage.start, storage.count)
    if any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError("a storage of no size")
    if sum(numbers) * storage.dtype.itemsize > size:
        raise ValueError(f"a storage of {sum(numbers)} numbers in {size} bytes")
    if _elements(shape) == 0:
        return torch.empty(shape, dtype=storage.dtype)
    if offset + sum((n - 1) * step for n, step in zip(shape, stride)) >= storage.count:
        raise ValueError(f"a tensor of shape {shape} in a storage of {storage.count} numbers")
    first = start + storage.start * storage.dtype.itemsize
    values = _numbers(buffer, first, storage.dtype, storage.count)
    return values.as_strided(shape, stride, offset)


def _elements(shape):
    """How many elements a tensor of this shape has. Raises ValueError if it is no shape."""
    if type(shape) is not list or len(shape) > MOST_DIMENSIONS:
        raise ValueError("a tensor without a shape")
    if any(type(n) is not int or not 0 <= n <= MOST_ELEMENTS for n in shape):
        raise ValueError(f"a tensor of shape {shape}")
    if math.prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"a tensor of shape {shape}")
    return math.prod(shape)


def _numbers(buffer, start, dtype, count):
    """(count,) numbers from a byte on. They are copied only if their place does not suit them."""
    if count == 0:
        return torch.empty(0, dtype=dtype)
    if dtype == torch.bool:  # other bytes than 0 and 1 are no bool
        return torch.frombuffer(buffer, dtype=torch.uint8, count=count, offset=start) != 0
    if start % dtype.itemsize == 0:
        return torch.frombuffer(buffer, dtype=dtype, count=count, offset=start)
    return torch.frombuffer(bytearray(buffer[start : start + count * dtype.itemsize]), dtype=dtype)
