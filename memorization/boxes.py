"""Bounding boxes of objects, and the largest part of an image outside of them."""

import csv
import io
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from memorization.errors import WrongUse
from memorization.storage import exists, is_folder, read_text

COLUMNS = ["index", "xmin", "ymin", "xmax", "ymax"]


def boxes_of(split, indices, source):
    """The boxes of some images in the prepared square: {index: (n, 4) float64, xmin, ymin, xmax and ymax, in pixels of the square}.

    source: a CSV file with the columns of COLUMNS, one row a box of a training image, or a folder of XML files as ImageNet has them, one an
    image, named after it and perhaps in a folder of its class; both in original pixels. Images without boxes are left out.
    Raises WrongUse where the source is missing or broken.
    """
    source = Path(source).expanduser()
    if is_folder(source):
        if split.files is None:
            raise WrongUse(f"dejavu.boxes: {source} is a folder of XML files, named after image files; these images come from none")
        original = {index: boxes for index in indices.tolist() if len(boxes := _of_image_file(Path(split.files[index]), source))}
    elif split.name != "train":
        raise WrongUse(
            f"dejavu.boxes: {source} names training images; public images are from the {split.name} set: set public_split to train"
        )
    else:
        of_all = _read_csv(source, len(split))
        original = {index: np.array(of_all[index]) for index in indices.tolist() if index in of_all}
    return {index: _in_prepared_square(boxes, index, split) for index, boxes in original.items()}


def largest_empty_rectangle(boxes, size):
    """The largest rectangle of a square that meets no box: (top, left, height, width), whole pixels.

    boxes: (n, 4) float64, xmin, ymin, xmax and ymax, in pixels; size: of the square. Height or width are 0 where none is left.
    """
    low = np.floor(np.asarray(boxes)[:, :2]).clip(0, size).astype(int)  # rounded outward, so that no pixel of a box is left
    high = np.ceil(np.asarray(boxes)[:, 2:]).clip(0, size).astype(int)
    # The sides of the largest rectangle lie on sides of boxes or of the square.
    columns, rows = (np.unique([0, size, *low[:, axis], *high[:, axis]]) for axis in (0, 1))
    best = (0, 0, 0, 0)
    for i, left in enumerate(columns):
        for right in columns[i + 1 :]:
            in_the_way = (low[:, 0] < right) & (high[:, 0] > left)
            top, height = _longest_gap(low[in_the_way, 1], high[in_the_way, 1], rows)
            if height * (right - left) > best[2] * best[3]:
                best = int(top), int(left), int(height), int(right - left)
    return best


def _longest_gap(starts, ends, places):
    """(start, length) of the longest stretch between neighbouring places that no interval [start, end) meets."""
    best, start = (0, 0), places[0]
    for low, high in zip(places, places[1:]):
        if ((starts < high) & (ends > low)).any():
            start = high
        elif high - start > best[1]:
            best = start, high - start
    return best


def _read_csv(path, count):
    """{index: list of boxes} of all boxes in a CSV file. count: of the images that an index may name."""
    boxes = {}
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
        if reader.fieldnames != COLUMNS:
            raise ValueError(f"its columns are {reader.fieldnames}, but must be {COLUMNS}")
        for row in reader:
            if None in row:
                raise ValueError(f"line {reader.line_num}: more than {len(COLUMNS)} columns")
            index = int(row["index"])
            if not 0 <= index < count:
                raise ValueError(f"line {reader.line_num}: image {index}, but there are {count}")
            boxes.setdefault(index, []).append(_checked([row[name] for name in COLUMNS[1:]], f"line {reader.line_num}"))
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise WrongUse(f"dejavu.boxes: {path} cannot be read ({error})") from None
    return boxes


def _of_image_file(image, folder):
    """The boxes of an image file, (n, 4), from its XML file in a folder, or in that of its class there; none where there is no file."""
    path = next((path for path in (folder / image.parent.name / f"{image.stem}.xml", folder / f"{image.stem}.xml") if exists(path)), None)
    if path is None:
        return np.empty((0, 4))
    try:
        content = read_text(path)
        if "<!ENTITY" in content:  # an entity of entities of entities would fill the memory
            raise ValueError("it declares entities of its own")
        found = ElementTree.fromstring(content).iter("bndbox")
        boxes = [_checked([box.findtext(name) for name in COLUMNS[1:]], "a bndbox") for box in found]
    except (OSError, ValueError, TypeError, ElementTree.ParseError) as error:
        raise WrongUse(f"dejavu.boxes: {path} cannot be read ({error})") from None
    return np.array(boxes).reshape(-1, 4)


def _checked(words, where):
    """Four words as the numbers of a box. Raises ValueError where they are none."""
    if None in words:
        raise ValueError(f"{where}: a side of the box is missing")
    xmin, ymin, xmax, ymax = box = [float(word) for word in words]
    if not (all(math.isfinite(side) for side in box) and xmin < xmax and ymin < ymax):
        raise ValueError(f"{where}: {box} is no box; xmin < xmax and ymin < ymax are needed")
    return box


def _in_prepared_square(boxes, index, split):
    """Boxes in original pixels as boxes in pixels of the prepared image; parts outside of it are left to the caller."""
    if split.geometry is None:
        return boxes
    scale, left, top = split.geometry[split.row_of[index]]
    return boxes * scale - np.array([left, top, left, top])
