"""S_S, S_C, S_I and S_E: which images are in both training sets, in f's, in g's, and in neither.

Two schemes. Fixed, the papers': one S_C and one S_I for all seeds. Crossover: a pool in their
place, of which every seed draws its own halves, so that each image is in f for some seeds and in g
for the others, and what the image is like stands on both sides.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
import torch
from pydantic import Field

from memorization.data.groups import Sizes, draw_by_groups, members_of, pair_groups
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
HALF = re.compile(r"seed_([0-9]{1,19})_(candidate|independent)")  # arrays of a crossover's file


class SubsetSettings(Settings):
    scheme: Literal["fixed", "crossover"] = Field(
        "fixed",
        description="one S_C and one S_I for all seeds, as in the papers; or a pool, of which "
        "every seed draws its own halves",
    )
    shared: int | None = Field(
        None,
        ge=0,
        description="size of S_S, in both encoders' training sets; 0 gives disjoint halves",
    )
    candidate: int | None = Field(
        None, ge=2, description="size of S_C, in f's training set only; scheme: fixed"
    )
    independent: int | None = Field(
        None, ge=2, description="size of S_I, in g's training set only; equal to candidate"
    )
    pool: int | None = Field(
        None,
        ge=4,
        description="number of images of which every seed draws its halves, one for f and one for "
        "g; even; scheme: crossover",
    )
    external: int | None = Field(
        None, ge=2, description="size of S_E, from the test set, in neither training set"
    )
    order: Literal["file", "shuffled", "balanced", "manifest"] = Field(
        "file",
        description="take the images in file order, as the papers do, or shuffled, or shuffled "
        "with as many of each class in S_C as in S_I, or as the column `subset` of a manifest "
        "says, which needs no sizes; images in files are shuffled if nothing is given",
    )
    seed: Seed = Field(0, description="order: shuffled or balanced: which shuffle")
    file: PathName | None = Field(
        None,
        json_schema_extra=NOT_COMPARED,
        description="a file of subsets, such as of remove_samples.py, in place of the counts",
    )
    find_duplicates: bool | None = Field(
        None,
        json_schema_extra=NOT_COMPARED,
        description="list equal and nearly equal images in duplicates.csv before training; if "
        "nothing is given, those of images in files",
    )
    separate_duplicates: bool = Field(
        False,
        description="draw equal and nearly equal images into one subset, and in a crossover into "
        "one half",
    )

    @pydantic.model_validator(mode="after")
    def _check_counts(self):
        needed = ROLES if self.scheme == "fixed" else ("pool",)
        for name in ("shared", *ROLES, "pool", "external"):
            size, takes = getattr(self, name), f"scheme: {self.scheme} takes {' and '.join(needed)}"
            of_both = name in ("shared", "external")
            is_drawn = self.order != "manifest" and not self._has_no_size
            if size is None and (of_both or name in needed) and is_drawn:
                raise ValueError(f"{name} is missing{'' if of_both else f': {takes}'}")
            if size is not None and not of_both and name not in needed:
                raise ValueError(f"{name} is {size}, but {takes} alone; null leaves it out")
        if self.pool is not None and self.pool % 2:
            raise ValueError(f"pool is {self.pool}, but must be even: it is halved")
        if self.candidate != self.independent:
            rule = f"must equal candidate ({self.candidate}): candidates are replaced, not left out"
            raise ValueError(f"independent is {self.independent}, but {rule}")
        if self.separate_duplicates and not self.draws_groups:
            drawn = f"does not go with order: {self.order}; take shuffled"
            raise ValueError(f"separate_duplicates is True, which {drawn}")
        return self

    @pydantic.model_serializer(mode="wrap")
    def _leave_out_later_settings(self, dump):
        """Records keep the form that they had before these settings, unless they are used."""
        unused = {"find_duplicates": None, "separate_duplicates": False}
        values = dump(self)
        return {key: values[key] for key in values if values[key] != unused.get(key, ...)}

    @property
    def draws_groups(self):
        """Whether images that belong together can be drawn into one subset: not if each image has
        its place by its class or by a manifest.
        """
        return self.order not in ("balanced", "manifest")

    @property
    def _has_no_size(self):
        """Whether the sizes are those of a file, which is not recorded."""
        sizes = (self.shared, self.candidate, self.independent, self.pool, self.external)
        return all(size is None for size in sizes)


@dataclass(frozen=True)
class Subsets:
    """Indices of the four subsets, each (n,) int64.

    data: the fingerprint of their images, once these are prepared. role: None for the subsets of a
    pair; else the encoder, "candidate" or "independent", whose training set they are. parents:
    {what: fingerprint} of what such a training set was made from. scheme: "fixed", or "crossover":
    then `candidate` is the pool, in pairs of which each seed gives one image to f and one to g, and
    `independent` is empty; `of_seed` tells who has which half. blocks: (pairs,) int64 of a
    crossover of groups, else None: the block of each pair; f has the first images of all pairs of
    a block, or the second ones of all.
    """

    shared: np.ndarray
    candidate: np.ndarray
    independent: np.ndarray
    external: np.ndarray
    data: dict | None = None
    role: str | None = None
    parents: dict = field(default_factory=dict)
    scheme: str = "fixed"
    blocks: np.ndarray | None = None

    def of_seed(self, seed):
        """The Subsets of the pair of one seed: in a crossover with the halves of the pool that f
        and g of this seed are trained on.
        """
        if self.scheme == "fixed":
            return self
        pool, in_f = self.candidate, self._of_f("candidate", seed)
        halves = {"candidate": pool[in_f], "independent": pool[~in_f]}
        return replace(self, **halves, scheme="fixed", blocks=None)

    def _of_f(self, subset, seed):
        """Whether f of a seed has each image of a crossover's subset, (n,) bool: of every two
        neighbours f has one and g the other, by the toss of a coin; of a block, by one coin.
        """
        indices = getattr(self, subset)
        firsts = indices[::2]
        if subset == "candidate" and self.blocks is not None:
            firsts = firsts[np.unique(self.blocks, return_index=True)[1][self.blocks]]
        firsts = np.repeat(firsts, 2)[: len(indices)]
        keys = sample_keys(stream(seed, "halves", SUBSETS[subset]), torch.from_numpy(firsts))
        return (keys.numpy() < 0) == (np.arange(len(indices)) % 2 == 1)

    def training_set(self, role):
        """The training set of f (role "candidate") or g ("independent"), shared samples first.
        Returns (n,) int64. Of a crossover only a seed has one: `subsets.of_seed(seed)`.
        """
        assert role in ROLES and self.scheme == "fixed"
        return np.concatenate([self.shared, getattr(self, role)])

    def signs(self, subset, indices, seed):
        """Which encoder of a seed counts as the one with an image: 1 for f, -1 for g, (n,) int64.

        subset: its name; indices: (n,) of its images. A score is L_align of the encoder without the
        image less L_align of the one with it. In a crossover the images that both encoders have,
        or neither, are halved as if they were a pool, so that their scores are signed likewise.
        """
        if self.scheme == "fixed":
            return np.ones(len(indices), dtype=np.int64)
        of_f = getattr(self, subset)[self._of_f(subset, seed)]
        return np.where(np.isin(indices, of_f), 1, -1)

    @property
    def train(self):
        """All indices into the training set, (n,) int64."""
        return np.concatenate([self.shared, self.candidate, self.independent])

    @property
    def sizes(self):
        """The sizes of all subsets, in words."""
        if self.scheme == "fixed":
            return ", ".join(f"{name} {len(getattr(self, name))}" for name in SUBSETS)
        pool = f"pool {len(self.candidate)}, halved anew by every seed"
        return f"shared {len(self.shared)}, {pool}, external {len(self.external)}"

    @property
    def fingerprint(self):
        """A hash of the indices and of the data set, hexadecimal."""
        digest = hashlib.sha256(json.dumps(self.data, sort_keys=True).encode())
        for name in SUBSETS:
            digest.update(f"{name} {len(getattr(self, name))} ".encode())
            digest.update(getattr(self, name).astype("<i8").tobytes())
        if self.scheme != "fixed":
            digest.update(self.scheme.encode())
        if self.blocks is not None:
            digest.update(b"blocks" + self.blocks.astype("<i8").tobytes())
        if self.role is not None:
            digest.update(json.dumps([self.role, self.parents], sort_keys=True).encode())
        return digest.hexdigest()


def draw_subsets(settings, images):
    """The Subsets that SubsetSettings describe, still without `data`. images: of open_images, which
    are only counted.

    Raises WrongUse if there are too few images, if `order: balanced` has no labels, if groups
    cannot be kept together, if `order` and sizes do not fit what a manifest says, or if a subset
    file was made for other images or is of another scheme.
    """
    if settings.file:
        try:
            subsets = load_subsets(Path(settings.file).expanduser())
        except WrongUse as error:
            raise WrongUse(f"subsets.file: {error}") from None
        if not _same_images(subsets.data, images):
            others = f"was made for other images than those of {images.name} here"
            raise WrongUse(f"subsets.file: {settings.file} {others}")
        if subsets.role is None and subsets.scheme != settings.scheme:
            other = f"scheme is {subsets.scheme!r}, but {settings.scheme!r} was given"
            raise WrongUse(f"subsets.file: {settings.file}: {other}")
        return subsets
    if settings.order == "manifest":
        return _take_subsets(settings, images)
    if images.train.subsets is not None:
        says = f"but the manifest of {images.name} has a column `subset`: set it to manifest"
        raise WrongUse(f"subsets.order: {settings.order!r} is not allowed: {says}")
    if settings.external is None:
        raise WrongUse("subsets.shared is missing, as are the other sizes")
    pool = settings.pool or settings.candidate + settings.independent
    if images.train.groups is not None:
        return _draw_groups(settings, images, Sizes(settings.shared, pool, settings.external))
    train = _first_indices(images, settings.shared + pool, "train", settings)
    external = _first_indices(images, settings.external, "test", settings)
    shared, rest = np.split(train, [settings.shared])
    if settings.order == "balanced":
        pairs = _pairs_by_class(rest, images)
    else:
        pairs = rest.reshape(2, -1).T  # the j-th candidate beside the j-th independent
    return _of_pairs(settings.scheme, shared, pairs, external)


def _of_pairs(scheme, shared, pairs, external, blocks=None):
    """The Subsets with these pairs of candidates and independents, (n, 2)."""
    if scheme == "crossover":
        nobody = np.empty(0, dtype=np.int64)
        return Subsets(shared, pairs.flatten(), nobody, external, scheme=scheme, blocks=blocks)
    return Subsets(shared, pairs[:, 0].copy(), pairs[:, 1].copy(), external)


def _draw_groups(settings, images, sizes):
    """The Subsets that SubsetSettings describe, none of which divides a group."""
    if settings.order == "balanced":
        whole = "cannot keep groups whole; take shuffled"
        raise WrongUse(
            f"subsets.order: 'balanced' is not allowed: images have groups, and it {whole}"
        )
    order = {split: _order(images, split, settings) for split in ("train", "test")}
    groups = {"train": images.train.groups, "test": images.test.groups}
    shared, pairs, blocks, external = draw_by_groups(order, groups, sizes)
    return _of_pairs(settings.scheme, shared, pairs, external, blocks)


def _take_subsets(settings, images):
    """The Subsets that a manifest says. Raises WrongUse if it says none, if they cannot be trained
    on, if given sizes differ, or if an image of a subset is left out.
    """
    if images.train.subsets is None:
        without = f"is not allowed: {images.name} has no manifest with a column `subset`"
        raise WrongUse(f"subsets.order: 'manifest' {without}")
    indices = {}
    for name, split in SUBSETS.items():
        indices[name] = np.flatnonzero(getattr(images, split).subsets == name)
        broken = indices[name][np.isin(indices[name], list(images.left_out[split]))]
        if len(broken):
            file = getattr(images, split).files[broken[0]]
            others = "and puts no others in their places; take them out of the manifest"
            reason = f"has {len(broken)} broken images in {name} ({file}), {others}"
            raise WrongUse(f"subsets.order: 'manifest' {reason}")
    _check_sizes(settings, {name: len(of_subset) for name, of_subset in indices.items()})
    shared, external = indices["shared"], indices["external"]
    if settings.scheme == "fixed":
        return Subsets(shared, *(indices[role] for role in ROLES), external)
    pool = np.concatenate([indices[role] for role in ROLES])
    n_images = settings.pool or len(pool)
    groups = np.arange(len(images.train)) if images.train.groups is None else images.train.groups
    pairs, blocks = pair_groups(members_of(pool, groups), n_images // 2)
    if pairs.size < n_images:
        halves = f"the manifest says {len(pool)}, but without dividing a group {pairs.size} of them"
        raise WrongUse(f"subsets.pool: {halves} can be halved; {pairs.size} leaves the others out")
    return _of_pairs(settings.scheme, shared, pairs, external, blocks)


def _check_sizes(settings, sizes):
    """Raise WrongUse if the subsets of a manifest cannot be trained on, or if SubsetSettings give
    other sizes. sizes: {subset: number of its images}.
    """
    n_candidates = sizes["candidate"]
    pool = n_candidates + sizes["independent"]
    if settings.scheme == "crossover":
        sizes = {"shared": sizes["shared"], "pool": pool, "external": sizes["external"]}
        if pool < 4 or pool % 2 and settings.pool is None:
            rule = "which must be even and at least 4"
            raise WrongUse(
                f"subsets: the manifest has {pool} candidate and independent images, {rule}"
            )
    elif n_candidates < 2:
        raise WrongUse(
            f"subsets: the manifest has {n_candidates} candidate images, but must have 2"
        )
    if sizes["external"] < 2:
        raise WrongUse(
            f"subsets: the manifest has {sizes['external']} external images, but must have 2"
        )
    for name, size in sizes.items():
        setting = getattr(settings, name)
        fits = setting in (None, size) or (name == "pool" and setting < size)
        if not fits:
            raise WrongUse(f"subsets.{name}: {setting} was given, but the manifest says {size}")


def _pairs_by_class(indices, images):
    """The images in pairs of one class, (n / 2, 2) int64; last those that are left over, one of
    each class of an odd number. Images without a label are a class of their own.
    """
    labels = images.train.labels.numpy()
    if not (labels >= 0).any():
        raise WrongUse(f"subsets.order: 'balanced' needs labels, but {images.name} has none")
    pairs, left_over = [], []
    for label in np.unique(labels[indices]):
        of_class = indices[labels[indices] == label]
        even = len(of_class) // 2 * 2
        pairs.append(of_class[:even])
        left_over.append(of_class[even:])
    return np.concatenate([*pairs, *left_over]).reshape(-1, 2)


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


def _order(images, split, settings):
    """The indices of a split in the order of drawing, (n,) int64: in file order or shuffled,
    without the images that are left out.
    """
    order = np.arange(len(getattr(images, split)))
    if settings.order != "file":
        order = permutation(len(order), settings.seed, "subsets", split).numpy()
    return images.keep(split, order) if images.left_out[split] else order


def _first_indices(images, n_images, split, settings):
    """The first indices of a split in the order of drawing, (n_images,) int64."""
    order, left_out = _order(images, split, settings), images.left_out[split]
    if n_images > len(order):
        of_scheme = "candidate + independent" if settings.scheme == "fixed" else "pool"
        names = "external" if split == "test" else f"shared + {of_scheme}"
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


def save_subsets(subsets, path, seeds=()):
    """Write subsets.npz: the four arrays, the fingerprints of the data set and of all, and role and
    parents if there are any.

    Of a crossover: shared, pool, external and scheme; and for each of the seeds its halves, arrays
    such as seed_0_candidate and seed_0_independent.
    """
    if subsets.scheme == "fixed":
        arrays = {name: getattr(subsets, name) for name in SUBSETS}
    else:
        arrays = {"shared": subsets.shared, "pool": subsets.candidate, "external": subsets.external}
        arrays |= {"scheme": subsets.scheme} | _halves(subsets, seeds)
    arrays |= {"data": json.dumps(subsets.data), "fingerprint": subsets.fingerprint}
    if subsets.blocks is not None:
        arrays |= {"blocks": subsets.blocks}
    if subsets.role is not None:
        arrays |= {"role": subsets.role, "parents": json.dumps(subsets.parents)}
    with atomically(path) as file:
        np.savez(file, **arrays)


def _halves(subsets, seeds):
    """The halves of a crossover's seeds as arrays of subsets.npz."""
    halves = {seed: subsets.of_seed(seed) for seed in seeds}
    return {f"seed_{s}_{role}": getattr(halves[s], role) for s in seeds for role in ROLES}


