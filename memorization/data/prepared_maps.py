"""Maps of decoded images: the images that an experiment uses, decoded once, in a file that every
later run opens.

A finished map is `<split>_<size>_<key>.npy`, (N, 3, size, size) uint8; beside it lie
`.geometry.npy` (geometry, and of each row the file and the pixels as digests) and `.json`
(checksums). Each split and size has one unfinished map at most, `<split>_<size>.partial` beside its
own `.geometry.npy`, which one process at a time fills.
"""

import errno
import hashlib
import io
import json
import math
import os
import shutil
import stat
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import PIL
import torch
from numpy.lib.format import open_memmap
from tqdm import tqdm

from memorization.data.image_files import NOTES, BrokenImage, decode_image, strict_decoders
from memorization.errors import WrongUse
from memorization.machine import processes
from memorization.machine.files import (
    AS_IT_IS,
    array_header,
    array_in,
    exists,
    open_regular,
    parse_json,
    read_bytes,
    read_text,
    reason_of,
    refuse_broken,
    refuse_unwritable,
    rename,
    size_in_words,
    sole_process,
    write_atomically,
)
from memorization.machine.interruption import stop_requests

DECODED_AT_ONCE = 512  # images that an interrupted preparation loses at most
HASHED_AT_ONCE = 256
DIGEST_BYTES = 16  # of a file's identity, and of an image's pixels
KNOWN = "broken_images.json"  # the images that could not be decoded, in the folder of the maps
NO_FAULT_OF_THE_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class Fault(NamedTuple):
    """Why an image cannot be had. broken: whether the file is at fault, and not the right to read
    it or the disk.
    """

    file: str
    reason: str
    broken: bool


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


def prepare_map(selection, folder, known_suffice=False):
    """(PreparedMap, {}) of a Selection, or (None, {index: Fault}) if images of it cannot be
    decoded.

    Images that stand in an earlier map, or in an unfinished one, are taken from there. In an
    unfinished map all images are kept that could be decoded. known_suffice: decode nothing if some
    are known to be broken, but name these. Raises WrongUse if the map cannot be written or is
    damaged.
    """
    identities, faults = _identify(selection)
    if known_suffice:
        faults |= _find_known(selection, identities, folder / KNOWN)
        if faults:
            return None, faults
    if faults:
        rest = [row for row in range(len(selection)) if int(selection.indices[row]) not in faults]
        identities, readable = [identities[row] for row in rest], selection.take(rest)
    else:
        readable = selection
    path = folder / f"{selection.name}_{selection.size}_{_key(readable, identities)}.npy"
    if faults or not exists(path):
        lock = unfinished_path(folder, selection).with_suffix(".lock")
        with sole_process(lock, wait=True):  # two runs that start together fill a map once
            if len(readable) and not exists(path):
                faults |= _make(readable, identities, path, finish=not faults)
    if faults:
        return None, faults
    with refuse_broken(
        path, "a damaged map", f"; delete {path.stem}.* and its images are decoded again"
    ):
        return open_prepared(path, selection), {}


def unfinished_path(folder, selection):
    """Where the map of a split and size lies until it is finished."""
    return folder / f"{selection.name}_{selection.size}.partial"


def open_prepared(path, selection):
    """The PreparedMap in a finished map. Its pixels are hashed only if they were written since
    their preparation.

    Raises OSError, and ValueError, KeyError or TypeError if the map, its geometry or its record is
    broken.
    """
    record, content = _read_record(path), _read_geometry(path, len(selection))
    if hashlib.sha256(content).hexdigest() != record["geometry"]:
        raise ValueError("its geometry is not that of the preparation")
    geometry, rows = _arrays_of_geometry(content)
    _check_header(path, selection.shape)
    pixels = open_map(path)
    if record["written"] != _written(path):
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
        count = min(HASHED_AT_ONCE, len(selection) - start)
        content = file.read(count * row_bytes)
        if len(content) < count * row_bytes:
            raise ValueError("its pixels end too early")
        digest.update(content)
        digests[start : start + count] = digest_rows(
            np.frombuffer(content, np.uint8).reshape(count, row_bytes)
        )
    return digest.hexdigest(), digests


