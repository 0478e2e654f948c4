"""Datasets with published files and checksums: found, downloaded only if files are missing, and read.

A file that is there is never written over. What is downloaded or unpacked is made in a folder of its own and then moved.
"""

import gzip
import io
import pickle
import shutil
import tarfile
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
from torchvision import datasets

from memorization import processes
from memorization.errors import WrongUse
from memorization.storage import exists, named_on_failure, open_regular, read_bytes, reason_of, sole_process

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where the package dataset-fashion-mnist puts its .gz files


@dataclass(frozen=True)
class Archive:
    """A file that holds others. path: below data.root. kind: tar, gz or plain (it is the file itself). package: its name in
    Debian's package, whose bytes may differ."""

    path: str
    urls: tuple
    md5: str
    kind: str
    package: str | None = None


@dataclass(frozen=True)
class Published:
    """files: {path below data.root: md5, or None for what may be missing}. archives: {Archive: the files in it}."""

    files: dict
    archives: dict


def read_published(name, root, verify):
    """((train pixels, train labels), (test pixels, test labels), names of the classes) of a published dataset.

    Pixels are (N, C, H, W) uint8 and labels (N,) int64, -1 if there is none. Raises WrongUse if files are missing and
    cannot be downloaded, if one is not as it was published and `verify`, or if one is damaged.
    """
    published, read = DATASETS[name]
    places = f"{root}"
    if name == "fashion_mnist":
        places = f"{root}/FashionMNIST/raw, then in {DEBIAN_FASHION_MNIST} (Debian package dataset-fashion-mnist)"
    try:
        with processes.first_before_others():
            _complete(name, published, root, verify)
        return read(root)
    except WrongUse:
        raise
    except Exception as error:  # pickle, scipy, tarfile and the network each raise errors of their own
        words = reason_of(error) if isinstance(error, OSError) else str(error)
        reason = " ".join(words.split()) or type(error).__name__
        file = f"{error.filename}: " if getattr(error, "filename", None) else ""
        raise WrongUse(f"{name}: cannot be read ({file}{reason}); looked for in {places}, then by download") from error


# --- finding and downloading --------------------------------------------------------------------


def _complete(name, published, root, verify):
    """See to it that all files are there, and as they were published if `verify`."""
    present = [file for file in published.files if exists(root / file)]
    if verify:
        _check(name, {root / file: published.files[file] for file in present})
    if not _missing(published, root):
        return
    with sole_process(root / f"{name}.lock", wait=True):
        for left_behind in root.glob(f".{name}_*"):  # by a process that was killed
            if left_behind.is_dir() and not left_behind.is_symlink():
                shutil.rmtree(left_behind)
        for archive, files in published.archives.items():
            lacking = [file for file in files if not exists(root / file)]
            if set(lacking) & set(_missing(published, root)):
                with tempfile.TemporaryDirectory(prefix=f".{name}_", dir=root) as folder:
                    _unpack(name, published, archive, lacking, root, Path(folder), verify)


def _missing(published, root):
    """The files that must be there and are not."""
    return [file for file, md5 in published.files.items() if md5 and not exists(root / file)]


def _check(name, files, source=None):
    """Raise WrongUse if a file is not as it was published. files: {path: md5}; source: the file that they were unpacked from."""
    for path, md5 in files.items():
        if md5 and not datasets.utils.check_integrity(path, md5):
            raise WrongUse(
                f"{name}: {source or path}: its checksum is not the published one. It is left as it is: delete it if a download of it was "
                "interrupted, or read it with data.verify: false"
            )


