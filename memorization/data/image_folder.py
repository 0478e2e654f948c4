"""A folder of images, root/<split>/<class>/...: which image files it holds, each once."""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from memorization.data.image_files import ENDINGS, OTHER_ENDINGS
from memorization.errors import WrongUse, escape
from memorization.machine.files import is_folder
from memorization.machine.screen import caution, say

PASSED_OVER = {  # in the order of the line on the screen
    "hidden": "{} hidden files or folders",
    "loop": "{} links back to a folder that they are in",
    "again": "{} links to what is listed anyway",
    "other": "{} images with endings that are not read",
}


class Listing(NamedTuple):
    """The images of one split: paths and the numbers of their classes, -1 for none, of equal
    length; names, groups and subsets: as of a Split.
    """

    files: tuple
    labels: tuple
    names: tuple | None = None
    groups: np.ndarray | None = None
    subsets: np.ndarray | None = None


class _Place(NamedTuple):
    """An image below a class: its path, the number of the class, the real path of the file, and
    whether the path goes through a link.
    """

    path: str
    label: int
    real: str
    linked: bool


def list_image_folder(root):
    """(classes, {"train": Listing, "test": Listing}) of a folder of images, in the order of
    torchvision's ImageFolder.

    Each real file is listed once: links to what is listed anyway, and hidden files and folders, are
    counted on the screen and passed over. Raises WrongUse if a folder is missing or cannot be read,
    if the classes of the splits differ, or if all test images are training images.
    """
    root = Path(root)
    test = root / "val" if is_folder(root / "val") else root / "test"
    folders = {"train": root / "train", "test": test}
    for folder in folders.values():
        if not is_folder(folder):
            needs = f"{root} needs train and val (or test), each with a folder for every class"
            raise WrongUse(f"image_folder: {folder} is no folder; {needs}")
    skipped, places = Counter(), {}
    try:
        classes = {name: _classes(folder, skipped) for name, folder in folders.items()}
        _check_classes(classes, folders)
        for name, folder in folders.items():
            places[name] = _list_split(folder, classes[name], skipped)
    except OSError as error:
        reason = f"{error.filename or root} cannot be listed ({error.strerror or error})"
        raise WrongUse(f"image_folder: {reason}") from error
    kinds = [words.format(skipped[kind]) for kind, words in PASSED_OVER.items() if skipped[kind]]
    if kinds:
        say(f"image_folder: passed over in {escape(root)}: {', '.join(kinds)}")
    _check_disjoint(places, folders)
    listings = {}
    for name, of_split in places.items():
        files = tuple(place.path for place in of_split)
        listings[name] = Listing(files, tuple(place.label for place in of_split))
    return tuple(classes["train"]), listings


def _classes(folder, skipped):
    """The names of the classes of a split, sorted: its folders, or links to folders outside."""
    names, around = [], _folders_around(folder)
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            skipped["hidden"] += 1
        elif entry.is_dir() and os.path.realpath(entry.path) in around:
            skipped["loop"] += 1
        elif entry.is_dir():
            names.append(entry.name)
    if not names:
        raise WrongUse(f"image_folder: {folder} holds no folder of a class")
    return sorted(names)


def _check_classes(classes, folders):
    """Raise WrongUse if a class of one split is none of the other."""
    train, test = (set(names) for names in classes.values())
    if train != test:
        name = min(train ^ test)
        here, there = ("train", "test") if name in train else ("test", "train")
        here, there = folders[here], folders[there]
        raise WrongUse(f"image_folder: class {name!r} is in {here}, but not in {there}")


def _list_split(folder, classes, skipped):
    """The _Places of the images of a split, each real file once.

    If a file can be reached both through a link and without one, the place without a link counts.
    """
    walk = _Walk(folder, skipped)
    for through_links in (False, True):
        for label, name in enumerate(classes):
            walk.note_images(os.path.join(folder, name), label, through_links)
    by_file = {}
    for place in walk.places:
        if by_file.setdefault(place.real, place) is not place:
            skipped["again"] += 1
    places = sorted(by_file.values(), key=lambda place: (place.label, os.path.split(place.path)))
    empty = set(range(len(classes))) - {place.label for place in places}
    if empty:
        names = ", ".join(repr(classes[label]) for label in sorted(empty)[:5])
        lacks = f"no image of its own for {len(empty)} of {len(classes)} classes ({names})"
        rule = f"files are images if their names end in {', '.join(ENDINGS)}"
        raise WrongUse(f"image_folder: {folder} holds {lacks}; {rule}")
    return places


class _Walk:
    """A walk through the folders of a split. places: of the images so far. walked: the real paths
    of the folders so far.
    """

    def __init__(self, folder, skipped):
        self.around, self.skipped = _folders_around(folder), skipped
        self.places, self.walked = [], set()

    def note_images(self, top, label, through_links):
        """Note the images below the folder of a class: those that are reached through a link, or
        the others.
        """
        waiting = [(top, os.path.islink(top), self.around)]
        while waiting:
            folder, linked, above = waiting.pop()
            real = os.path.realpath(folder)
            if (linked and not through_links) or not self._enters(real, linked, above):
                continue
            is_new = real not in self.walked
            self.walked.add(real)
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                kind, by_link = _kind(entry), linked or entry.is_symlink()
                if kind == "folder":
                    waiting.append((entry.path, by_link, above | {real}))
                elif kind == "image" and by_link == through_links:
                    self.places.append(_Place(entry.path, label, _real_file(entry, real), by_link))
                elif kind in PASSED_OVER and is_new:
                    self.skipped[kind] += 1

    def _enters(self, real, linked, above):
        """Whether a folder is walked through: not one above it, nor by a link one that was."""
        if real in above:
            self.skipped["loop"] += 1
        elif linked and real in self.walked:
            self.skipped["again"] += 1
        else:
            return True
        return False


def _kind(entry):
    """What an entry of a folder is: "folder", "image", a key of PASSED_OVER, or None."""
    name = entry.name.lower()
    if name.startswith("."):
        return "hidden"
    if entry.is_dir():
        return "folder"
    if name.endswith(OTHER_ENDINGS):
        return "other"
    return "image" if name.endswith(ENDINGS) else None


def _real_file(entry, real_folder):
    if entry.is_symlink():
        return os.path.realpath(entry.path)
    return os.path.join(real_folder, entry.name)


def _folders_around(folder):
    """The real paths of a folder and of all folders that it lies in."""
    real = Path(os.path.realpath(folder))
    return frozenset(map(str, (real, *real.parents)))


def _check_disjoint(places, folders):
    """Raise WrongUse if all test images are training images, and warn if some are."""
    trained = {place.real for place in places["train"]}
    both = [place for place in places["test"] if place.real in trained]
    if not both:
        return
    test, train = folders["test"], folders["train"]
    repeated = f"{len(both)} of the {len(places['test'])} images in {test}"
    repeated = f"{repeated} are the same files as images in {train}"
    if len(both) == len(places["test"]):
        raise WrongUse(f"image_folder: {repeated}; external images are in neither training set")
    example = f"such as {both[0].path}; as external images they are not unseen"
    caution(f"image_folder: {repeated}, {example}")
