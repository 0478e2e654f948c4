"""log.jsonl: one JSON line for every epoch, or for epochs whose lines were lost."""

import json
import math

from memorization.fields import MOST_EPOCHS
from memorization.machine.files import (
    MOST_TEXT,
    append,
    exists,
    make_folder,
    parse_json,
    read_bytes,
    refuse_broken,
    write_atomically,
)
from memorization.machine.screen import caution


class Log:
    """The log.jsonl in a folder, to which a training appends.

    Of the lines that are there, those of finished epochs are kept: an interrupted run may have
    logged an epoch that its checkpoint lacks. No training depends on the log. If lines are lost, a
    warning says how many, and a line of the log stands for them.
    """

    def __init__(self, folder, finished_epochs):
        make_folder(folder)
        self.path = folder / "log.jsonl"
        lines = []
        if finished_epochs and exists(self.path):
            lines = whole_lines(self.path, finished_epochs)
        lost = finished_epochs - len(lines)
        if lost:
            of_all = f"{lost} of the lines of {finished_epochs} finished epochs"
            caution(
                f"{self.path}: {of_all} are missing or damaged; the training goes on without them"
            )
        lines = _with_gaps(lines, finished_epochs)
        write_atomically(self.path, "".join(map(_text, lines)))

    def append(self, line):
        """Add the line of an epoch, a dict."""
        append(self.path, _text(line))


def _text(line):
    return json.dumps(line) + "\n"


def _with_gaps(lines, finished_epochs):
    """The lines of epochs, with a line for every gap between them and after them."""
    kept, last, end = [], 0, {"epoch": finished_epochs + 1}
    for line in [*lines, end]:
        if line["epoch"] > last + 1:
            kept.append({"lost_epochs": [last + 1, line["epoch"] - 1]})
        kept.append(line)
        last = line["epoch"]
    return kept[:-1]


def read_log(path):
    """The lines of a log.jsonl, dicts in the order of their epochs, without gaps and a torn last
    line.

    Raises WrongUse if another line is missing, torn or out of order.
    """
    lines, last = [], 0
    with refuse_broken(path, "not a whole log"):
        texts = read_bytes(path, MOST_TEXT).split(b"\n")
        for number, text in enumerate(texts, start=1):
            line, gap = _parse_line(text), _parse_gap(text)
            if gap and gap[0] == last + 1:
                last = gap[1]
            elif line and line["epoch"] == last + 1:
                lines.append(line)
                last = line["epoch"]
            elif number < len(texts) or (text and not last):
                raise ValueError(f"line {number} is not that of epoch {last + 1}")
    return lines


def whole_lines(path, finished_epochs=MOST_EPOCHS):
    """The whole lines of finished epochs in a log.jsonl, dicts in the order of their epochs.

    Unlike `read_log` it accepts torn lines, which a full disk or a loss of power leaves. Raises
    WrongUse if the file cannot be read.
    """
    lines, last = [], 0
    with refuse_broken(path, "too large for a log", "; delete it, and what was logged is lost"):
        for text in read_bytes(path, MOST_TEXT).split(b"\n"):
            line = _parse_line(text)
            if line is not None and last < line["epoch"] <= finished_epochs:
                lines.append(line)
                last = line["epoch"]
    return lines


def _parse_line(text):
    """The dict in a line of an epoch, or None if it is not whole. text: bytes."""
    try:
        line = parse_json(text.decode())
        numbers = [line["loss"], line["spread"], line["images_per_second"]]
        numbers.append(line["knn_accuracy"] or 0.0)
        epoch = line["epoch"]
    except (ValueError, KeyError, TypeError):
        return None
    is_whole = all(type(number) is float and math.isfinite(number) for number in numbers)
    return line if is_whole and type(epoch) is int else None


def _parse_gap(text):
    """[first, last] lost epoch, if a line stands for lost ones, else None. text: bytes."""
    try:
        first, last = parse_json(text.decode())["lost_epochs"]
    except (ValueError, KeyError, TypeError):
        return None
    are_epochs = type(first) is type(last) is int and first <= last <= MOST_EPOCHS
    return [first, last] if are_epochs else None
