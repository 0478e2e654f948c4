"""What compare_runs.py writes and prints."""

import csv
import json
import shutil

import numpy as np
import pytest
from compared import derive_run, leave_out_pictures, one_seed, permute, with_noise
from conftest import fake_images, folder_config, score
from matplotlib.figure import Figure
from matplotlib.text import Text

import compare_runs
import train_simclr
from memorization.data.subsets import load_subsets

FILES = {
    "comparison.csv", "heatmap.png", "runs.csv", "strips.png", "summary.json", "thresholds.csv",
    "thresholds.png",
}  # fmt: skip


@pytest.fixture
def texts(monkeypatch):
    """A list that takes the texts of every picture that is drawn."""
    save, pictures = Figure.savefig, []

    def watched_save(figure, *arguments, **named):
        pictures.append("\n".join(text.get_text() for text in figure.findobj(Text)))
        save(figure, *arguments, **named)

    monkeypatch.setattr(Figure, "savefig", watched_save)
    return pictures


@pytest.fixture
def runs(pool, tmp_path):
    """The paths of two runs on the same candidates, texts."""
    return [
        derive_run(pool[1], tmp_path / "a"),
        derive_run(pool[1], tmp_path / "b", with_noise(1)),
    ]


def compare(folder, *arguments):
    """{name: bytes} of what compare_runs.py writes into a folder."""
    compare_runs.main([*map(str, arguments), "--output", str(folder)])
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def table(content):
    return list(csv.DictReader(content.decode().splitlines()))


def test_files_of_a_comparison(runs, tmp_path, capsys, texts):
    files = compare(tmp_path / "out", *runs)
    assert files.keys() == FILES  # no accuracy.png
    rows = table(files["runs.csv"])
    assert [row["run"] for row in rows] == ["a", "b"]
    assert {(row["method"], row["encoder"], row["seeds"]) for row in rows} == {
        ("simclr", "resnet_small", "2")
    }
    own = json.loads((tmp_path / "a/scores/summary.json").read_text())
    welch = own["given_this_pair"]["welch"]["candidate > external"]
    paired = own["over_seeds"]["paired"]["candidate > external"]
    column = own["single_images"]["headline"]
    reliability = own["reliability_local" if column == "score_local" else "reliability"]
    expected = {
        "d": welch["d"], "d_free_of_views": welch["d_free_of_views"], "p": welch["p"],
        "p_over_seeds": paired["p"], "views": 4, "candidates": 64,
        "mean_candidate": own["subsets"]["candidate"]["raw"]["mean"],
        "mean_external": own["subsets"]["external"]["raw"]["mean"],
        "q_below_0.1": own["single_images"][column]["q < 0.1"],
        "reliability": reliability["candidate"]["predicted"],
    }  # fmt: skip
    texts_of_numbers = {name: "" if value is None else value for name, value in expected.items()}
    for name, value in texts_of_numbers.items():
        assert rows[0][name] == value or float(rows[0][name]) == pytest.approx(value), name
    assert rows[0]["accuracy"] == ""
    assert [(row["run_a"], row["run_b"]) for row in table(files["comparison.csv"])] == [
        ("a", "a"), ("a", "b"), ("b", "b"),
    ]  # fmt: skip
    marks = [row for row in table(files["thresholds.csv"]) if row["mark"]]
    assert [row["run"] for row in marks] == ["a", "b"]
    assert marks[0]["candidates_above"] == rows[0]["above_external_95"]
    printed = capsys.readouterr().out
    assert "accuracy.png is not drawn: no run has linear probes" in printed
    # the column is named everywhere
    assert f"candidates are ranked by {column}" in printed
    tables = [table(files[name]) for name in ("runs.csv", "comparison.csv", "thresholds.csv")]
    assert {row["column"] for rows in tables for row in rows} == {column}
    assert json.loads(files["summary.json"])["column"] == column
    assert len(texts) == 3 and all(column in text for text in texts)


