"""How long and how large work will be is told before it begins."""

import re
import shutil
from types import SimpleNamespace

import pytest
from conftest import score, train

import memorization_scores
from memorization.checkpoint import read_checkpoint, save_checkpoint
from memorization.data.subsets import ROLES
from memorization.errors import Caution
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
