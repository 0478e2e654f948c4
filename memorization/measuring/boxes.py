"""Bounding boxes of objects, and the largest part of an image outside of them."""

import csv
import io
import math
import re
from array import array
from collections import Counter
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from memorization.errors import WrongUse, shorten
from memorization.machine.files import exists, is_folder, read_bytes, read_text, reason_of

COLUMNS = ["index", "xmin", "ymin", "xmax", "ymax"]
MOST_CSV = 2**25  # bytes; a box of each of ImageNet's 1.3 million images takes less
MOST_OF_A_ROW = 10_000  # characters of the names of its columns
MOST_XML = 2**22  # bytes; 10,000 boxes of an image take less
# Kinds of boxes that are counted, in words.
SWAPPED = "boxes had xmin above xmax or ymin above ymax and were swapped"
CLIPPED = "boxes went beyond their image and were clipped"
OUTSIDE = "boxes lay outside of their image and were dropped"
EMPTY = "boxes had no area and were dropped"
NONE_LEFT = "no box that lies in the image"  # of images


def boxes_of(split, rows, path, faults=None):
    """The boxes of some images of a split in the prepared square.

    path: of a CSV file or a folder. The CSV file has the columns of COLUMNS and a row for every box
    of a training image, in original pixels. The folder has XML files as ImageNet has them: one for
    every image, named after it, perhaps in a folder of its class; boxes are in pixels of the <size>
    that it states. faults: a Counter, to which SWAPPED, CLIPPED, OUTSIDE, EMPTY and NONE_LEFT are
    added.

    Returns {row: (n, 4) float64, xmin, ymin, xmax and ymax, in pixels of the square}, without
    images that have no box. A box may lie outside of the square, but not outside of the image.
    Raises WrongUse if files are missing or broken.
    """
    faults = Counter() if faults is None else faults
    path = Path(path).expanduser()
    read = _read_folder if is_folder(path) else _read_table
    boxes = {}
    for row, of_image in read(split, rows.tolist(), path).items():
        clipped = _clip(of_image, _original_size(split, row), faults)
        if len(clipped):
            boxes[row] = _to_prepared_square(clipped, row, split)
        elif len(of_image):
            faults[NONE_LEFT] += 1
    return boxes


def _read_folder(split, rows, folder):
    """{row: (n, 4) boxes in original pixels} of some images, from XML files."""
    if split.files is None:
        raise WrongUse(
            f"dejavu.boxes: {folder} is a folder of XML files, named after image files; "
            "these images come from none"
        )
    files = {row: Path(split.files[row]) for row in rows}
    return {row: _read_xml(files[row], folder, _original_size(split, row)) for row in rows}


def _read_table(split, rows, path):
    """{row: (n, 4) boxes in original pixels} of some images, from a CSV file."""
    if split.name != "train":
        raise WrongUse(
            f"dejavu.boxes: {path} names training images; public images are from the "
            f"{split.name} set: set public_split to train"
        )
    of_all = _read_csv(path, len(split))
    return {row: np.frombuffer(of_all[row]).reshape(-1, 4) for row in rows if row in of_all}


