"""Duplicates among the images of the subsets: they are counted and listed in duplicates.csv before
training, and drawn into one subset if that is asked for.
"""

import csv
import io
import itertools
from dataclasses import replace

import numpy as np

from memorization.data.duplicates import (
    digests_of_subsets,
    find_duplicates,
    fingerprints_of_subsets,
    join_groups,
)
from memorization.data.subsets import SUBSETS, draw_subsets, prepare_subsets
from memorization.errors import escape
from memorization.machine import processes
from memorization.machine.files import exists, write_atomically
from memorization.machine.processes import on_first_process
from memorization.machine.screen import caution, say

FILE = "duplicates.csv"
COLUMNS = ["group", "kind", "distance", "split", "index", "subset", "label"]


def separate_duplicates(subsets, images, settings, device):
    """(Subsets, Images) drawn and prepared again until no group of duplicates is in two subsets, or
    in both halves of a crossover's seed. Groups of a manifest are kept whole, too.

    subsets, images: of `prepare_subsets`; settings: SubsetSettings; device: on which images are
    compared. Raises WrongUse if the images do not suffice. A file of subsets is not drawn anew, as
    those of remove_samples.py are of a run whose duplicates were separated.
    """
    if settings.file:
        places = "subsets.file says where each image belongs"
        say(f"subsets.separate_duplicates: true has no effect: {places}")
        return subsets, images
    while True:
        with processes.first_before_others():
            links = _find_links(subsets, images, device)
        grouped = _join_images(images, *processes.broadcast(links))
        if grouped is None:
            return subsets, images
        images = grouped
        subsets = draw_subsets(settings, images)
        with processes.first_before_others():
            subsets, images = prepare_subsets(subsets, images, settings)


@on_first_process
def _find_links(subsets, images, device):
    """Pairs of images that are duplicates, such that each is linked to all of its group: two arrays
    (p,) of places, see `_places`.
    """
    groups, places = find_among(subsets, images, device).groups, _places(subsets, images)
    order = np.argsort(groups, kind="stable")
    in_group = np.diff(groups[order]) == 0
    return places[order[:-1]][in_group], places[order[1:]][in_group]


def _places(subsets, images):
    """The place of every image of the subsets among all images, training images first, (n,)."""
    offsets = {"train": 0, "test": len(images.train)}
    places = [np.sort(getattr(subsets, name)) + offsets[split] for name, split in SUBSETS.items()]
    return np.concatenate(places)


def _join_images(images, ones, others):
    """The Images with the groups that pairs of images join, or None if they join nothing more.
    ones, others: (p,) places.
    """
    n_train = len(images.train)
    groups = np.arange(n_train + len(images.test))
    if images.train.groups is not None:
        known = np.concatenate([images.train.groups, images.test.groups])
        groups = np.unique(known, return_inverse=True)[1]
    apart = groups[ones] != groups[others]
    if not apart.any():
        return None
    groups = join_groups(groups, ones[apart], others[apart])
    train, test = groups[:n_train].astype(np.int64), groups[n_train:].astype(np.int64)
    return replace(
        images,
        train=replace(images.train, groups=train),
        test=replace(images.test, groups=test),
    )


def find_among(subsets, images, device):
    """The Duplicates among the images of the subsets, in the order of SUBSETS, then by index."""
    digests = digests_of_subsets(subsets, images)
    return find_duplicates(digests, fingerprints_of_subsets(subsets, images), device)


@on_first_process
def list_duplicates(subsets, images, settings, folder, device):
    """Count the duplicates on the screen and list them in duplicates.csv in a run folder; if the
    file is there already, they are not looked for again.

    subsets, images: prepared ones, of a pair; settings: SubsetSettings.
    """
    in_files = images.prepared_folder is not None
    is_on = in_files if settings.find_duplicates is None else settings.find_duplicates
    if not is_on or subsets.role is not None:
        return
    path = folder / FILE
    if exists(path):
        say(f"duplicates: {escape(path)} lists them")
        return
    duplicates, of = find_among(subsets, images, device), _names_of_subsets(subsets)
    write_atomically(path, _csv_of(duplicates, subsets, images))
    say(f"duplicates: {state_duplicates(duplicates, of, subsets, settings)}: {escape(path)}")
    is_candidate, is_external = of == "candidate", of == "external"
    near = is_external & np.isin(duplicates.groups, duplicates.groups[is_candidate])
    near &= ~np.isin(duplicates.pixels, duplicates.pixels[is_candidate])
    if near.any():
        trained = "an image of the pool" if subsets.scheme == "crossover" else "a candidate"
        caution(f"subsets: {near.sum()} external images nearly equal {trained} ({path})")


