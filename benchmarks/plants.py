"""Planted images: training sets of which it is known what an encoder can have memorized.

Four kinds of sets are made of the images of a data set, in memory. In `plant_crossover` every seed
draws its own halves of *groups*: an image and all its copies are in one half. The others show what
a fixed split and an ordered folder do to scores.
"""

from dataclasses import dataclass, replace

import numpy as np

from memorization.data.images import Images, Split
from memorization.data.subsets import SUBSETS, Subsets

COUNTS = (2, 4, 8, 16)  # how often a repeated image stands in the training set
REPEATED = tuple(f"repeated {count} times" for count in COUNTS)
PLANE_WAVES = 3  # that a smooth outlier is the sum of
PURPOSES = {"order": 0, "outliers": 1, "halves": 2, "signs": 3, "labels": 4}  # of chance


@dataclass(frozen=True)
class Sizes:
    """How many images of each kind `plant_crossover` plants. Those that are halved are even."""

    ordinary: int = 136
    wrong_label: int = 32
    repeated: int = 6  # images for each of COUNTS
    outliers: int = 8  # waves, and as many of noise, in the pool; as many of both in S_S
    twins: int = 32  # images that stand twice in the pool, once in either half
    twins_in_shared: int = 32  # images of the pool with a copy in S_S
    twins_in_external: int = 16  # images of the pool with a copy that nobody is trained on
    shared: int = 256  # further images of S_S
    external: int = 1024
    unseen: int = 16  # waves, and as many of noise, that nobody is trained on


@dataclass(frozen=True, eq=False)
class PlantedSet:
    """Images, the subsets of every seed, and what is known of each image.

    images: Images, in memory. rows: all of them, those of the training split first, a dict of (N,)
    arrays index, split, subset and label, as in `rows_to_score`, and kind, a name. A subset is
    "unseen" if it is in no training set and is not S_E either. twin: (N,) row of the image of the
    pool of which this is a copy outside of the training sets, -1 for none. blocks: arrays (groups,
    copies) of training indices; each seed gives half of the groups of every block to f, the others
    to g. is_fixed: f has the first half of the groups in all seeds. number: of the set.
    """

    images: Images
    rows: dict
    twin: np.ndarray
    blocks: list
    number: int
    is_fixed: bool = False

    def subsets(self, seed):
        """The Subsets of the pair of a seed, of the fixed scheme."""
        rng = generator("halves", self.number, seed)
        halves = [[np.empty(0, np.int64)], [np.empty(0, np.int64)]]
        for block in self.blocks:
            groups = np.arange(len(block)) if self.is_fixed else rng.permutation(len(block))
            for half, part in zip(halves, np.split(groups, 2)):
                half.append(block[part].ravel())
        indices = {name: self.rows["index"][self.rows["subset"] == name] for name in SUBSETS}
        return Subsets(
            indices["shared"], *map(np.concatenate, halves), indices["external"]
        )  # f's half, then g's

    def signs(self, seed):
        """1 if f counts as the encoder with an image, -1 if g does, (N,) int64.

        Images in no training set and in both count as f's by the toss of a coin, as in a crossover
        of the library; a copy of an image of the pool as that image does. In a fixed set all are 1.
        """
        if self.is_fixed:
            return np.ones(len(self.twin), np.int64)
        subsets = self.subsets(seed)
        signs = generator("signs", self.number, seed).choice([-1, 1], size=len(self.twin))
        is_train = self.rows["split"] == "train"
        for indices, sign in ((subsets.candidate, 1), (subsets.independent, -1)):
            signs[is_train & np.isin(self.rows["index"], indices)] = sign
        return np.where(self.twin >= 0, signs[self.twin], signs)


