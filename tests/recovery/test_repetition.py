"""The same command gives the same numbers, and does no work twice."""

import json
import shutil

from conftest import QUICK_PROBE, ask, score

import linear_probing_train


def test_the_same_command_gives_the_same_bytes(scored_run, run_copy):
    path, run = run_copy
    shutil.rmtree(run / "scores")
    score(path, "--run", str(run))
    for name in ("scores.csv", "scores.npz"):
        assert (run / "scores" / name).read_bytes() == (
            scored_run[1] / "scores" / name
        ).read_bytes()


def test_a_repeated_command_gives_the_same_bytes(run_copy):
    path, run = run_copy
    ask(path, run)
    first = (run / "dejavu/dejavu.csv").read_bytes()
    ask(path, run, "--dejavu.memory_gb", "0.0001")
    assert (run / "dejavu/dejavu.csv").read_bytes() == first


def test_the_same_command_gives_the_same_numbers(probed_run, tmp_path):
    path, run = probed_run
    results = json.loads((run / "probe/summary.json").read_text())["results"]
    cached = sorted((run / "probe/representations").iterdir())
    linear_probing_train.main(["--config", path, "--run", str(run), *QUICK_PROBE])
    assert json.loads((run / "probe/summary.json").read_text())["results"] == results
    assert sorted((run / "probe/representations").iterdir()) == cached and len(cached) == 12
