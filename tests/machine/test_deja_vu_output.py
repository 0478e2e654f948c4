"""The files and pictures of dejavu.py, and what it prints."""

import json
import re
import shutil

import pytest
from conftest import METHODS, ONE_MODEL, ask, folder_config, score, train, write_experiment

import dejavu
import train_simclr
from memorization.data.subsets import load_subsets
from memorization.measuring.deja_vu_summary import DejaVuSummary

COLUMNS = [
    *("seed", "index", "subset", "label"),
    *("prediction_f", "confidence_f", "label_share_f"),
    *("prediction_g", "confidence_g", "label_share_g", "outcome"),
]
FILES = ["cases.png", "confidence.png", "dejavu.csv", "shares.png", "summary.json"]


def test_the_files_and_columns_of_deja_vu_are_those_promised(run_copy):
    rows, summary = ask(*run_copy)
    assert list(rows[0]) == COLUMNS
    assert sorted(file.name for file in (run_copy[1] / "dejavu").iterdir()) == FILES
    assert summary["query"] == "training" and "projector" in summary["representation"]


def test_the_summary_is_read_by_the_class_that_wrote_it(run_copy):
    path, run = run_copy
    for options in ([], ["--dejavu.reference", "crops", "--dejavu.reference_epochs", "1"]):
        _, summary = ask(path, run, *options)
        folder = run / "dejavu" / ("crops_reference_epochs_1" if options else "")
        read = DejaVuSummary.parse((folder / "summary.json").read_text())
        assert json.dumps(read.plain() | {"files": read.files}) == json.dumps(summary)
        assert bool(read.caveat) == ("classifier" in summary["seeds"][0]) == bool(options)


def test_the_agreement_with_the_scores_is_printed(run_copy, capsys):
    _, summary = ask(*run_copy)
    printed, found = capsys.readouterr().out, summary["memorization_scores"]
    in_common = "two rankings have this share of their first 12 in common (50.0% by chance):"
    assert f"of 24 candidates {in_common}" in printed
    both = found["deja_vu_and_score"]["top_overlap"]
    spread = f"{both['mean']:.1%} ± {both['std']:.1%}"
    assert f"Deja Vu and memorization score {spread}, Kendall's tau " in printed
    seeds = {name: value["mean"] for name, value in found["score_between_seeds"].items()}
    tau = f"Kendall's tau {seeds['kendall_tau']:+.2f}"
    assert f"memorization score of two seeds {seeds['top_overlap']:.1%}, {tau}\n" in printed


def test_a_run_without_scores_is_compared_with_none(run_copy, capsys):
    shutil.rmtree(run_copy[1] / "scores")
    ask(*run_copy)
    line = "not compared with memorization scores: none by these settings"
    assert line in capsys.readouterr().out


def test_scores_of_some_candidates_only_are_compared_for_those(run_copy):
    path, run = run_copy
    few = ["--scores.per_subset", "10"]
    score(path, "--run", str(run), *few)
    assert ask(path, run, *few)[1]["memorization_scores"]["candidates"] == 10
    assert (run / "dejavu/scores_per_subset_10/dejavu.csv").exists()
    assert ask(path, run)[1]["memorization_scores"]["candidates"] == 24


@pytest.mark.parametrize("method", METHODS)
def test_other_views_give_every_method_another_table(method, tmp_path, no_pictures):
    path = write_experiment(tmp_path, METHODS[method].changes | {"training.epochs": 1})
    train(path, method=method)
    tables = []
    for option in ("", "public training", "query corner", "normalize true"):
        options = f"--dejavu.{option}".split() if option else []
        rows, _ = ask(path, tmp_path / "run", *options)
        tables.append([(row["prediction_f"], row["confidence_f"]) for row in rows])
    assert all(tables[0] != other for other in tables[1:])


# --- one model ------------------------------------------------------------------------------------


def test_pictures_and_screen_claim_no_memorization_of_one_encoder(one_model):
    caveat = "no proof of memorization: f saw 56 images, the classifier 24 (2.3 times as many)"
    assert len(one_model.pictures) == 3
    assert all(caveat in text and "Deja Vu" not in text for text in one_model.pictures)
    differ = "that f and the classifier differ, which says nothing of memorization"
    assert caveat in one_model.printed and differ in one_model.printed
    assert "memorized" not in one_model.printed


def test_a_comparison_with_a_classifier_is_repeated_bit_for_bit(one_model, tmp_path):
    shutil.copytree(one_model.run, tmp_path / "run")
    ask(one_model.path, tmp_path / "run", *ONE_MODEL)
    first, again = (run / "dejavu/crops/dejavu.csv" for run in (one_model.run, tmp_path / "run"))
    assert first.read_bytes() == again.read_bytes()


# --- a folder of images with boxes ----------------------------------------------------------------


def test_images_and_boxes_that_cannot_be_used_are_counted(tmp_path, capsys):
    path, run, boxes = folder_config(tmp_path), tmp_path / "run", tmp_path / "boxes.csv"
    train_simclr.main(["--config", path])
    subsets = load_subsets(run / "subsets.npz")
    _, covered, *others = *subsets.candidate.tolist(), *subsets.independent.tolist()
    lines = ["index,xmin,ymin,xmax,ymax", f"{covered},0,0,90,90"]
    boxes.write_text("\n".join(lines + [f"{index},0,0,4,90" for index in others]))
    options = ["--dejavu.query", "boxes", "--dejavu.boxes", str(boxes), "--dejavu.k", "5"]
    dejavu.main(["--config", path, *options])
    (folder,) = (run / "dejavu").iterdir()
    assert re.fullmatch("boxes_[0-9a-f]{8}_k_5", folder.name)
    (seed,) = json.loads((folder / "summary.json").read_text())["seeds"]
    assert seed["dropped"] == {"without boxes": 1, "too little between boxes": 1}
    assert sum(seed["images"].values()) == 14
    fault = "boxes went beyond their image and were clipped"
    assert seed["boxes"][fault] == 15 and f"15 {fault}" in capsys.readouterr().out
    # though six or seven and eight images of a subset are left
    score_of_all = pytest.approx(seed["at"]["100"]["score"], abs=1e-12)
    assert seed["net"]["memorized - forgotten"] == score_of_all
