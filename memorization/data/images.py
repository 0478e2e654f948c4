"""Datasets by name, as uint8 pixels and labels: `open_images`.

A folder of images is listed when it is opened; the images that an experiment uses are decoded once,
by `Images.prepare`, into a memory map that every later run opens again.
"""

import functools
import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from memorization.data.catalogue import DATASETS
from memorization.data.decoding import prepare_split, state_faults
from memorization.data.image_files import ENDINGS, BrokenImage, decode_image, strict_decoders
from memorization.data.image_folder import is_hidden
from memorization.data.prepared_maps import DIGEST_BYTES, digest_rows
from memorization.data.randomness import SPLITS
from memorization.errors import WrongUse
from memorization.machine import processes
from memorization.machine.device import to_device
from memorization.machine.resources import pin
from memorization.machine.screen import say


@dataclass(frozen=True, eq=False)
class Split:
    """The training or the test images of a dataset.

    name: "train" or "test". pixels: (rows, C, H, W) uint8, in memory or over a memory map. labels:
    (N,) int64, -1 for none. row_of: (N,) int64, the row of pixels that holds image i, -1 if it was
    not prepared; None if row i is image i. For images in files also files, the N paths; geometry:
    (rows, 3) float64, scale and x and y offset of each row, prepared pixel = original pixel * scale
    - offset; digests: (rows, bytes) uint8, of the pixels of each row; and sha256, of the prepared
    images. The last two were computed when their map was made. device: on which images are gathered
    and views made. For images in files also names, the paths as scores.csv shows them. groups: (N,)
    int64, equal for images that no two subsets may share, in either split, or None; subsets: (N,)
    texts, the subset of each image as a manifest says, "" for none, or None.
    """

    name: str
    pixels: torch.Tensor
    labels: torch.Tensor
    row_of: torch.Tensor | None = None
    files: tuple | None = None
    geometry: np.ndarray | None = None
    digests: np.ndarray | None = None
    sha256: str | None = None
    device: torch.device = torch.device("cpu")
    names: tuple | None = None
    groups: np.ndarray | None = None
    subsets: np.ndarray | None = None

    @classmethod
    def from_array(cls, array, labels=None, name="train"):
        """The Split of the images in an array of numpy or torch.

        array: (N, S, S, C) or (N, S, S), uint8; labels: (N,) integers, None if there are none;
        name: "train" or "test", which decides the views. Raises WrongUse for another array.
        """
        pixels = torch.as_tensor(array)
        pixels = pixels[..., None] if pixels.ndim == 3 else pixels
        shape = tuple(pixels.shape)
        if pixels.dtype != torch.uint8 or len(shape) != 4 or shape[1] != shape[2]:
            needed = "uint8 of shape (N, S, S, C) is needed"
            raise WrongUse(f"images are {pixels.dtype} of shape {shape}, but {needed}")
        labels = np.full(len(pixels), -1) if labels is None else labels
        pixels = pixels.permute(0, 3, 1, 2).contiguous()
        return cls(name, pixels, torch.as_tensor(labels, dtype=torch.int64))

    @classmethod
    def from_folder(cls, folder, size):
        """The Split of the image files in a folder and in the folders in it, in order of their
        paths, `files`; without labels. size: to which their centre squares are resized, pixels.

        All are held in memory. Hidden files and folders, and other files, are passed over. Raises
        WrongUse if there is no image, or if one cannot be decoded.
        """
        folder = Path(folder).expanduser()
        files = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in ENDINGS
            and not any(map(is_hidden, path.relative_to(folder).parts))
        )
        if not files:
            raise WrongUse(f"{folder}: no image files here ({', '.join(ENDINGS)})")
        pixels = np.empty((len(files), 3, size, size), dtype=np.uint8)
        for place, path in zip(pixels, files):
            try:
                with strict_decoders():
                    place[:] = decode_image(path, size).pixels
            except (BrokenImage, OSError) as error:
                raise WrongUse(f"{path}: cannot be read as an image ({error})") from None
        split = cls.from_array(pixels.transpose(0, 2, 3, 1))
        return replace(split, files=tuple(map(str, files)))

    def __len__(self):
        return len(self.labels)

    @property
    def size(self):
        """Height and width of the images, which are square."""
        return self.pixels.shape[2]

    def gather(self, indices):
        """The images of these indices, (B, C, H, W) uint8 on `device`. indices: (B,) int64 on the
        CPU, all of them prepared.
        """
        if self.row_of is not None:
            indices = self.row_of[indices]
            assert (indices >= 0).all(), "images are gathered that were not prepared"
        pixels = self.pixels.index_select(0, to_device(indices, self.pixels.device))
        return to_device(pixels, self.device)

    def to(self, device, data_device="auto"):
        """The Split with its images gathered on the device. data_device: where its pixels are kept,
        "cuda" or "cpu"; "auto" moves them to a GPU if they take less than a fifth of its free
        memory. The training needs the rest.
        """
        pixels = self.pixels
        if device.type == "cuda":
            fits = pixels.nbytes < torch.cuda.mem_get_info(device)[0] / 5
            if data_device == "cuda" or (data_device == "auto" and fits):
                pixels = pixels.to(device)
        return replace(self, pixels=pixels, device=device)

    @property
    def is_far(self):
        """Whether gathering images is slow: from memory to a GPU, or from a map on the disk."""
        in_map = self.row_of is not None and self.pixels.device.type == "cpu"
        return in_map or self.pixels.device.type != self.device.type

    def fetch(self, indices):
        """The Split with these images alone, copied into memory from which a GPU can take them.
        indices: (B,) int64, each once.
        """
        pixels = replace(self, device=self.pixels.device).gather(indices)
        pixels = pin(pixels) if self.device.type == "cuda" else pixels
        rows = torch.full((len(self),), -1).index_put((indices,), torch.arange(len(indices)))
        return replace(self, pixels=pixels, row_of=rows)

    @functools.cached_property
    def fingerprint(self):
        """{"count": N, "shape": [rows, C, H, W], "sha256": hex digits}; computed once."""
        return {
            "count": len(self),
            "shape": list(self.pixels.shape),
            "sha256": self.sha256 or _sha256(self),
        }

    def digests_of(self, indices):
        """Digests of the pixels of some images, (n, bytes) uint8, equal exactly if the pixels are.
        indices: (n,) int64.
        """
        if self.digests is not None:
            return self.digests[self.row_of[torch.as_tensor(indices)].numpy()]
        on_cpu, digests = replace(self, device=torch.device("cpu")), []
        if len(indices) == 0:
            return np.empty((0, DIGEST_BYTES), dtype=np.uint8)
        for part in torch.as_tensor(indices).split(256):
            digests.append(digest_rows(on_cpu.gather(part).flatten(1).numpy()))
        return np.concatenate(digests)


