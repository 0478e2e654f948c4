"""Trainings that are killed at random moments, saving included, end as if nothing had happened. KILLS: how many kills a method."""

import json
import os
import random
import subprocess
import sys
import time

import pytest
from conftest import METHODS, write_experiment

import memorization_scores

KILLS = int(os.environ.get("KILLS", 2))
# Saved after every step: a kill often comes while a checkpoint is being written.
CHANGES = {"training.epochs": 30, "training.checkpoint_minutes": 1e-6, "training.checkpoint_epochs": [10], "training.knn_every": 5}
TIMES = ("images_per_second", "seconds")


def start(script, path):
    return subprocess.Popen([sys.executable, script.__file__, "--config", path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def saves(run):
    """When each checkpoint of a run was last written."""
    return {path: path.stat().st_mtime_ns for path in run.glob("seed_*/*/last.pt") if path.exists()}


def half_saved(run):
    """Whether a checkpoint is being written, or was when its process died."""
    return any(run.glob("seed_*/*/.*.partial")) or any(run.glob("seed_*/*/next.pt"))


def kept(run):
    """Bytes of what a run leaves behind, and its logs without times."""
    files = {path.relative_to(run): path.read_bytes() for path in [*run.rglob("encoder*.pt"), run / "scores/scores.csv"]}
    for log in run.rglob("log.jsonl"):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        files[log.relative_to(run)] = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    return files


@pytest.mark.parametrize("method", METHODS)
def test_a_training_that_is_killed_again_and_again_ends_as_one_that_was_not(method, tmp_path):
    script, _, changes = METHODS[method]
    whole, killed = (write_experiment(tmp_path / name, changes | CHANGES) for name in ("whole", "killed") if not (tmp_path / name).mkdir())
    begin = time.monotonic()
    script.main(["--config", whole])
    duration = time.monotonic() - begin
    chance, while_saving, run = random.Random(method), 0, tmp_path / "killed/run"
    for kill in range(KILLS):
        before, process = saves(run), start(script, killed)
        while process.poll() is None and saves(run) == before:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, duration / KILLS))
        while kill % 2 and process.poll() is None and not half_saved(run):  # every other one in the middle of saving
            pass
        assert process.poll() is None, process.stderr.read().decode()
        process.kill()
        process.communicate()
        while_saving += half_saved(run)
    process = start(script, killed)
    error = process.communicate()[1].decode()
    assert process.returncode == 0, error
    for path in (whole, killed):
        memorization_scores.main(["--config", path])
    wanted, found = kept(tmp_path / "whole/run"), kept(run)
    assert len(wanted) == 7 and wanted.keys() == found.keys()
    assert all(found[name] == content for name, content in wanted.items())
    print(f"\n{method}: {KILLS} kills, {while_saving} of them while a checkpoint was written")
