"""Types, bounds and checks that the settings of several sections share."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from memorization.errors import short_form

NOT_COMPARED = {"compared": False}  # settings that may differ between training and measuring
# Upper bounds are far beyond use. They refuse what fills the memory, never ends, or crashes torch.
MOST_EPOCHS = 10**6
MOST_VIEWS = 1000
LEAST_PIXELS, MOST_PIXELS = 4, 1024  # height and width
MOST_NAME = 255  # bytes of each name in a path
MOST_PATH = 3500  # bytes of a path; systems take 4,096, with the names of our files in it
MOST_FOLDERS = 200  # in each other; Python makes them by recursion


def check_distinct(values):
    """The values of a list. Raises ValueError if one stands twice."""
    if len(set(values)) < len(values):
        raise ValueError(f"{short_form(values)} is not allowed: each value may stand once")
    return values


def check_path(text):
    """The text. Raises ValueError if no file can have it as its path."""

    def refuse(reason):
        raise ValueError(f"{short_form(text)} is not allowed: {reason}") from None

    if not text or "\0" in text:
        refuse("it is the name of no file")
    if any(len(os.fsencode(part)) > MOST_NAME for part in Path(text).parts):
        refuse(f"a name in it is longer than {MOST_NAME} bytes")
    try:
        expanded = Path(text).expanduser()
    except RuntimeError:
        refuse("nobody has this home folder")
    if len(os.fsencode(expanded)) > MOST_PATH:
        refuse(f"it has more than {MOST_PATH} bytes")
    if len(expanded.parts) > MOST_FOLDERS:
        refuse(f"it has more than {MOST_FOLDERS} parts")
    return text


Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=10**4)]
Interval = Annotated[list[Positive], Field(min_length=2, max_length=2)]
PathName = Annotated[str, AfterValidator(check_path)]
Distinct = AfterValidator(check_distinct)  # of a list, as in Annotated[list[Seed], Distinct]