@dataclass(frozen=True, eq=False)
class Images:
    """A dataset: two splits, the mean and std (C floats each) that normalize pixels in [0, 1], and
    the names of its classes.

    For images in files also prepared_folder, the folder of their decoded maps; skip_broken: whether
    images that cannot be decoded may be left out; left_out: {split: {index: Fault}} of those that
    are left out.
    """

    name: str
    train: Split
    test: Split
    mean: tuple
    std: tuple
    classes: tuple
    prepared_folder: Path | None = None
    skip_broken: bool = False
    left_out: dict = field(default_factory=lambda: {"train": {}, "test": {}})

    @property
    def channels(self):
        return self.train.pixels.shape[1]

    @property
    def normalization(self):
        """(mean, std) of the channels."""
        return self.mean, self.std

    def to(self, device, data_device="auto"):
        """The Images with both splits gathered on the device; see `Split.to`."""
        return replace(
            self, train=self.train.to(device, data_device), test=self.test.to(device, data_device)
        )

    @property
    def fingerprint(self):
        """What the data are, as plain types: the name, and count, shape and sha256 of each split.
        Of a folder, what is prepared counts.
        """
        return {"name": self.name, "train": self.train.fingerprint, "test": self.test.fingerprint}

    def prepare(self, train_indices, test_indices):
        """The Images from which these indices can be gathered. Those in files are decoded, unless
        an earlier run did it.

        Raises WrongUse, naming the images that cannot be decoded or the map that cannot be written;
        what was decoded is kept.
        """
        images, faults = self._prepare(train_indices, test_indices)
        all_faults = [*faults["train"].values(), *faults["test"].values()]
        if all_faults:
            used = len(np.unique(train_indices)) + len(np.unique(test_indices))
            raise WrongUse(state_faults(all_faults, used, self))
        return images

    def find_broken(self, train_indices, test_indices):
        """{split: {index: Fault}} of the images among these whose files are broken.

        If earlier runs found broken ones, those are returned without looking for more. Else all are
        decoded. Raises WrongUse if a file is there and cannot be read.
        """
        faults = self._prepare(train_indices, test_indices, stop_at_known=True)[1]
        all_faults = [*faults["train"].values(), *faults["test"].values()]
        not_broken = [fault for fault in all_faults if not fault.broken]
        if not_broken:
            used = len(train_indices) + len(test_indices)
            raise WrongUse(state_faults(not_broken, used, self))
        return faults

    def leave_out(self, broken):
        """The Images without some broken ones, of `find_broken`."""
        left_out = {split: faults | broken[split] for split, faults in self.left_out.items()}
        return replace(self, left_out=left_out)

    def leave_out_broken(self, train_indices, test_indices):
        """The Images without the broken ones among these, whose number is printed; all of them
        unless `skip_broken`.
        """
        images, indices = self, {"train": train_indices, "test": test_indices}
        while self.skip_broken:
            broken = images.find_broken(*(images.keep(split, indices[split]) for split in indices))
            if not any(broken.values()):
                break
            images = images.leave_out(broken)
        before, after = (sum(map(len, x.left_out.values())) for x in (self, images))
        if after > before:
            say(f"{after - before} broken images are left out")
        return images

    def keep(self, split, indices):
        """The indices of a split without those that are left out, (n,) int64."""
        return indices[~np.isin(indices, list(self.left_out[split]))]

    def _prepare(self, train_indices, test_indices, stop_at_known=False):
        """(the Images from which these indices can be gathered, {split: {index: Fault}} of those
        that cannot be read or decoded).
        """
        faults = {"train": {}, "test": {}}
        if self.prepared_folder is None:
            return self, faults
        prepare = functools.partial(
            prepare_split, folder=self.prepared_folder, stop_at_known=stop_at_known
        )
        with processes.first_before_others():
            train, faults["train"] = prepare(self.train, train_indices)
            test, faults["test"] = prepare(self.test, test_indices)
        return replace(self, train=train, test=test), faults


