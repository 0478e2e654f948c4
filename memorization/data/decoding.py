"""Decoding the image files of an experiment: once, into a map that every later run opens."""

import errno
import hashlib
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import PIL
import torch
from tqdm import tqdm

from memorization.data.image_files import NOTES, BrokenImage, decode_image, strict_decoders
from memorization.data.prepared_maps import DIGEST_BYTES, Selection, open_prepared
from memorization.data.unfinished_maps import (
    UnfinishedMap,
    copy_from_finished,
    take_over,
    unfinished_path,
)
from memorization.errors import WrongUse
from memorization.machine import processes
from memorization.machine.files import (
    exists,
    parse_json,
    read_text,
    reason_of,
    refuse_broken,
    size_in_words,
    write_atomically,
)
from memorization.machine.interruption import stop_requests
from memorization.machine.locks import sole_process
from memorization.machine.screen import say

DECODED_AT_ONCE = 512  # images that an interrupted preparation loses at most
NAMED = 5  # broken images that a message names
# The images that could not be decoded, in the folder of the maps.
BROKEN_IMAGES = "broken_images.json"
NO_FAULT_OF_THE_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class Fault(NamedTuple):
    """Why an image cannot be read or decoded. broken: whether the file is at fault, and not the
    right to read it or the disk.
    """

    file: str
    reason: str
    broken: bool


def prepare_split(split, indices, folder, stop_at_known=False):
    """(Split whose pixels are a map of the images of these indices, {index: Fault} of those that
    cannot be read or decoded).

    The map lies in folder, its rows in ascending order of index.
    """
    indices = torch.as_tensor(indices, dtype=torch.int64).unique()
    if len(indices) and not 0 <= indices.min() <= indices.max() < len(split):
        room = f"the {split.name} folder has only {len(split)} images"
        raise WrongUse(f"image_folder: image {indices.max()} is needed, but {room}")
    row_of = torch.full((len(split),), -1).index_put((indices,), torch.arange(len(indices)))
    split = replace(split, row_of=row_of)
    if len(indices) == 0:
        return split, {}
    files, labels = [split.files[i] for i in indices.tolist()], split.labels[indices].numpy()
    selection = Selection(split.name, indices.numpy(), files, labels, split.size)
    prepared, faults = prepare_map(selection, folder, stop_at_known)
    if faults:
        return split, faults
    return replace(split, **vars(prepared)), {}


def prepare_map(selection, folder, stop_at_known=False):
    """(PreparedMap, {}) of a Selection, or (None, {index: Fault}) if images of it cannot be
    decoded.

    Images that stand in an earlier map, or in an unfinished one, are taken from there. In an
    unfinished map all images are kept that could be decoded. stop_at_known: decode nothing if some
    are known to be broken, but name these. Raises WrongUse if the map cannot be written or is
    damaged.
    """
    identities, faults = _identify(selection)
    if stop_at_known:
        faults |= _find_broken_images(selection, identities, folder / BROKEN_IMAGES)
        if faults:
            return None, faults
    if faults:
        rest = [row for row in range(len(selection)) if int(selection.indices[row]) not in faults]
        identities, readable = [identities[row] for row in rest], selection.take(rest)
    else:
        readable = selection
    path = folder / f"{selection.name}_{selection.size}_{_name_of_map(readable, identities)}.npy"
    if faults or not exists(path):
        lock = unfinished_path(folder, selection).with_suffix(".lock")
        with sole_process(lock, wait=True):  # two runs that start together fill a map once
            if len(readable) and not exists(path):
                faults |= _fill_map(readable, identities, path, finish=not faults)
    if faults:
        return None, faults
    with refuse_broken(
        path, "a damaged map", f"; delete {path.stem}.* and its images are decoded again"
    ):
        return open_prepared(path, selection), {}


def state_faults(faults, used, images):
    """One line about the images that cannot be read or decoded. used: number of images in the
    experiment; images: its Images.
    """
    first, *others = faults
    folder, line = images.prepared_folder, f"{first.file}: {first.reason}"
    if others:
        named = ", ".join(fault.file for fault in others[: NAMED - 1])
        line += f"; so are {len(others)} more of the {used} images: {named}"
        if len(faults) > NAMED:
            line += f" and others; {folder / BROKEN_IMAGES} lists those that cannot be decoded"
    line += f"; repair or delete {'them' if others else 'it'}"
    line += ", or leave broken images out with data.skip_broken: true"
    unfinished = [unfinished_path(folder, split) for split in (images.train, images.test)]
    kept = [f"{path} ({size_in_words(path.stat().st_size)})" for path in unfinished if exists(path)]
    return f"{line}; what was decoded is kept in {' and '.join(kept)}" if kept else line


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


def _name_of_map(selection, identities):
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


def _fill_map(selection, identities, path, finish):
    """Fill the map of a Selection and, if it is whole and `finish`, give it its name.

    Returns {index: Fault}.
    """
    keys = _file_digests(identities)
    with strict_decoders(), UnfinishedMap(selection, path.parent) as unfinished:
        take_over(unfinished, keys)
        copy_from_finished(unfinished, keys, path.parent)
        faults = _decode_missing(unfinished, selection, keys, path.parent / BROKEN_IMAGES)
        if finish and not faults:
            unfinished.finish(selection, path)
    return faults


def _decode_missing(unfinished, selection, keys, known_path):
    """Decode the images that a map lacks. Returns {index: Fault}."""
    known = _read_broken_images(known_path)
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
        unfinished.write(row, image)
        return image.notes

    missing = np.flatnonzero(~unfinished.holds(keys))
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
                    unfinished.keys[row] = keys[row]
                    done += 1
            unfinished.save(rows)
            if fresh:
                _write_broken_images(known_path, known | fresh)
            stop.check(f"{done} of {len(selection)} {selection.name} images are prepared")
    for name, words in NOTES.items():
        if notes[name]:
            say(f"prepared {selection.name} images: {words.format(notes[name])}")
    return faults


def _read_broken_images(path):
    """{identity in hexadecimal: [file, reason]} of the images that this version of PIL could not
    decode.
    """
    if not exists(path):
        return {}
    with refuse_broken(path, "not a list of broken images", "; delete it"):
        content = parse_json(read_text(path))
        images = content["images"] if content["pillow"] == PIL.__version__ else {}
        return {str(name): [str(file), str(reason)] for name, (file, reason) in images.items()}


def _find_broken_images(selection, identities, path):
    """{index: Fault} of those images of a Selection that are known to be broken."""
    known = _read_broken_images(path)
    if not known:
        return {}
    names = [key.tobytes().hex() for key in _file_digests(identities)]
    rows = [row for row, name in enumerate(names) if name in known]
    return {
        int(selection.indices[row]): Fault(selection.files[row], known[names[row]][1], broken=True)
        for row in rows
    }


def _write_broken_images(path, images):
    write_atomically(
        path, json.dumps({"pillow": PIL.__version__, "images": images}, indent=1) + "\n"
    )