def digest_rows(rows):
    """Digests of the rows of an array, (N, DIGEST_BYTES) uint8; equal if and only if the rows are."""
    rows = np.ascontiguousarray(rows)
    digests = [hashlib.blake2b(row, digest_size=DIGEST_BYTES).digest() for row in rows]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, DIGEST_BYTES)


# --- which map ----------------------------------------------------------------------------------


def _identify(selection):
    """([(absolute path, bytes, time of change) or None], {index: Fault}) of the files of a
    Selection.
    """
    identities, faults = [], {}
    for index, file in zip(selection.indices.tolist(), selection.files):
        try:
            status = os.stat(file)
            identities.append((os.path.abspath(file), status.st_size, status.st_mtime_ns))
        except OSError as error:
            identities.append(None)
            faults[index] = _fault_of_system(file, error)
    return identities, faults


def _key(selection, identities):
    """A short name for a Selection: other or changed files, other labels and other indices give
    another one.
    """
    digest = hashlib.sha256()
    for index, label, identity in zip(
        selection.indices.tolist(), selection.labels.tolist(), identities
    ):
        digest.update(json.dumps([index, label, *identity]).encode())
    return digest.hexdigest()[:12]


def _file_digests(identities):
    """Digests of what names each file, (N, DIGEST_BYTES) uint8."""
    digests = [
        hashlib.sha256(json.dumps(identity).encode()).digest()[:DIGEST_BYTES]
        for identity in identities
    ]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, DIGEST_BYTES)


def _fault_of_system(file, error):
    if error.errno in NO_FAULT_OF_THE_FILE:
        raise WrongUse(f"{file}: cannot be read ({reason_of(error)})") from error
    absent = error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)
    return Fault(file, f"cannot be read ({reason_of(error)})", broken=absent)


# --- filling a map ------------------------------------------------------------------------------


def _make(selection, identities, path, finish):
    """Fill the map of a Selection and, if it is whole and `finish`, give it its name.

    Returns {index: Fault}.
    """
    keys = _file_digests(identities)
    with strict_decoders(), _Partial(selection, path.parent) as partial:
        _take_over(partial, keys)
        _copy_from_finished(partial, keys, path.parent)
        faults = _decode_missing(partial, selection, keys, path.parent / KNOWN)
        if finish and not faults:
            partial.finish(selection, path)
    return faults


def _decode_missing(partial, selection, keys, known_path):
    """Decode the images that a map lacks. Returns {index: Fault}."""
    known = _read_known(known_path)
    faults, notes, fresh = {}, Counter(), {}

    def decode_row(row):
        name, file = keys[row].tobytes().hex(), selection.files[row]
        if name in known:
            return Fault(file, known[name][1], broken=True)
        try:
            image = decode_image(file, selection.size)
        except BrokenImage as error:
            fresh[name] = [file, f"cannot be decoded ({error})"]
            return Fault(file, fresh[name][1], broken=True)
        except MemoryError:
            raise WrongUse(f"{file}: the memory is too small to decode it") from None
        except OSError as error:
            return _fault_of_system(file, error)
        partial.write(row, image)
        return image.notes

    missing = np.flatnonzero(~partial.holds(keys))
    done = len(selection) - len(missing)
    bar = {"total": len(selection), "initial": done, "desc": f"preparing {selection.name}"}
    progress = tqdm(**bar, disable=processes.hidden_bar())
    with stop_requests() as stop, ThreadPoolExecutor() as pool, progress:
        for start in range(0, len(missing), DECODED_AT_ONCE):
            rows = missing[start : start + DECODED_AT_ONCE]
            for row, result in zip(rows.tolist(), pool.map(decode_row, rows.tolist())):
                progress.update()
                if isinstance(result, Fault):
                    faults[int(selection.indices[row])] = result
                else:
                    notes.update(result)
                    partial.keys[row] = keys[row]
                    done += 1
            partial.save(rows)
            if fresh:
                _write_known(known_path, known | fresh)
            stop.check(f"{done} of {len(selection)} {selection.name} images are prepared")
    for name, words in NOTES.items():
        if notes[name]:
            print(f"prepared {selection.name} images: {words.format(notes[name])}", flush=True)
    return faults