def plant_crossover(source, number, sizes=None):
    """The PlantedSet of a crossover.

    source: Images of one channel; sets of other numbers take other images of it. sizes: Sizes, None
    for the defaults.
    """
    sizes = Sizes() if sizes is None else sizes
    parts = (sizes.ordinary, sizes.wrong_label, sizes.repeated * len(COUNTS))
    parts += (sizes.twins, sizes.twins_in_shared, sizes.twins_in_external, sizes.shared)
    ordinary, wrong, repeated, twins, of_shared, of_external, shared = take(
        source.train, number, parts
    )
    (external,) = take(source.test, number, (sizes.external,))
    size = source.train.size
    rng = generator("outliers", number)
    planting = Planting()
    planting.plant("ordinary", *ordinary)
    planting.plant("wrong label", wrong[0], change_labels(wrong[1], source.classes, number))
    for count, pixels, labels in zip(COUNTS, *(np.split(part, len(COUNTS)) for part in repeated)):
        planting.plant_repeated(count, pixels, labels)
    for make, kind in ((draw_waves, "waves"), (draw_noise, "noise")):
        planting.plant(kind, make(sizes.outliers, size, rng))
    planting.plant_twins(*twins)
    planting.plant("twin in S_S", *of_shared)
    copied = planting.plant("twin in S_E", *of_external)
    planting.add("shared", "in S_S", *shared)
    planting.add("shared", "copy in S_S", *of_shared)
    planting.add("shared", "waves in S_S", draw_waves(sizes.outliers, size, rng))
    planting.add("shared", "noise in S_S", draw_noise(sizes.outliers, size, rng))
    planting.add("external", "S_E", *external)
    planting.add("unseen", "copy in S_E", *of_external, twin=copied)
    planting.add("unseen", "unseen waves", draw_waves(sizes.unseen, size, rng))
    planting.add("unseen", "unseen noise", draw_noise(sizes.unseen, size, rng))
    return planting.finish(source, number)


def plant_outliers(source, number, half=256, outliers=16, external=1024):
    """A PlantedSet of the fixed scheme: waves and noise in f's set alone. half: images of S_C and
    of S_I; outliers: waves, and as many of noise, in S_C; twice as many are unseen.
    """
    of_f, of_g = take(source.train, number, (half - 2 * outliers, half))
    (of_external,) = take(source.test, number, (external,))
    size, rng, planting = source.train.size, generator("outliers", number), Planting()
    planting.add("candidate", "ordinary", *of_f)
    planting.add("candidate", "waves", draw_waves(outliers, size, rng))
    planting.add("candidate", "noise", draw_noise(outliers, size, rng))
    planting.add("independent", "independent", *of_g)
    planting.blocks.append(np.arange(2 * half)[:, None])
    planting.add("external", "S_E", *of_external)
    planting.add("unseen", "unseen waves", draw_waves(2 * outliers, size, rng))
    planting.add("unseen", "unseen noise", draw_noise(2 * outliers, size, rng))
    return planting.finish(source, number, is_fixed=True)


def plant_sorted(source, number, half=256, external=1024, is_fixed=False):
    """A PlantedSet of a folder that is sorted by class: the first images of class 0, which are S_C
    in the fixed scheme, and of class 1, which are S_I; in a crossover both are its pool. S_E has
    images of all classes, and as many images of the two classes as f and g have are unseen.
    """
    planting = Planting()
    pixels, labels = source.train.pixels.numpy()[:, 0], source.train.labels.numpy()
    for label, subset in enumerate(("candidate", "independent" if is_fixed else "candidate")):
        chosen = np.flatnonzero(labels == label)[:half]
        planting.add(subset, f"class {label}", pixels[chosen], labels[chosen])
    planting.blocks.append(np.arange(len(planting.train))[:, None])
    pixels, labels = source.test.pixels.numpy()[:, 0], source.test.labels.numpy()
    unseen = [np.flatnonzero(labels == label)[:half] for label in (0, 1)]
    others = np.setdiff1d(generator("order", number).permutation(len(labels)), unseen)
    chosen = generator("order", number).permutation(others)[:external]
    planting.add("external", "S_E", pixels[chosen], labels[chosen])
    for label, chosen in enumerate(unseen):
        planting.add("unseen", f"unseen class {label}", pixels[chosen], labels[chosen])
    return planting.finish(source, number, is_fixed)