def load_subsets(path):
    """The Subsets in a subsets.npz. Raises WrongUse if the file is missing, unreadable, broken or
    inconsistent.
    """
    with refuse_broken(path, "not a whole file of subsets"):
        file = read_arrays(path)
        scheme = str(file["scheme"]) if "scheme" in file else "fixed"
        if scheme == "fixed":
            arrays = {name: file[name] for name in SUBSETS}
        else:
            arrays = {"shared": file["shared"], "candidate": file["pool"]}
            arrays |= {"independent": np.empty(0, dtype=np.int64), "external": file["external"]}
        data, fingerprint = parse_json(str(file["data"])), str(file["fingerprint"])
        blocks = file["blocks"] if "blocks" in file else None
        role, parents = None, {}
        if "role" in file:
            role, parents = str(file["role"]), parse_json(str(file["parents"]))
    for name, indices in (arrays if blocks is None else arrays | {"blocks": blocks}).items():
        if indices.ndim != 1 or indices.dtype != np.int64:
            kind = f"{indices.dtype} of shape {indices.shape}"
            raise WrongUse(f"{path}: {name} is {kind}, but must be a list of int64")
    about = {"data": data, "role": role, "parents": parents, "scheme": scheme}
    subsets = Subsets(**arrays, **about, blocks=blocks)
    if subsets.fingerprint != fingerprint:
        raise WrongUse(f"{path}: its fingerprint does not fit its indices; the file was changed")
    for name, value, allowed in (
        ("role", role, (None, *ROLES)),
        ("scheme", scheme, ("fixed", "crossover")),
    ):
        if value not in allowed:
            names = " or ".join(filter(None, allowed))
            raise WrongUse(f"{path}: {name} is {value!r}, but must be {names}")
    check_subsets(subsets, path)
    _check_blocks(subsets, path)
    _check_range(subsets, path)
    _check_halves(file, subsets, path)
    return subsets


