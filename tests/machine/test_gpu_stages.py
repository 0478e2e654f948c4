"""What is run on a GPU machine can be tried on a CPU: benchmarks/on_gpu/measure.sh."""

import gzip
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from conftest import ROOT, write_fashion_mnist
from started import pipes

STAGES = ("rates", "tests", "pair", "profile", "benchmarks", "memory", "switches", "compiled")
# What the log of a stage shows of each program and each case.
SHOWN = {
    "rates": ["cores: ", "TFLOP/s, product in float32"],
    "tests": ["test_losses_are_those_of_a_cpu[simclr-sgd]", "in the first step, by ", "1 passed"],
    "pair": [
        "256 images train each encoder",
        '{"epoch": 2, "step": 8, "loss": ',
        "bf16, against fp32 on 256 images",
        "scores/views_3_per_subset_2000: ",
        "k 100 of 300 public images",
        "fashion_mnist  candidate seed 0       top-1 ",
    ],
    "profile": [
        "the host calls the operations of a step in: views ",
        "of the time without profiler",
        "simclr, resnet_small, ",
        "mae, vit_mini, patches of 8, ",
        "byol, resnet_small, ",
    ],
    "benchmarks": [
        "memorization scores, resnet_small, 10 views",
        "memorization scores, vit_mini, 10 views",
        "bfloat16, cuDNN timed",
        "SimCLR views, 32 x 32, 3 channels",
        "SimCLR views, 28 x 28, 1 channels",
    ],
    "memory": ["barlowtwins_cifar10, barlowtwins_cifar100: 1.5 GB counted, 256 images a step"],
    "switches": [
        "fused optimizer",
        "CUDA graphs, cuDNN timed",
        "simclr, resnet_small, ",
        "mae, vit_mini, patches of 8, ",
        "byol, resnet_small, ",
    ],
    "compiled": ["compiling for a CPU takes minutes"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(what measure.sh prints, its folder) of all stages, in a copy of the project with 600 images
    of noise.
    """
    folder = tmp_path_factory.mktemp("project")
    for path in ROOT.iterdir():
        if path.name not in ("data", "runs") and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    chance = np.random.default_rng(0)
    images = {
        split: chance.integers(256, size=(count, 28, 28), dtype=np.uint8)
        for split, count in (("train", 600), ("t10k", 300))
    }

    def write_packed(path, content):
        path.write_bytes(gzip.compress(content, 1))

    write_fashion_mnist(folder / ".gpu-data", images, 60 * [*range(10)], write_packed, ".gz")
    return measure(folder)


def measure(folder, *stages):
    """Run measure.sh in a folder. Returns (what it prints, its folder)."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/fork.py "$@"\n')
    python.chmod(0o755)
    numbers = [pipe.fileno() for pipe in pipes()]
    sizes = {"DEVICE": "cpu", "TINY": "1", "OMP_NUM_THREADS": "1", "LIMIT": "3600"}
    places = {"OUT": str(folder / "out"), "PYTHON": str(python), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        ["bash", str(ROOT / "benchmarks/on_gpu/measure.sh"), *stages],
        cwd=folder,
        env=os.environ | sizes | places | {"FORKS": "{} {}".format(*numbers)},
        pass_fds=numbers,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, folder / "out"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_succeeds_and_its_log_shows_each_program(whole, stage):
    printed, out = whole
    log = (out / f"{stage}.log").read_text()
    assert f"{stage}: exit code 0 " in printed, log[-2000:]
    assert [shown for shown in SHOWN[stage] if shown not in log] == []
    assert "Traceback" not in log
    assert f"##### {stage}\n" in printed


def test_logs_and_results_are_all_that_comes_back(whole):
    _, out = whole
    logs = {f"{stage}.log" for stage in STAGES}
    assert {path.name for path in out.iterdir()} == {"results.tar.gz", *logs}
    with tarfile.open(out / "results.tar.gz") as packed:
        results = {
            name.split("/")[1].removesuffix(".json"): json.load(packed.extractfile(name))["results"]
            for name in packed.getnames()
            if name.count("/") == 1 and name.endswith(".json")
        }
        scores = "benchmarks/pair_scores/views_3_per_subset_2000/scores.csv"
        lines = packed.extractfile(scores).read().decode().splitlines()
    assert len(lines) == 1 + 192 + 3 * 64
    counts = {name: len(of_name) for name, of_name in results.items()}
    assert counts == {
        "memory_of_configs": 2,
        "profile_steps": 3,
        "rates": 3,
        "scoring_ways": 2,
        "switches": 3,
        "views": 2,
    }
    assert results["rates"]["TFLOP/s, product in float32"] > 0
    assert all(case["kernels"] > 0 for case in results["profile_steps"].values())
    assert [len(case["contestants"]) for case in results["switches"]] == [6, 5, 5]  # all switches


def test_a_stage_that_fails_says_so_and_stops_no_other(tmp_path):
    printed, _ = measure(tmp_path, "nonsense", "pair", "rates")  # of an empty folder
    assert "no such stage: nonsense" in printed
    assert "pair: exit code 1" in printed and "rates: exit code 0" in printed
