"""Datasets by name, as uint8 pixels and labels: `open_images`.

torchvision reads the files of the known datasets and downloads them where it can. A folder of images is listed when it is opened; the
images that an experiment uses are decoded once, by `Images.prepared`, into a memory map that every later run opens again.
"""

import functools
import gzip
import hashlib
import json
import math
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.format import open_memmap
from PIL import Image
from torchvision import datasets
from tqdm import tqdm

from memorization.config import first_difference, shortened
from memorization.errors import WrongUse
from memorization.interruption import stop_requests
from memorization.machine import to_device
from memorization.randomness import sample_keys, stream, uniform
from memorization.resources import pin
from memorization.storage import array_header, array_in, megabytes, named_on_failure, parse_json, read_text, sole_process, write_atomically

# Published mean and standard deviation of each channel, of pixels in [0, 1]; ImageNet's for any folder of images.
NORMALIZATION = {
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "stl10": ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    "image_folder": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "fake": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where the package dataset-fashion-mnist puts its .gz files
DECODED_AT_ONCE = 512  # images that an interrupted preparation loses at most
FAKE_COUNTS = {"train": 1024, "test": 256}
FAKE_CLASSES = 10
FAKE_GRID = 4  # height and width of the random grid behind a smooth pattern


@dataclass(frozen=True, eq=False)
class Split:
    """The training or the test images of a dataset.

    name: "train" or "test". pixels: (rows, C, H, W) uint8, in memory or over a memory map. labels: (N,) int64, -1 where there is none.
    row_of: (N,) int64, the row of pixels that holds image i, -1 where image i was not prepared; None where row i is image i.
    For a folder of images also files, the N paths; geometry: (rows, 3) float64, scale and x and y offset of each row, prepared pixel =
    original pixel * scale - offset; and sha256, of the prepared images, computed when their map was made. device: where images are
    gathered and views made.
    """

    name: str
    pixels: torch.Tensor
    labels: torch.Tensor
    row_of: torch.Tensor | None = None
    files: tuple | None = None
    geometry: np.ndarray | None = None
    sha256: str | None = None
    device: torch.device = torch.device("cpu")

    def __len__(self):
        return len(self.labels)

    @property
    def size(self):
        """Height and width of the images, which are square."""
        return self.pixels.shape[2]

    def gather(self, indices):
        """The images of these indices, (B, C, H, W) uint8 on `device`. indices: (B,) int64 on the CPU, all of them prepared."""
        if self.row_of is not None:
            indices = self.row_of[indices]
            assert (indices >= 0).all(), "images are gathered that were not prepared"
        return to_device(self.pixels.index_select(0, to_device(indices, self.pixels.device)), self.device)

    def to(self, device, data_device="auto"):
        """The Split with its images gathered on the device. data_device: where its pixels are kept, "cuda" or "cpu"; "auto" moves them to a
        GPU if they take less than a fifth of its memory left, whose rest the training will need."""
        fits = device.type == "cuda" and self.pixels.nbytes < torch.cuda.mem_get_info(device)[0] / 5
        moves = device.type == "cuda" and (data_device == "cuda" or (data_device == "auto" and fits))
        return replace(self, pixels=self.pixels.to(device) if moves else self.pixels, device=device)

    @property
    def is_far(self):
        """Whether to gather images takes long: from the memory to a GPU, or from a map on the disk."""
        return self.pixels.device.type != self.device.type or (self.row_of is not None and self.pixels.device.type == "cpu")

    def fetched(self, indices):
        """The Split with these images alone, copied into memory from which a GPU can take them. indices: (B,) int64, each once."""
        pixels = replace(self, device=self.pixels.device).gather(indices)
        pixels = pin(pixels) if self.device.type == "cuda" else pixels
        rows = torch.full((len(self),), -1).index_put((indices,), torch.arange(len(indices)))
        return replace(self, pixels=pixels, row_of=rows)

    @functools.cached_property
    def fingerprint(self):
        """{"count": N, "shape": [rows, C, H, W], "sha256": hex digits}; computed once."""
        return {"count": len(self), "shape": list(self.pixels.shape), "sha256": self.sha256 or _sha256(self)}


@dataclass(frozen=True, eq=False)
class Images:
    """A dataset: two splits, the mean and std (C floats each) that normalize pixels in [0, 1], and the names of its classes.

    prepared_folder: for a folder of images, where its decoded maps lie.
    """

    name: str
    train: Split
    test: Split
    mean: tuple
    std: tuple
    classes: tuple
    prepared_folder: Path | None = None

    @property
    def channels(self):
        return self.train.pixels.shape[1]

    @property
    def normalization(self):
        """(mean, std) of the channels."""
        return self.mean, self.std

    def to(self, device, data_device="auto"):
        """The Images with both splits gathered on the device; see `Split.to`."""
        return replace(self, train=self.train.to(device, data_device), test=self.test.to(device, data_device))

    @property
    def fingerprint(self):
        """What the data are, as plain types: the name, and count, shape and sha256 of each split. Of a folder, what is prepared counts."""
        return {"name": self.name, "train": self.train.fingerprint, "test": self.test.fingerprint}

    def prepared(self, train_indices, test_indices):
        """The Images from which these indices can be gathered: a folder's are decoded, where no earlier run did; the others are at hand.

        Raises WrongUse, which names the image that cannot be decoded or the map that cannot be written; what was decoded so far is kept.
        """
        if self.prepared_folder is None:
            return self
        train = _prepare(self.train, train_indices, self.prepared_folder)
        test = _prepare(self.test, test_indices, self.prepared_folder)
        return replace(self, train=train, test=test)


def open_images(settings):
    """The Images of a dataset, by settings.name.

    settings: DataSettings. A folder of images is only listed; call `prepared` on it before pixels are needed.
    Raises WrongUse, which names the dataset, where it was looked for and the reason, when files are missing or damaged.
    """
    return OPENERS[settings.name](settings)


def images_of_run(subsets, config):
    """The Images of the four subsets that a run was trained and is measured with.

    Raises WrongUse where `data.root` holds others than those of training.
    """
    images = open_images(config.data).prepared(subsets.train, subsets.external)
    difference = first_difference(images.fingerprint, subsets.data)
    if difference:
        key, found, trained = difference
        raise WrongUse(
            f"data.root: {config.data.root} holds other images than {config.run} was trained on: {key} is {shortened(found)}, not "
            f"{shortened(trained)}"
        )
    return images


# --- datasets that torchvision reads ----------------------------------------------------------------------------------------------


def _open_fashion_mnist(settings):
    raw = Path(settings.root).expanduser() / "FashionMNIST" / "raw"
    _unpack_debian_package(raw)
    places = f"{raw}, then in {DEBIAN_FASHION_MNIST} (Debian package dataset-fashion-mnist)"
    return _open_known(settings, dataset=datasets.FashionMNIST, train={"train": True}, test={"train": False}, places=places)


def _unpack_debian_package(raw):
    """Put the files of Debian's package, where it is installed, into torchvision's folder, where they are missing."""
    for name, _ in datasets.FashionMNIST.resources:
        packed, unpacked = DEBIAN_FASHION_MNIST / name, raw / name.removesuffix(".gz")
        if packed.exists() and not unpacked.exists():
            try:
                write_atomically(unpacked, gzip.decompress(packed.read_bytes()))
            except Exception as error:
                raise WrongUse(f"fashion_mnist: {packed} cannot be unpacked to {unpacked} ({_reason(error)})") from error


def _open_known(settings, dataset, train, test, places=None):
    """The Images of one of torchvision's datasets. train and test: its arguments for the two splits; places: where its files may be."""
    root = Path(settings.root).expanduser()
    mean, std = NORMALIZATION[settings.name]
    try:
        train = dataset(root, download=True, **train)
        test = dataset(root, download=True, **test)
        classes = tuple(getattr(train, "classes", None) or map(str, range(10)))
        return Images(settings.name, _split("train", train, classes), _split("test", test, classes), mean, std, classes)
    except Exception as error:  # torchvision, pickle, scipy and the network each raise errors of their own
        raise WrongUse(f"{settings.name}: cannot be read ({_reason(error)}); looked for in {places or root}, then by download") from error


def _split(name, dataset, classes):
    """The arrays of one of torchvision's datasets as a Split. Raises ValueError where images and labels do not fit together."""
    pixels = torch.as_tensor(dataset.data)
    if pixels.ndim == 3:
        pixels = pixels.unsqueeze(1)  # (N, H, W) -> (N, 1, H, W)
    elif pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
    labels = torch.as_tensor(dataset.targets if hasattr(dataset, "targets") else dataset.labels, dtype=torch.int64)
    if not 0 < len(pixels) == len(labels):
        raise ValueError(f"{len(pixels)} {name} images, but {len(labels)} labels")
    if not -1 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(f"a {name} label outside of the {len(classes)} classes")
    return Split(name, pixels.contiguous(), labels)


def _reason(error):
    """An error as part of one line."""
    return " ".join(str(error).split()) or type(error).__name__


# --- a folder of images -----------------------------------------------------------------------------------------------------------


def _open_image_folder(settings):
    root = Path(settings.root).expanduser()
    folders = {"train": root / "train", "test": root / "val" if (root / "val").is_dir() else root / "test"}
    for folder in folders.values():
        if not folder.is_dir():
            raise WrongUse(f"image_folder: {folder} is no folder; {root} needs train and val (or test), each with a folder for every class")
    try:
        listings = {name: datasets.ImageFolder(folder) for name, folder in folders.items()}
    except OSError as error:
        raise WrongUse(f"image_folder: {root} cannot be listed ({_reason(error)})") from error
    train, test = (set(listing.classes) for listing in listings.values())
    if train != test:
        name = min(train ^ test)
        here, there = (folders["train"], folders["test"]) if name in train else (folders["test"], folders["train"])
        raise WrongUse(f"image_folder: class {name!r} is in {here}, but not in {there}")

    splits = [_listed(name, listing, settings.size) for name, listing in listings.items()]
    classes = tuple(listings["train"].classes)
    return Images(settings.name, *splits, *NORMALIZATION[settings.name], classes, Path(settings.prepared).expanduser())


def _listed(name, listing, size):
    """A Split of which no image is prepared."""
    files, labels = zip(*listing.samples)
    pixels = torch.empty(0, 3, size, size, dtype=torch.uint8)
    return Split(name, pixels, torch.tensor(labels), row_of=torch.full((len(files),), -1), files=files)


def _prepare(split, indices, folder):
    """The Split with the images of these indices, and only these, in a memory map in folder; its rows are in ascending order of index.

    The map is filled under a name that ends in .partial and renamed when it is whole: what is found under its own name need not be decoded.
    Beside it lie a .geometry.npy and a .json, with the number of finished rows, where an interrupted preparation goes on, and the sha256.
    """
    indices = torch.as_tensor(indices, dtype=torch.int64).unique()
    if len(indices) and not 0 <= indices.min() <= indices.max() < len(split):
        raise WrongUse(f"image_folder: image {indices.max()} is asked for, but the {split.name} folder has only {len(split)} images")
    rows = torch.arange(len(indices))
    split = replace(split, row_of=torch.full((len(split),), -1).index_put((indices,), rows))
    if len(indices) == 0:
        return split
    path = folder / f"{split.name}_{split.pixels.shape[-1]}_{_key(split, indices)}.npy"
    record = path.with_suffix(".json")
    try:
        with sole_process(path.with_suffix(".lock"), wait=True):  # two runs that start together do not fill the same map
            if not path.exists():
                partial = _decode(split, indices, path)
                sha256 = _sha256(replace(split, pixels=open_map(partial)))
                of_geometry = hashlib.sha256(path.with_suffix(".geometry.npy").read_bytes()).hexdigest()
                found = {"finished": len(indices), "sha256": sha256, "geometry": of_geometry, "written": _written(partial)}
                write_atomically(record, json.dumps(found | {"checksum": _checksum(found)}))
                os.replace(partial, path)
        return _open_prepared(split, len(indices), path)
    except WrongUse:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WrongUse(f"{path}: cannot be prepared ({_reason(error)}); if its files are damaged, delete {path.stem}.*") from error


def _open_prepared(split, count, path):
    """The Split with a finished map of `count` rows. Its pixels are hashed only where they were written since their preparation.

    Raises ValueError, KeyError or TypeError where the map, its geometry or its record is broken.
    """
    record, geometry = parse_json(read_text(path.with_suffix(".json"))), path.with_suffix(".geometry.npy").read_bytes()
    if record.pop("checksum", None) != _checksum(record):
        raise ValueError("the checksum of its record does not fit")
    if hashlib.sha256(geometry).hexdigest() != record["geometry"]:
        raise ValueError("its geometry is not that of the preparation")
    geometry = array_in(geometry)
    with open(path, "rb") as file:
        shape, fortran_order, dtype = array_header(file)
        if (shape, fortran_order, dtype) != ((count, *split.pixels.shape[1:]), False, np.uint8):
            raise ValueError(f"a map of {dtype} of shape {shape}")
    split = replace(split, pixels=open_map(path), geometry=geometry, sha256=record["sha256"])
    if record["written"] != _written(path) and _sha256(split) != split.sha256:
        raise ValueError("its pixels are not those of the preparation")
    return split


def _checksum(record):
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _written(path):
    """Size and modification time of a file, which a rename leaves as they are."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def _key(split, indices):
    """A short name for these images of the split: other or changed files and other indices give another one."""
    digest = hashlib.sha256()
    for i in indices.tolist():
        try:
            status = os.stat(split.files[i])
        except OSError as error:
            raise WrongUse(f"{split.files[i]}: cannot be read ({_reason(error)})") from error
        used = [i, int(split.labels[i]), os.path.abspath(split.files[i]), status.st_size, status.st_mtime_ns]
        digest.update(json.dumps(used).encode())
    return digest.hexdigest()[:12]


def _decode(split, indices, path):
    """Fill the map under its partial name, from the first row that is not finished. Returns the partial name."""
    partial, record = path.with_suffix(".partial"), path.with_suffix(".json")
    finished = parse_json(read_text(record))["finished"] if partial.exists() else 0
    if type(finished) is not int or not 0 <= finished <= len(indices):
        raise ValueError(f"{finished} finished rows of {len(indices)}")
    shape = (len(indices), *split.pixels.shape[1:])
    if finished == 0:
        needed, free = math.prod(shape), shutil.disk_usage(path.parent).free
        if needed > free:
            raise WrongUse(f"{path.parent}: {megabytes(needed)} are needed for the {split.name} images, but {megabytes(free)} are free")
        write_atomically(record, json.dumps({"finished": 0}))
    mode = "r+" if finished else "w+"
    with named_on_failure(partial, math.prod(shape)):
        pixels = open_memmap(partial, mode, np.uint8, shape)
        with open(partial, "r+b") as file:  # a map whose disk is full in the middle would kill the process
            os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
    geometry = open_memmap(path.with_suffix(".geometry.npy"), mode, np.float64, (len(indices), 3))

    if (pixels.shape, pixels.dtype, geometry.shape, geometry.dtype) != (shape, np.uint8, (len(indices), 3), np.float64):
        raise ValueError("what an interrupted preparation left is another map")

    def decode_row(row):
        pixels[row], geometry[row] = _decode_image(split.files[indices[row]], shape[-1])

    progress = tqdm(total=len(indices), initial=finished, desc=f"preparing {split.name}", disable=None)
    no_bombs = warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning)  # PIL would decode them all the same
    with stop_requests() as stop, no_bombs, ThreadPoolExecutor() as pool, progress:
        for start in range(finished, len(indices), DECODED_AT_ONCE):
            rows = range(start, min(start + DECODED_AT_ONCE, len(indices)))
            for _ in pool.map(decode_row, rows):
                progress.update()
            pixels.flush()
            geometry.flush()
            write_atomically(record, json.dumps({"finished": rows.stop}))
            stop.check(f"{rows.stop} of {len(indices)} {split.name} images are prepared")
    return partial


def _decode_image(path, size):
    """The centre square of an image, its short side scaled to size; any EXIF orientation is ignored, as torchvision does.

    Returns (3, size, size) uint8, and the scale and the x and y offset of: prepared pixel = original pixel * scale - offset.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except Exception as error:  # PIL's decoders raise errors of many kinds for a broken file
        raise WrongUse(f"{path}: cannot be decoded ({_reason(error)})") from error
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    square = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    scale = size / side
    return np.asarray(square).transpose(2, 0, 1), (scale, left * scale, top * scale)


def open_map(path):
    """A map of pixels as a tensor that must not be written to. A map open for private writing would need memory for all of it."""
    pixels = open_memmap(path, "r")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(pixels)


def _sha256(split):
    """Hex digits over labels and pixels; where images were prepared, over their indices, labels and pixels."""
    digest, labels = hashlib.sha256(), split.labels
    if split.row_of is not None:
        indices = (split.row_of >= 0).nonzero().squeeze(1)
        digest.update(indices.numpy())
        labels = labels[indices]
    digest.update(labels.numpy())
    for rows in split.pixels.split(256):
        digest.update(rows.cpu().numpy())
    return digest.hexdigest()


# --- images made up for tests -----------------------------------------------------------------------------------------------------


def _open_fake(settings):
    splits = [_fake_split(name, settings.size) for name in FAKE_COUNTS]
    return Images(settings.name, *splits, *NORMALIZATION[settings.name], tuple(map(str, range(FAKE_CLASSES))))


def _fake_split(name, size):
    """Images from which both class and instance can be learned: the pattern of the class, one of the image's own, and a little noise."""
    of_classes = _smooth_patterns(sample_keys(stream(0, "fake", view=0), torch.arange(FAKE_CLASSES)), size)
    labels = torch.arange(FAKE_COUNTS[name]) % FAKE_CLASSES
    pixels = []
    for indices in torch.arange(len(labels)).split(128):
        keys = sample_keys(stream(0, "fake", name, view=1), indices)
        noise = uniform(sample_keys(stream(0, "fake", name, view=2), indices), torch.arange(3 * size * size)).view(-1, 3, size, size)
        mixture = 0.45 * of_classes[labels[indices]] + 0.45 * _smooth_patterns(keys, size) + 0.1 * noise  # (B, 3, size, size)
        pixels.append((255 * mixture).round().to(torch.uint8))
    return Split(name, torch.cat(pixels), labels)


def _smooth_patterns(keys, size):
    """One smooth random pattern a key, (B, 3, size, size) float64 in [0, 1)."""
    grid = uniform(keys, torch.arange(3 * FAKE_GRID**2)).view(-1, 3, FAKE_GRID, FAKE_GRID)
    return F.interpolate(grid, size=(size, size), mode="bilinear")


OPENERS = {
    "fashion_mnist": _open_fashion_mnist,
    "cifar10": functools.partial(_open_known, dataset=datasets.CIFAR10, train={"train": True}, test={"train": False}),
    "cifar100": functools.partial(_open_known, dataset=datasets.CIFAR100, train={"train": True}, test={"train": False}),
    "svhn": functools.partial(_open_known, dataset=datasets.SVHN, train={"split": "train"}, test={"split": "test"}),
    "stl10": functools.partial(_open_known, dataset=datasets.STL10, train={"split": "train+unlabeled"}, test={"split": "test"}),
    "image_folder": _open_image_folder,
    "fake": _open_fake,
}