def open_images(settings):
    """The Images of a data set, by settings.name.

    settings: DataSettings. Images in files are only listed; call `prepare` before their pixels are
    needed. Raises WrongUse if files are missing or damaged, naming the data set, its folder and the
    reason.
    """
    row = DATASETS[settings.name]
    *splits, classes = row.read(settings)
    try:
        if row.in_files:
            make = functools.partial(_split_of_listing, size=settings.size, classes=classes)
            train, test = map(make, SPLITS, splits)
        else:
            train, test = (_split(name, *split, classes) for name, split in zip(SPLITS, splits))
    except ValueError as error:
        place = f"looked for in {settings.root}"
        raise WrongUse(f"{settings.name}: cannot be read ({error}); {place}") from None
    images = Images(settings.name, train, test, row.mean, row.std, classes)
    if not row.in_files:
        return images
    folder = Path(settings.prepared).expanduser()
    return replace(images, prepared_folder=folder, skip_broken=settings.skip_broken)


def _split(name, pixels, labels, classes):
    """Arrays as a Split. Raises ValueError if images and labels do not fit together."""
    _check_labels(name, pixels, labels, classes)
    return Split(name, torch.from_numpy(np.array(pixels, order="C")), torch.from_numpy(labels))


def _split_of_listing(name, listing, size, classes):
    """A Listing as a Split of which no image is prepared. Raises ValueError if files and labels do
    not fit together.
    """
    _check_labels(name, listing.files, listing.labels, classes)
    return Split(
        name,
        torch.empty(0, 3, size, size, dtype=torch.uint8),
        torch.tensor(listing.labels),
        row_of=torch.full((len(listing.files),), -1),
        **{key: value for key, value in listing._asdict().items() if key != "labels"},
    )


def _check_labels(name, images, labels, classes):
    if not 0 < len(images) == len(labels):
        raise ValueError(f"{len(images)} {name} images, but {len(labels)} labels")
    if not -1 <= min(labels) <= max(labels) < len(classes):
        raise ValueError(f"a {name} label outside of the {len(classes)} classes")


def _sha256(split):
    """Hex digits over labels and pixels; of prepared images over their indices, too."""
    digest, labels = hashlib.sha256(), split.labels
    if split.row_of is not None:
        indices = (split.row_of >= 0).nonzero().squeeze(1)
        digest.update(indices.numpy())
        labels = labels[indices]
    digest.update(labels.numpy())
    for rows in split.pixels.split(256):
        digest.update(rows.cpu().numpy())
    return digest.hexdigest()
