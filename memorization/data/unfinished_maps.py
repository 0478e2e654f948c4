"""Unfinished maps of decoded images: each image is kept as soon as it is decoded.

Each split and size has one unfinished map at most, `<split>_<size>.partial` beside its own
`.geometry.npy`, which one process at a time fills.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import stat

import numpy as np

from memorization.data.prepared_maps import (
    DIGEST_BYTES,
    arrays_of_geometry,
    check_header,
    checksum_of_record,
    geometry_bytes,
    hash_pixels,
    npy_header,
    places_in_geometry,
    read_geometry,
    read_record,
    size_and_time,
)
from memorization.errors import WrongUse
from memorization.machine.files import (
    AS_IT_IS,
    open_regular,
    refuse_unwritable,
    rename,
    size_in_words,
    write_atomically,
)


def unfinished_path(folder, selection):
    """The path of the map of a split and size until it is finished."""
    return folder / f"{selection.name}_{selection.size}.partial"


class UnfinishedMap:
    """A map that is being filled, as a context that closes its file, and deletes it if it is empty.

    keys: (N, DIGEST_BYTES) uint8, of the file in each row, 0 for an empty row. geometry: (N, 3)
    float64. Pixels are written by calls, not into memory: a full disk in the middle of a memory map
    would kill the process.
    """

    def __init__(self, selection, folder):
        self.split, self.shape = selection.name, selection.shape
        self.path = unfinished_path(folder, selection)
        self.geometry_path = self.path.with_suffix(".geometry.npy")
        self.keys = np.zeros((len(selection), DIGEST_BYTES), np.uint8)
        self.geometry = np.zeros((len(selection), 3))
        self.row_bytes, self.header_bytes = math.prod(self.shape[1:]), len(npy_header(self.shape))
        self.begun = False  # until then the file is that of an earlier preparation

    def __enter__(self):
        with refuse_unwritable(self.path, self.size):
            if self.path.is_symlink():
                self.path.unlink()
            self.file = _open_to_write(self.path)
        return self

    def __exit__(self, *_):
        os.close(self.file)
        if self.begun and not self.keys.any():
            self.discard()

    @property
    def size(self):
        return self.header_bytes + self.shape[0] * self.row_bytes

    def holds(self, keys):
        """Which rows hold the files of these keys, (N,) bool."""
        return (self.keys == keys).all(axis=1)

    def write(self, row, image):
        self.geometry[row] = image.geometry
        self.write_pixels(row, np.ascontiguousarray(image.pixels).tobytes())

    def write_pixels(self, row, content):
        with refuse_unwritable(self.path, self.size):
            _write_at(self.file, content, self.header_bytes + row * self.row_bytes)

    def read_pixels(self, row):
        return _read_at(self.file, self.row_bytes, self.header_bytes + row * self.row_bytes)

    def save(self, rows):
        """Make pixels durable, and then the note that these rows hold them."""
        with refuse_unwritable(self.path, self.size):
            os.fsync(self.file)
        first, last = int(rows.min()), int(rows.max()) + 1
        blank = np.zeros_like(self.keys[first:last])
        of_rows = np.concatenate([self.keys[first:last], blank], axis=1)
        geometry_start, rows_start = places_in_geometry(self.shape[0])
        with refuse_unwritable(self.geometry_path, self.geometry.nbytes):
            file = _open_to_write(self.geometry_path)
            try:
                _write_at(file, self.geometry[first:last].tobytes(), geometry_start + 24 * first)
                _write_at(file, of_rows.tobytes(), rows_start + 2 * DIGEST_BYTES * first)
            finally:
                os.close(file)

    def begin(self):
        """Write the header, and the note that all rows are empty."""
        self.begun = True
        rows = np.zeros((self.shape[0], 2 * DIGEST_BYTES), np.uint8)
        write_atomically(self.geometry_path, geometry_bytes(self.geometry, rows))
        with refuse_unwritable(self.path, self.size):
            _write_at(self.file, npy_header(self.shape), 0)

    def reserve(self, start):
        """Take the room from start to the end of the map from the disk, or find that it is full."""
        folder, needed = self.path.parent, self.size - start
        free = shutil.disk_usage(folder).free
        if needed > free:
            needed = f"{size_in_words(needed)} are needed for the {self.split} images"
            raise WrongUse(f"{folder}: {needed}, but {size_in_words(free)} are free")
        try:
            with refuse_unwritable(self.path, self.size):
                _reserve(self.file, start, self.size)
        except WrongUse:
            os.ftruncate(self.file, start)
            raise

    def discard(self):
        for path in (self.path, self.geometry_path):
            path.unlink(missing_ok=True)

    def finish(self, selection, path):
        """Hash the pixels, write the record, and give the map its name."""
        with open_regular(self.path) as file:
            sha256, digests = hash_pixels(file, selection)
        content = geometry_bytes(self.geometry, np.concatenate([self.keys, digests], axis=1))
        write_atomically(path.with_suffix(".geometry.npy"), content)
        record = {
            "finished": len(selection),
            "sha256": sha256,
            "geometry": hashlib.sha256(content).hexdigest(),
            "written": size_and_time(self.path),
        }
        record["checksum"] = checksum_of_record(record)
        write_atomically(path.with_suffix(".json"), json.dumps(record))
        rename(self.path, path)
        self.discard()


def take_over(unfinished, keys):
    """Keep the images that an earlier preparation left in the file of an UnfinishedMap, each in its
    new row.

    keys: (N, DIGEST_BYTES) uint8, of the files that belong into the rows.
    """
    earlier = _read_earlier(unfinished)
    if earlier is None:
        os.ftruncate(unfinished.file, 0)
        unfinished.begin()
        unfinished.reserve(os.fstat(unfinished.file).st_size)
        return
    old_keys, geometry = earlier
    old_rows, new_rows = _match_keys(old_keys, keys)
    in_place = len(old_rows) == old_keys.any(axis=1).sum() and np.array_equal(old_rows, new_rows)
    if len(old_keys) == len(keys) and in_place:
        unfinished.keys, unfinished.geometry = old_keys, geometry
        return
    ascending = np.maximum.accumulate(old_rows) == old_rows  # the others would overwrite each other
    old_rows, new_rows = old_rows[ascending], new_rows[ascending]
    room = os.fstat(unfinished.file).st_size
    if room < unfinished.size:
        unfinished.reserve(room)
    unfinished.begin()  # a process that is killed from here on leaves a map without images
    moves = list(zip(old_rows.tolist(), new_rows.tolist()))
    down = [(old, new) for old, new in moves if old > new]
    up = [(old, new) for old, new in moves if old < new]
    for old, new in [*down, *reversed(up)]:
        unfinished.write_pixels(new, unfinished.read_pixels(old))
    os.ftruncate(unfinished.file, unfinished.size)
    unfinished.keys[new_rows], unfinished.geometry[new_rows] = keys[new_rows], geometry[old_rows]
    unfinished.save(np.arange(len(keys)))


def _read_earlier(unfinished):
    """(keys, geometry) of the images in the file of an UnfinishedMap, or None if it holds none."""
    if os.fstat(unfinished.file).st_size == 0 or not unfinished.geometry_path.is_file():
        return None
    try:
        geometry, rows = arrays_of_geometry(read_geometry(unfinished.path))
        shape = (len(geometry), *unfinished.shape[1:])
        check_header(unfinished.path, shape)
    except (ValueError, TypeError):
        return None  # torn: its images are decoded again
    whole_size = len(npy_header(shape)) + math.prod(shape)
    if rows is None or os.fstat(unfinished.file).st_size < whole_size:
        return None
    return rows[:, :DIGEST_BYTES].copy(), geometry


def copy_from_finished(unfinished, keys, folder):
    """Fill rows with those of finished maps in a folder that hold the same files."""
    size = unfinished.shape[-1]
    for geometry_path in sorted(folder.glob(f"*_{size}_*.geometry.npy")):
        finished = geometry_path.with_name(geometry_path.name.replace(".geometry.npy", ".npy"))
        missing = np.flatnonzero(~unfinished.holds(keys))
        if len(missing) == 0:
            return
        if not finished.is_file():
            continue
        try:
            content, record = read_geometry(finished), read_record(finished)
            geometry, rows = arrays_of_geometry(content)
            check_header(finished, (len(geometry), *unfinished.shape[1:]))
            has_geometry = record["geometry"] == hashlib.sha256(content).hexdigest()
            is_whole = has_geometry and record["written"] == size_and_time(finished)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # the damage is named when that map itself is opened
        if rows is not None and is_whole:
            _copy_rows(unfinished, finished, geometry, rows, keys, missing)


def _copy_rows(unfinished, finished, geometry, rows, keys, missing):
    """Fill the missing rows with those of a finished map that hold the same files."""
    old_rows, new_rows = _match_keys(rows[:, :DIGEST_BYTES], keys[missing])
    if len(old_rows) == 0:
        return
    new_rows, first = missing[new_rows], len(npy_header((len(rows), *unfinished.shape[1:])))
    with open_regular(finished) as file:
        for old, new in zip(old_rows.tolist(), new_rows.tolist()):
            place = first + old * unfinished.row_bytes
            pixels = _read_at(file.fileno(), unfinished.row_bytes, place)
            unfinished.write_pixels(new, pixels)
    unfinished.geometry[new_rows], unfinished.keys[new_rows] = geometry[old_rows], keys[new_rows]
    unfinished.save(new_rows)


def _match_keys(have, want):
    """(places in `have`, places in `want`) of the keys that are in both, in the order of `want`;
    keys of 0 are none.
    """
    places = {key.tobytes(): place for place, key in enumerate(have) if key.any()}
    pairs = []
    for place, key in enumerate(row.tobytes() for row in want):
        if key in places:
            pairs.append((places[key], place))
    old_rows, new_rows = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return old_rows, new_rows


# --- the bytes of a file ------------------------------------------------------------------------


def _open_to_write(path):
    """A descriptor of a file, made if it is missing. Raises OSError for what is no file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | AS_IT_IS, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return descriptor


def _reserve(file, start, end):
    """Take room on the disk for the bytes of a file from start to end."""
    try:
        os.posix_fallocate(file, start, end - start)
    except AttributeError:  # macOS has no such call
        _write_zeros(file, start, end)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        _write_zeros(file, start, end)


def _write_zeros(file, start, end):
    block = bytes(2**20)
    for place in range(start, end, len(block)):
        _write_at(file, block[: end - place], place)


def _write_at(file, content, place):
    content = memoryview(content)
    while content:
        written = os.pwrite(file, content, place)
        content, place = content[written:], place + written


def _read_at(file, n_bytes, place):
    parts = []
    while n_bytes:
        parts.append(os.pread(file, n_bytes, place))
        if not parts[-1]:
            raise ValueError("it ends too early")
        n_bytes, place = n_bytes - len(parts[-1]), place + len(parts[-1])
    return b"".join(parts)
