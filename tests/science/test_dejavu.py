import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CPU, accuracy_on_surest, ask, columns_of, fake_images, write_experiment
from scipy import stats

import memorization_scores
import train_simclr
from memorization.checkpoint import load_pair, untrained_encoder
from memorization.data.subsets import load_subsets
from memorization.encoder import Pair
from memorization.measuring.attacks import public_images
from memorization.measuring.deja_vu import DejaVuSettings, deja_vu, mcnemar_p, outcomes
from memorization.measuring.representations import encode_images
from memorization.run import Run


def answer_of(table, model, rows=slice(None)):
    """Whether a model infers the labels of some rows of the table, and its confidence."""
    right = table[f"prediction_{model}"] == table["label"]
    return right[rows], table[f"confidence_{model}"][rows]


def rankings(table, run, seed):
    """The margins of Deja Vu and the memorization scores of a seed's scored candidates."""
    with np.load(run / "scores/scores.npz") as file:
        chosen = np.flatnonzero(file["subset"] == "candidate")
        chosen = chosen[file["index"][chosen].argsort()]
        index, scores = file["index"][chosen], (file["L_g"] - file["L_f"])[seed, chosen]
    rows = (table["seed"] == seed) & np.isin(table["index"], index)
    return (table["label_share_f"] - table["label_share_g"])[rows], scores


def test_the_summary_follows_from_the_table(run_copy):
    rows, summary = ask(*run_copy)
    table, scores = columns_of(rows), []
    assert summary["chance"] == 0.1 and summary["public"]["images"] == 256
    assert summary["seeds"][0]["images"] == {"candidate": 24, "independent": 24}
    for seed in summary["seeds"]:
        answers = []
        for subset, models in (("candidate", "fg"), ("independent", "gf")):
            chosen = (table["seed"] == seed["seed"]) & (table["subset"] == subset)
            assert (np.diff(table["index"][chosen]) > 0).all() and chosen.sum() == 24
            answers.append([answer_of(table, model, chosen) for model in models])
            (target, _), (reference, _) = answers[-1]
            assert (table["outcome"][chosen] == outcomes(target, reference)).all()
        for percent, values in zip(("100", "20", "5"), zip(*deja_vu(answers, [100, 20, 5]))):
            at = seed["at"][percent]
            assert (at["acc_target"], at["acc_reference"], at["score"]) == values
            assert at["interval_95"][0] <= at["score"] <= at["interval_95"][1]
        scores.append(seed["at"]["100"]["score"])
        assert seed["net"]["memorized - forgotten"] == pytest.approx(scores[-1], abs=1e-12)
        assert sum(seed["shares"].values()) == pytest.approx(1)
        assert sum(of["images"] for of in seed["per_class"].values()) == 48
        assert len(seed["over_confidence"]["percent"]) == 100
        assert 0 < seed["knn_accuracy_whole"]["f"] <= 1
    assert summary["score"]["100"]["mean"] == pytest.approx(np.mean(scores))
    assert summary["score"]["100"]["n"] == 2


@pytest.fixture(scope="module")
def shuffled_run(tmp_path_factory):
    """(config path, run folder) of a pair of which 11 candidates are scored."""
    folder, scores = tmp_path_factory.mktemp("shuffled"), {"views": 3, "per_subset": 11}
    changes = {"subsets.order": "shuffled", "training.epochs": 1, "scores": scores}
    path = write_experiment(folder, changes)
    train_simclr.main(["--config", path])
    memorization_scores.main(["--config", path])
    return path, folder / "run"


# a corner has few different votes, and so many equal confidences
QUERIES = {
    "corner": ["--dejavu.query", "corner"],
    "training": [],
    "of_train": ["--dejavu.public_split", "train", "--dejavu.normalize", "true"],
}


@pytest.fixture(scope="module", params=QUERIES)
def asked(request, shuffled_run):
    """The table, the summary and the public images of an attack on the shuffled run."""
    path, run = shuffled_run
    rows, summary = ask(path, run, "--dejavu.public_images", "150", *QUERIES[request.param])
    settings, subsets = DejaVuSettings(**summary["settings"]), load_subsets(run / "subsets.npz")
    return columns_of(rows), summary, public_images(fake_images(16), subsets, settings, CPU)


