"""Data sets that torchvision reads from files with published checksums.

Their files are looked for, downloaded if they are missing, and read. A file that is there is never
written over. Files are downloaded or unpacked into a new folder, and then moved.
"""

import gzip
import os
import pickle
import re
import shutil
import tarfile
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision import datasets

from memorization.data.listings import Listing
from memorization.errors import WrongUse
from memorization.machine import processes
from memorization.machine.files import exists, open_regular, reason_of, refuse_unwritable
from memorization.machine.locks import sole_process

# torchvision knows the checksums of the packed files alone; others may pack a file otherwise.
UNPACKED = {
    "fashion_mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    }
}
NOT_FOUND = (RuntimeError, FileNotFoundError)  # what torchvision raises for missing image files
# Where the package dataset-fashion-mnist puts its .gz files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


class Published(NamedTuple):
    """A data set of torchvision. reader: its class. splits: the arguments of the class for the
    training and for the test images.
    """

    name: str
    reader: type
    splits: tuple


class Source(NamedTuple):
    """A published file. path: below data.root. files: {path below data.root: md5} of what is in it,
    or of itself. optional: a file in it that may be missing, or None.
    """

    path: str
    urls: list
    md5: str
    files: dict
    optional: str | None = None


def sources_of(published):
    """The Sources of a Published data set, from the lists of torchvision's class."""
    name, dataset, splits = published
    if hasattr(dataset, "resources"):  # MNIST and its kin: files packed one by one
        raw, sources = f"{dataset.__name__}/raw", []
        for packed, md5 in dataset.resources:
            file = packed.removesuffix(".gz")
            urls = [mirror + packed for mirror in dataset.mirrors]
            files = {f"{raw}/{file}": UNPACKED[name][file]}
            sources.append(Source(f"{raw}/{packed}", urls, md5, files))
        return sources
    if hasattr(dataset, "split_list"):  # SVHN: one file a split
        listed = [dataset.split_list[arguments["split"]] for arguments in splits]
        return [Source(file, [url], md5, {file: md5}) for url, file, md5 in listed]
    # CIFAR and STL-10: a folder in one archive
    files = dict(dataset.train_list + dataset.test_list)
    if hasattr(dataset, "meta"):
        files[dataset.meta["filename"]] = dataset.meta["md5"]
    files = {f"{dataset.base_folder}/{file}": md5 for file, md5 in files.items()}
    source = Source(dataset.filename, [dataset.url], dataset.tgz_md5, files)
    if hasattr(dataset, "class_names_file"):
        source = source._replace(optional=f"{dataset.base_folder}/{dataset.class_names_file}")
    return [source]


def read_arrays(published, root, verify):
    """((train pixels, labels), (test pixels, labels), class names) of a Published data set.

    Pixels are (N, C, H, W) uint8 and labels (N,) int64, -1 for none. Raises WrongUse if files are
    missing and cannot be downloaded, if `verify` and a checksum is not the published one, or if a
    file is damaged.
    """
    sources, places = sources_of(published), f"{root}"
    if published.name == "fashion_mnist":
        package = f"{DEBIAN_FASHION_MNIST} (Debian package dataset-fashion-mnist)"
        places = f"{root}/FashionMNIST/raw, then in {package}"
    with _refuse_unreadable(published.name, places):
        with processes.first_before_others():
            _complete(published.name, sources, root, verify)
        files = {root / file: md5 for source in sources for file, md5 in source.files.items()}
        if not verify and hasattr(published.reader, "meta"):
            for path in files:
                _check_pickle(path)
        return _read(published, root, files)


def list_files(published, root):
    """(train Listing, test Listing, class names) of a Published data set of image files.

    If torchvision does not find them, they are downloaded; torchvision compares the checksums of
    what it downloads. Raises WrongUse if files are missing and cannot be downloaded.
    """
    with _refuse_unreadable(published.name, root):
        with processes.first_before_others():
            train, test = _find_files(published, root)
        listings = [_listing(dataset, root) for dataset in (train, test)]
        # Classes without names are counted in the training set: a test label must be one of them.
        classes = getattr(train, "classes", range(1 + max(listings[0].labels, default=-1)))
        return *listings, tuple(str(name) for name in classes)


@contextmanager
def _refuse_unreadable(name, places):
    """Turn every error of reading a data set into WrongUse that names the places of its files."""
    try:
        yield
    except WrongUse:
        raise
    except Exception as error:  # pickle, scipy and the network raise errors of many kinds
        words = reason_of(error) if isinstance(error, OSError) else str(error)
        reason = " ".join(words.split()) or type(error).__name__
        file = f"{error.filename}: " if getattr(error, "filename", None) else ""
        way = f"looked for in {places}, then by download"
        raise WrongUse(f"{name}: cannot be read ({file}{reason}); {way}") from error


