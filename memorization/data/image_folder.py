"""A folder of images, root/<split>/<class>/...: which image files it holds, each once."""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from memorization.data.image_files import ENDINGS, OTHER_ENDINGS
from memorization.errors import WrongUse, escape
from memorization.machine.files import is_folder
from memorization.machine.screen import caution

PASSED_OVER = {  # in the order of the line on the screen
    "hidden": "{} hidden files or folders",
    "loop": "{} links back to a folder that they are in",
    "again": "{} links to what is listed anyway",
    "other": "{} images with endings that are not read",
}


class Listing(NamedTuple):
    """The images of one split: paths and the numbers of their classes, of equal length."""

    files: tuple
    labels: tuple


def list_image_folder(root):
    """(classes, {"train": Listing, "test": Listing}) of a folder of images, in the order of
    torchvision's ImageFolder.

    Each real file is listed once: links to what is listed anyway, and hidden files and folders, are
    counted on the screen and passed over. Raises WrongUse if a folder is missing or cannot be read,
    if the classes of the splits differ, or if all test images are training images.
    """
    root = Path(root)
    folders = {
        "train": root / "train",
        "test": root / "val" if is_folder(root / "val") else root / "test",
    }
    for folder in folders.values():
        if not is_folder(folder):
            raise WrongUse(
                f"image_folder: {folder} is no folder; {root} needs train and val (or test), each with a folder for every class"
            )
    counts = Counter()
    try:
        classes = {name: _classes(folder, counts) for name, folder in folders.items()}
        _check_classes(classes, folders)
        places = {
            name: _list_split(folder, classes[name], counts) for name, folder in folders.items()
        }
    except OSError as error:
        raise WrongUse(
            f"image_folder: {error.filename or root} cannot be listed ({error.strerror or error})"
        ) from error
    if counts:
        kinds = ", ".join(
            words.format(counts[kind]) for kind, words in PASSED_OVER.items() if counts[kind]
        )
        print(f"image_folder: passed over in {escape(root)}: {kinds}", flush=True)
    _check_disjoint(places, folders)
    listings = {}
    for name, of_split in places.items():
        files, labels = (
            tuple(getattr(place, part) for place in of_split) for part in ("path", "label")
        )
        listings[name] = Listing(files, labels)
    return tuple(classes["train"]), listings


class _Place(NamedTuple):
    """Where an image was met: a path, its class, the real path of the file, and whether a link
    leads there.
    """

    path: str
    label: int
    real: str
    linked: bool


def _classes(folder, counts):
    """The names of the classes of a split, sorted: its folders, or links to folders outside."""
    names, around = [], _folders_around(folder)
    for entry in os.scandir(folder):
        if not entry.is_dir():
            counts["hidden"] += entry.name.startswith(".")
        elif entry.name.startswith("."):
            counts["hidden"] += 1
        elif os.path.realpath(entry.path) in around:
            counts["loop"] += 1
        else:
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


def _list_split(folder, classes, counts):
    """The _Places of the images of a split, each real file once.

    If a file is met both through a link and without one, the place without a link counts.
    """
    around, walked, places = _folders_around(folder), set(), []
    for linked in (False, True):  # what lies in the split itself comes first
        for label, name in enumerate(classes):
            _walk(os.path.join(folder, name), label, linked, around, walked, places, counts)
    by_file = {}
    for place in sorted(places, key=lambda place: place.linked):  # stable
        if by_file.setdefault(place.real, place) is not place:
            counts["again"] += 1
    kept = sorted(by_file.values(), key=lambda place: (place.label, os.path.split(place.path)))
    empty = set(range(len(classes))) - {place.label for place in kept}
    if empty:
        names = ", ".join(repr(classes[label]) for label in sorted(empty)[:5])
        raise WrongUse(
            f"image_folder: {folder} holds no image of its own for {len(empty)} of {len(classes)} classes ({names}); files are "
            f"images if their names end in {', '.join(ENDINGS)}"
        )
    return kept


def _walk(top, label, linked, around, walked, places, counts):
    """Add the images below the folder of a class to places.

    linked: True adds images that are reached by a link, False the others. walked: real paths of the
    folders that were listed so far; it is filled, as are places and counts.
    """
    waiting = [(top, os.path.islink(top), around)]
    while waiting:
        folder, by_link, above = waiting.pop()
        real = os.path.realpath(folder)
        if by_link and not linked:
            continue
        if real in above:
            counts["loop"] += 1
            continue
        first_time = real not in walked
        if not first_time and by_link:
            counts["again"] += 1
            continue
        walked.add(real)
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            link = entry.is_symlink()
            if entry.name.startswith("."):
                counts["hidden"] += first_time
            elif entry.is_dir():
                waiting.append((entry.path, by_link or link, above | {real}))
            elif entry.name.lower().endswith(OTHER_ENDINGS):
                counts["other"] += first_time
            elif entry.name.lower().endswith(ENDINGS) and (by_link or link) == linked:
                file = entry.path if real == folder else os.path.join(real, entry.name)
                file = os.path.realpath(file) if link else file
                places.append(_Place(entry.path, label, file, by_link or link))


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
    count = f"{len(both)} of the {len(places['test'])} images in {test} are the same files as images in {train}"
    if len(both) == len(places["test"]):
        raise WrongUse(f"image_folder: {count}; external images are in neither training set")
    such = f"such as {both[0].path}; as external images they are not unseen"
    caution(f"image_folder: {count}, {such}")
