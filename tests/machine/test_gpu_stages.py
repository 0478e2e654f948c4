"""What is run on a GPU machine can be tried on a CPU: benchmarks/on_gpu/measure.sh."""

import json
import os
import subprocess
import sys
import tarfile

import pytest
from conftest import ROOT


@pytest.fixture
def measure(tmp_path):
    """measure(*stages) -> (what measure.sh prints, its folder), of tiny sizes on a CPU."""

    def run(*stages):
        sizes = {"DEVICE": "cpu", "TINY": "1", "OMP_NUM_THREADS": "1"}
        places = {"OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
        script = str(ROOT / "benchmarks/on_gpu/measure.sh")
        ended = subprocess.run(
            ["bash", script, *stages],
            cwd=tmp_path,
            env=os.environ | sizes | places,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout, tmp_path / "out"

    return run


def test_each_stage_has_its_log_and_results_come_back_in_one_file(measure):
    printed, out = measure("rates", "nonsense", "profile")
    assert "no such stage: nonsense" in printed
    for stage, shown in (("rates", "TFLOP/s, product in float32"), ("profile", "kernels")):
        assert f"{stage}: exit code 0" in printed
        assert shown in (out / f"{stage}.log").read_text()
    with tarfile.open(out / "results.tar.gz") as results:
        rates = json.load(results.extractfile("benchmarks/rates.json"))
    assert rates["results"]["TFLOP/s, product in float32"] > 0


def test_a_stage_that_fails_says_so_and_stops_no_other(measure):
    printed, out = measure("pair", "rates")  # here are neither scripts nor configs
    assert "pair: exit code 2" in printed and "rates: exit code 0" in printed
