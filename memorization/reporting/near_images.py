"""The nearest neighbours of candidates among all images of the four subsets, by their pixels."""

import csv
import io
from dataclasses import dataclass, replace

import numpy as np
import torch

from memorization.data.duplicates import (
    CLOSE,
    digests_of_subsets,
    find_duplicates,
    fingerprints_of_subsets,
    nearest_images,
    number_digests,
)
from memorization.data.subsets import SUBSETS
from memorization.machine.files import exists, read_text, refuse_broken

NEIGHBORS = 4  # of each candidate
MOST_COMPARED = 2 << 30  # bytes of pixels, beyond which shared images are left out, or all
MOST_SEARCHED = 5000  # images among which duplicates are searched for if they are not listed
MOST_TEXT = 1 << 28
FILE = "duplicates.csv"


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The NEIGHBORS nearest images of C candidates.

    split, subset: (n,) texts; index: (n,) int64: all images of the subsets; nearest: (C,
    NEIGHBORS), places among these; distances: the same shape; is_same, is_near: bool, whether the
    pixels are equal, and whether they are nearly so; source: how nearly equal ones were found, a
    sentence.
    """

    split: np.ndarray
    index: np.ndarray
    subset: np.ndarray
    nearest: np.ndarray
    distances: np.ndarray
    is_same: np.ndarray
    is_near: np.ndarray
    source: str

    @property
    def of_candidates(self):
        """(nearest, distances, is_same, is_near)."""
        return self.nearest, self.distances, self.is_same, self.is_near


def find_neighbors(run, indices):
    """The Neighbors of candidates, None if the subsets have too many images. Shared images are left
    out if there are too many with them. run: a Run; indices: (C,) int64, in the training set.
    """
    images, exception = run.images, ""
    subsets = run.subsets
    if _bytes_of(subsets, images) > MOST_COMPARED:
        subsets = replace(subsets, shared=subsets.shared[:0])
        exception = " Shared images were not compared."
    if _bytes_of(subsets, images) > MOST_COMPARED:
        return None
    sizes = {name: len(getattr(subsets, name)) for name in SUBSETS}
    n_images = sum(sizes.values())
    subset = np.repeat(list(SUBSETS), list(sizes.values()))
    split = np.repeat(list(SUBSETS.values()), list(sizes.values()))
    index = np.concatenate([np.sort(getattr(subsets, name)) for name in SUBSETS])
    fingerprints, digests = (
        fingerprints_of_subsets(subsets, images),
        digests_of_subsets(subsets, images),
    )
    candidates = np.flatnonzero(subset == "candidate")
    rows = candidates[np.searchsorted(index[candidates], indices)]
    count = min(NEIGHBORS, n_images - 1)
    nearest, distances = nearest_images(fingerprints, rows, count, torch.device("cpu"))
    pixels = number_digests(digests)
    is_same = pixels[nearest] == pixels[rows][:, None]
    path = run.folder / FILE
    if exists(path):
        groups = _listed_groups(path, split, index)
        source = f"They are the pairs that {FILE} lists."
    elif n_images <= MOST_SEARCHED:
        groups = find_duplicates(digests, fingerprints, torch.device("cpu")).groups
        source = "Images are nearly equal by the rule of docs/images.md."
    else:
        groups = np.arange(n_images)
        source = f"Images are nearly equal up to a distance of {CLOSE}; others were not looked for."
    is_near = (groups[nearest] == groups[rows][:, None]) | (distances <= CLOSE)
    source += exception
    return Neighbors(split, index, subset, nearest, distances, is_same, is_near, source)


def _bytes_of(subsets, images):
    """The size of the pixels of all images of Subsets."""
    n_images = sum(len(getattr(subsets, name)) for name in SUBSETS)
    return n_images * images.channels * images.train.size**2


def _listed_groups(path, split, index):
    """The number of the group of each image in a duplicates.csv, (n,) int64; others are groups of
    their own. split, index: (n,).
    """
    groups = np.arange(len(index))
    place_of = {key: place for place, key in enumerate(zip(split.tolist(), index.tolist()))}
    with refuse_broken(path, "not a whole list of duplicates"):
        firsts = {}
        for row in csv.DictReader(io.StringIO(read_text(path, MOST_TEXT))):
            place = place_of.get((row["split"], int(row["index"])))
            if place is not None:  # of shared images that are left out
                groups[place] = firsts.setdefault(row["group"], place)
    return groups
