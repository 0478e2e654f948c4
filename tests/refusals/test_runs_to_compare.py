"""What compare_runs.py refuses: one line, exit code 2, and nothing is written."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from compared import derive_run, one_seed, rewrite, with_noise

import compare_runs
from memorization.data.subsets import load_subsets, save_subsets
from memorization.machine import processes


@pytest.fixture
def refuse(tmp_path, refusal):
    """refuse(*arguments) -> the line with which compare_runs.py ends; no comparison is written."""

    def run(*arguments):
        line = refusal(compare_runs.main, [*arguments, "--output", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()
        return line

    return run


@pytest.fixture
def runs(pool, tmp_path):
    """The paths of two runs on the same candidates, texts."""
    return [
        derive_run(pool[1], tmp_path / "a"),
        derive_run(pool[1], tmp_path / "b", with_noise(1)),
    ]


def test_two_runs_are_needed(refuse, runs):
    assert "two runs or more are needed, not 0" in refuse()
    assert "two runs or more are needed, not 1" in refuse(runs[0])
    assert "a: the same run as" in refuse(runs[0], runs[1], f"{runs[0]}/../a")


def test_a_folder_that_is_no_run_is_refused(refuse, runs, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no trained run here" in refuse(runs[0], str(tmp_path / "empty"))
    assert "no trained run here" in refuse(str(tmp_path / "nothing"), runs[0])
    assert "no file" in refuse(runs[0], "a\0b")
    (tmp_path / "a/subsets.npz").unlink()
    assert "subsets.npz: no such file" in refuse(*runs)


def test_a_run_without_scores_is_refused(refuse, runs, tmp_path):
    assert "b/scores/views_5: no scores here" not in refuse(*runs, "--scores", "views_5")
    shutil.copytree(tmp_path / "a/scores", tmp_path / "a/scores/views_5")
    line = refuse(*runs, "--scores", "views_5")
    assert "b/scores/views_5: no scores here; run memorization_scores.py" in line
    shutil.rmtree(tmp_path / "b/scores")
    assert "b/scores: no scores here; run memorization_scores.py" in refuse(*runs)
    for name in ("../a", "views_5/x", "", "..", "/"):
        assert f"--scores: {name!r} is not allowed" in refuse(*runs, "--scores", name)


def of_other_candidates(arrays):
    keep = arrays["index"] != arrays["index"][arrays["subset"] == "candidate"][0]
    return {name: values[..., keep] for name, values in arrays.items()}


def of_other_images(arrays):
    return arrays | {"index": arrays["index"] + 10**6}


def twice(arrays):
    index = arrays["index"].copy()
    index[1] = index[0]
    return arrays | {"index": index}


def of_candidates_alone(arrays):
    keep = arrays["subset"] == "candidate"
    return {name: values[..., keep] for name, values in arrays.items()}


def not_finite(arrays):
    arrays["L_g"][0, 5] = np.inf
    return arrays


@pytest.mark.parametrize(
    "change, words",
    [
        (of_other_candidates, "63 candidates, not the 64 of"),
        (of_other_images, "images that are not in subset candidate"),
        (twice, "scores of an image twice"),
        (of_candidates_alone, "without external images"),
        (not_finite, "scores that are not finite"),
        (lambda arrays: arrays | {"L_f": arrays["L_f"][:, 1:]}, "not whole scores"),
        (lambda arrays: {"index": arrays["index"]}, "not whole scores"),
        (one_seed, "not whole scores"),  # of two seeds, as the summary says
    ],
)
def test_scores_that_do_not_fit_are_refused(change, words, refuse, runs, tmp_path):
    rewrite(tmp_path / "b", change)
    line = refuse(*runs)
    assert words in line and f"{tmp_path}/b" in line


def test_broken_files_of_scores_are_refused(refuse, runs, tmp_path):
    file, summary = tmp_path / "b/scores/scores.npz", tmp_path / "b/scores/summary.json"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    assert "b/scores: not whole scores" in refuse(*runs)
    file.unlink()
    assert "no such file" in refuse(*runs)
    shutil.copy(tmp_path / "a/scores/scores.npz", file)
    assert "files of different results: scores.npz is" in refuse(*runs)
    file.write_bytes(content)
    summary.write_text(summary.read_text()[:-10])
    assert "b/scores: not whole scores" in refuse(*runs)


@pytest.mark.parametrize(
    "changes",
    [
        {"given_this_pair": {}},
        {"given_this_pair": {"welch": {"candidate > external": {"d": "x", "p": 0.5}}}},
        {"reliability_local": {"candidate": {}}},
    ],
)
def test_summaries_that_lack_a_number_are_refused(changes, refuse, runs, tmp_path):
    rewrite(tmp_path / "b", lambda arrays: arrays, **changes)
    assert f"{tmp_path}/b: not a whole summary of scores" in refuse(*runs)


def test_runs_on_other_images_are_refused(refuse, runs, tmp_path):
    rewrite_data(tmp_path / "b", "train")
    line = refuse(*runs)
    assert f"{tmp_path}/b: other images than those of {tmp_path}/a: train.sha256 is" in line


def rewrite_data(run, split):
    """Give a run the fingerprint of other images."""
    subsets = load_subsets(run / "subsets.npz")
    data = subsets.data | {split: subsets.data[split] | {"sha256": "0" * 64}}
    subsets = dataclasses.replace(subsets, data=data)
    save_subsets(subsets, run / "subsets.npz")
    rewrite_fingerprint(run, subsets.fingerprint)


def rewrite_fingerprint(run, fingerprint):
    path = run / "scores/summary.json"
    summary = json.loads(path.read_text())
    summary["fingerprints"]["subsets"] = fingerprint
    path.write_text(json.dumps(summary))


def test_scores_of_another_split_are_refused(refuse, runs, tmp_path):
    rewrite_fingerprint(tmp_path / "b", "1" * 64)
    assert "b/scores: subsets is 111111111111..., but" in refuse(*runs)


def test_a_broken_summary_of_probes_is_refused(refuse, runs, tmp_path):
    (tmp_path / "b/probe").mkdir()
    (tmp_path / "b/probe/summary.json").write_text("{}")
    assert "b/probe/summary.json: not a whole summary of probes" in refuse(*runs)


def test_data_that_are_not_there_or_others_are_refused(refuse, runs, tmp_path):
    config = tmp_path / "a/config.yaml"
    config.write_text(config.read_text().replace("size: 16", "size: 15", 1))
    assert "holds other images than" in refuse(*runs)


def test_a_result_of_something_else_is_never_replaced(refusal, runs, tmp_path):
    for folder, words in (
        (runs[0], "is a run, and no comparison"),
        (f"{runs[0]}/scores", "holds the result of something else"),
    ):
        before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
        assert words in refusal(compare_runs.main, [*runs, "--output", folder])
        after = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
        assert after == before
    (tmp_path / "file").write_text("")
    line = refusal(compare_runs.main, [*runs, "--output", str(tmp_path / "file")])
    assert "it is a file, and should be a folder" in line


def test_several_processes_and_unknown_options_are_refused(refuse, runs, monkeypatch):
    assert "--outptu: no such option; did you mean --output?" in refuse(*runs, "--outptu", "x")
    monkeypatch.setattr(processes, "count", lambda: 2)
    assert "compare_runs.py is one process, but torchrun started 2" in refuse(*runs)
