"""Listings of image files, and the part of one that is held out as the test set."""

import hashlib
import os
import unicodedata
from typing import NamedTuple

import numpy as np

from memorization.errors import WrongUse, escape
from memorization.machine.screen import say

NAMED = 5  # classes in a line
TEST_SHARE = 0.2  # of images that have no test part


class Listing(NamedTuple):
    """The images of one split: paths and the numbers of their classes, -1 for none, of equal
    length; names, groups and subsets: as of a Split.
    """

    files: tuple
    labels: tuple
    names: tuple | None = None
    groups: np.ndarray | None = None
    subsets: np.ndarray | None = None

    def take(self, rows):
        """The Listing of some images. rows: (n,) int64."""

        def part(values):
            if isinstance(values, np.ndarray):
                return values[rows]
            return None if values is None else tuple(values[row] for row in rows.tolist())

        return Listing(*map(part, self))


def hold_out(listing, keys, share, place):
    """{"train": Listing, "test": Listing} of images that have no test part. place: of the images,
    for messages.

    An image is held out as a test image by a hash of its key, a text such as its path: in every
    run, and whatever other images there are. share: of the images, in (0, 1). Raises WrongUse if
    the training set or the test set would be empty.
    """
    held_out = np.array([_is_below(key, share) for key in keys], dtype=bool)
    n_test, n_images = int(held_out.sum()), len(keys)
    line = (
        f"{place} has no test part: {n_test} of its {n_images} images are held out as test images"
    )
    line += f", by a hash of their paths (data.test_share: {share})"
    if not 0 < n_test < n_images:
        raise WrongUse(f"{line}; both sets need images")
    say(line)
    rows = {"train": np.flatnonzero(~held_out), "test": np.flatnonzero(held_out)}
    return {split: listing.take(of_split) for split, of_split in rows.items()}


def say_lone_classes(listings, classes, place):
    """Print a line for each of two Listings that has classes of which the other has no image."""
    labels = {split: set(listing.labels) for split, listing in listings.items()}
    for here, there in (("train", "test"), ("test", "train")):
        alone = [classes[label] for label in sorted(labels[here] - labels[there] - {-1})]
        if alone:
            named = ", ".join(map(repr, alone[:NAMED])) + (" ..." if len(alone) > NAMED else "")
            line = f"{len(alone)} of {len(classes)} classes have {here} images alone: {named}"
            say(escape(f"{place}: {line}"))


def _is_below(key, share):
    """Whether the hash of a text, a number in [0, 1), is below a share. Systems write the accents
    of a name in two ways, which have one hash.
    """
    content = os.fsencode(unicodedata.normalize("NFC", key))
    return int.from_bytes(hashlib.sha256(content).digest()[:8]) < share * 2**64
