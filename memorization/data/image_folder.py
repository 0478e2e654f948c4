"""A folder of images: which image files it holds, each once, in which split and of which class."""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from memorization.data.image_files import ENDINGS, OTHER_ENDINGS
from memorization.data.listings import TEST_SHARE, Listing, hold_out, say_lone_classes
from memorization.errors import WrongUse, escape
from memorization.machine.files import is_folder
from memorization.machine.screen import caution, say

PASSED_OVER = {  # in the order of the line on the screen
    "hidden": "{} hidden files or folders",
    "loop": "{} links back to a folder that they are in",
    "again": "{} links to what is listed anyway",
    "other": "{} images with endings that are not read",
    "beside": "{} images beside the folders of classes",
    "empty": "{} folders without an image",
}
# What file managers leave behind, in small letters, beside what begins with a dot.
LEFT_BEHIND = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir")


class _Place(NamedTuple):
    """An image: its path, the name of its class or None, and the real path of the file."""

    path: str
    of_class: str | None
    real: str


def list_image_folder(root, test_share=None):
    """(classes, {"train": Listing, "test": Listing}) of a folder of images.

    It has train/ and val/ (or test/), each with a folder for every class, or without classes; then
    the order is that of torchvision's ImageFolder. Or it has no such parts: then test_share of its
    images, by default TEST_SHARE, are held out. Its folders are classes if there are two or more
    and all images lie directly in them; else the images have no classes. Each real file is listed
    once: links to what is listed anyway, hidden files and folders without images are counted on the
    screen and passed over. Raises WrongUse if a folder is missing or cannot be read, if all test
    images are training images, or if test_share is given and there is a test part.
    """
    root, skipped = Path(root), Counter()
    try:
        folders = _parts(root)
        if len(folders) == 1:
            (top,) = folders.values()
            places = {"train": _list_part(top, None, skipped)}
            classes = _classes_of_one_part(places, top)
        else:
            places = _list_parts(folders, skipped)
            names = {place.of_class for of_split in places.values() for place in of_split}
            classes = tuple(sorted(names - {None}))
    except OSError as error:
        reason = f"{error.filename or root} cannot be listed ({error.strerror or error})"
        raise WrongUse(f"image_folder: {reason}") from error
    kinds = [words.format(skipped[kind]) for kind, words in PASSED_OVER.items() if skipped[kind]]
    if kinds:
        say(f"image_folder: passed over in {escape(root)}: {', '.join(kinds)}")
    numbers = {name: number for number, name in enumerate(classes)} | {None: -1}
    listings = {}
    for split, of_split in places.items():
        files = tuple(place.path for place in of_split)
        labels = tuple(numbers[place.of_class] for place in of_split)
        listings[split] = Listing(files, labels, tuple(os.path.relpath(f, root) for f in files))
    if len(folders) == 1:
        (listing,), share = listings.values(), TEST_SHARE if test_share is None else test_share
        listings = hold_out(listing, listing.names, share, f"image_folder: {escape(root)}")
    elif test_share is not None:
        own = f"{folders['test']} holds the test images; leave it out"
        raise WrongUse(f"data.test_share: {test_share} is not allowed: {own}")
    else:
        _check_disjoint(places, folders)
    say_lone_classes(listings, classes, "image_folder")
    return classes, listings


def _parts(root):
    """The folders of the splits, {"train": Path, "test": Path}, or {"train": Path} of the only
    folder.
    """
    test = root / "val" if is_folder(root / "val") else root / "test"
    folders = {"train": root / "train", "test": test}
    missing = [folder for folder in folders.values() if not is_folder(folder)]
    if not missing:
        return folders
    if is_folder(root):
        kinds = {entry.name: _kind(entry) for entry in os.scandir(root)}
        names = {name for name, kind in kinds.items() if kind in ("folder", "image")}
        if names == {"train"}:
            return {"train": folders["train"]}
        if not names & {"train", "val", "test"}:
            return {"train": root}
    needs = "train and val (or test), or other folders and images alone"
    raise WrongUse(f"image_folder: {missing[0]} is no folder; {root} needs {needs}")