def _read_known(path):
    """{identity in hexadecimal: [file, reason]} of the images that this version of PIL could not
    decode.
    """
    if not exists(path):
        return {}
    with refuse_broken(path, "not a list of broken images", "; delete it"):
        content = parse_json(read_text(path))
        images = content["images"] if content["pillow"] == PIL.__version__ else {}
        return {str(name): [str(file), str(reason)] for name, (file, reason) in images.items()}


def _find_known(selection, identities, path):
    """{index: Fault} of those images of a Selection that are known to be broken."""
    known = _read_known(path)
    if not known:
        return {}
    names = [key.tobytes().hex() for key in _file_digests(identities)]
    rows = [row for row, name in enumerate(names) if name in known]
    return {
        int(selection.indices[row]): Fault(selection.files[row], known[names[row]][1], broken=True)
        for row in rows
    }


def _write_known(path, images):
    write_atomically(
        path, json.dumps({"pillow": PIL.__version__, "images": images}, indent=1) + "\n"
    )


class _Partial:
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
        self.row_bytes, self.header_bytes = math.prod(self.shape[1:]), len(_header(self.shape))
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
        geometry_start, rows_start = _places_in_geometry(self.shape[0])
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
        write_atomically(self.geometry_path, _geometry_bytes(self.geometry, rows))
        with refuse_unwritable(self.path, self.size):
            _write_at(self.file, _header(self.shape), 0)

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
        content = _geometry_bytes(self.geometry, np.concatenate([self.keys, digests], axis=1))
        write_atomically(path.with_suffix(".geometry.npy"), content)
        record = {
            "finished": len(selection),
            "sha256": sha256,
            "geometry": hashlib.sha256(content).hexdigest(),
            "written": _written(self.path),
        }
        record["checksum"] = _checksum(record)
        write_atomically(path.with_suffix(".json"), json.dumps(record))
        rename(self.path, path)
        self.discard()


def _take_over(partial, keys):
    """Keep in a _Partial, each in its row, those images that an earlier preparation left in its
    file.

    keys: (N, DIGEST_BYTES) uint8, of the files that are to be in the rows.
    """
    earlier = _read_notes(partial)
    if earlier is None:
        os.ftruncate(partial.file, 0)
        partial.begin()
        partial.reserve(os.fstat(partial.file).st_size)
        return
    old_keys, geometry = earlier
    sources, targets = _matches(old_keys, keys)
    in_place = len(sources) == old_keys.any(axis=1).sum() and np.array_equal(sources, targets)
    if len(old_keys) == len(keys) and in_place:
        partial.keys, partial.geometry = old_keys, geometry
        return
    ascending = np.maximum.accumulate(sources) == sources  # the others would overwrite each other
    sources, targets = sources[ascending], targets[ascending]
    room = os.fstat(partial.file).st_size
    if room < partial.size:
        partial.reserve(room)
    partial.begin()  # a process that is killed from here on leaves a map without images
    moves = list(zip(sources.tolist(), targets.tolist()))
    down = [(source, target) for source, target in moves if source > target]
    up = [(source, target) for source, target in moves if source < target]
    for source, target in [*down, *reversed(up)]:
        partial.write_pixels(target, partial.read_pixels(source))
    os.ftruncate(partial.file, partial.size)
    partial.keys[targets], partial.geometry[targets] = keys[targets], geometry[sources]
    partial.save(np.arange(len(keys)))


def _read_notes(partial):
    """(keys, geometry) of the images in the file of a _Partial, or None if it holds none."""
    if os.fstat(partial.file).st_size == 0 or not partial.geometry_path.is_file():
        return None
    try:
        geometry, rows = _arrays_of_geometry(_read_geometry(partial.path))
        shape = (len(geometry), *partial.shape[1:])
        _check_header(partial.path, shape)
    except (ValueError, TypeError):
        return None  # torn: its images are decoded again
    if rows is None or os.fstat(partial.file).st_size < len(_header(shape)) + math.prod(shape):
        return None
    return rows[:, :DIGEST_BYTES].copy(), geometry