class Planting:
    """The images of a PlantedSet while it is made: `train` and `test`, lists of what is known of
    each, and the blocks of the pool.
    """

    def __init__(self):
        self.train, self.test, self.blocks = [], [], []

    def add(self, subset, kind, pixels, labels=None, twin=None):
        """Add images (n, S, S) uint8 to a subset. labels: (n,), None for none; twin: (n,) rows.
        Returns their indices within their split, (n,) int64.
        """
        labels = np.full(len(pixels), -1) if labels is None else labels
        twin = np.full(len(pixels), -1) if twin is None else twin
        images = self.test if subset in ("external", "unseen") else self.train
        first = len(images)
        for values in zip(pixels, labels, twin):
            images.append((subset, kind, *values))
        return np.arange(first, len(images))

    def plant(self, kind, pixels, labels=None):
        """Add images to the pool, in a block of which every seed halves the images."""
        indices = self.add("candidate", kind, pixels, labels)
        self.blocks.append(indices[:, None])
        return indices

    def plant_repeated(self, count, pixels, labels):
        """Add images to the pool, each so many times. All copies of an image are in one half."""
        first = self.add("candidate", f"repeated {count} times", pixels, labels)
        copies = [self.add("candidate", "further copy", pixels, labels) for _ in range(count - 1)]
        self.blocks.append(np.stack([first, *copies], axis=1))

    def plant_twins(self, pixels, labels):
        """Add images to the pool, each twice, in a block of its own: one for f and one for g."""
        names = ("twin in S_I", "second twin")
        twins = [self.add("candidate", name, pixels, labels) for name in names]
        self.blocks += list(np.stack(twins, axis=1)[:, :, None])

    def finish(self, source, number, is_fixed=False):
        """The PlantedSet. source: Images, for their normalization and classes."""
        splits, parts = {}, []
        for name, images in (("train", self.train), ("test", self.test)):
            subset, kind, pixels, label, twin = zip(*images)
            splits[name] = Split.from_array(np.stack(pixels), np.array(label), name)
            split, index = np.full(len(images), name), np.arange(len(images))
            parts.append((index, split, np.array(subset), np.array(label), np.array(kind), twin))
        columns = [np.concatenate(part) for part in zip(*parts)]
        rows = dict(zip(("index", "split", "subset", "label", "kind"), columns))
        images = replace(source, name=f"planted {source.name}", **splits)
        return PlantedSet(images, rows, columns[-1], self.blocks, number, is_fixed)


def generator(purpose, number, seed=0):
    """The generator of chance for a purpose, decided by the number of a set and a seed."""
    return np.random.default_rng([PURPOSES[purpose], number, seed])


def take(split, number, counts):
    """Images that no set of another number has, in parts: a list of (pixels (n, S, S), labels (n,))
    for each of counts.
    """
    total = sum(counts)
    order = generator("order", 0).permutation(len(split))
    chosen = order[number * total : (number + 1) * total]
    assert len(chosen) == total, f"{len(split)} images are too few for set {number}"
    parts = np.split(chosen, np.cumsum(counts)[:-1])
    return [(split.pixels.numpy()[part, 0], split.labels.numpy()[part]) for part in parts]


def change_labels(labels, classes, number):
    """Labels of which every one is wrong, (n,). classes: names of all."""
    others = generator("labels", number).integers(1, len(classes), size=len(labels))
    return (labels + others) % len(classes)


def draw_waves(count, size, rng):
    """Smooth outliers, (count, size, size) uint8: sums of plane waves of .5 to 2 periods."""
    y, x = np.mgrid[:size, :size] / size
    shape = (count, PLANE_WAVES, 1, 1)
    angle, phase = rng.uniform(0, 2 * np.pi, size=(2, *shape))
    periods = rng.uniform(0.5, 2.0, size=shape)
    across = np.cos(angle) * x + np.sin(angle) * y  # (count, PLANE_WAVES, size, size)
    waves = np.sin(2 * np.pi * periods * across + phase).sum(1)
    lowest, highest = (f(waves, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    return np.round(255 * (waves - lowest) / (highest - lowest)).astype(np.uint8)


def draw_noise(count, size, rng):
    """Outliers of independent pixels, (count, size, size) uint8."""
    return rng.integers(0, 256, size=(count, size, size), dtype=np.uint8)