def seeds_in(path):
    """The seeds whose halves a subsets.npz holds, a set; empty for the fixed scheme."""
    with refuse_broken(path, "not a whole file of subsets"):
        return {int(half[1]) for half in _halves_in(read_arrays(path))}


def _check_halves(file, subsets, path):
    """Raise WrongUse if the halves in a file are not those that its seeds draw."""
    for half in _halves_in(file):
        name, seed, role = half[0], int(half[1]), half[2]
        if not np.array_equal(file[name], getattr(subsets.of_seed(seed), role)):
            raise WrongUse(f"{path}: {name} is not what seed {seed} draws; the file was changed")


def _halves_in(names):
    """The matches of HALF among the names of arrays, a list."""
    return [half for half in map(HALF.fullmatch, names) if half]


def _check_blocks(subsets, path):
    """Raise WrongUse if blocks are not those of a crossover's pairs."""
    blocks, n_pairs = subsets.blocks, len(subsets.candidate) // 2
    if blocks is None:
        return
    counts_up = not blocks[:1].any() and np.isin(np.diff(blocks), (0, 1)).all()
    if subsets.scheme == "fixed" or len(blocks) != n_pairs or not counts_up:
        raise WrongUse(f"{path}: blocks are not those of the {n_pairs} pairs of its pool")


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


def check_pair(subsets):
    """Raise WrongUse unless a pair may be trained on the subsets: f has as many images as g."""
    is_pair = subsets.role is None and subsets.scheme == "fixed"
    if is_pair and len(subsets.candidate) != len(subsets.independent):
        counts = f"{len(subsets.candidate)} candidates, but {len(subsets.independent)} independents"
        raise WrongUse(f"subsets: {counts}; they must be equally many")


def check_subsets(subsets, place="subsets"):
    """Raise WrongUse if an image stands twice in the subsets, or a pool cannot be halved. place: of
    the subsets, for messages.
    """
    if subsets.scheme == "crossover" and len(subsets.candidate) % 2:
        raise WrongUse(f"{place}: {len(subsets.candidate)} images in the pool, which is halved")
    for split, indices in (("train", subsets.train), ("test", subsets.external)):
        values, repetitions = np.unique(indices, return_counts=True)
        if (repetitions > 1).any():
            image = f"{split} image {values[repetitions > 1][0]}"
            raise WrongUse(f"{place}: {image} stands in the subsets more than once")
