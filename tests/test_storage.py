import json
import os

import pytest

from memorization.storage import write_atomically, write_json


def test_a_file_is_written_with_its_folder(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_atomically(path, "text")
    write_atomically(tmp_path / "new" / "bytes", b"\x00\xff")
    assert path.read_text() == "text" and (tmp_path / "new" / "bytes").read_bytes() == b"\x00\xff"
    assert sorted(os.listdir(path.parent)) == ["bytes", "file.txt"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(failing, tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")

    def fail(*_):
        assert path.read_text() == "old"  # until the rename, whatever was written went elsewhere
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


def test_json_has_null_for_what_is_no_number(tmp_path):
    write_json(tmp_path / "a.json", {"t": float("inf"), "list": [1.5, {"p": float("nan")}], "text": "nan"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"t": None, "list": [1.5, {"p": None}], "text": "nan"}
