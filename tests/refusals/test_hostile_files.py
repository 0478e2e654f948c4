"""Files that are broken or made to do harm: each reader gives its one line, or what the intact file
gives. FUZZ: real processes a kind.
"""

import hashlib
import os
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from conftest import write_experiment
from hostile import (
    HOSTILE_JSON,
    HOSTILE_YAML,
    MOST_MEMORY,
    hostile_archives,
    hostile_arrays,
    hostile_checkpoints,
    peak,
    resaved,
)
from PIL import Image
from started import Started

import linear_probing_train
import memorization_scores
import remove_samples
import train_simclr
from memorization.measuring.representations import DIGEST_BYTES, OF

PROCESSES = int(os.environ.get("FUZZ", 1))  # of three for each kind


# --- as real processes ----------------------------------------------------------------------------


def run_and_watch(script, *arguments):
    """(exit code, lines on stderr, peak of memory in bytes) of a script as a process of its own."""
    memory, process, begin = 0, Started(script, *arguments), time.monotonic()
    while process.poll() is None:
        with suppress(ValueError, FileNotFoundError):  # it has just ended
            memory = max(memory, peak(process.pid))
        if time.monotonic() - begin > 120:
            process.kill_group()
        time.sleep(0.01)
    return process.returncode, process.stderr.splitlines(), memory


@pytest.fixture(scope="module")
def undisturbed(scored_run):
    """The peak of memory of scoring the intact run."""
    code, lines, memory = run_and_watch("memorization_scores.py", "--config", scored_run[0])
    assert code == 0, lines
    return memory


BOXES = b"index,xmin,ymin,xmax,ymax\n0,0,0,5,5\n"


# The file, the script that reads it, and what is put in its place.
REAL = {
    "encoder.pt": ("seed_0/candidate/encoder.pt", "memorization_scores.py", [], lambda path: [
        *resaved(path,
            [(("config", "encoder"), {"name": "vit_mini", "width": 8192, "depth": 256})]),
        *hostile_checkpoints(path.read_bytes())[1::15],
    ]),
    "last.pt": ("seed_1/candidate/last.pt", "train_simclr.py", [], lambda path: [
        hostile_checkpoints(path.read_bytes())[5],
        *resaved(path, [(("losses",), [torch.ones(3)]), (("step",), 10**9)]),
    ]),
    "subsets.npz": ("subsets.npz", "memorization_scores.py", [],
        lambda path: hostile_archives(path.read_bytes(), "shared.npy")),
    "config.yaml": ("config.yaml", "memorization_scores.py", [], lambda path: HOSTILE_YAML),
    "config of the script": ("../tiny.yaml", "memorization_scores.py", [],
        lambda path: HOSTILE_YAML),
    "log.jsonl": ("seed_1/candidate/log.jsonl", "memorization_scores.py", ["--checkpoint", "all"],
        lambda path: HOSTILE_JSON),
    "scores.npz": ("scores/scores.npz", "dejavu.py", ["--dejavu.k", "5"],
        lambda path: hostile_archives(path.read_bytes(), "L_f.npy")),
    "summary.json": ("scores/summary.json", "dejavu.py", ["--dejavu.k", "5"],
        lambda path: HOSTILE_JSON),
    "environment.json": ("environment.json", "train_simclr.py", [], lambda path: HOSTILE_JSON[:-1]),
    "boxes.csv": ("boxes.csv", "dejavu.py",
        ["--dejavu.k", "5", "--dejavu.query", "boxes", "--dejavu.boxes"], lambda path: [
        BOXES + b"1," + b"1" * 10**7 + b",2,3,4", BOXES + b"1,nan,0,1,1", BOXES + b'1,"',
    ]),
}  # fmt: skip


