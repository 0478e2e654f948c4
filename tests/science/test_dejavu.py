import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import METHODS, ask, folder_config, write_experiment
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats

import dejavu
import memorization_scores
import train_simclr
from memorization.checkpoint import load_pair, untrained_encoder
from memorization.data.catalogue import DataSettings
from memorization.data.images import open_images
from memorization.data.subsets import load_subsets
from memorization.encoder import Pair
from memorization.measuring import attacks
from memorization.measuring.attacks import public_images
from memorization.measuring.deja_vu import DejaVuSettings, deja_vu, mcnemar_p, outcomes
from memorization.measuring.deja_vu_summary import DejaVuSummary
from memorization.measuring.representations import encode_images
from memorization.run import Run


def test_the_summary_follows_from_the_table(run_copy):
    path, run = run_copy
    rows, summary = ask(path, run)
    assert list(rows[0]) == [
        "seed", "index", "subset", "label",
        "prediction_f", "confidence_f", "label_share_f",
        "prediction_g", "confidence_g", "label_share_g", "outcome",
    ]  # fmt: skip
    assert {file.name for file in (run / "dejavu").iterdir()} == {
        "dejavu.csv",
        "summary.json",
        "confidence.png",
        "shares.png",
        "cases.png",
    }
    assert summary["query"] == "training" and "projector" in summary["representation"]
    assert summary["chance"] == 0.1 and summary["public"]["images"] == 256
    assert summary["seeds"][0]["images"] == {"candidate": 24, "independent": 24}
    scores = []
    for seed in summary["seeds"]:
        mine = [row for row in rows if row["seed"] == str(seed["seed"])]
        answers = []
        for subset, target, reference in (("candidate", "f", "g"), ("independent", "g", "f")):
            chosen = [row for row in mine if row["subset"] == subset]
            index = [int(row["index"]) for row in chosen]
            assert index == sorted(index) and len(index) == 24
            answers.append([
                (
                    np.array([row[f"prediction_{model}"] == row["label"] for row in chosen]),
                    np.array([float(row[f"confidence_{model}"]) for row in chosen]),
                )
                for model in (target, reference)
            ])  # fmt: skip
            assert [row["outcome"] for row in chosen] == outcomes(
                *(right for right, _ in answers[-1])
            ).tolist()
        target, reference, score = deja_vu(answers, [100, 20, 5])
        for place, percent in enumerate(("100", "20", "5")):
            at = seed["at"][percent]
            assert [at["acc_target"], at["acc_reference"], at["score"]] == [
                target[place],
                reference[place],
                score[place],
            ]
            assert at["interval_95"][0] <= at["score"] <= at["interval_95"][1]
        assert seed["net"]["memorized - forgotten"] == pytest.approx(
            seed["at"]["100"]["score"], abs=1e-12
        )
        assert (
            sum(seed["shares"].values()) == pytest.approx(1)
            and sum(of["images"] for of in seed["per_class"].values()) == 48
        )
        assert (
            len(seed["over_confidence"]["percent"]) == 100
            and 0 < seed["knn_accuracy_whole"]["f"] <= 1
        )
        scores.append(seed["at"]["100"]["score"])
    assert (
        summary["score"]["100"]["mean"] == pytest.approx(np.mean(scores))
        and summary["score"]["100"]["n"] == 2
    )