def test_the_majority_is_the_most_frequent_public_label(asked):
    table, summary, public = asked
    counts = np.bincount(public.labels, minlength=10)
    label, share = public.classes[counts.argmax()], counts.max() / 150
    accuracy = np.mean(table["label"] == counts.argmax())
    assert summary["majority"] == {"label": label, "share_of_public": share, "accuracy": accuracy}
    assert share > 0.1


def test_target_and_reference_are_compared_image_by_image_and_class_by_class(asked):
    table, summary, public = asked
    (seed,), candidate = summary["seeds"], table["subset"] == "candidate"
    (f, _), (g, _) = answer_of(table, "f"), answer_of(table, "g")
    target, reference = np.where(candidate, f, g), np.where(candidate, g, f)
    assert seed["net"]["mcnemar_p"] == mcnemar_p(target, reference)
    for name, of in seed["per_class"].items():
        rows = table["label"] == public.classes.index(name)
        accuracies = target[rows].mean(), reference[rows].mean()
        assert (of["images"], of["acc_target"], of["acc_reference"]) == (rows.sum(), *accuracies)


def test_accuracy_over_confidence_is_that_of_the_surest(asked):
    table, summary, _ = asked
    curves = []
    for model, subset in (("f", "candidate"), ("g", "independent")):
        answer = answer_of(table, model, table["subset"] == subset)
        curves.append([accuracy_on_surest(*answer, percent) for percent in range(1, 101)])
    found = summary["seeds"][0]["over_confidence"]["acc_target"]
    assert found == pytest.approx(np.mean(curves, axis=0), abs=1e-12)


def test_whole_test_images_are_told_by_their_neighbours_other_than_themselves(asked, shuffled_run):
    (_, summary, public), run = asked, shuffled_run[1]
    f, split, rows = load_pair(run, 0).f, public.split, public.rows
    bank = whole = encode_images(f, split, rows, CPU).double()
    if split.name == "train":
        split, rows = fake_images(16).test, torch.tensor(load_subsets(run / "subsets.npz").external)
        whole = F.normalize(encode_images(f, split, rows, CPU).double(), dim=1)
        bank = F.normalize(bank, dim=1)
    distances = (whole[:, None] - bank).square().sum(2)
    if whole is bank:
        distances.fill_diagonal_(torch.inf)
    nearest = distances.argsort(dim=1, stable=True)[:, :20]
    votes = F.one_hot(torch.from_numpy(public.labels)[nearest], 10)  # (n, k, classes)
    sums = (votes * distances.gather(1, nearest)[:, :, None]).sum(1)
    elected = np.lexsort((sums, -votes.sum(1)))[:, 0]  # most votes, then nearest, then lowest
    accuracy = np.mean(elected == split.labels[rows].numpy())
    assert summary["seeds"][0]["knn_accuracy_whole"]["f"] == pytest.approx(accuracy)


def test_the_margins_of_the_scored_candidates_are_ranked_against_their_scores(asked, shuffled_run):
    tau = stats.kendalltau(*rankings(asked[0], shuffled_run[1], 0)).statistic
    found = asked[1]["memorization_scores"]["deja_vu_and_score"]["kendall_tau"]
    assert found["mean"] == pytest.approx(tau)


def test_deja_vu_is_compared_with_the_scores_of_the_same_candidates(run_copy):
    rows, summary = ask(*run_copy)
    found = summary["memorization_scores"]
    assert (found["candidates"], found["top"], found["top_overlap_by_chance"]) == (24, 12, 0.5)
    margins, scores = zip(*(rankings(columns_of(rows), run_copy[1], seed) for seed in (0, 1)))

    def overlap(one, other):
        surest = [set(np.argsort(-values, kind="stable")[:12]) for values in (one, other)]
        return len(surest[0] & surest[1]) / 12

    both = [overlap(*of_seed) for of_seed in zip(margins, scores)]
    spread = {"mean": np.mean(both), "std": np.std(both, ddof=1), "n": 2}
    assert found["deja_vu_and_score"]["top_overlap"] == pytest.approx(spread)
    for name, values in (("deja_vu", margins), ("score", scores)):
        between_seeds = found[f"{name}_between_seeds"]["top_overlap"]["mean"]
        assert between_seeds == pytest.approx(overlap(*values))