def _list_parts(folders, skipped):
    """{split: _Places of its images}. If no part has folders, its images have no classes."""
    skipped_here = Counter()
    names = {split: _folders_in(folder, skipped_here) for split, folder in folders.items()}
    if not any(names.values()):
        return {split: _list_part(folder, None, skipped) for split, folder in folders.items()}
    skipped.update(skipped_here)
    for split, folder in folders.items():
        if not names[split]:
            raise WrongUse(f"image_folder: {folder} holds no folder of a class")
        skipped["beside"] += sum(_kind(entry) == "image" for entry in os.scandir(folder))
    return {split: _list_part(folders[split], names[split], skipped) for split in folders}


def _folders_in(folder, skipped):
    """The names of the folders in a folder, sorted, with links to folders outside."""
    names, around = [], _folders_around(folder)
    for entry in os.scandir(folder):
        kind = _kind(entry)
        if kind == "hidden":
            skipped["hidden"] += 1
        elif kind == "folder" and os.path.realpath(entry.path) in around:
            skipped["loop"] += 1
        elif kind == "folder":
            names.append(entry.name)
    return sorted(names)


def _classes_of_one_part(places, top):
    """The names of the classes of the only part, sorted, which are noted in its places; none if
    not all images lie in two or more folders of the first level.
    """
    paths = [os.path.relpath(place.path, top) for place in places["train"]]
    depths, names = (
        {path.count(os.sep) for path in paths},
        {path.split(os.sep)[0] for path in paths},
    )
    if depths != {1} or len(names) < 2:
        why = "not all of them lie directly in two or more folders"
        say(f"image_folder: the images in {escape(top)} have no classes, as {why}")
        return ()
    places["train"] = [
        place._replace(of_class=path.split(os.sep)[0])
        for place, path in zip(places["train"], paths)
    ]
    say(f"image_folder: the {len(names)} folders in {escape(top)} are taken as classes")
    return tuple(sorted(names))


def _list_part(folder, classes, skipped):
    """The _Places of the images in the folders of classes, or, if those are None, in all of a
    folder; each real file once.

    If a file can be reached both through a link and without one, the place without a link counts.
    """
    walk = _Walk(folder, skipped)
    tops = [(str(folder), None)]
    if classes is not None:
        tops = [(os.path.join(folder, name), name) for name in classes]
    for through_links in (False, True):
        for top, of_class in tops:
            walk.note_images(top, of_class, through_links)
    skipped["empty"] += walk.count_empty_folders()
    by_file = {}
    for place in walk.places:
        if by_file.setdefault(place.real, place) is not place:
            skipped["again"] += 1
    if not by_file:
        rule = f"files are images if their names end in {', '.join(ENDINGS)}"
        raise WrongUse(f"image_folder: {folder} holds no image; {rule}")
    places = by_file.values()
    return sorted(places, key=lambda place: (place.of_class or "", os.path.split(place.path)))


class _Walk:
    """A walk through the folders of a split. places: of the images so far. folders, walked: the
    paths and the real paths of the folders so far.
    """

    def __init__(self, folder, skipped):
        self.around, self.skipped = _folders_around(folder), skipped
        self.places, self.folders, self.walked = [], set(), set()

    def note_images(self, top, of_class, through_links):
        """Note the images below a folder: those that are reached through a link, or the others."""
        linked = os.path.islink(top) and of_class is not None
        waiting = [(top, linked, self.around - {os.path.realpath(top)})]
        while waiting:
            folder, linked, above = waiting.pop()
            real = os.path.realpath(folder)
            if (linked and not through_links) or not self._enters(real, linked, above):
                continue
            is_new = real not in self.walked
            self.walked.add(real)
            self.folders.add(folder)
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                kind, by_link = _kind(entry), linked or entry.is_symlink()
                if kind == "folder":
                    waiting.append((entry.path, by_link, above | {real}))
                elif kind == "image" and by_link == through_links:
                    self.places.append(_Place(entry.path, of_class, _real_file(entry, real)))
                elif kind in PASSED_OVER and is_new:
                    self.skipped[kind] += 1

    def count_empty_folders(self):
        """How many folders have no image in them or below them."""
        filled = set()
        for place in self.places:
            folder = os.path.dirname(place.path)
            while folder not in filled and folder in self.folders:
                filled.add(folder)
                folder = os.path.dirname(folder)
        return len(self.folders - filled)

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
    if is_hidden(name):
        return "hidden"
    if entry.is_dir():
        return "folder"
    if name.endswith(OTHER_ENDINGS):
        return "other"
    return "image" if name.endswith(ENDINGS) else None


def is_hidden(name):
    """Whether a file or a folder of this name is hidden, or left behind by a file manager."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


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