def _unpack(name, published, archive, files, root, folder, verify):
    """Put the missing files of an archive into their places. folder: an empty one, for what is not whole yet."""
    local, package = root / archive.path, DEBIAN_FASHION_MNIST / archive.package if archive.package else None
    if exists(local):
        source = local
        if verify and archive.kind != "gz":  # others pack the same file otherwise: what is in it is compared below
            _check(name, {local: archive.md5})
    elif package is not None and exists(package):
        source = package
    else:
        source = _download(archive, folder)
    try:
        unpacked = UNPACKERS[archive.kind](source, files, folder)
    except Exception as error:
        raise WrongUse(f"{name}: {source} cannot be unpacked to {(root / files[0]).parent} ({' '.join(str(error).split())})") from error
    if verify:
        _check(name, {path: published.files[file] for file, path in unpacked.items()}, source)
    for file, path in unpacked.items():
        place = root / file
        with named_on_failure(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            if not exists(place):
                path.rename(place)


def _download(archive, folder):
    """The path of a downloaded archive whose checksum was compared. Raises what the last of its addresses raised."""
    reason = None
    for url in archive.urls:
        try:
            datasets.utils.download_url(url, folder, filename="download", md5=archive.md5)
            return folder / "download"
        except (OSError, RuntimeError) as error:
            reason = error
    raise reason


def _unpack_tar(source, files, folder):
    """{file: where it was unpacked to} of those files that a tar archive holds."""
    unpacked = {}
    with tarfile.open(source) as archive:
        for member in archive:
            file = member.name.removeprefix("./")
            if file in files and member.isfile():
                unpacked[file] = _write(archive.extractfile(member), folder / f"unpacked_{len(unpacked)}")
    return unpacked


def _unpack_gz(source, files, folder):
    with gzip.open(source) as content:
        return {files[0]: _write(content, folder / "unpacked")}


def _unpack_plain(source, files, folder):
    return {files[0]: source}


def _write(content, path):
    with named_on_failure(path), open(path, "xb") as file:
        shutil.copyfileobj(content, file)
    return path


UNPACKERS = {"tar": _unpack_tar, "gz": _unpack_gz, "plain": _unpack_plain}


# --- reading ------------------------------------------------------------------------------------


@contextmanager
def _named(path):
    """Put the path before what a damaged file raises."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: {str(error) or type(error).__name__}") from error


def _read_fashion_mnist(root):
    raw = root / "FashionMNIST" / "raw"
    splits = []
    for name in ("train", "t10k"):
        pixels = _read_idx(raw / f"{name}-images-idx3-ubyte", dimensions=3)
        labels = _read_idx(raw / f"{name}-labels-idx1-ubyte", dimensions=1)
        splits.append((pixels[:, None], labels.astype(np.int64)))
    return *splits, tuple(datasets.FashionMNIST.classes)


def _read_idx(path, dimensions):
    """The uint8 values in a file of MNIST's format: a magic number, the sizes, the values."""
    with _named(path):
        content, header = read_bytes(path), 4 * (1 + dimensions)
        magic, *shape = np.frombuffer(content, ">i4", 1 + dimensions).tolist()
        if magic != 0x800 + dimensions:
            raise ValueError(f"begins with {magic:#x}, not {0x800 + dimensions:#x}")
        return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def _read_cifar10(root):
    return _read_cifar(root, datasets.CIFAR10, "labels")


def _read_cifar100(root):
    return _read_cifar(root, datasets.CIFAR100, "fine_labels")


def _read_cifar(root, dataset, key):
    folder, splits = root / dataset.base_folder, []
    for files in (dataset.train_list, dataset.test_list):
        pixels, labels = [], []
        for name, _ in files:
            with _named(folder / name):
                entry = _unpickle(folder / name)
                pixels.append(np.asarray(entry["data"], dtype=np.uint8).reshape(-1, 3, 32, 32))
                labels.append(np.asarray(entry[key], dtype=np.int64).reshape(-1))
        splits.append((np.concatenate(pixels), np.concatenate(labels)))
    meta = folder / dataset.meta["filename"]
    with _named(meta):
        return *splits, tuple(str(name) for name in _unpickle(meta)[dataset.meta["key"]])


# What pickles of arrays call, under the names that numpy has had for it.
CALLED_FOR_ARRAYS = {
    "_reconstruct": np.zeros(1).__reduce__()[0],
    "_frombuffer": np.zeros(1).__reduce_ex__(5)[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}
NUMPY_MODULES = ("numpy", *(f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "numeric")))


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, text, lists, dicts and arrays of numbers; a pickle that would call anything else is refused."""

    def find_class(self, module, name):
        if module in NUMPY_MODULES and name in CALLED_FOR_ARRAYS:
            return CALLED_FOR_ARRAYS[name]
        if (module, name) == ("_codecs", "encode"):
            return _encode_latin1
        raise pickle.UnpicklingError(f"it would call {module}.{name}")


def _encode_latin1(text, encoding):
    """How Python 3 writes bytes into pickles of protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding}")
    return text.encode("latin1")


