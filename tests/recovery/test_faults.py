"""Work that is killed at random moments, saving included, ends as if nothing had happened.

KILLS: how many kills each method's training; half as many, and one at least, for retraining and for
preparing images.
"""

import json
import os
import random
import shutil
import time
from contextlib import suppress

import numpy as np
import pytest
from conftest import METHODS, write_experiment
from PIL import Image
from started import Started, run_script

import memorization_scores
import remove_samples
import train_simclr
from memorization.data.prepared_maps import arrays_of_geometry, read_geometry

KILLS = int(os.environ.get("KILLS", 1))
KILLS_OF_OTHERS = max(1, KILLS // 2)
# Saved after every step: a kill often comes while a checkpoint is being written.
CHANGES = {
    "training.epochs": 4 + 2 * KILLS,
    "training.checkpoint_minutes": 1e-6,
    "training.checkpoint_epochs": [4],
    "training.knn_every": 2,
}
TIMES = ("images_per_second", "seconds")


def finish(script, *arguments):
    process = run_script(script.__file__, *arguments)
    assert process.returncode == 0, process.stderr


def kill(process):
    """Kill a process and those it has started, as a machine does that loses its power."""
    assert process.poll() is None, process.stderr
    process.kill_group()


def wait_for_change(process, look, before):
    """Wait until look() is no longer what it was, or a process has ended."""
    while process.poll() is None and look() == before:
        time.sleep(0.005)


def saves(run):
    """When each checkpoint of a run was last written."""
    return {
        path: path.stat().st_mtime_ns for path in run.glob("**/seed_*/*/last.pt") if path.exists()
    }


def half_saved(run):
    """Whether a checkpoint is being written, or was when its process died."""
    return any(run.glob("**/seed_*/*/.*.partial")) or any(run.glob("**/seed_*/*/next.pt"))


def kept(run):
    """Bytes of what a run leaves behind, and its logs without times."""
    tables = [
        path for path in (run / "scores/scores.csv", run / "removal/curve.csv") if path.exists()
    ]
    files = {
        path.relative_to(run): path.read_bytes() for path in [*run.rglob("encoder*.pt"), *tables]
    }
    for log in run.rglob("log.jsonl"):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        files[log.relative_to(run)] = [
            {key: value for key, value in line.items() if key not in TIMES} for line in lines
        ]
    return files


def kill_at_random_moments(kills, run, script, arguments, seed, duration):
    """Start a script so many times and kill it once it has saved something new, about every other
    time in the middle of saving.

    duration: seconds that the whole work takes. Returns how many of the kills came while a
    checkpoint was written.
    """
    chance, while_saving = random.Random(seed), 0
    for _ in range(kills):
        before, process = saves(run), Started(script.__file__, *arguments)
        wait_for_change(process, lambda: saves(run), before)
        # the work is not to end before the last kill, on a busy machine either
        time.sleep(chance.uniform(0, duration / (kills + 1) / 2))
        in_saving = chance.random() < 0.5
        while in_saving and process.poll() is None and not half_saved(run):
            pass
        kill(process)
        while_saving += half_saved(run)
    return while_saving


def experiments(folder, changes):
    """The same experiment twice: the paths of its configs, the run of the one to be left alone, and
    that of the one to be killed.
    """
    for name in ("whole", "killed"):
        (folder / name).mkdir()
    whole, killed = (write_experiment(folder / name, changes) for name in ("whole", "killed"))
    return whole, killed, folder / "whole/run", folder / "killed/run"


def assert_alike(whole, killed, count):
    wanted, found = kept(whole), kept(killed)
    assert len(wanted) == count and wanted.keys() == found.keys()
    assert [name for name, content in wanted.items() if found[name] != content] == []


@pytest.mark.parametrize("method", METHODS)
def test_a_training_that_is_killed_again_and_again_ends_as_one_that_was_not(
    method, tmp_path, no_pictures
):
    script, changes = METHODS[method].script, METHODS[method].changes | CHANGES
    whole, killed, whole_run, killed_run = experiments(tmp_path, changes)
    begin = time.monotonic()
    script.main(["--config", whole])
    while_saving = kill_at_random_moments(
        KILLS, killed_run, script, ["--config", killed], method, time.monotonic() - begin
    )
    finish(script, "--config", killed)
    for path in (whole, killed):
        memorization_scores.main(["--config", path])
    assert_alike(whole_run, killed_run, count=7)
    print(f"\n{method}: {KILLS} kills, {while_saving} of them while a checkpoint was written")


def test_a_retraining_that_is_killed_again_and_again_ends_as_one_that_was_not(tmp_path):
    removal = {"counts": [4], "policies": ["memorized"]}
    probe = {"epochs": 2, "warmup_epochs": 1, "seeds": [0], "train_images": 200}
    halves = {
        "training.epochs": 20 + 10 * KILLS_OF_OTHERS,
        "subsets.shared": 0,
        "subsets.candidate": 32,
        "subsets.independent": 32,
        "removal": removal,
        "probe": probe,
    }
    whole, killed, whole_run, killed_run = experiments(tmp_path, CHANGES | halves)
    train_simclr.main(["--config", whole, "--training.checkpoint_minutes", "10"])
    memorization_scores.main(["--config", whole])
    config = (whole_run / "config.yaml").read_text()
    (whole_run / "config.yaml").write_text(
        config.replace("checkpoint_minutes: 10.0", "checkpoint_minutes: 1.0e-06")
    )
    shutil.copytree(whole_run, killed_run)
    finish(remove_samples, "--config", whole, "--retrain")
    (log,) = (whole_run / "removal").rglob("log.jsonl")
    duration = sum(json.loads(line)["seconds"] for line in log.read_text().splitlines())
    while_saving = kill_at_random_moments(
        KILLS_OF_OTHERS, killed_run, remove_samples, ["--config", killed, "--retrain"], 0, duration
    )
    finish(remove_samples, "--config", killed, "--retrain")
    assert_alike(whole_run, killed_run, count=11)
    kills = f"{KILLS_OF_OTHERS} kills, {while_saving} of them while a checkpoint was written"
    print(f"\nretraining: {kills}")


def maps_in(folder):
    """Bytes of what a preparation leaves behind, and its records without their times, and the
    checksum over these.
    """
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in [name for name in files if name.endswith(".json")]:
        files[name] = {
            key: value
            for key, value in json.loads(files[name]).items()
            if key not in ("written", "checksum")
        }
        assert set(files[name]) == {"finished", "sha256", "geometry"}
    return files


def images_kept(folder):
    """How many images the unfinished maps in a folder hold."""
    kept_rows = 0
    for path in folder.glob("*.partial"):
        with suppress(OSError, ValueError, TypeError):  # it has just begun, or ended
            _, rows = arrays_of_geometry(read_geometry(path))
            kept_rows += int(rows.any(axis=1).sum())
    return kept_rows


def test_a_preparation_that_is_killed_again_and_again_ends_as_one_that_was_not(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 500, 500, 3), dtype=np.uint8)
    for i in range(500 + 600 * KILLS_OF_OTHERS):
        folder = tmp_path / "images" / ("val" if i % 30 == 0 else "train") / f"class_{i // 30 % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        first = tmp_path / f"{i % 8}.jpg"
        if i < 8:
            Image.fromarray(pixels[i]).save(first)
        os.link(first, folder / f"{i:04d}.jpg")  # the same bytes under another name
    data = {"name": "image_folder", "root": str(tmp_path / "images"), "size": 16}
    subsets = {"shared": 300, "candidate": 200, "independent": 200, "external": 24}
    changes = {"data": data, "subsets": subsets, "training.epochs": 1, "training.batch_size": 256}
    whole, killed, whole_run, killed_run = experiments(tmp_path, changes)
    finish(train_simclr, "--config", whole, "--data.prepared", str(tmp_path / "whole/maps"))
    maps, chance, half_way = tmp_path / "killed/maps", random.Random(0), 0
    arguments = ["--config", killed, "--data.prepared", str(maps)]
    for number in range(KILLS_OF_OTHERS):
        before, process = images_kept(maps), Started(train_simclr.__file__, *arguments)
        if number % 2 == 0:
            wait_for_change(process, lambda: images_kept(maps), before)
        else:
            wait_for_change(process, lambda: any(maps.glob("*.lock")), False)
            time.sleep(chance.uniform(0, 0.5))
        kill(process)
        half_way += images_kept(maps) > 0
    finish(train_simclr, *arguments)
    prepared = maps_in(tmp_path / "whole/maps")
    assert len(prepared) == 6 and maps_in(maps) == prepared
    assert_alike(whole_run, killed_run, count=4)
    print(f"\npreparation: {KILLS_OF_OTHERS} kills, {half_way} of them left a map half filled")