def _names_of_subsets(subsets):
    """The name of the subset of every image, (n,), in the order of SUBSETS."""
    return np.repeat(list(SUBSETS), [len(getattr(subsets, name)) for name in SUBSETS])


def state_duplicates(duplicates, of, subsets, settings):
    """The numbers of duplicates in words. of: the name of the subset of each image, (n,)."""
    repeated, n_images = duplicates.repeated, len(of)
    if not repeated.any():
        return f"none among {n_images} images"
    n_groups = len(np.unique(duplicates.groups[repeated]))
    n_exact = int(duplicates.is_exact.sum())
    line = f"{repeated.sum()} of {n_images} images in {n_groups} groups"
    line += f", {n_exact} with the pixels of another one"
    divided = _count_divided(duplicates, of, subsets)
    if not divided:
        return f"{line}; no group is divided"
    line += "; groups divided: " + ", ".join(f"{n} {where}" for where, n in divided.items())
    if settings.file or not settings.draws_groups:
        return line
    return f"{line} (subsets.separate_duplicates: true draws them whole)"


def _count_divided(duplicates, of, subsets):
    """{where: how many groups are divided there}, without zeros."""
    groups_of = {name: set(duplicates.groups[of == name].tolist()) for name in SUBSETS}
    divided = {}
    for one, other in itertools.combinations(SUBSETS, 2):
        n_groups = len(groups_of[one] & groups_of[other])
        if n_groups:
            divided[f"between {one} and {other}"] = n_groups
    if subsets.scheme == "crossover":
        divided = {where.replace("candidate", "pool"): n for where, n in divided.items()}
        n_groups = _count_halved(duplicates.groups[of == "candidate"], subsets)
        if n_groups:
            divided["between halves of the pool"] = n_groups
    return divided


def _count_halved(groups, subsets):
    """How many groups a crossover's seed may divide. groups: of the pool, by index."""
    n_pairs = len(groups) // 2
    blocks = np.arange(n_pairs) if subsets.blocks is None else subsets.blocks
    sides = np.stack([2 * blocks, 2 * blocks + 1], axis=1).flatten()  # images that stay together
    parts = np.unique([groups, sides[np.argsort(subsets.candidate)]], axis=1)
    return int((np.bincount(parts[0]) > 1).sum())


def _csv_of(duplicates, subsets, images):
    """The bytes of duplicates.csv: a row for every image with a duplicate, by group."""
    is_exact, of = duplicates.is_exact, _names_of_subsets(subsets)
    indices = np.concatenate([np.sort(getattr(subsets, name)) for name in SUBSETS])
    splits = {name: getattr(images, split) for name, split in SUBSETS.items()}
    with_files = images.train.files is not None
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([*COLUMNS, "file"] if with_files else COLUMNS)
    rows = np.flatnonzero(duplicates.repeated)
    rows = rows[np.argsort(duplicates.groups[rows], kind="stable")]
    numbers = np.unique(duplicates.groups[rows], return_inverse=True)[1]
    for number, row in zip(numbers.tolist(), rows.tolist()):
        split, index = splits[of[row]], int(indices[row])
        distance = f"{duplicates.distances[row]:.4f}"
        kind = "exact" if is_exact[row] else "near"
        place = [split.name, index, of[row], int(split.labels[index])]
        file = [(split.names or split.files)[index]] if with_files else []
        writer.writerow([number, kind, distance, *place, *file])
    return table.getvalue().encode(errors="surrogateescape")
