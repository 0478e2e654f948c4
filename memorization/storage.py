"""Files that are either whole or not there."""

import fcntl
import json
import math
import os
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path, content):
    """Write bytes or text to path: a temporary file in the same folder, flushed, synced, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode()
    temporary = path.with_name(f".{path.name}.partial")  # always the same: what an interrupted write left is written over
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_json(path, value):
    """Write a nested value of plain types as JSON, with null in the place of NaN and infinity, which JSON does not know."""
    write_atomically(path, json.dumps(_finite_or_none(value), indent=2) + "\n")


def _finite_or_none(value):
    if isinstance(value, dict):
        return {key: _finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def only_process(path):
    """Hold a lock file; another process that asks for it waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync_folder(folder):
    """Make a rename in this folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