# --- finding and downloading --------------------------------------------------------------------


def _complete(name, sources, root, verify):
    """See to it that all files are there, and as they were published if `verify`."""
    for source in sources:
        present = {root / file: md5 for file, md5 in source.files.items() if exists(root / file)}
        for path in present:
            open_regular(path).close()  # the system's reason, if it does not give the file
        if verify:
            _check(name, present)
    if not any(_missing(source, root) for source in sources):
        return
    with _lock_root(root, name):
        _delete_left_behind(name, root)
        for source in sources:
            if _missing(source, root):
                with tempfile.TemporaryDirectory(prefix=f".{name}_", dir=root) as folder:
                    _fetch(name, source, root, Path(folder), verify)


def _find_files(published, root):
    """torchvision's training and test set of image files, downloaded if it does not find them."""
    try:
        return _open_splits(published, root)
    except NOT_FOUND:
        name = published.name
    with _lock_root(root, name):
        _delete_left_behind(name, root)
        try:
            return _open_splits(published, root)  # another process has downloaded them
        except NOT_FOUND as error:
            missing = error
        with tempfile.TemporaryDirectory(prefix=f".{name}_", dir=root) as folder:
            try:
                for arguments in published.splits:
                    published.reader(folder, **arguments, download=True)
            except (OSError, RuntimeError) as error:
                raise RuntimeError(f"{missing}; download: {error}") from error
            for entry in sorted(Path(folder).iterdir()):
                _move_missing(entry, root / entry.name)
    return _open_splits(published, root)


def _open_splits(published, root):
    return [published.reader(root, **arguments) for arguments in published.splits]


@contextmanager
def _lock_root(root, name):
    """Keep other processes from completing a data set in a root meanwhile. Folders that were made
    for it are deleted if nothing was put into them.
    """
    missing = [folder for folder in (root, *root.parents) if not exists(folder)]
    try:
        with sole_process(root / f"{name}.lock", wait=True):
            yield
    finally:
        for folder in missing:
            with suppress(OSError):  # it holds something
                folder.rmdir()


def _move_missing(path, place):
    """Move a file or folder to its place; of a folder that is there, what is missing in it."""
    if not exists(place):
        with refuse_unwritable(place):
            path.rename(place)
    elif path.is_dir():
        for entry in sorted(path.iterdir()):
            _move_missing(entry, place / entry.name)


def _delete_left_behind(name, root):
    """Delete the folders of downloads that were killed."""
    for folder in root.glob(f".{name}_*"):
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)


def _missing(source, root):
    return [file for file in source.files if not exists(root / file)]


def _check(name, files, packed=None):
    """Raise WrongUse if a file is not as it was published.

    files: {path: md5}. packed: the file that they were in, or None.
    """
    for path, md5 in files.items():
        if not datasets.utils.check_integrity(path, md5):
            raise WrongUse(
                f"{name}: {packed or path}: its checksum is not the published one. It is left "
                "as it is: delete it if a download of it was interrupted, or read it with "
                "data.verify: false"
            )


