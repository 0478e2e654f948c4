"""How long and how large work will be is told before it begins."""

import re
import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import score, train

import memorization_scores
from memorization.checkpoint import read_checkpoint, save_checkpoint
from memorization.data.subsets import ROLES
from memorization.errors import Caution
from memorization.machine.resources import advise_on_threads, seconds_of
from memorization.training import plan


def test_a_long_scoring_is_estimated(run_copy, monkeypatch, capsys):
    path, run = run_copy
    score(path, "--run", str(run))
    assert "on the disk" not in capsys.readouterr().out
    monkeypatch.setattr(memorization_scores, "LONG", 0)
    before = (run / "scores/scores.npz").read_bytes()
    score(path, "--run", str(run))
    line = next(line for line in capsys.readouterr().out.splitlines() if "on the disk" in line)
    assert line.startswith("  scoring 240 images by 4 views through two encoders: about 0:00:0")
    assert (run / "scores/scores.npz").read_bytes() == before
    written = sum(
        (run / "scores" / name).stat().st_size
        for name in ("scores.csv", "scores.npz", "scores.mat")
    )
    assert memorization_scores.BYTES_A_ROW * 120 == pytest.approx(written, rel=0.5)


def test_a_long_training_is_estimated_from_steps_that_change_nothing(
    write_config, tmp_path, monkeypatch, capsys
):
    train(write_config({"run": str(tmp_path / "short")}))
    assert "on the disk" not in capsys.readouterr().out
    monkeypatch.setattr(plan, "LONG", 18)
    path = write_config({"training.checkpoint_epochs": [1]})
    train(path)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "on the disk" in line]
    amounts = r"about 0:00:0\d, (.*) [MG]B of memory, (.*) MB on the disk"
    words = re.fullmatch(f"  18 steps for 2 encoders: {amounts}", line)
    written = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*.pt"))
    written += 3 * (tmp_path / "run/seed_0/candidate/last.pt").stat().st_size
    assert float(words[1]) > 0 and float(words[2]) == pytest.approx(written / 1e6, rel=0.4)
    for role in ROLES:
        name = f"seed_0/{role}/encoder.pt"
        assert (tmp_path / "short" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()

    # of three epochs two are left, and the other encoder's three
    folder = tmp_path / "run/seed_0/candidate"
    shutil.rmtree(tmp_path / "run/seed_0/independent")
    (folder / "encoder.pt").unlink()
    first_line = (folder / "log.jsonl").read_text().splitlines(keepends=True)[0]
    (folder / "log.jsonl").write_text(first_line)
    content = read_checkpoint(folder / "last.pt") | {"step": 3, "losses": []}
    save_checkpoint(folder / "last.pt", content)
    monkeypatch.setattr(plan, "LONG", 15)
    train(path)
    assert "  15 steps for 2 encoders: about" in capsys.readouterr().out
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    shutil.rmtree(tmp_path / "run/seed_0/independent")
    monkeypatch.setattr(plan, "LONG", 9)
    with pytest.warns(Caution, match="[kM]B will be written, but 1.0 kB are free"):
        train(path)


@pytest.mark.parametrize("slow_threads, advised", [(2, True), (1, False), (0, False)])
def test_threads_that_wait_for_each_other_are_told_of(slow_threads, advised, monkeypatch, capsys):
    """Two threads on busy cores gave 10 images a second where one gave 275."""
    set_to = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: set_to[-1])
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)

    def work():
        time.sleep(0.05 if set_to[-1] == slow_threads else 0.001)

    device = torch.device("cpu")
    advise_on_threads(work, device, seconds_of(work, device))
    printed = capsys.readouterr().out
    assert printed.endswith("add --threads 1\n") if advised else printed == ""
    assert set_to == [2, 1, 2]


def test_one_thread_and_a_gpu_have_no_threads_to_advise_on(monkeypatch, capsys):
    monkeypatch.setattr(torch, "set_num_threads", None)
    advise_on_threads(None, torch.device("cuda"), 1.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    advise_on_threads(None, torch.device("cpu"), 1.0)
    assert capsys.readouterr().out == ""