def test_summary_has_the_tables_and_what_was_compared(runs, tmp_path, monkeypatch):
    leave_out_pictures(monkeypatch)
    files = compare(tmp_path / "out", *runs)
    summary = json.loads(files["summary.json"])
    assert [(run["path"], run["seed_numbers"]) for run in summary["runs"]] == [
        (path, [0, 1]) for path in runs
    ]
    for run in "ab":
        of_run = json.loads((tmp_path / run / "scores/summary.json").read_text())
        assert summary["fingerprints"]["scores"][run] == of_run["files"]["scores.npz"]
    assert summary["seeds_of_a_half"] == 1 and summary["chance"] == {"tau": 0, "overlap": 6 / 62}
    assert summary["candidates"] == {"n": 64, "ranked": 62, "no_local_score": 2}
    for row, written in zip(table(files["comparison.csv"]), summary["agreement"]):
        assert {name: "" if v is None else str(v) for name, v in written.items()} == row


def test_the_same_command_gives_the_same_bytes(runs, tmp_path):
    assert compare(tmp_path / "out", *runs) == compare(tmp_path / "out", *runs)


def test_the_order_of_rows_in_a_file_changes_nothing(pool, runs, tmp_path, monkeypatch):
    strips = []
    leave_out_pictures(monkeypatch)
    monkeypatch.setattr(compare_runs, "draw_strips", lambda strip, *_: strips.append(strip))
    files = compare(tmp_path / "one", *runs)
    shutil.rmtree(tmp_path / "b")
    derive_run(pool[1], tmp_path / "b", lambda arrays: permute(with_noise(1)(arrays)))
    permuted = compare(tmp_path / "two", *runs)
    for name in ("runs.csv", "comparison.csv", "thresholds.csv"):
        assert permuted[name] == files[name]
    for name in "ab":
        for before, after in zip(strips[0][name], strips[1][name]):
            assert np.array_equal(before, after)


def test_images_in_bands_are_those_of_the_scores(runs, tmp_path, monkeypatch):
    drawn = []
    real = Figure.savefig

    def watched_save(figure, *arguments, **named):
        drawn.append([axes.images[0].get_array() for axes in figure.axes if axes.images])
        real(figure, *arguments, **named)

    monkeypatch.setattr(Figure, "savefig", watched_save)
    summary = json.loads(compare(tmp_path / "out", *runs)["summary.json"])
    assert summary["column"] == "score_local"
    strips = next(images for images in drawn if len(images) == 8 and images[0].ndim == 3)
    with np.load(tmp_path / "a/scores/scores.npz") as arrays:
        rows = arrays["subset"] == "candidate"
        gains = arrays["sign"] * (arrays["L_g"] - arrays["L_f"] - arrays["local_offset"])
        best = arrays["index"][rows][np.nanargmax(gains.mean(0)[rows])]
    pixels = fake_images(16).train.pixels[best].numpy().transpose(1, 2, 0)
    assert np.array_equal(np.asarray(strips[0])[:, :16], pixels)


def test_a_run_of_one_seed_has_no_ceiling(pool, runs, tmp_path, capsys, texts):
    one = {"seeds": [0], "reliability": None, "reliability_local": None, "over_seeds": None}
    paths = [derive_run(pool[1], tmp_path / name, one_seed, **one) for name in "cd"]
    files = compare(tmp_path / "out", *runs, paths[0])
    rows = {(row["run_a"], row["run_b"]): row for row in table(files["comparison.csv"])}
    assert rows["c", "c"]["halves_tau"] == rows["a", "c"]["ceiling_tau_b"] == ""
    assert float(rows["a", "c"]["halves_tau"]) and rows["a", "c"]["halvings"] == "1"
    printed = capsys.readouterr().out
    assert "of one seed, and without a ceiling: c" in printed
    assert "–" in texts[0]
    files = compare(tmp_path / "out", *paths)
    printed = capsys.readouterr().out
    assert "each run has one seed: there is no ceiling" in printed
    assert "all runs have the same seed: their tau and overlap are in comparison.csv" in printed
    (_, row, _) = table(files["comparison.csv"])
    assert float(row["tau"]) == pytest.approx(1) and row["halves_tau"] == ""