def _fetch(name, source, root, folder, verify):
    """Put the missing files of a Source into their places. folder: an empty one, to work in."""
    packed, package = root / source.path, DEBIAN_FASHION_MNIST / Path(source.path).name
    if exists(packed):
        open_regular(packed).close()
        if verify and packed.suffixes[-2:] == [".tar", ".gz"]:
            _check(name, {packed: source.md5})
    elif name == "fashion_mnist" and exists(package):
        packed = package
    else:
        packed = _download(source, folder, root)
    missing = _missing(source, root)
    if source.optional and not exists(root / source.optional):
        missing.append(source.optional)
    try:
        unpacked = _unpack(packed, missing, folder)
        lacking = [file for file in missing if file not in unpacked and file != source.optional]
        if lacking:
            raise ValueError(f"{lacking[0]} is not in it")
    except Exception as error:
        place, reason = (root / missing[0]).parent, " ".join(str(error).split())
        raise WrongUse(f"{name}: {packed} cannot be unpacked to {place} ({reason})") from error
    if verify:
        listed = [file for file in unpacked if file != source.optional]
        _check(name, {unpacked[file]: source.files[file] for file in listed}, packed)
    for file, path in unpacked.items():
        place = root / file
        with refuse_unwritable(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            if not exists(place):
                path.rename(place)


def _download(source, folder, root):
    """The path of a downloaded file of the right checksum. Raises RuntimeError if there is none."""
    file, reasons = Path(source.path).name, []
    for url in source.urls:
        try:
            datasets.utils.download_url(url, folder, file, source.md5)
            return folder / file
        except (OSError, RuntimeError) as error:
            reasons.append(f"{url}: {error}")
    raise RuntimeError(f"{root / _missing(source, root)[0]} is missing; {', '.join(reasons)}")


def _unpack(packed, files, folder):
    """{file: its path now} of those files that a packed one holds, or that it is."""
    if packed.suffix != ".gz":
        return {files[0]: packed}
    if packed.suffixes[-2:] != [".tar", ".gz"]:
        with gzip.open(packed) as content:
            return {files[0]: _write(content, folder / "unpacked")}
    unpacked = {}
    with tarfile.open(packed) as archive:
        for member in archive:
            file = member.name.removeprefix("./")
            if file in files and member.isfile():
                content = archive.extractfile(member)
                unpacked[file] = _write(content, folder / f"unpacked_{len(unpacked)}")
    return unpacked


def _write(content, path):
    with refuse_unwritable(path), open(path, "xb") as file:
        shutil.copyfileobj(content, file)
    return path


# --- reading ------------------------------------------------------------------------------------


def _read(published, root, files):
    reader = _without_checksums(published.reader)
    try:
        train, test = [reader(root, **arguments) for arguments in published.splits]
        classes = tuple(str(label) for label in getattr(train, "classes", "0123456789"))
        return _arrays(train), _arrays(test), classes
    except OSError:
        raise
    except Exception as error:  # of one of the files that are not as they were published
        changed = [str(p) for p, md5 in files.items() if not datasets.utils.check_integrity(p, md5)]
        words = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(": ".join([", ".join(changed), words] if changed else [words])) from error


def _without_checksums(dataset):
    """torchvision's class for files whose checksums were compared already, or are not to be."""
    changes = {"_check_legacy_exist": lambda self: False}  # MNIST's other files, without checksums
    for name in ("train_list", "test_list"):
        changes[name] = [[file, None] for file, _ in getattr(dataset, name, ())]
    changes["meta"] = {**getattr(dataset, "meta", {}), "md5": None}
    listed = getattr(dataset, "split_list", {})
    changes["split_list"] = {split: [url, file, None] for split, (url, file, _) in listed.items()}
    return type(dataset.__name__, (dataset,), changes)


def _arrays(images):
    """(pixels, labels) of a data set of torchvision, see `read_arrays`."""
    pixels = np.asarray(images.data)
    labels = images.targets if hasattr(images, "targets") else images.labels
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels of {pixels.dtype}, not uint8")
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[3] == 3:
        pixels = pixels.transpose(0, 3, 1, 2)
    return pixels, np.asarray(labels, dtype=np.int64).reshape(-1)


def _listing(dataset, root):
    """The Listing of a data set of torchvision, whose classes name their lists differently."""
    samples = getattr(dataset, "samples", getattr(dataset, "_samples", None))
    if samples is None:
        files = dataset._image_files if hasattr(dataset, "_image_files") else dataset._images
        samples = list(zip(files, dataset._labels))
    files, labels = [file for file, _ in samples], [label for _, label in samples]
    names = tuple(os.path.relpath(file, root) for file in files)
    return Listing(tuple(map(str, files)), tuple(map(int, labels)), names)


# What pickles of arrays call, under the names that numpy has had for it.
CALLED_FOR_ARRAYS = re.compile(
    r"numpy\.(ndarray|dtype)|numpy\.(core|_core)\.(multiarray\._reconstruct|numeric\._frombuffer)"
)


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, text, lists, dicts and arrays of numbers; refuses to call anything else."""

    def find_class(self, module, name):
        if CALLED_FOR_ARRAYS.fullmatch(f"{module}.{name}"):
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return _encode_latin1
        raise pickle.UnpicklingError(f"it would call {module}.{name}")


def _encode_latin1(text, encoding):
    """How Python 3 writes bytes into pickles of protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding}")
    return text.encode("latin1")


def _check_pickle(path):
    """Raise ValueError for a pickle that does not load, or that would call what arrays do not need.

    torchvision, which loads it afterwards, would call anything.
    """
    try:
        with open_regular(path) as file:
            _PlainUnpickler(file, encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: {str(error) or type(error).__name__}") from error