def _unpickle(path):
    with io.BytesIO(read_bytes(path)) as file:
        return _PlainUnpickler(file, encoding="latin1").load()


def _read_svhn(root):
    splits = []
    for name in ("train", "test"):
        path = root / f"{name}_32x32.mat"
        with _named(path), open_regular(path) as file:
            content = scipy.io.loadmat(file)
            labels = np.asarray(content["y"]).astype(np.int64).reshape(-1)
            labels[labels == 10] = 0  # the digit 0
            splits.append((np.asarray(content["X"], dtype=np.uint8).transpose(3, 2, 0, 1), labels))
    return *splits, tuple("0123456789")


def _read_stl10(root):
    folder = root / datasets.STL10.base_folder

    def read(name, shape):
        with _named(folder / name):
            return np.frombuffer(read_bytes(folder / name), np.uint8).reshape(shape)

    pixels = {name: read(f"{name}_X.bin", (-1, 3, 96, 96)).transpose(0, 1, 3, 2) for name in ("train", "unlabeled", "test")}
    labels = {name: read(f"{name}_y.bin", -1).astype(np.int64) - 1 for name in ("train", "test")}
    if len(pixels["train"]) != len(labels["train"]):
        raise ValueError(f"{len(pixels['train'])} labelled train images, but {len(labels['train'])} labels")
    unlabelled = np.full(len(pixels["unlabeled"]), -1)
    names = folder / datasets.STL10.class_names_file
    classes = read_bytes(names).decode("utf-8").splitlines() if exists(names) else "0123456789"
    train = np.concatenate([pixels["train"], pixels["unlabeled"]]), np.concatenate([labels["train"], unlabelled])
    return train, (pixels["test"], labels["test"]), tuple(classes)


# --- what is published --------------------------------------------------------------------------


def _in_one_archive(dataset, extra=None):
    """CIFAR-10, CIFAR-100 and STL-10: a folder of files in one tar archive."""
    files = dict(dataset.train_list + dataset.test_list) | (extra or {})
    files = {f"{dataset.base_folder}/{name}": md5 for name, md5 in files.items()}
    return Published(files, {Archive(dataset.filename, (dataset.url,), dataset.tgz_md5, "tar"): list(files)})


def _meta(dataset):
    return {dataset.meta["filename"]: dataset.meta["md5"]}


def _published_svhn():
    splits = [datasets.SVHN.split_list[name] for name in ("train", "test")]
    archives = {Archive(name, (url,), md5, "plain"): [name] for url, name, md5 in splits}
    return Published({name: md5 for _, name, md5 in splits}, archives)


def _published_fashion_mnist():
    md5 = {  # of the files in the published ones
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    }
    archives = {}
    for packed, md5_of_packed in datasets.FashionMNIST.resources:
        urls = tuple(mirror + packed for mirror in datasets.FashionMNIST.mirrors)
        file = f"FashionMNIST/raw/{packed.removesuffix('.gz')}"
        archives[Archive(f"FashionMNIST/raw/{packed}", urls, md5_of_packed, "gz", packed)] = [file]
    return Published({f"FashionMNIST/raw/{name}": value for name, value in md5.items()}, archives)


DATASETS = {
    "fashion_mnist": (_published_fashion_mnist(), _read_fashion_mnist),
    "cifar10": (_in_one_archive(datasets.CIFAR10, _meta(datasets.CIFAR10)), _read_cifar10),
    "cifar100": (_in_one_archive(datasets.CIFAR100, _meta(datasets.CIFAR100)), _read_cifar100),
    "svhn": (_published_svhn(), _read_svhn),
    "stl10": (_in_one_archive(datasets.STL10, {datasets.STL10.class_names_file: None}), _read_stl10),
}
