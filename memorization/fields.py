"""Types, bounds and checks that the settings of several sections share."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from memorization.errors import short_form

NOT_COMPARED = {"compared": False}  # settings that may differ between training and measuring

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=10**4)]
Interval = Annotated[list[Positive], Field(min_length=2, max_length=2)]
# Upper bounds are far beyond use: they refuse what would fill the memory, never end, or crash
# torch.
MOST_EPOCHS = 10**6
MOST_VIEWS = 1000
LEAST_PIXELS, MOST_PIXELS = 4, 1024  # height and width
MOST_PATH = 3500  # bytes of a path; systems take 4,096, with the names of our files in it
MOST_FOLDERS = 200  # in each other; Python makes each from within the making of the next


def each_once(values):
    """The values of a list in which none may stand twice. Raises ValueError where one does."""
    if len(set(values)) < len(values):
        raise ValueError(f"{short_form(values)} is not allowed: each value may stand once")
    return values


def possible_path(text):
    """A path as it was given. Raises ValueError where no file can have that name."""
    if text is None:
        return text
    if not text or "\0" in text:
        raise ValueError(f"{short_form(text)} is not allowed: it is the name of no file")
    if any(len(os.fsencode(part)) > 255 for part in Path(text).parts):
        raise ValueError(
            f"{short_form(text)} is not allowed: a name in it is longer than 255 bytes"
        )
    try:
        expanded = Path(text).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{short_form(text)} is not allowed: nobody has this home folder"
        ) from None
    if len(os.fsencode(expanded)) > MOST_PATH:
        raise ValueError(f"{short_form(text)} is not allowed: it has more than {MOST_PATH} bytes")
    if len(expanded.parts) > MOST_FOLDERS:
        raise ValueError(
            f"{short_form(text)} is not allowed: it has more than {MOST_FOLDERS} parts"
        )
    return text
