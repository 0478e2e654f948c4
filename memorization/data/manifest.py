"""A manifest: a table of image files, with what is known of each. CSV, or Parquet if pyarrow is
installed.
"""

import csv
import io
import math
import os
import stat
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from memorization.data.listings import TEST_SHARE, Listing, hold_out, say_lone_classes
from memorization.data.subsets import SUBSETS
from memorization.errors import WrongUse, escape, short_form
from memorization.machine.files import open_regular, reason_of
from memorization.machine.screen import say

COLUMNS = ("path", "label", "split", "subset", "group")
WORDS = {"split": ("train", "test"), "subset": tuple(SUBSETS)}


class _Table(NamedTuple):
    """The known columns of a manifest, {name: texts}, "" for an empty cell. lines: where each row
    stands, such as "line 3".
    """

    path: Path
    columns: dict
    lines: list

    def refuse(self, row, reason):
        """Raise WrongUse for a row."""
        raise WrongUse(f"{self.path}, {self.lines[row]}: {reason}")


def read_manifest(path, root, test_share=None):
    """(train Listing, test Listing, class names) of the manifest at a path.

    root: Path to which the paths in it are relative. Its column path is needed; label, split
    (train, test), subset (shared, candidate, independent, external) and group are optional. Without
    split, external images are test images, and all others are training images; without subset,
    too, test_share of the images, by default TEST_SHARE, are held out, and of a group all or none.
    Raises WrongUse, naming the line, if the manifest cannot be read or contradicts itself, or if an
    image is missing.
    """
    read = _read_parquet if path.suffix.lower() == ".parquet" else _read_csv
    table = _Table(path, *read(path))
    if not table.lines:
        raise WrongUse(f"{path}: lists no image")
    files = _files_of(table, root)
    classes, labels = _classes_of(table.columns.get("label", [""] * len(files)))
    splits, groups = _splits_of(table), _groups_of(table)
    subsets = np.array(table.columns["subset"]) if "subset" in table.columns else None
    whole = Listing(files, labels, tuple(table.columns["path"]), groups, subsets)
    if splits is None:
        share = TEST_SHARE if test_share is None else test_share
        keys = _keys_of(table, files, root)
        listings = hold_out(whole, keys, share, f"manifest: {escape(path)}")
    elif test_share is not None:
        column = "split" if "split" in table.columns else "subset"
        own = f"the column {column} of {path} says which images are test images; leave it out"
        raise WrongUse(f"data.test_share: {test_share} is not allowed: {own}")
    else:
        listings = {}
        for split in WORDS["split"]:
            rows = np.flatnonzero(splits == split)
            if not len(rows):
                advice = "leave out the columns split and subset, and some are held out"
                raise WrongUse(f"{path}: has no {split} image; {advice}")
            listings[split] = whole.take(rows)
    say_lone_classes(listings, classes, "manifest")
    return listings["train"], listings["test"], classes


# --- columns --------------------------------------------------------------------------------------


def _files_of(table, root):
    """The path of each image. Raises WrongUse if one is missing, or stands there twice."""
    files, rows = [], {}
    for row, name in enumerate(table.columns["path"]):
        if not name or "\0" in name:
            table.refuse(row, f"path is {name!r}, which is the name of no file")
        file = os.path.join(root, name)
        first = rows.setdefault(os.path.normpath(file), row)
        if first != row:
            table.refuse(row, f"{name} stands in {table.lines[first]} too")
        try:
            is_file = stat.S_ISREG(os.stat(file).st_mode)
        except OSError as error:
            table.refuse(row, f"{file}: cannot be read ({reason_of(error)})")
        if not is_file:
            table.refuse(row, f"{file} is no file")
        files.append(file)
    return tuple(files)


def _classes_of(texts):
    """(class names, the number of the class of each text, -1 for ""): sorted, as numbers if all of
    them are.
    """
    names = sorted(set(texts) - {""})
    try:
        names.sort(key=lambda name: (float(name), name))
    except ValueError:
        pass
    numbers = {name: number for number, name in enumerate(names)} | {"": -1}
    return tuple(names), tuple(numbers[text] for text in texts)


def _splits_of(table):
    """The split of each image, an array of texts, or None if neither split nor subset is there."""
    for name in WORDS.keys() & table.columns.keys():
        for row, word in enumerate(table.columns[name]):
            if word not in WORDS[name] and not (name == "subset" and not word):
                table.refuse(row, f"{name} is {short_form(word)}, but must be {_words(name)}")
    splits, subsets = table.columns.get("split"), table.columns.get("subset")
    if subsets is None:
        return None if splits is None else np.array(splits)
    if splits is None:
        return np.array([SUBSETS.get(subset, "train") for subset in subsets])
    for row, (split, subset) in enumerate(zip(splits, subsets)):
        if subset and split != SUBSETS[subset]:
            table.refuse(row, f"split is {split}, but {subset} images are {SUBSETS[subset]} images")
    return np.array(splits)