def test_the_summary_tells_what_the_score_is_to_be_compared_with(tmp_path):
    path = write_experiment(
        tmp_path,
        {
            "subsets.order": "shuffled",
            "training.epochs": 1,
            "scores": {"views": 3, "per_subset": 11},
        },
    )
    train_simclr.main(["--config", path])
    memorization_scores.main(["--config", path])
    run = tmp_path / "run"
    of_train = ["--dejavu.public_split", "train", "--dejavu.normalize", "true"]
    # a corner has few different votes, and so many equal confidences
    for options in (["--dejavu.query", "corner"], [], of_train):
        rows, summary = ask(path, run, "--dejavu.public_images", "150", *options)
        seed = summary["seeds"][0]
        images, subsets = (
            open_images(DataSettings(name="fake", size=16)),
            load_subsets(run / "subsets.npz"),
        )
        settings = DejaVuSettings(**summary["settings"])
        public = public_images(images, subsets, settings, torch.device("cpu"))
        counts = np.bincount(public.labels, minlength=10)
        majority = summary["majority"]
        assert (
            majority["share_of_public"] == counts.max() / 150 > 0.1
            and majority["label"] == images.classes[counts.argmax()]
        )
        assert majority["accuracy"] == np.mean(
            [int(row["label"]) == counts.argmax() for row in rows]
        )
        right = {
            model: np.array([row[f"prediction_{model}"] == row["label"] for row in rows])
            for model in ("f", "g")
        }
        candidate = np.array([row["subset"] == "candidate" for row in rows])
        target, reference = (
            np.where(candidate, right["f"], right["g"]),
            np.where(candidate, right["g"], right["f"]),
        )
        assert seed["net"]["mcnemar_p"] == mcnemar_p(target, reference)
        for name, of in seed["per_class"].items():
            chosen = np.array([images.classes[int(row["label"])] == name for row in rows])
            assert [of["images"], of["acc_target"], of["acc_reference"]] == [
                chosen.sum(),
                target[chosen].mean(),
                reference[chosen].mean(),
            ]
        assert seed["over_confidence"]["acc_target"] == pytest.approx(
            sweep(rows, "f", "g"), abs=1e-12
        )
        source = load_pair(run, 0).f
        split, queries = (
            images.test,
            torch.from_numpy(subsets.external) if options is of_train else public.rows,
        )
        bank = encode_images(source, public.split, public.rows, torch.device("cpu"))
        whole = encode_images(source, split, queries, torch.device("cpu"))
        if options is of_train:
            bank, whole = (torch.nn.functional.normalize(values, dim=1) for values in (bank, whole))
        slow = slow_knn(
            bank,
            public.labels,
            whole,
            split.labels.numpy()[queries],
            leave_out=options is not of_train,
        )
        assert seed["knn_accuracy_whole"]["f"] == pytest.approx(slow)
    scored = np.load(run / "scores/scores.npz")
    chosen = scored["subset"] == "candidate"
    score = dict(zip(scored["index"][chosen].tolist(), (scored["L_g"] - scored["L_f"])[0][chosen]))
    margin = {
        int(row["index"]): float(row["label_share_f"]) - float(row["label_share_g"])
        for row in rows
        if int(row["index"]) in score
    }
    common = sorted(score)
    tau = stats.kendalltau(
        [margin[index] for index in common], [score[index] for index in common]
    ).statistic
    assert summary["memorization_scores"]["deja_vu_and_score"]["kendall_tau"][
        "mean"
    ] == pytest.approx(tau)