def _copy_from_finished(partial, keys, folder):
    """Fill rows with those of finished maps in a folder that hold the same files."""
    size = partial.shape[-1]
    for geometry_path in sorted(folder.glob(f"*_{size}_*.geometry.npy")):
        finished = geometry_path.with_name(geometry_path.name.replace(".geometry.npy", ".npy"))
        missing = np.flatnonzero(~partial.holds(keys))
        if len(missing) == 0:
            return
        if not finished.is_file():
            continue
        try:
            content, record = _read_geometry(finished), _read_record(finished)
            geometry, rows = _arrays_of_geometry(content)
            _check_header(finished, (len(geometry), *partial.shape[1:]))
            intact = record["geometry"] == hashlib.sha256(content).hexdigest() and record[
                "written"
            ] == _written(finished)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # whoever uses that map is told of its damage
        if rows is not None and intact:
            _copy_rows(partial, finished, geometry, rows, keys, missing)


def _copy_rows(partial, finished, geometry, rows, keys, missing):
    """Fill the missing rows with those of a finished map that hold the same files."""
    sources, targets = _matches(rows[:, :DIGEST_BYTES], keys[missing])
    if len(sources) == 0:
        return
    targets, first = missing[targets], len(_header((len(rows), *partial.shape[1:])))
    with open_regular(finished) as file:
        for source, target in zip(sources.tolist(), targets.tolist()):
            pixels = _read_at(file.fileno(), partial.row_bytes, first + source * partial.row_bytes)
            partial.write_pixels(target, pixels)
    partial.geometry[targets], partial.keys[targets] = geometry[sources], keys[targets]
    partial.save(targets)


def _matches(have, want):
    """(places in `have`, places in `want`) of the keys that are in both, in the order of `want`;
    keys of 0 are none.
    """
    places = {key.tobytes(): place for place, key in enumerate(have) if key.any()}
    pairs = [
        (places[key], place)
        for place, key in enumerate(row.tobytes() for row in want)
        if key in places
    ]
    sources, targets = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return sources, targets


# --- the files of a map -------------------------------------------------------------------------


def _header(shape, descr="|u1"):
    """The first bytes of an .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": tuple(shape)}
    )
    return file.getvalue()


def _geometry_bytes(geometry, rows):
    """The content of a .geometry.npy: two arrays, one behind the other."""
    file = io.BytesIO()
    np.save(file, geometry)
    np.save(file, rows)
    return file.getvalue()


def _places_in_geometry(count):
    """Where the values of the two arrays in a .geometry.npy begin."""
    first = len(_header((count, 3), "<f8"))
    return first, first + 24 * count + len(_header((count, 2 * DIGEST_BYTES)))


def _read_geometry(path, count=2**24):
    """The bytes of the .geometry.npy of a map of at most so many images."""
    return read_bytes(path.with_suffix(".geometry.npy"), 4096 + count * (24 + 2 * DIGEST_BYTES))


def _arrays_of_geometry(content):
    """(geometry, rows) in the bytes of a .geometry.npy; rows is None in one of an earlier version."""
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


def _check_header(path, shape):
    """Raise ValueError unless a map has this shape."""
    with open_regular(path) as file:
        found = array_header(file)
    if found != (tuple(shape), False, np.uint8):
        raise ValueError(f"a map of {found[2]} of shape {found[0]}, not {tuple(shape)}")


def _read_record(path):
    """The record of a finished map. Raises ValueError if its checksum does not fit."""
    try:
        record = parse_json(read_text(path.with_suffix(".json")))
    except FileNotFoundError:
        raise ValueError("its record is missing") from None
    if record.pop("checksum", None) != _checksum(record):
        raise ValueError("the checksum of its record does not fit")
    return record


def _checksum(record):
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _written(path):
    """Size and modification time of a file, which a rename leaves as they are."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


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


def _read_at(file, count, place):
    parts = []
    while count:
        parts.append(os.pread(file, count, place))
        if not parts[-1]:
            raise ValueError("it ends too early")
        count, place = count - len(parts[-1]), place + len(parts[-1])
    return b"".join(parts)
