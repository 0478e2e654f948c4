"""Blocks of a page as plain types: texts, facts, tables and figures. The template writes them."""

import math

from memorization.errors import UNPRINTED, shorten

MOST_NUMBERS = 60  # rows of the table behind a figure
MINUS, SPACE = "\u2212", "\u00a0"  # a minus sign, and a space at which no line ends
NOTHING = "–"  # what a cell without a number shows
DIGITS = 6  # significant ones of numbers in the page's data


def clean(text):
    """A text from data, such as the name of a class or of a file, as the page shows it: short, and
    without control characters and marks of the direction of text.
    """
    return shorten(UNPRINTED.sub("\ufffd", str(text)))


def number(value, form):
    """A number as a text; a dash for None and NaN. form: a format, such as ".4f" or ".0%"."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    text = f"{value:{form}}"
    if text.startswith("-"):
        is_zero = not any(digit in text for digit in "123456789")
        text = ("" if is_zero else MINUS) + text[1:]
    return text.replace("%", f"{SPACE}%")


def interval(ends, form):
    """Such as "0.038 to 0.045"; a dash if there is none."""
    return NOTHING if ends is None else " to ".join(number(end, form) for end in ends)


def round_off(value):
    """A number with DIGITS significant digits; None for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")


def text(*sentences):
    return {"kind": "text", "text": _paragraph(sentences)}


def _paragraph(sentences):
    return " ".join(filter(None, sentences)).replace(" %", f"{SPACE}%")


def headline(*sentences):
    """The sentences that the page begins with, each a paragraph."""
    return {"kind": "headline", "sentences": [_paragraph([one]) for one in sentences]}


def note(*sentences):
    """Small print."""
    return {"kind": "note", "text": _paragraph(sentences)}


def warning(*sentences):
    return {"kind": "warning", "text": _paragraph(sentences)}


def code(lines, title=None):
    """Commands, or the content of a file. title: of one that is folded."""
    return {"kind": "code", "text": "\n".join(lines), "title": title}


def fold(title, blocks):
    """Blocks that are shown on demand."""
    return {"kind": "fold", "title": title, "blocks": blocks}


def missing_result(what, command, after=""):
    """A part without results. what: a sentence; command: that makes them, None if none can; after:
    what comes before the command can work, such as "After the training".
    """
    words = f"{after}, the command for it:" if after else "The command for it:"
    return {"kind": "missing", "text": f"{what} {words}" if command else what, "command": command}


def facts(rows):
    """Names and values. rows: (name, value) or (name, value, note), texts."""
    keys = ("name", "value", "note")
    return {"kind": "facts", "rows": [dict(zip(keys, (*row, "", ""))) for row in rows]}


def table(name, caption, columns, rows):
    """A table.

    name: its id in the page; columns: {title: form}, the form None for texts; rows: lists of
    values, None for an empty cell.
    """
    heads = [
        {"title": title, "type": "text" if form is None else "number"}
        for title, form in columns.items()
    ]
    body = [[_cell(value, form) for value, form in zip(row, columns.values())] for row in rows]
    return {"kind": "table", "name": name, "caption": caption, "columns": heads, "rows": body}


def _cell(value, form):
    if form is None:
        return {"text": NOTHING if value is None else clean(value), "value": None}
    value = None if value is None or not math.isfinite(value) else value
    return {"text": number(value, form), "value": value}


def axis(title, scale="linear", form=None):
    """An axis of a figure. scale: "linear", "log" or "category"; form: "percent" for shares."""
    return {"title": title, "type": scale} | ({} if form is None else {"format": form})


def trace(kind, name, color, x, y=(), **more):
    """A line of a figure, or its points, bars, steps or band.

    kind: "line", "points", "bars", "band", or "steps", a histogram of edges x and heights y; color:
    the name of one that the page knows; more: low and high, of error bars and bands; dash; joined,
    of points; axis, 2 for the second y.
    """
    lists = {"x": x, "y": y} | {key: more.pop(key) for key in ("low", "high") if key in more}
    numbers = {
        key: [value if isinstance(value, str) else round_off(value) for value in values]
        for key, values in lists.items()
    }
    return {"kind": kind, "name": clean(name), "color": color} | numbers | more


def figure(name, title, description, axes, traces, lines=()):
    """A figure that the page draws.

    name: its id; description: what is seen, in words; axes: {"x": axis, "y": axis}, and "y2" for a
    second one; traces: of `trace`; lines: dicts of axis ("x" or "y"), value and text. The table of
    its numbers is left out if it would be long; see `leave_out_numbers`.
    """
    content = {"title": title, "description": description} | axes
    content |= {"traces": traces, "lines": list(lines)}
    return {"kind": "figure", "name": name, "content": content, "numbers": _numbers(name, content)}


def leave_out_numbers(figure_block):
    """A figure without the table of its numbers, which stand in another table."""
    return figure_block | {"numbers": None}


def heat_map(name, title, description, names, values):
    """A figure of numbers for every two of some names. values: lists of rows, None for nothing."""
    names = [clean(one) for one in names]
    matrix = {"x": names, "y": names, "z": [[round_off(value) for value in row] for row in values]}
    matrix["text"] = [[number(value, ".2f") for value in row] for row in values]
    content = {"title": title, "description": description, "matrix": matrix}
    rows = [[one, *row] for one, row in zip(names, values)]
    columns = {"": None} | {f"{place}: {one}": ".2f" for place, one in enumerate(names, 1)}
    numbers = table(f"{name}-numbers", title, columns, rows)
    return {"kind": "figure", "name": name, "content": content, "numbers": numbers}


def _numbers(name, content):
    """The table behind a figure: a row for each x. None if it would be long."""
    values, columns = {}, {content["x"]["title"]: None}
    for one in content["traces"]:
        x = one["x"][:-1] if one["kind"] == "steps" else one["x"]
        for key in ("low", "high") if one["kind"] == "band" else ("y",):
            title = one["name"] if key == "y" else f"{one['name']}, {key}"
            columns[title] = ".4g"
            for at, height in zip(x, one[key]):
                values.setdefault(at, {})[title] = height
    if len(values) > MOST_NUMBERS:
        return None
    titles = list(columns)[1:]
    rows = []
    for at, row in values.items():
        label = at if isinstance(at, str) else number(at, ".4g")
        rows.append([label, *(row.get(title) for title in titles)])
    return table(f"{name}-numbers", content["title"], columns, rows)


def part(name, title, *blocks):
    """A part of a topic. name: its id in the page; blocks: None is left out."""
    return {"name": name, "title": title, "blocks": [block for block in blocks if block]}


def topic(name, title, parts):
    return {"name": name, "title": title, "parts": [one for one in parts if one]}
