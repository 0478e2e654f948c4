"""Retrained encoders and their probes are kept, and only believed of what they are of."""

import json
from pathlib import Path

from conftest import ONE_REMOVAL, remove

import remove_samples
from memorization.machine.files import json_text
from memorization.measuring import removal_curve, retraining
from memorization.measuring.removal_curve import CurveSummary, KeptProbe


def test_work_that_is_done_is_kept(halves_copy, in_process, monkeypatch):
    _, run = halves_copy
    remove(halves_copy, "--retrain", "--jobs", "0/2")
    seeds = [command[command.index("--seeds") + 1] for command in in_process]
    assert seeds == ["0", "1"] * 3
    assert not (run / "removal/curve.csv").exists()
    trained = {file: file.stat().st_mtime_ns for file in (run / "removal").rglob("encoder.pt")}
    remove(halves_copy, "--retrain")
    curve = (run / "removal/curve.csv").read_bytes()
    assert len(trained) == 6
    assert all(file.stat().st_mtime_ns == time for file, time in trained.items())
    monkeypatch.setattr(removal_curve, "probe", None)  # would be called
    remove(halves_copy, "--retrain")
    assert (run / "removal/curve.csv").read_bytes() == curve


def test_kept_probes_are_of_their_encoders(halves_copy, in_process, capsys):
    """Swapped, or without what they are of as in earlier versions, they are made again."""
    _, run = halves_copy
    remove(halves_copy, *ONE_REMOVAL)
    (curve,) = (run / "removal").glob("counts_4_*/curve.csv")
    expected, kept = curve.read_bytes(), sorted((run / "removal/probes").iterdir())
    one, other = (file.read_bytes() for file in kept)
    assert len(expected.splitlines()) == 3 and one != other
    old = {key: value for key, value in json.loads(one).items() if key != "of"}
    for contents in ((other, one), (json.dumps(old).encode(), other)):
        for file, content in zip(kept, contents):
            file.write_bytes(content)
        capsys.readouterr()
        remove(halves_copy, *ONE_REMOVAL)
        assert curve.read_bytes() == expected
        assert [file.read_bytes() for file in kept] == [one, other]
        changed = sum(a != b for a, b in zip(contents, (one, other)))
        assert capsys.readouterr().out.count("made again") == changed


def test_a_retraining_that_fails_is_named_and_loses_nothing(halves_copy, refusal, monkeypatch):
    path, run = halves_copy
    monkeypatch.setattr(retraining, "run_script", lambda script, arguments, stop: 2)
    line = refusal(remove_samples.main, ["--config", path, "--run", str(run), "--retrain"])
    assert "memorized_4_draw0, seed 0: train_simclr.py failed" in line
    monkeypatch.setattr(remove_samples, "training_script", lambda run: Path("train_nothing.py"))
    assert "there is no train_nothing.py" in refusal(
        remove_samples.main, ["--config", path, "--run", str(run), "--retrain"]
    )


def test_a_curve_and_its_probes_are_read_as_they_were_written(halves_copy, in_process):
    _, run = halves_copy
    remove(halves_copy, "--retrain")
    assert (run / "removal/curve.png").stat().st_size > 5000
    text = (run / "removal/summary.json").read_text()
    read = CurveSummary.parse(text)
    assert json_text(read.plain() | {"files": read.files}) == text
    for file in (run / "removal/probes").iterdir():
        assert json_text(KeptProbe.parse(file.read_text()).plain()) == file.read_text()
