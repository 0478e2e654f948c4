"""Comparisons in place of others: whole, or none."""

import json

import pytest
from compared import derive_run, leave_out_pictures, with_noise

import compare_runs
from memorization import results


@pytest.fixture
def runs(pool, tmp_path):
    """The paths of three runs on the same candidates, texts."""
    return [derive_run(pool[1], tmp_path / name, with_noise(ord(name))) for name in "abc"]


def compare(folder, *runs):
    compare_runs.main([*runs, "--output", str(folder)])
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_comparison_of_other_runs_is_replaced_as_a_whole(runs, tmp_path, monkeypatch):
    leave_out_pictures(monkeypatch)
    compare(tmp_path / "out", *runs[:2])
    for name in compare_runs.PICTURES:
        (tmp_path / "out" / name).write_bytes(b"of the runs before")
    assert compare(tmp_path / "out", *runs[1:]) == compare(tmp_path / "new", *runs[1:])


@pytest.mark.parametrize("number", [0, 2, 3])
def test_a_comparison_that_is_cut_off_is_no_comparison(number, runs, tmp_path, monkeypatch):
    leave_out_pictures(monkeypatch)
    old, new = compare(tmp_path / "out", *runs[:2]), compare(tmp_path / "new", *runs[1:])
    rename, renamed = results.rename, []

    def fail_once(path, place):
        if len(renamed) == number:
            raise KeyboardInterrupt
        renamed.append(place)
        rename(path, place)

    monkeypatch.setattr(results, "rename", fail_once)
    with pytest.raises(SystemExit) as ending:
        compare(tmp_path / "out", *runs[1:])
    assert ending.value.code == 130
    assert not (tmp_path / "out/summary.json").exists()
    monkeypatch.setattr(results, "rename", rename)
    assert compare(tmp_path / "out", *runs[1:]) == new != old
    assert json.loads(new["summary.json"])["files"].keys() == {
        "runs.csv", "comparison.csv", "thresholds.csv",
    }  # fmt: skip