def test_accuracies_are_those_of_the_probes_on_f(probed_run, scored_run, tmp_path, capsys, texts):
    rows = table(compare(tmp_path / "out", scored_run[1], probed_run[1])["runs.csv"])
    assert rows[0]["accuracy"] == "" and "probed/" not in rows[0]["run"]
    summary = json.loads((probed_run[1] / "probe/summary.json").read_text())
    of_f = [row["top_1"]["mean"] for row in summary["results"]
            if row["encoder"] in ("candidate seed 0", "candidate seed 1")]  # fmt: skip
    assert len(of_f) == 2
    assert float(rows[1]["accuracy"]) == pytest.approx(np.mean(of_f))
    assert float(rows[1]["accuracy_std"]) == pytest.approx(np.std(of_f, ddof=1))
    assert rows[1]["probe_images"] == "300"
    printed = capsys.readouterr().out
    assert f"not in accuracy.png, as they have no linear probes: {rows[0]['run']}" in printed
    assert (tmp_path / "out/accuracy.png").exists()
    assert rows[1]["run"] in texts[-1] and rows[0]["run"] not in texts[-1]


def test_accuracies_are_those_of_the_scored_encoders(
    pool, probed_run, runs, tmp_path, capsys, monkeypatch
):
    leave_out_pictures(monkeypatch)
    of_epoch = {"checkpoint": {"name": "epoch_0002", "epoch": 2}}
    early = derive_run(pool[1], tmp_path / "c", **of_epoch)
    for run in (runs[0], early):
        shutil.copytree(probed_run[1] / "probe", f"{run}/probe")
    rows = table(compare(tmp_path / "out", runs[0], early)["runs.csv"])
    assert rows[0]["accuracy"] != "" and rows[1]["accuracy"] == rows[1]["probe_images"] == ""
    assert "not in accuracy.png, as they have no linear probes: c" in capsys.readouterr().out


def test_runs_of_the_same_name_are_told_apart():
    assert compare_runs.short_names(["x/a", "/y/b"]) == ["a", "b"]
    assert compare_runs.short_names(["/x/a", "/y/a", "/y/b"]) == ["x/a", "y/a", "y/b"]


def test_differing_numbers_of_views_are_told(pool, runs, tmp_path, capsys, monkeypatch):
    leave_out_pictures(monkeypatch)
    settings = json.loads((pool[1] / "scores/summary.json").read_text())["settings"]
    other = derive_run(pool[1], tmp_path / "c", settings=settings | {"views": 9})
    compare(tmp_path / "out", runs[0], other)
    assert "the number of views of scoring differs: a 4, c 9" in capsys.readouterr().out


def test_images_in_files_are_compared(tmp_path):
    path = folder_config(tmp_path)
    runs = [str(tmp_path / name) for name in ("one", "two")]
    for seed, run in enumerate(runs):
        options = ["--run", run, "--training.epochs", "1", "--seeds", str(seed)]
        train_simclr.main(["--config", path, *options])
        score(path, *options[:-2], "--seeds", str(seed))
    assert compare(tmp_path / "out", *runs).keys() == FILES
    assert len(load_subsets(tmp_path / "one/subsets.npz").candidate) == 8
    rows = table((tmp_path / "out/comparison.csv").read_bytes())
    assert [row["halvings"] for row in rows] == ["0", "1", "0"]  # seed 0 against seed 1


def test_help_is_the_docstring_and_the_options(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "102")
    with pytest.raises(SystemExit) as ending:
        compare_runs.main(["--help"])
    printed = capsys.readouterr().out
    assert ending.value.code == 0
    assert compare_runs.__doc__.split("\n")[0] in printed
    for option in ("RUN", "--output FOLDER", "--scores NAME", "--data.root FOLDER"):
        assert option in printed