def _words(name):
    return f"{', '.join(WORDS[name])}{' or empty' if name == 'subset' else ''}"


def _groups_of(table):
    """The number of the group of each image, (N,) int64, of its own if it has no group; None if no
    image has one. Raises WrongUse if subsets divide a group.
    """
    texts = table.columns.get("group", [])
    if not any(texts):
        return None
    numbers, firsts, in_subset = [], {}, {}  # of each group, its first row, and that in a subset
    subsets = table.columns.get("subset", [""] * len(texts))
    for row, (text, subset) in enumerate(zip(texts, subsets)):
        numbers.append(firsts.setdefault(text, row) if text else row)
        if text and subset:
            first = in_subset.setdefault(text, row)
            if subsets[first] != subset:
                where = f"is in {subsets[first]} ({table.lines[first]}) and in {subset}"
                table.refuse(row, f"group {short_form(text)} {where}; a group is never divided")
    return np.array(numbers, dtype=np.int64)


def _keys_of(table, files, root):
    """The text by whose hash each image is held out: its group, or its path relative to the root,
    if it lies there.
    """
    root = os.path.abspath(root)
    keys = []
    for file, group in zip(files, table.columns.get("group", [""] * len(files))):
        path = os.path.abspath(file)
        is_below = os.path.commonpath([path, root]) == root
        keys.append(group or (os.path.relpath(path, root) if is_below else path))
    return keys


# --- files ----------------------------------------------------------------------------------------


def _read_csv(path):
    """(known columns, lines) of a CSV file."""
    try:
        with open_regular(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            return _columns_of(path, csv.reader(text, strict=True))
    except OSError as error:
        raise WrongUse(f"{path}: cannot be read ({reason_of(error)})") from None
    except UnicodeDecodeError as error:
        raise WrongUse(f"{path}: is not UTF-8 ({error.reason})") from None


def _columns_of(path, reader):
    """(known columns, lines) of a csv.reader."""
    try:
        header = [name.strip() for name in next(reader, [])]
        known = _check_header(path, header)
        columns, lines = {name: [] for name in known}, []
        places = [(header.index(name), columns[name]) for name in known]
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                counts = f"{len(cells)} cells, but the header has {len(header)}"
                raise WrongUse(f"{path}, line {reader.line_num}: {counts}")
            lines.append(f"line {reader.line_num}")
            for place, column in places:
                column.append(cells[place])
    except csv.Error as error:
        raise WrongUse(f"{path}, line {reader.line_num}: is not CSV ({error})") from None
    return columns, lines


def _check_header(path, header):
    """The known columns of a header. A line names the others. Raises WrongUse if path is not there,
    or if a column is there twice.
    """
    names = ", ".join(map(short_form, header[:20])) or "nothing"
    if "path" not in header:
        raise WrongUse(f"{path}: its header needs a column path, but has {names}; commas part them")
    twice = [name for name, count in Counter(header).items() if count > 1 and name in COLUMNS]
    if twice:
        raise WrongUse(f"{path}: its header has the column {twice[0]} more than once")
    others = [short_form(name) for name in header if name not in COLUMNS]
    if others:
        say(escape(f"manifest: columns of {path} that are not read: {', '.join(others[:20])}"))
    return [name for name in COLUMNS if name in header]


def _read_parquet(path):
    """(known columns, lines) of a Parquet file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        advice = "install pyarrow to read it, or write a CSV file"
        raise WrongUse(f"data.manifest: {path} is a Parquet file; {advice}") from None
    try:
        with open_regular(path) as opened:
            file = parquet.ParquetFile(opened)
            known = _check_header(path, file.schema_arrow.names)
            table = file.read(columns=known)
    except WrongUse:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise WrongUse(f"{path}: cannot be read as Parquet ({reason})") from None
    columns = {name: list(map(_text, table.column(name).to_pylist())) for name in known}
    lines = [f"row {number}" for number in range(1, table.num_rows + 1)]
    for name, texts in columns.items():
        if None in texts:
            line, kind = lines[texts.index(None)], table.column(name).type
            reason = f"{name} is of type {kind}, but must be a text or a number"
            raise WrongUse(f"{path}, {line}: {reason}")
    return columns, lines


def _text(value):
    """A text or a number as a CSV file has it, "" for none; None for anything else."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):  # integers become floats if some are missing
        return str(int(value)) if value.is_integer() else str(value)
    return str(value) if isinstance(value, (str, int)) else None