@pytest.mark.parametrize("number", range(PROCESSES))
@pytest.mark.parametrize("kind", REAL)
def test_a_script_refuses_a_hostile_file_in_one_line(kind, number, run, undisturbed, tmp_path):
    name, script, options, hostile = REAL[kind]
    config, path = (
        write_experiment(
            tmp_path, {"seeds": [0, 1], "training.checkpoint_epochs": [2], "training.knn_every": 1}
        ),
        run / name,
    )
    if not path.exists():
        path.write_bytes(BOXES)
        options = [*options, str(path)]
    contents = hostile(path)
    path.write_bytes(
        [contents[0], b"\xff" + path.read_bytes()[1 : path.stat().st_size // 2], contents[-1]][
            number
        ]
    )
    if script == "train_simclr.py":
        (run / "seed_1/candidate/encoder.pt").unlink()
        (run / "seed_1/candidate/previous.pt").unlink(missing_ok=True)
    assert_refused(kind, undisturbed, script, "--config", config, *options)


def assert_refused(kind, undisturbed, script, *arguments):
    """A script refuses in one line, and needs little more memory than an undisturbed process."""
    code, lines, memory = run_and_watch(script, *arguments)
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    assert memory < undisturbed + MOST_MEMORY
    print(f"{kind}: {(memory - undisturbed) / 2**20:.0f} MiB above an undisturbed process")


@pytest.fixture(scope="module")
def folder_experiment(tmp_path_factory):
    """(config path, folder) of an experiment on a folder of images, with a run, prepared maps, kept
    probes and boxes.
    """
    folder = tmp_path_factory.mktemp("folder")
    chance = np.random.default_rng(0)
    for split, count in (("train", 210), ("val", 20)):
        for i in range(count):
            path = folder / "images" / split / f"c{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(chance.integers(0, 255, (20, 18, 3), dtype=np.uint8)).save(path)
            (folder / "boxes").mkdir(exist_ok=True)
            box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
            (folder / "boxes" / f"{i}.xml").write_text(f"<annotation>{box}</annotation>")
    path = write_experiment(folder, {
        "data": {"name": "image_folder", "size": 16, "root": str(folder / "images"),
            "prepared": str(folder / "prepared")},
        "subsets": {"shared": 0, "candidate": 20, "independent": 20, "external": 10,
            "order": "file"},
        "training.epochs": 1, "dejavu": {"k": 5},
        "probe": {"epochs": 2, "warmup_epochs": 1, "seeds": [0]},
        "removal": {"counts": [4], "policies": ["memorized"]},
    })  # fmt: skip
    train_simclr.main(["--config", path])
    memorization_scores.main(["--config", path])
    linear_probing_train.main(["--config", path])
    remove_samples.main(["--config", path, "--retrain"])
    return path, folder


def hostile_representations(intact):
    """Hostile arrays in files of the cache that tell their origin, and whose checksums fit."""
    array, mark, origin = intact[:-DIGEST_BYTES].rpartition(OF)
    contents = [hostile + mark + origin for hostile in hostile_arrays(array)]
    return [content + hashlib.sha256(content).digest() for content in contents]


# As REAL; every file of a name with a star.
REAL_OF_A_FOLDER = {
    "image": ("images/train/c0/0.png", "memorization_scores.py", [], lambda path: [b"GIF89a", b""]),
    "map": ("prepared/train_16_????????????.npy", "memorization_scores.py", [],
        lambda path: hostile_arrays(path.read_bytes())),
    "geometry": ("prepared/train_16_*.geometry.npy", "memorization_scores.py", [],
        lambda path: hostile_arrays(path.read_bytes())),
    "record of a map": ("prepared/train_16_*.json", "memorization_scores.py", [],
        lambda path: HOSTILE_JSON),
    "boxes of an image": ("boxes/*.xml", "dejavu.py",
        ["--dejavu.query", "boxes", "--dejavu.boxes", "boxes"], lambda path: [
        b'<!DOCTYPE x [<!ENTITY a "ha">]><annotation>&a;</annotation>', b"<a><bndbox/></a>",
    ]),
    "kept representations": ("run/probe/representations/*.npy", "linear_probing_train.py", [],
        lambda path: hostile_representations(path.read_bytes())),
    "kept probe": ("run/removal/probes/*.json", "remove_samples.py", ["--retrain"],
        lambda path: HOSTILE_JSON),
}  # fmt: skip


@pytest.mark.skipif("FUZZ" not in os.environ, reason="takes minutes; part of make faults")
@pytest.mark.parametrize("number", range(PROCESSES))
@pytest.mark.parametrize("kind", REAL_OF_A_FOLDER)
def test_a_script_refuses_a_hostile_file_of_a_folder_in_one_line(
    kind, number, folder_experiment, undisturbed
):
    name, script, options, hostile = REAL_OF_A_FOLDER[kind]
    config, folder = folder_experiment
    intact = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob(name)}
    assert intact
    for path in intact:
        contents = hostile(path)
        path.write_bytes(
            [contents[0], b"\xff" + path.read_bytes()[1 : path.stat().st_size // 2], contents[-1]][
                number
            ]
        )
    try:
        options = [
            str(folder / option) if (folder / option).is_dir() else option for option in options
        ]
        assert_refused(kind, undisturbed, script, "--config", config, *options)
    finally:
        for path, (content, written) in intact.items():
            path.write_bytes(content)
            # a map is one of files as they were when it was made
            os.utime(path, ns=(written, written))