def largest_empty_rectangle(boxes, size):
    """The largest rectangle of a square that meets no box: (top, left, height, width) in pixels.

    boxes: (n, 4) float64, xmin, ymin, xmax and ymax, in pixels; size: of the square. Height and
    width are 0 if none is left. Among equally large rectangles the one with the leftmost left side
    is taken, then the one with the leftmost right side, then the uppermost.
    """
    # Rounded outward, so that no pixel of a box is left.
    low = np.floor(np.asarray(boxes)[:, :2]).clip(0, size).astype(int)
    high = np.ceil(np.asarray(boxes)[:, 2:]).clip(0, size).astype(int)
    # The sides of the largest rectangle lie on sides of boxes or of the square.
    columns, rows = (
        np.unique(np.concatenate([[0, size], low[:, axis], high[:, axis]])) for axis in (0, 1)
    )
    covered = _covered_cells(low, high, columns, rows)
    C = len(columns) - 1
    numbers = np.arange(C)
    # For every column, the free stretch that ends in this row: its first row, and the columns
    # beside it that are free along all of it. The largest rectangle surrounds such a stretch.
    first, left, right = np.zeros(C, int), np.zeros(C, int), np.full(C, C)
    best = (0, 0, 0, 0, 0)  # area, and what decides between equal ones
    for row, blocked in enumerate(covered):
        after = np.maximum.accumulate(np.where(blocked, numbers + 1, 0))
        before = np.minimum.accumulate(np.where(blocked, numbers, C)[::-1])[::-1]
        left = np.where(blocked, 0, np.maximum(left, after))
        right = np.where(blocked, C, np.minimum(right, before))
        first = np.where(blocked, row + 1, first)
        width, height = columns[right] - columns[left], rows[row + 1] - rows[first]
        area = np.where(blocked, 0, width * height)
        largest = int(area.max())
        if largest > 0 and largest >= -best[0]:
            equal = area == largest
            order = np.lexsort([first[equal], right[equal], left[equal]])
            sides = (int(part[equal][order[0]]) for part in (left, right, first))
            best = min(best, (-largest, *sides, row + 1))
    _, left, right, top, bottom = best
    height, width = rows[bottom] - rows[top], columns[right] - columns[left]
    if best[0] == 0:
        return 0, 0, 0, 0
    return int(rows[top]), int(columns[left]), int(height), int(width)


def _covered_cells(low, high, columns, rows):
    """Whether a box covers each cell between rows and columns, (rows - 1, columns - 1)."""
    steps = np.zeros((len(rows), len(columns)), dtype=int)  # sums of them count the boxes of a cell
    left, right = (np.searchsorted(columns, sides[:, 0]) for sides in (low, high))
    top, bottom = (np.searchsorted(rows, sides[:, 1]) for sides in (low, high))
    for corners in ((top, left), (bottom, right)):
        np.add.at(steps, corners, 1)
    for corners in ((top, right), (bottom, left)):
        np.add.at(steps, corners, -1)
    return steps.cumsum(0).cumsum(1)[:-1, :-1] > 0


def _read_csv(path, n_images):
    """{index: boxes, a flat array of float64} of all boxes in a CSV file.

    An index is less than n_images. Raises WrongUse, naming the line, for what is no box.
    """
    with _refuse_unreadable(path):
        text = _csv_text(path)
    reader, boxes = csv.reader(io.StringIO(text, newline=""), strict=True), {}
    try:
        is_short = re.search("[\r\n]|$", text).start() < MOST_OF_A_ROW
        in_order = _columns_in_order(next(reader, []) if is_short else [text])
        for row in reader:
            if not row:
                continue
            if len(row) != len(COLUMNS):
                what = "one is missing" if len(row) < len(COLUMNS) else "there are too many"
                raise ValueError(f"{len(row)} of {len(COLUMNS)} values: {what}")
            index, *box = map(_number, in_order(row), COLUMNS)
            if not (0 <= index < n_images and index.is_integer()):
                raise ValueError(f"image {index:g}, but there are {n_images}, numbered from 0")
            if index not in boxes:
                boxes[int(index)] = array("d")
            boxes[index].extend(box)
    except (ValueError, csv.Error) as error:
        line = f"line {max(1, reader.line_num)}"
        raise WrongUse(f"dejavu.boxes: {path} cannot be read ({line}: {error})") from None
    return boxes


@contextmanager
def _refuse_unreadable(path):
    """Raise WrongUse, naming the file, if it cannot be read or is broken."""
    try:
        yield
    except OSError as error:
        raise WrongUse(f"dejavu.boxes: {path} cannot be read ({reason_of(error)})") from None
    except (ValueError, ElementTree.ParseError) as error:
        raise WrongUse(f"dejavu.boxes: {path} cannot be read ({error})") from None


def _csv_text(path):
    """The text of a CSV file, without the mark that Excel puts before it.

    Raises ValueError, which names the line, if it is not UTF-8.
    """
    content = read_bytes(path, MOST_CSV)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: not UTF-8; save it as CSV UTF-8") from None


