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
from memorization.machine.files import atomically, parse_json, read_arrays, refuse_broken
from models.settings import Settings

# In the order of every table; external images come from the test set, the others from the training
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
        description="take the images in file order, as the papers do, or shuffled; image_folder is shuffled if nothing is given",
    )
    seed: Seed = Field(0, description="order: shuffled: which shuffle")
    file: PathName | None = Field(
        None,
        json_schema_extra=NOT_COMPARED,
        description="a file of remove_samples.py, in place of the counts",
    )

    @pydantic.model_validator(mode="after")
    def _candidates_are_replaced(self):
        if self.candidate != self.independent:
            raise ValueError(
                f"independent is {self.independent}, but must equal candidate ({self.candidate}): candidates are replaced, not left out"
            )
        return self


@dataclass(frozen=True)
class Subsets:
    """Indices of the four subsets, each (n,) int64, and the fingerprint of the images they lead to,
    once those are prepared.

    role: None for those of a pair; else the one encoder, "candidate" or "independent", whose
    training set they are. parents: {what: the fingerprint} of what such a training set was made
    from.
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
    """The Subsets of a config, their `data` still to be filled in. settings: its `subsets:`
    section; images: of open_images, to be counted.

    Raises WrongUse where there are too few images, or other images than those that a subset file
    was made for.
    """
    if settings.file:
        try:
            subsets = load_subsets(Path(settings.file).expanduser())
        except WrongUse as error:
            raise WrongUse(f"subsets.file: {error}") from None
        if not _same_images(subsets.data, images):
            raise WrongUse(
                f"subsets.file: {settings.file} was made for other images than those of {images.name} here"
            )
        return subsets
    counts = [settings.shared, settings.candidate, settings.independent]
    train = _ordered(images, sum(counts), "train", settings)
    external = _ordered(images, settings.external, "test", settings)
    shared, candidate, independent = np.split(train, np.cumsum(counts)[:-1])
    return Subsets(shared, candidate, independent, external)


def prepare_subsets(subsets, images, settings):
    """(Subsets, Images) with every image of the subsets at hand, and the subsets' `data` filled in.

    With data.skip_broken subsets are drawn again until no image in them is broken: others take
    their places, and the sizes stay. subsets: of `draw_subsets`; settings: the config's `subsets:`
    section.
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
    """Whether a fingerprint is that of images, which may still have to be prepared: then only their
    number is known.
    """
    if images.prepared_folder is None:
        return data == images.fingerprint
    counts = {"train": len(images.train), "test": len(images.test)}
    return data["name"] == images.name and all(
        data[split]["count"] == count for split, count in counts.items()
    )


def _ordered(images, wanted, split, settings):
    """The first `wanted` indices of a split, in file order or shuffled, without those that are left
    out.
    """
    available, left_out = len(getattr(images, split)), list(images.left_out[split])
    order = (
        permutation(available, settings.seed, "subsets", split).numpy()
        if settings.order == "shuffled"
        else np.arange(available)
    )
    order = order[~np.isin(order, left_out)] if left_out else order
    if wanted > len(order):
        names = "external" if split == "test" else "shared + candidate + independent"
        unbroken = f" that are not broken, and {len(left_out)} that are" if left_out else ""
        raise WrongUse(
            f"subsets: {names} is {wanted}, but the {split} set has only {len(order)} images{unbroken}"
        )
    return order[:wanted]


def first_by_hash(indices, count, split):
    """The `count` indices with the smallest hash: a random choice, the same for every run and for
    every seed. None takes all.
    """
    if count is None or count >= len(indices):
        return indices
    keys = sample_keys(stream(0, "subsets", split), torch.from_numpy(indices)).numpy()
    return indices[np.argsort(keys, kind="stable")[:count]]


def save_subsets(subsets, path):
    """Write subsets.npz: the four arrays, the fingerprints of the data set and of all, and role and
    parents where there are.
    """
    arrays = {name: getattr(subsets, name) for name in SUBSETS}
    of_role = (
        {}
        if subsets.role is None
        else {"role": subsets.role, "parents": json.dumps(subsets.parents)}
    )
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
        role, parents = (
            (str(file["role"]), parse_json(str(file["parents"]))) if "role" in file else (None, {})
        )
    for name, indices in arrays.items():
        if indices.ndim != 1 or indices.dtype != np.int64:
            raise WrongUse(
                f"{path}: {name} is {indices.dtype} of shape {indices.shape}, but must be a list of int64"
            )
    subsets = Subsets(**arrays, data=data, role=role, parents=parents)
    if subsets.fingerprint != fingerprint:
        raise WrongUse(f"{path}: its fingerprint does not fit its indices; the file was changed")
    if role not in (None, *ROLES):
        raise WrongUse(f"{path}: role is {role!r}, but must be {' or '.join(ROLES)}")
    check_subsets(subsets, path)
    _check_range(subsets, path)
    return subsets


def _check_range(subsets, path):
    """Raise WrongUse where an index leads to no image of the data set that the file was made for."""
    for split, indices in (("train", subsets.train), ("test", subsets.external)):
        try:
            count = 2**63 if subsets.data is None else int(subsets.data[split]["count"])
        except (KeyError, TypeError, ValueError):
            raise WrongUse(f"{path}: does not tell the data set that it was made for") from None
        outside = indices[(indices < 0) | (indices >= count)]
        if len(outside):
            raise WrongUse(
                f"{path}: {split} image {outside[0]} stands in the subsets, but there are {count}"
            )


def check_subsets(subsets, source="subsets"):
    """Raise WrongUse unless the subsets are what may be trained on: no image twice, and of a pair
    as many candidates as independents.
    """
    if subsets.role is None and len(subsets.candidate) != len(subsets.independent):
        raise WrongUse(
            f"{source}: {len(subsets.candidate)} candidates, but {len(subsets.independent)} independents; they must be equally many"
        )
    for split, indices in (("train", subsets.train), ("test", subsets.external)):
        values, counts = np.unique(indices, return_counts=True)
        if (counts > 1).any():
            raise WrongUse(
                f"{source}: {split} image {values[counts > 1][0]} stands in the subsets more than once"
            )