def test_f_against_itself_scores_exactly_nothing(run_copy, monkeypatch):
    def f_twice(run, seed, checkpoint):
        f, g = load_pair(run.folder, seed, checkpoint)
        return Pair(f, replace(g, network=f.network), seed)

    monkeypatch.setattr(Run, "pair", f_twice)
    shutil.rmtree(run_copy[1] / "scores")
    _, summary = ask(*run_copy)
    assert summary["memorization_scores"] is None
    for seed in summary["seeds"]:
        assert not any(seed["over_confidence"]["score"])
        assert seed["shares"]["memorized"] == seed["shares"]["forgotten"] == 0
        assert seed["net"]["mcnemar_p"] == 1


def test_untrained_encoders_score_nothing_beyond_chance(tmp_path, monkeypatch):
    subsets = {"shared": 0, "candidate": 400, "independent": 400, "external": 40}
    path = write_experiment(tmp_path, {"subsets": subsets, "training.epochs": 1})
    train_simclr.main(["--config", path])
    f, g = load_pair(tmp_path / "run", 0)
    untrained = Pair(untrained_encoder(f, 7), untrained_encoder(g, 8), 0)
    monkeypatch.setattr(Run, "pair", lambda *_: untrained)
    _, summary = ask(path, tmp_path / "run")
    for percent in ("100", "20"):
        at = summary["seeds"][0]["at"][percent]
        low, high = at["interval_95"]
        assert abs(at["score"]) < 3 * (high - low) / (2 * 1.96) and high > low


def test_public_images_of_the_training_set_are_those_that_neither_encoder_saw(run_copy):
    path, run = run_copy
    images, subsets = fake_images(16), load_subsets(run / "subsets.npz")
    settings = DejaVuSettings(public_split="train", k=20)
    public = public_images(images, subsets, settings, CPU).rows.tolist()
    assert sorted(public) == sorted(set(range(1024)) - set(subsets.train.tolist()))
    settings = settings.model_copy(update={"public_images": 50})
    capped = public_images(images, subsets, settings, CPU).rows.tolist()
    assert len(capped) == 50 and set(capped) < set(public)
    _, summary = ask(path, run, "--dejavu.public_split", "train")
    assert summary["public"] == {"split": "train", "images": 1024 - 80, "held_out": 0, "k": 20}


# --- one model ------------------------------------------------------------------------------------


def test_one_encoder_is_compared_with_a_classifier_of_queries(one_model):
    table, summary = columns_of(one_model.rows), one_model.summary
    assert summary["trained_on"] == {"f": 56, "reference": 24}
    assert summary["public"] == {"split": "test", "images": 205, "held_out": 51, "k": 20}
    assert set(table["subset"]) == {"candidate"} and len(table["subset"]) == 24
    seed = summary["seeds"][0]
    assert 1 <= seed["classifier"]["epoch"] <= 4
    (f, _), (reference, confidence) = answer_of(table, "f"), answer_of(table, "reference")
    assert confidence.min() >= 0.1 and confidence.max() <= 1
    assert seed["at"]["100"]["score"] == pytest.approx(f.mean() - reference.mean())


def test_the_classifier_is_trained_on_images_that_f_never_saw_nor_votes_with(one_model):
    images, subsets = fake_images(16), load_subsets(one_model.run / "subsets.npz")
    _, training, held_out, *_ = one_model.training
    assert training.rows.tolist() == subsets.independent.tolist()
    assert torch.equal(training.labels, images.train.labels[training.rows])
    assert torch.equal(held_out.labels, images.test.labels[held_out.rows])
    settings = DejaVuSettings(**one_model.summary["settings"])
    public = public_images(images, subsets, settings, CPU)
    assert len(held_out.rows) == 51 and not set(held_out.rows.tolist()) & set(public.rows.tolist())