def sweep(rows, target_of_candidates, target_of_independents):
    """acc_target over a sweep of confidence, from the table. Equal confidences are in order of
    index.
    """
    curves = []
    for subset, model in (
        ("candidate", target_of_candidates),
        ("independent", target_of_independents),
    ):
        mine = [row for row in rows if row["subset"] == subset]
        chosen = sorted(
            mine, key=lambda row: (-float(row[f"confidence_{model}"]), int(row["index"]))
        )
        right = [row[f"prediction_{model}"] == row["label"] for row in chosen]
        curves.append(
            [np.mean(right[: -(-percent * len(right) // 100)]) for percent in range(1, 101)]
        )
    return np.mean(curves, axis=0)


def slow_knn(bank, bank_labels, queries, labels, leave_out, k=20):
    """kNN accuracy, query by query; ties by distance, then label."""
    right = 0
    for place, (query, label) in enumerate(zip(queries.double(), labels)):
        distances = (bank.double() - query).square().sum(1)
        if leave_out:
            distances[place] = torch.inf
        nearest = distances.argsort(stable=True)[:k]
        votes = [
            (
                -(bank_labels[nearest] == c).sum(),
                distances[nearest][bank_labels[nearest] == c].sum().item(),
                c,
            )
            for c in range(10)
        ]
        right += min(votes)[2] == label
    return right / len(labels)


def test_the_summary_is_read_by_the_class_that_wrote_it(run_copy):
    path, run = run_copy
    for options in ([], ["--dejavu.reference", "crops", "--dejavu.reference_epochs", "1"]):
        _, summary = ask(path, run, *options)
        folder = run / "dejavu" / ("crops_reference_epochs_1" if options else "")
        read = DejaVuSummary.parse((folder / "summary.json").read_text())
        assert json.dumps(read.plain() | {"files": read.files}) == json.dumps(summary)
        assert bool(read.caveat) == ("classifier" in summary["seeds"][0]) == bool(options)


def test_f_against_itself_scores_exactly_nothing(run_copy, monkeypatch, capsys):
    def twice_f(run, seed, checkpoint="encoder"):
        f, g = load_pair(run.folder, seed, checkpoint)
        return Pair(f, replace(g, network=f.network), seed)

    monkeypatch.setattr(Run, "pair", twice_f)
    shutil.rmtree(run_copy[1] / "scores")
    _, summary = ask(*run_copy)
    for seed in summary["seeds"]:
        assert all(score == 0 for score in seed["over_confidence"]["score"])
        assert (
            seed["shares"]["memorized"] == seed["shares"]["forgotten"] == 0
            and seed["net"]["mcnemar_p"] == 1
        )
    assert summary["memorization_scores"] is None
    assert (
        "not compared with memorization scores: none by these settings" in capsys.readouterr().out
    )


def test_untrained_encoders_score_nothing_beyond_chance(tmp_path, monkeypatch):
    path = write_experiment(
        tmp_path,
        {
            "subsets": {"shared": 0, "candidate": 400, "independent": 400, "external": 40},
            "training.epochs": 1,
        },
    )
    train_simclr.main(["--config", path])

    def untrained(run, seed, checkpoint="encoder"):
        f, g = load_pair(run.folder, seed, checkpoint)
        return Pair(untrained_encoder(f, 7), untrained_encoder(g, 8), seed)

    monkeypatch.setattr(Run, "pair", untrained)
    _, summary = ask(path, tmp_path / "run")
    for percent in ("100", "20"):
        at = summary["seeds"][0]["at"][percent]
        low, high = at["interval_95"]
        assert abs(at["score"]) < 3 * (high - low) / (2 * 1.96) and high > low


def test_deja_vu_is_compared_with_the_scores_of_the_same_candidates(run_copy, capsys):
    path, run = run_copy
    rows, summary = ask(path, run)
    found = summary["memorization_scores"]
    assert (found["candidates"], found["top"], found["top_overlap_by_chance"]) == (24, 12, 0.5)
    with np.load(run / "scores/scores.npz") as scores:
        chosen = scores["subset"] == "candidate"
        by_score = {
            seed: dict(zip(scores["index"][chosen], (scores["L_g"] - scores["L_f"])[seed][chosen]))
            for seed in (0, 1)
        }
    margins = {
        seed: {
            int(row["index"]): float(row["label_share_f"]) - float(row["label_share_g"])
            for row in rows
            if row["subset"] == "candidate" and row["seed"] == str(seed)
        }
        for seed in (0, 1)
    }

    def overlap(one, other):
        surest = [
            set(sorted(sorted(values), key=lambda index: -values[index])[:12])
            for values in (one, other)
        ]
        return len(surest[0] & surest[1]) / 12

    pairs = [overlap(margins[seed], by_score[seed]) for seed in (0, 1)]
    assert found["deja_vu_and_score"]["top_overlap"]["mean"] == pytest.approx(np.mean(pairs))
    assert found["deja_vu_between_seeds"]["top_overlap"]["mean"] == pytest.approx(
        overlap(margins[0], margins[1])
    )
    assert found["score_between_seeds"]["top_overlap"]["mean"] == pytest.approx(
        overlap(by_score[0], by_score[1])
    )
    printed = capsys.readouterr().out
    in_common = "two rankings have this share of their first 12 in common (50.0% by chance):"
    assert f"of 24 candidates {in_common}" in printed
    spread = f"{np.mean(pairs):.1%} ± {np.std(pairs, ddof=1):.1%}"
    assert f"Deja Vu and memorization score {spread}, Kendall's tau " in printed
    share = f"{overlap(by_score[0], by_score[1]):.1%}"
    tau = f"{found['score_between_seeds']['kendall_tau']['mean']:+.2f}"
    assert f"memorization score of two seeds {share}, Kendall's tau {tau}\n" in printed


@pytest.mark.parametrize("method", ["byol", "mae"])
def test_every_method_is_asked_with_its_own_views(method, tmp_path):
    script, _, changes = METHODS[method]
    path = write_experiment(tmp_path, changes | {"training.epochs": 1})
    script.main(["--config", path])
    tables = []
    for options in (
        [],
        ["--dejavu.public", "training"],
        ["--dejavu.query", "corner"],
        ["--dejavu.normalize", "true"],
    ):
        rows, _ = ask(path, tmp_path / "run", *options)
        tables.append([(row["prediction_f"], row["confidence_f"]) for row in rows])
    assert all(tables[0] != other for other in tables[1:])


def test_public_images_of_the_training_set_are_those_that_neither_encoder_saw(run_copy):
    path, run = run_copy
    images, subsets = (
        open_images(DataSettings(name="fake", size=16)),
        load_subsets(run / "subsets.npz"),
    )
    settings = DejaVuSettings(public_split="train", k=20)
    public = public_images(images, subsets, settings, torch.device("cpu"))
    assert sorted(public.rows.tolist()) == sorted(set(range(1024)) - set(subsets.train.tolist()))
    capped = public_images(
        images, subsets, settings.model_copy(update={"public_images": 50}), torch.device("cpu")
    )
    assert len(capped.rows) == 50 and set(capped.rows.tolist()) < set(public.rows.tolist())
    _, summary = ask(path, run, "--dejavu.public_split", "train")
    assert summary["public"] == {"split": "train", "images": 1024 - 80, "held_out": 0, "k": 20}


# --- one model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["simclr", "mae"])
def test_one_encoder_is_compared_with_a_classifier_of_queries(
    method, tmp_path, monkeypatch, capsys
):
    save, drawn = Figure.savefig, []

    def watched_save(figure, *arguments, **more):
        drawn.append(" ".join(text.get_text() for text in figure.findobj(Text)))
        save(figure, *arguments, **more)

    monkeypatch.setattr(Figure, "savefig", watched_save)
    calls, train = [], attacks.train_classifier
    monkeypatch.setattr(
        attacks,
        "train_classifier",
        lambda *arguments: [calls.append(arguments), train(*arguments)][1],
    )
    script, _, changes = METHODS[method]
    asked = {"k": 20, "views": 3, "reference_epochs": 4}
    path = write_experiment(tmp_path, changes | {"training.epochs": 1, "dejavu": asked})
    script.main(["--config", path, "--role", "candidate"])  # there is no g
    one_model = ["--dejavu.reference", "crops", "--dejavu.reference_epochs", "4"]
    rows, summary = ask(path, tmp_path / "run", *one_model)
    caveat, printed = (
        "no proof of memorization: f saw 56 images, the classifier 24 (2.3 times as many)",
        capsys.readouterr().out,
    )
    assert len(drawn) == 3 and all(caveat in text and "Deja Vu" not in text for text in drawn)
    assert caveat in printed and summary["trained_on"] == {"f": 56, "reference": 24}
    assert (
        "that f and the classifier differ, which says nothing of memorization" in printed
        and "memorized" not in printed
    )
    assert (
        {row["subset"] for row in rows} == {"candidate"}
        and len(rows) == 24
        and "confidence_reference" in rows[0]
    )
    assert all(0.1 <= float(row["confidence_reference"]) <= 1 for row in rows)
    assert summary["public"] == {"split": "test", "images": 205, "held_out": 51, "k": 20}
    seed = summary["seeds"][0]
    assert 1 <= seed["classifier"]["epoch"] <= 4
    right = {
        model: np.mean([row[f"prediction_{model}"] == row["label"] for row in rows])
        for model in ("f", "reference")
    }
    assert seed["at"]["100"]["score"] == pytest.approx(right["f"] - right["reference"])
    (_, training, held_out, *_), images = (
        calls[0],
        open_images(DataSettings(name="fake", size=16)),
    )
    subsets = load_subsets(tmp_path / "run/subsets.npz")
    assert training.rows.tolist() == subsets.independent.tolist()  # which f never saw
    assert torch.equal(training.labels, images.train.labels[training.rows])
    assert torch.equal(held_out.labels, images.test.labels[held_out.rows])
    public = public_images(
        images, subsets, DejaVuSettings(**summary["settings"]), torch.device("cpu")
    )
    assert len(held_out.rows) == 51 and not set(held_out.rows.tolist()) & set(public.rows.tolist())
    first = (tmp_path / "run/dejavu/crops/dejavu.csv").read_bytes()
    ask(path, tmp_path / "run", *one_model)
    assert (tmp_path / "run/dejavu/crops/dejavu.csv").read_bytes() == first


# --- a folder of images with boxes ----------------------------------------------------------------


def test_boxes_of_a_folder_of_images(tmp_path, refusal, capsys):
    path = folder_config(tmp_path)
    train_simclr.main(["--config", path])
    subsets = load_subsets(tmp_path / "run/subsets.npz")
    attacked = [*subsets.candidate.tolist(), *subsets.independent.tolist()]
    boxes = tmp_path / "boxes.csv"
    # left parts; all of the first image
    lines = [f"{index},0,0,{4 if place else 90},90" for place, index in enumerate(attacked[1:])]
    boxes.write_text("\n".join(["index,xmin,ymin,xmax,ymax", *lines]))
    options = ["--dejavu.query", "boxes", "--dejavu.boxes", str(boxes), "--dejavu.k", "5"]
    dejavu.main(["--config", path, *options])
    (folder,) = (tmp_path / "run/dejavu").iterdir()
    assert re.fullmatch("boxes_[0-9a-f]{8}_k_5", folder.name)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seeds"][0]["dropped"] == {"without boxes": 1, "too little between boxes": 1}
    assert sum(summary["seeds"][0]["images"].values()) == 14
    clipped = summary["seeds"][0]["boxes"]["boxes went beyond their image and were clipped"]
    assert (
        clipped == 15
        and f"{clipped} boxes went beyond their image and were clipped" in capsys.readouterr().out
    )
    net = summary["seeds"][0]["net"]["memorized - forgotten"]
    # though six or seven and eight were asked about
    assert net == pytest.approx(summary["seeds"][0]["at"]["100"]["score"], abs=1e-12)
    boxes.write_text(
        "index,xmin,ymin,xmax,ymax\n" + "\n".join(f"{index},0,0,90,90" for index in attacked)
    )
    assert "leaves no part of 16 images" in refusal(dejavu.main, ["--config", path, *options])


# --- wrong use ------------------------------------------------------------------------------------


def test_scores_of_some_candidates_only_are_compared_for_those(run_copy):
    path, run = run_copy
    few = ["--scores.per_subset", "10"]
    memorization_scores.main(["--config", path, "--run", str(run), *few])
    assert ask(path, run, *few)[1]["memorization_scores"]["candidates"] == 10
    assert (run / "dejavu/scores_per_subset_10/dejavu.csv").exists()
    assert ask(path, run)[1]["memorization_scores"]["candidates"] == 24
