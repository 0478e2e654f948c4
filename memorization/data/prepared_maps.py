"""Finished maps of decoded images, and the formats of their files.

A finished map is `<split>_<size>_<key>.npy`, (N, 3, size, size) uint8. Beside it lie
`.geometry.npy` (geometry, and of each row the file and the pixels as digests) and `.json`
(checksums).
"""

import errno
import hashlib
import io
import json
import math
import os
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.format import open_memmap

from memorization.machine.archives import array_header, array_in
from memorization.machine.files import open_regular, parse_json, read_bytes, read_text

HASHED_AT_ONCE = 256
DIGEST_BYTES = 16  # of a file's identity, and of an image's pixels


@dataclass(frozen=True, eq=False)
class PreparedMap:
    """pixels: (N, 3, size, size) uint8, a tensor over the map. geometry: (N, 3) float64. digests:
    (N, DIGEST_BYTES) uint8 of the pixels, or None in a map of an earlier version. sha256: hex
    digits, of `hash_pixels`.
    """

    pixels: torch.Tensor
    geometry: np.ndarray
    digests: np.ndarray | None
    sha256: str


@dataclass(frozen=True, eq=False)
class Selection:
    """Images of a split that are to be prepared.

    name: of the split. indices: (N,) int64, ascending. files, labels: of these N images. size:
    height and width.
    """

    name: str
    indices: np.ndarray
    files: list
    labels: np.ndarray
    size: int

    def __len__(self):
        return len(self.files)

    @property
    def shape(self):
        return (len(self), 3, self.size, self.size)

    def take(self, rows):
        """The Selection of some rows."""
        files = [self.files[row] for row in rows]
        return Selection(self.name, self.indices[rows], files, self.labels[rows], self.size)


def open_prepared(path, selection):
    """The PreparedMap in a finished map. Its pixels are hashed only if they were written since
    their preparation.

    Raises OSError, and ValueError, KeyError or TypeError if the map, its geometry or its record is
    broken.
    """
    record, content = read_record(path), read_geometry(path, len(selection))
    if hashlib.sha256(content).hexdigest() != record["geometry"]:
        raise ValueError("its geometry is not that of the preparation")
    geometry, rows = arrays_of_geometry(content)
    check_header(path, selection.shape)
    pixels = open_map(path)
    if record["written"] != size_and_time(path):
        with open_regular(path) as file:
            if hash_pixels(file, selection)[0] != record["sha256"]:
                raise ValueError("its pixels are not those of the preparation")
    digests = None if rows is None else rows[:, DIGEST_BYTES:]
    return PreparedMap(pixels, geometry, digests, record["sha256"])


def open_map(path):
    """A map of pixels as a tensor that must not be written to. A map open for private writing would
    need memory for all of it.
    """
    try:
        pixels = open_memmap(path, "r")
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        pixels = np.load(path)  # a file system without memory maps
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(pixels)


def hash_pixels(file, selection):
    """(hex digits over the indices, labels and pixels of a Selection, digests of the rows) of an
    open map.
    """
    digest = hashlib.sha256(np.ascontiguousarray(selection.indices, dtype=np.int64))
    digest.update(np.ascontiguousarray(selection.labels, dtype=np.int64))
    digests = np.empty((len(selection), DIGEST_BYTES), dtype=np.uint8)
    file.seek(0)
    array_header(file)
    row_bytes = math.prod(selection.shape[1:])
    for start in range(0, len(selection), HASHED_AT_ONCE):
        n_rows = min(HASHED_AT_ONCE, len(selection) - start)
        content = file.read(n_rows * row_bytes)
        if len(content) < n_rows * row_bytes:
            raise ValueError("its pixels end too early")
        digest.update(content)
        digests[start : start + n_rows] = digest_rows(
            np.frombuffer(content, np.uint8).reshape(n_rows, row_bytes)
        )
    return digest.hexdigest(), digests


def digest_rows(rows):
    """Digests of the rows of an array, (N, DIGEST_BYTES) uint8; equal only if the rows are."""
    rows = np.ascontiguousarray(rows)
    digests = [hashlib.blake2b(row, digest_size=DIGEST_BYTES).digest() for row in rows]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, DIGEST_BYTES)


# --- the files of a map -------------------------------------------------------------------------


def npy_header(shape, descr="|u1"):
    """The first bytes of an .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": tuple(shape)}
    )
    return file.getvalue()


def geometry_bytes(geometry, rows):
    """The content of a .geometry.npy: two arrays, one behind the other."""
    file = io.BytesIO()
    np.save(file, geometry)
    np.save(file, rows)
    return file.getvalue()


def places_in_geometry(n_rows):
    """Where the values of the two arrays in a .geometry.npy begin."""
    first = len(npy_header((n_rows, 3), "<f8"))
    return first, first + 24 * n_rows + len(npy_header((n_rows, 2 * DIGEST_BYTES)))


def read_geometry(path, n_rows=2**24):
    """The bytes of the .geometry.npy of a map of at most so many images."""
    return read_bytes(path.with_suffix(".geometry.npy"), 4096 + n_rows * (24 + 2 * DIGEST_BYTES))


def arrays_of_geometry(content):
    """(geometry, rows) in the bytes of a .geometry.npy; rows is None in earlier versions."""
    file = io.BytesIO(content)
    shape, _, dtype = array_header(file)
    if dtype != np.float64 or len(shape) != 2 or shape[1] != 3:
        raise ValueError(f"a geometry of {dtype} of shape {shape}")
    end = file.tell() + dtype.itemsize * math.prod(shape)
    geometry = array_in(content[:end])
    if end == len(content):
        return geometry, None
    rows = array_in(content[end:])
    if rows.dtype != np.uint8 or rows.shape != (len(geometry), 2 * DIGEST_BYTES):
        raise ValueError(f"rows of {rows.dtype} of shape {rows.shape}")
    return geometry, rows


def check_header(path, shape):
    """Raise ValueError unless a map has this shape."""
    with open_regular(path) as file:
        header = array_header(file)
    if header != (tuple(shape), False, np.uint8):
        raise ValueError(f"a map of {header[2]} of shape {header[0]}, not {tuple(shape)}")


def read_record(path):
    """The record of a finished map. Raises ValueError if its checksum does not fit."""
    try:
        record = parse_json(read_text(path.with_suffix(".json")))
    except FileNotFoundError:
        raise ValueError("its record is missing") from None
    if record.pop("checksum", None) != checksum_of_record(record):
        raise ValueError("the checksum of its record does not fit")
    return record


def checksum_of_record(record):
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def size_and_time(path):
    """Size and modification time of a file, which a rename leaves as they are."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]
