"""Several processes, as torchrun starts them: they give what one gives, and what they cannot share is refused by name."""

import json
import shutil
import socket
import subprocess
import sys

import pytest
import torch
import torch.nn as nn
import train_in_double
from conftest import METHODS, write_experiment

import dejavu
import linear_probing_train
import memorization_scores
import remove_samples
from memorization import processes
from memorization.checkpoint import read_checkpoint

IN_DOUBLE = {
    "encoder": {"name": "vit_mini", "width": 32, "depth": 1},
    "training.epochs": 5,  # of four steps
    "training.batch_size": 14,
    "training.clip_gradient": 1.0,
    "training.knn_every": 5,
}


def torchrun(*command, count=2):
    """The ended processes of a command under torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = ["--master_addr", "127.0.0.1", "--master_port", str(free.getsockname()[1])]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count), *address, "--"]
    return subprocess.run([*torchrun, *command], capture_output=True, text=True)


def weights_of(run, role):
    return read_checkpoint(run / "seed_0" / role / "last.pt")["method"]


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_what_one_trains_and_what_they_began_one_ends(method, tmp_path):
    settings = METHODS[method][2] | IN_DOUBLE
    if method != "mae":
        settings = settings | {"method": {"name": method, "hidden_dim": 8, "projection_dim": 8, "head_norm": "layer"}}
    (tmp_path / "one").mkdir()
    alone = write_experiment(tmp_path / "one", settings)
    train_in_double.main([alone, method])
    together = write_experiment(tmp_path, settings)
    ended = torchrun("tests/train_in_double.py", together, method, "32")  # f's 20 steps, and 12 of g's
    assert "independent is saved after step 12 of 20" in ended.stderr, ended.stderr
    assert not (tmp_path / "run/seed_0/independent/encoder.pt").exists()
    assert read_checkpoint(tmp_path / "run/seed_0/independent/last.pt")["step"] == 12
    log = [json.loads(line) for line in (tmp_path / "run/seed_0/candidate/log.jsonl").read_text().splitlines()]
    of_one = [json.loads(line) for line in (tmp_path / "one/run/seed_0/candidate/log.jsonl").read_text().splitlines()]
    for key in ("loss", "spread", "knn_accuracy"):
        assert [line[key] for line in log if line[key]] == pytest.approx([line[key] for line in of_one if line[key]], abs=1e-6)
    train_in_double.main([together, method])
    for role in ("candidate", "independent"):
        expected, found = (weights_of(run, role) for run in (tmp_path / "one/run", tmp_path / "run"))
        assert next(iter(found.values())).dtype == torch.float64
        for name in expected:
            assert (found[name] - expected[name]).abs().max() < 1e-6, (role, name)


def test_several_processes_measure_what_one_measures(scored_run, tmp_path):
    path, run = scored_run
    measure = [
        "--probe.train_images",
        "300",
        "--probe.epochs",
        "3",
        "--probe.warmup_epochs",
        "1",
        "--dejavu.k",
        "5",
        "--scores.batch_size",
        "16",
    ]
    for folder in ("one", "two"):
        shutil.copytree(run, tmp_path / folder)
    for script in (memorization_scores, dejavu, linear_probing_train):
        script.main(["--config", path, *measure, "--run", str(tmp_path / "one")])
        ended = torchrun(f"{script.__name__}.py", "--config", path, *measure, "--run", str(tmp_path / "two"))
        assert ended.returncode == 0, ended.stderr
    for name in ("scores/scores.csv", "dejavu/dejavu.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    one, two = (json.loads((tmp_path / folder / "probe/summary.json").read_text()) for folder in ("one", "two"))
    assert one["results"] == two["results"]
    assert (one["machine"]["processes"], two["machine"]["processes"]) == (1, 2)


@pytest.fixture
def two_processes(monkeypatch):
    """As in the first of two processes, as far as one process alone can tell."""
    monkeypatch.setattr(processes, "count", lambda: 2)


def test_batch_norm_of_several_processes_on_cpus_is_refused_by_name(two_processes, write_config, refusal, tmp_path):
    line = refusal(METHODS["simclr"][0].main, ["--config", write_config()])
    assert "encoder.name: resnet_small" in line and "(encoder.layers.1)" in line and "2 processes can share on GPUs only" in line
    config = write_config({"encoder": {"name": "vit_mini", "width": 32, "depth": 1}})
    assert "(projector.1)" in refusal(METHODS["simclr"][0].main, ["--config", config])
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_shared_is_refused(two_processes, write_config, refusal):
    line = refusal(METHODS["simclr"][0].main, ["--config", write_config({"training.batch_size": 15})])
    assert "training.batch_size: 15 is not a multiple of the 2 processes" in line


def test_retraining_is_shared_by_jobs_not_by_processes(two_processes, scored_run, refusal):
    line = refusal(remove_samples.main, ["--config", scored_run[0], "--removal.counts", "4"])
    assert "torchrun started 2" in line and "--jobs I/N" in line


def test_one_gpu_is_not_named_for_several_processes(scored_run, refusal, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    line = refusal(METHODS["simclr"][0].main, ["--config", scored_run[0], "--device", "cuda:1"])
    assert "device: 'cuda:1' is one GPU for 2 processes" in line


@pytest.mark.parametrize("parts", [[], [3], list(range(7))])
def test_divided_work_comes_back_in_order(parts, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    worked = []
    for rank in range(3):

        def all_gather(shares, own, rank=rank):
            assert own == [10 * part for part in parts[rank::3]]
            shares[:] = [[10 * part for part in parts[other::3]] for other in range(3)]

        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(processes.dist, "all_gather_object", all_gather)
        assert processes.divided(lambda part: worked.append(part) or 10 * part, parts, "work") == [10 * part for part in parts]
    assert sorted(worked) == parts  # each by one process


def test_a_batch_is_shared_out_whole(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 4)
    parts = []
    for rank in range(4):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        parts.append(processes.own_part(torch.arange(12)))
    assert torch.equal(torch.cat(parts), torch.arange(12)) and {len(part) for part in parts} == {3}


def test_batch_norms_are_shared_on_gpus_without_other_weights(monkeypatch):
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    names = list(module.state_dict())
    assert processes.with_shared_norms(module) is module and processes.with_shared_gradients(module) is module
    monkeypatch.setattr(processes, "count", lambda: 2)
    shared = processes.with_shared_norms(module)
    assert isinstance(shared[1], nn.SyncBatchNorm) and list(shared.state_dict()) == names
    assert processes.norm_that_cannot_be_shared(module, torch.device("cuda")) is None
