"""Data sets with published files and checksums: found, downloaded if missing, read by torchvision.

A file that is there is never written over. What is downloaded or unpacked is made in a folder of
its own and then moved.
"""

import gzip
import pickle
import re
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pydantic
from pydantic import Field
from torchvision import datasets

from memorization.errors import WrongUse
from memorization.fields import LEAST_PIXELS, MOST_PIXELS, NOT_COMPARED, possible_path
from memorization.machine import processes
from memorization.machine.files import (
    exists,
    open_regular,
    reason_of,
    refuse_unwritable,
    sole_process,
)
from models.settings import Settings

# Of each data set: torchvision's class, and its arguments for the training and for the test images.
DATASETS = {
    "fashion_mnist": (datasets.FashionMNIST, {"train": True}, {"train": False}),
    "cifar10": (datasets.CIFAR10, {"train": True}, {"train": False}),
    "cifar100": (datasets.CIFAR100, {"train": True}, {"train": False}),
    "svhn": (datasets.SVHN, {"split": "train"}, {"split": "test"}),
    "stl10": (datasets.STL10, {"split": "train+unlabeled"}, {"split": "test"}),
}
# torchvision knows the checksums of the packed files alone; others may pack a file otherwise.
UNPACKED = {
    "fashion_mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    }
}
# Where the package dataset-fashion-mnist puts its .gz files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


class DataSettings(Settings):
    name: Literal[
        "fashion_mnist", "cifar10", "cifar100", "svhn", "stl10", "image_folder", "fake"
    ] = Field(description="the dataset")
    root: str = Field("data", description="folder of the dataset", json_schema_extra=NOT_COMPARED)
    prepared: str = Field(
        "data/prepared",
        description="folder for the decoded maps of image_folder",
        json_schema_extra=NOT_COMPARED,
    )
    size: int | None = Field(
        None,
        ge=LEAST_PIXELS,
        le=MOST_PIXELS,
        description="image_folder and fake: height and width of the prepared images",
    )
    skip_broken: bool = Field(
        False,
        json_schema_extra=NOT_COMPARED,
        description="image_folder: leave images out that cannot be decoded, and take others instead",
    )
    verify: bool = Field(
        True,
        json_schema_extra=NOT_COMPARED,
        description="published datasets: refuse a file whose checksum is not the published one",
    )

    @pydantic.field_validator("root", "prepared")
    @classmethod
    def _possible_paths(cls, path):
        return possible_path(path)

    @pydantic.model_validator(mode="after")
    def _size_where_needed(self):
        needs_size = self.name in ("image_folder", "fake")
        if needs_size and self.size is None:
            raise ValueError(f"size is missing: {self.name} needs one, such as 224")
        if not needs_size and self.size is not None:
            raise ValueError(
                f"size is {self.size}, but the images of {self.name} have a size of their own; leave it out"
            )
        return self


class Source(NamedTuple):
    """A published file. path: below data.root. files: {path below data.root: md5} of what is in it,
    or of itself. optional: a file in it that may be missing, or None.
    """

    path: str
    urls: list
    md5: str
    files: dict
    optional: str | None = None


def sources_of(name):
    """The Sources of a data set, from the lists of torchvision's class."""
    dataset, *splits = DATASETS[name]
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


def read_published(name, root, verify):
    """((train pixels, labels), (test pixels, labels), class names) of a published data set.

    Pixels are (N, C, H, W) uint8 and labels (N,) int64, -1 if there is none. Raises WrongUse if
    files are missing and cannot be downloaded, if one is not as it was published and `verify`, or
    if one is damaged.
    """
    sources, places = sources_of(name), f"{root}"
    if name == "fashion_mnist":
        package = f"{DEBIAN_FASHION_MNIST} (Debian package dataset-fashion-mnist)"
        places = f"{root}/FashionMNIST/raw, then in {package}"
    try:
        with processes.first_before_others():
            _complete(name, sources, root, verify)
        files = {root / file: md5 for source in sources for file, md5 in source.files.items()}
        if not verify and hasattr(DATASETS[name][0], "meta"):
            for path in files:
                _check_pickle(path)
        return _read(name, root, files)
    except WrongUse:
        raise
    except Exception as error:  # pickle, scipy and the network each raise errors of their own
        words = reason_of(error) if isinstance(error, OSError) else str(error)
        reason = " ".join(words.split()) or type(error).__name__
        file = f"{error.filename}: " if getattr(error, "filename", None) else ""
        looked = f"looked for in {places}, then by download"
        raise WrongUse(f"{name}: cannot be read ({file}{reason}); {looked}") from error


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
    with sole_process(root / f"{name}.lock", wait=True):
        for leftover in root.glob(f".{name}_*"):  # of a process that was killed
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
        for source in sources:
            if _missing(source, root):
                with tempfile.TemporaryDirectory(prefix=f".{name}_", dir=root) as folder:
                    _fetch(name, source, root, Path(folder), verify)


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
    """{file: where it is now} of those files that a packed one holds, or that it is."""
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


def _read(name, root, files):
    dataset, *splits = DATASETS[name]
    try:
        train, test = [_without_checksums(dataset)(root, **arguments) for arguments in splits]
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
    """(pixels, labels) of a data set of torchvision, see `read_published`."""
    pixels = np.asarray(images.data)
    labels = images.targets if hasattr(images, "targets") else images.labels
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels of {pixels.dtype}, not uint8")
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[3] == 3:
        pixels = pixels.transpose(0, 3, 1, 2)
    return pixels, np.asarray(labels, dtype=np.int64).reshape(-1)


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