def _columns_in_order(header):
    """A function: row -> its values in the order of COLUMNS. header: names in any order."""
    names = [name.strip() for name in header]
    if sorted(names) != sorted(COLUMNS):
        advice = "; separate them by commas, not semicolons" if ";" in "".join(header) else ""
        names = shorten(repr(header[:10]))
        raise ValueError(f"its columns are {names}, but must be {COLUMNS}{advice}")
    return itemgetter(*(names.index(name) for name in COLUMNS))


def _number(word, name):
    """The finite number that a word of a file is. Raises ValueError for other words, also for those
    that only Python reads as numbers.
    """
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or "_" in word or not word.isascii():
        shown = shorten(word)
        what = f"could not convert {shown!r} to a number" if shown.strip() else "missing"
        raise ValueError(f"this is no box: {name}: {what}")
    return value


def _read_xml(image, folder, size):
    """The boxes of an image file, (n, 4), in its pixels; none if it has no XML file.

    folder: holds the XML file, or a folder of the image's class with it. size: the image's width
    and height; the XML file may state its boxes for another size of the same shape.
    """
    name = f"{image.stem}.xml"
    path = next((p for p in (folder / image.parent.name / name, folder / name) if exists(p)), None)
    if path is None:
        return np.empty((0, 4))
    with _refuse_unreadable(path):
        content = read_text(path, MOST_XML)
        if "<!ENTITY" in content:  # an entity of entities of entities would fill the memory
            raise ValueError("it declares entities")
        annotation = ElementTree.fromstring(content)
        boxes = []
        for box in annotation.iter("bndbox"):
            boxes.append([_number(box.findtext(name) or "", name) for name in COLUMNS[1:]])
        return np.array(boxes).reshape(-1, 4) * _scale_of(annotation.find("size"), size)


def _scale_of(stated, size):
    """(4,) factors from the pixels of a <size> element to those of the image; 1 if there is no
    element.

    Raises ValueError if the two sizes are not of one shape, except for rounding to whole pixels.
    """
    if stated is None:
        return np.ones(4)
    width, height = (_number(stated.findtext(name) or "", name) for name in ("width", "height"))
    other = (width, height)
    if min(other) <= 0 or not (_is_resized(other, size) or _is_resized(size, other)):
        of_image = f"{size[0]} x {size[1]}"
        raise ValueError(f"its <size> is {width:g} x {height:g}, but the image's is {of_image}")
    return np.array([size[0] / width, size[1] / height] * 2)


def _is_resized(size, other):
    """Whether an image can be resized from one size to another, each side rounded to a pixel."""
    lowest = max((side - 1) / of for side, of in zip(other, size))
    highest = min((side + 1) / of for side, of in zip(other, size))
    return lowest <= highest


def _original_size(split, row):
    """Width and height of an image before its centre square was scaled to the prepared one."""
    if split.geometry is None:
        return split.size, split.size
    scale, left, top = split.geometry[split.row_of[row]]
    side = split.size / scale
    return round(side + 2 * left / scale), round(side + 2 * top / scale)


def _clip(boxes, size, faults):
    """Boxes with their sides in order, clipped to their image. faults: a Counter, to add to."""
    low, high = boxes[:, :2], boxes[:, 2:]
    ordered = np.concatenate([np.minimum(low, high), np.maximum(low, high)], axis=1)
    has_area = (ordered[:, :2] < ordered[:, 2:]).all(1)
    clipped = ordered.clip(0, np.array([*size, *size], dtype=float))
    is_inside = has_area & (clipped[:, :2] < clipped[:, 2:]).all(1)
    faults[EMPTY] += int((~has_area).sum())
    faults[OUTSIDE] += int((has_area & ~is_inside).sum())
    faults[SWAPPED] += int((is_inside & (ordered != boxes).any(1)).sum())
    faults[CLIPPED] += int((is_inside & (clipped != ordered).any(1)).sum())
    return clipped[is_inside]


def _to_prepared_square(boxes, row, split):
    """Boxes in original pixels as boxes in pixels of the prepared image, perhaps outside of it."""
    if split.geometry is None:
        return boxes
    scale, left, top = split.geometry[split.row_of[row]]
    return boxes * scale - np.array([left, top, left, top])
