"""S_S, S_C, S_I and S_E: which images are in both training sets, in f's, in g's, and in neither."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
import torch
from pydantic import Field

from memorization.data.randomness import permutation, sample_keys, stream
from memorization.errors import WrongUse
from memorization.fields import NOT_COMPARED, PathName, Seed
from memorization.machine.archives import read_arrays
from memorization.machine.files import atomically, parse_json, refuse_broken
from models.settings import Settings

# In the order of every table. External images come from the test set, all others from the training
# set.
SUBSETS = {"shared": "train", "candidate": "train", "independent": "train", "external": "test"}
ROLES = ("candidate", "independent")  # of the two encoders, f and g


class SubsetSettings(Settings):
    shared: int = Field(
        ge=0, description="size of S_S, in both encoders' training sets; 0 gives disjoint halves"
    )
    candidate: int = Field(ge=2, description="size of S_C, in f's training set only")
    independent: int = Field(
        ge=2, description="size of S_I, in g's training set only; equal to candidate"
    )
    external: int = Field(
        ge=2, description="size of S_E, from the test set, in neither training set"
    )
    order: Literal["file", "shuffled"] = Field(
        "file",
        description="take the images in file order, as the papers do, or shuffled; images in "
        "files are shuffled if nothing is given",
    )
    seed: Seed = Field(0, description="order: shuffled: which shuffle")
    file: PathName | None = Field(
        None,
        json_schema_extra=NOT_COMPARED,
        description="a file of remove_samples.py, in place of the counts",
    )

    @pydantic.model_validator(mode="after")
    def _check_counts(self):
        if self.candidate != self.independent:
            rule = f"must equal candidate ({self.candidate}): candidates are replaced, not left out"
            raise ValueError(f"independent is {self.independent}, but {rule}")
        return self


@dataclass(frozen=True)
class Subsets:
    """Indices of the four subsets, each (n,) int64.

    data: the fingerprint of their images, once these are prepared. role: None for the subsets of a
    pair; else the encoder, "candidate" or "independent", whose training set they are. parents:
    {what: fingerprint} of what such a training set was made from.
    """

    shared: np.ndarray
    candidate: np.ndarray
    independent: np.ndarray
    external: np.ndarray
    data: dict | None = None
    role: str | None = None
    parents: dict = field(default_factory=dict)

    def training_set(self, role):
        """The training set of f (role "candidate") or g ("independent"), shared samples first.
        Returns (n,) int64.
        """
        assert role in ROLES
        return np.concatenate([self.shared, getattr(self, role)])

    @property
    def train(self):
        """All indices into the training set, (n,) int64."""
        return np.concatenate([self.shared, self.candidate, self.independent])

    @property
    def fingerprint(self):
        """A hash of the indices and of the data set, hexadecimal."""
        digest = hashlib.sha256(json.dumps(self.data, sort_keys=True).encode())
        for name in SUBSETS:
            digest.update(f"{name} {len(getattr(self, name))} ".encode())
            digest.update(getattr(self, name).astype("<i8").tobytes())
        if self.role is not None:
            digest.update(json.dumps([self.role, self.parents], sort_keys=True).encode())
        return digest.hexdigest()


def draw_subsets(settings, images):
    """The Subsets that SubsetSettings describe, still without `data`. images: of open_images, which
    are only counted.

    Raises WrongUse if there are too few images, or if a subset file was made for other images.
    """
    if settings.file:
        try:
            subsets = load_subsets(Path(settings.file).expanduser())
        except WrongUse as error:
            raise WrongUse(f"subsets.file: {error}") from None
        if not _same_images(subsets.data, images):
            others = f"was made for other images than those of {images.name} here"
            raise WrongUse(f"subsets.file: {settings.file} {others}")
        return subsets
    sizes = [settings.shared, settings.candidate, settings.independent]
    train = _first_indices(images, sum(sizes), "train", settings)
    external = _first_indices(images, settings.external, "test", settings)
    shared, candidate, independent = np.split(train, np.cumsum(sizes)[:-1])
    return Subsets(shared, candidate, independent, external)


def prepare_subsets(subsets, images, settings):
    """(Subsets with `data`, Images) after every image of the subsets is prepared.

    With data.skip_broken subsets are drawn again until no image in them is broken: other images
    replace the broken ones, and the sizes stay. subsets: of `draw_subsets`; settings:
    SubsetSettings.
    """
    while images.skip_broken and not settings.file:
        broken = images.find_broken(subsets.train, subsets.external)
        if not any(broken.values()):
            break
        images = images.leave_out(broken)
        subsets = draw_subsets(settings, images)
    images = images.prepare(subsets.train, subsets.external)
    return replace(subsets, data=images.fingerprint), images


def _same_images(data, images):
    """Whether a fingerprint is that of images. Of images in files only the number is known before
    they are prepared.
    """
    if images.prepared_folder is None:
        return data == images.fingerprint
    sizes = {"train": len(images.train), "test": len(images.test)}
    return data["name"] == images.name and all(
        data[split]["count"] == n_images for split, n_images in sizes.items()
    )


def _first_indices(images, n_images, split, settings):
    """The first indices of a split, (n_images,) int64, in file order or shuffled, without the
    images that are left out.
    """
    available, left_out = len(getattr(images, split)), list(images.left_out[split])
    order = np.arange(available)
    if settings.order == "shuffled":
        order = permutation(available, settings.seed, "subsets", split).numpy()
    order = order[~np.isin(order, left_out)] if left_out else order
    if n_images > len(order):
        names = "external" if split == "test" else "shared + candidate + independent"
        unbroken = f" that are not broken, and {len(left_out)} that are" if left_out else ""
        room = f"the {split} set has only {len(order)} images{unbroken}"
        raise WrongUse(f"subsets: {names} is {n_images}, but {room}")
    return order[:n_images]


def first_by_hash(indices, n_images, split):
    """The n_images indices with the smallest hash: a random choice, the same for every run and for
    every seed. None takes all.
    """
    if n_images is None or n_images >= len(indices):
        return indices
    keys = sample_keys(stream(0, "subsets", split), torch.from_numpy(indices)).numpy()
    return indices[np.argsort(keys, kind="stable")[:n_images]]


def save_subsets(subsets, path):
    """Write subsets.npz: the four arrays, the fingerprints of the data set and of all, and role and
    parents if there are any.
    """
    arrays, of_role = {name: getattr(subsets, name) for name in SUBSETS}, {}
    if subsets.role is not None:
        of_role = {"role": subsets.role, "parents": json.dumps(subsets.parents)}
    record = {"data": json.dumps(subsets.data), "fingerprint": subsets.fingerprint}
    with atomically(path) as file:
        np.savez(file, **arrays, **record, **of_role)


def load_subsets(path):
    """The Subsets in a subsets.npz. Raises WrongUse if the file is missing, unreadable, broken or
    inconsistent.
    """
    with refuse_broken(path, "not a whole file of subsets"):
        file = read_arrays(path)
        arrays = {name: file[name] for name in SUBSETS}
        data, fingerprint = parse_json(str(file["data"])), str(file["fingerprint"])
        role, parents = None, {}
        if "role" in file:
            role, parents = str(file["role"]), parse_json(str(file["parents"]))
    for name, indices in arrays.items():
        if indices.ndim != 1 or indices.dtype != np.int64:
            kind = f"{indices.dtype} of shape {indices.shape}"
            raise WrongUse(f"{path}: {name} is {kind}, but must be a list of int64")
    subsets = Subsets(**arrays, data=data, role=role, parents=parents)
    if subsets.fingerprint != fingerprint:
        raise WrongUse(f"{path}: its fingerprint does not fit its indices; the file was changed")
    if role not in (None, *ROLES):
        raise WrongUse(f"{path}: role is {role!r}, but must be {' or '.join(ROLES)}")
    check_subsets(subsets, path)
    _check_range(subsets, path)
    return subsets


def _check_range(subsets, path):
    """Raise WrongUse if an index is that of no image of the data set of the file."""
    for split, indices in (("train", subsets.train), ("test", subsets.external)):
        try:
            n_images = 2**63 if subsets.data is None else int(subsets.data[split]["count"])
        except (KeyError, TypeError, ValueError):
            raise WrongUse(f"{path}: does not tell the data set that it was made for") from None
        outside = indices[(indices < 0) | (indices >= n_images)]
        if len(outside):
            image = f"{split} image {outside[0]}"
            raise WrongUse(f"{path}: {image} stands in the subsets, but there are {n_images}")


def check_subsets(subsets, place="subsets"):
    """Raise WrongUse unless the subsets are what may be trained on: no image twice, and of a pair
    as many candidates as independents. place: of the subsets, for messages.
    """
    if subsets.role is None and len(subsets.candidate) != len(subsets.independent):
        both = f"{len(subsets.candidate)} candidates, but {len(subsets.independent)} independents"
        raise WrongUse(f"{place}: {both}; they must be equally many")
    for split, indices in (("train", subsets.train), ("test", subsets.external)):
        values, repetitions = np.unique(indices, return_counts=True)
        if (repetitions > 1).any():
            image = f"{split} image {values[repetitions > 1][0]}"
            raise WrongUse(f"{place}: {image} stands in the subsets more than once")
