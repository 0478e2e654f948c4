"""Deja Vu: does the encoder know from a part of a training image what the whole image was? Labels
are inferred by neighbours, f against g.

    python dejavu.py --config configs/simclr_cifar10.yaml
    python dejavu.py --config configs/simclr_cifar10.yaml --dejavu.query corner
    python dejavu.py --config configs/simclr_cifar10.yaml --dejavu.reference crops
    python dejavu.py --config configs/simclr_cifar10.yaml --checkpoint all

Every image of S_C and S_I is asked about with a part of it; the k public images nearest to the
part, in an encoder's representation, vote for a label. Who trained on the image is the target, who
did not the reference; the Deja Vu score is how much more often the target is right. Reads the run
folder (encoder.pt of every seed and role, subsets.npz, config.yaml, scores/ if there) and the data
set. Writes into dejavu/ of the run folder: dejavu.csv, summary.json, confidence.png, shares.png and
cases.png; for another checkpoint, query or reference, and for other seeds or settings than those of
the run's config.yaml, into a folder in it, named after them. With --checkpoint all every kept
checkpoint is asked, and training_curve.png drawn. With --dejavu.reference crops f alone is needed,
and compared with a small classifier of the same parts of images that f never saw.
"""

import csv
import io
import itertools
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn

from memorization.checkpoint import encoder_file
from memorization.data.augmentations import Draw, augment, measuring_recipe, whole_images
from memorization.data.subsets import ROLES, first_by_hash
from memorization.encoder import place_of
from memorization.errors import WrongUse, escape
from memorization.figures import (
    draw_deja_vu_cases,
    draw_deja_vu_confidence,
    draw_deja_vu_curve,
    draw_deja_vu_shares,
    no_proof,
)
from memorization.machine import processes
from memorization.machine.command import one_line_errors
from memorization.machine.device import describe_machine
from memorization.machine.files import exists
from memorization.machine.resources import OTHER_DEVICE, memory_for
from memorization.measuring.crop_classifier import infer_by_classifier, train_classifier
from memorization.measuring.deja_vu import (
    OUTCOMES,
    agreement,
    deja_vu,
    deja_vu_intervals,
    infer_by_neighbors,
    mcnemar_p,
    neighbor_accuracy,
    outcomes,
    represent_public,
)
from memorization.measuring.queries import make_queries
from memorization.measuring.representations import encode_images
from memorization.normalization import normalize
from memorization.results import SUMMARY, Summary, read_summary
from memorization.run import open_run
from memorization.significance import mean_and_spread, plus_minus
from models.encoders import encoder_settings, make_encoder

ACTIONS = {
    "checkpoint": "encoder (the default), epoch_NNNN for a kept one, or all for the test over training"
}
PICTURES = ["confidence.png", "shares.png", "cases.png", "training_curve.png"]
PERCENTS = list(range(1, 101))  # of the images, the surest first
REPORTED = (100, 20, 5)
TOP = 100  # of the candidates, whose overlap with the most memorized is counted
# of the public images: with reference crops they tell when to stop training, and are no neighbours
HELD_OUT_SHARE = 0.2
REPRESENTATION = "the encoder's pooled output, which is known to show less than the projector's output that Meehan et al. search in"


@dataclass(frozen=True)
class Public:
    """The labelled public images: their Split, and the indices of the neighbours and of those held
    out, (n,) int64 each.
    """

    split: object
    rows: torch.Tensor
    held_out: torch.Tensor

    @property
    def labels(self):
        return self.split.labels.numpy()[self.rows]


@one_line_errors
def main(argv=None):
    run = open_run(__doc__, argv, "dejavu", ACTIONS)
    config, device, subsets = run.config, run.device, run.subsets
    roles = ROLES if config.dejavu.reference == "independent" else ROLES[:1]
    results = {name: run.output(checkpoint=name) for name in run.checkpoints(roles)}
    for result in results.values():
        result.check_place()
    images = run.images
    with memory_for("device", config.device, OTHER_DEVICE):
        public = public_images(images, subsets, config.dejavu, device)
        check_labels(images, subsets, public, config.dejavu)
        images = images.to(device)

    scores = {name: scores_of_candidates(run, name) for name in results}
    with memory_for("dejavu.memory_gb", config.dejavu.memory_gb):
        for name, result in results.items():
            attack_checkpoint(run, name, result, scores[name], images, public)
    if config.actions["checkpoint"] == "all" and processes.is_first():
        summaries = [
            read_summary(result.folder, result.again).plain() for result in results.values()
        ]
        with result.lock():
            draw_deja_vu_curve(summaries, result.folder / "training_curve.png")


def public_images(images, subsets, settings, device):
    """The Public images of a config, of which neither encoder saw one, decoded where they come from
    a folder.
    """
    split = images.test if settings.public_split == "test" else images.train
    labelled = np.flatnonzero(split.labels.numpy() >= 0)
    if split is images.train:
        labelled = np.setdiff1d(labelled, subsets.train)
    rows = np.sort(first_by_hash(labelled, settings.public_images, split.name))
    unbroken = images.leave_out_broken(
        *((rows, rows[:0]) if split is images.train else (rows[:0], rows))
    )
    rows = unbroken.keep(split.name, rows)
    held_out = np.empty(0, dtype=np.int64)
    if settings.reference == "crops":
        held_out = np.sort(first_by_hash(rows, round(HELD_OUT_SHARE * len(rows)), split.name))
        rows = np.setdiff1d(rows, held_out)
    if settings.k >= len(rows):
        raise WrongUse(
            f"dejavu.k: {settings.k} neighbours are to vote, but the public set has {len(rows)} images"
        )
    seen = subsets.train if split is images.train else subsets.train[:0]
    assert not np.isin(rows, seen).any() and not np.isin(held_out, seen).any(), (
        "a public image was trained on"
    )
    needed = np.concatenate([rows, held_out])
    prepared = images.prepare(
        *((needed, needed[:0]) if split is images.train else (needed[:0], needed))
    )
    return Public(
        getattr(prepared, split.name).to(device), torch.from_numpy(rows), torch.from_numpy(held_out)
    )


def check_labels(images, subsets, public, settings):
    """Raise WrongUse if an attacked image has no label, or one that no public image has, or if
    there is one class alone.
    """
    if len(np.unique(public.labels)) == 1:
        of_set = f"the {len(public.labels)} public images of the {settings.public_split} set"
        raise WrongUse(f"dejavu.public_split: {of_set} are of one class: nothing to tell")
    for subset in ("candidate", "independent"):
        labels = images.train.labels.numpy()[getattr(subsets, subset)]
        if (labels < 0).any():
            raise WrongUse(
                f"dejavu: {(labels < 0).sum()} of {len(labels)} {subset} images have no label, and there is none to infer"
            )
        absent = np.setdiff1d(labels, public.labels)
        if len(absent):
            name = images.classes[absent[0]]
            raise WrongUse(
                f"dejavu.public_split: no image of the {settings.public_split} set is of class {name!r}, as {subset} images are"
            )


def scores_of_candidates(run, checkpoint):
    """The CandidateScores of a checkpoint, or None if there are none, or no encoder g any more that
    they could be checked against.
    """
    scored = exists(run.scored(checkpoint).folder / SUMMARY)
    has_g = all(exists(encoder_file(run.folder, seed, "independent")) for seed in run.seeds)
    if not scored or (run.settings.reference == "crops" and not has_g):
        return None
    return run.candidate_scores(checkpoint)


def attack_checkpoint(run, checkpoint, result, scores, images, public):
    """Attack one checkpoint of every seed, and write its folder.

    result: its Result; scores: of `scores_of_candidates`.
    """
    config, device = run.config, run.device
    folder, start = result.folder, time.monotonic()
    attack = attack_pair if config.dejavu.reference == "independent" else attack_one_model
    found = [attack(run, seed, checkpoint, images, public) for seed in run.seeds]
    if not processes.is_first():
        return
    seconds = time.monotonic() - start
    fingerprints = {
        name: value for attacked in found for name, value in attacked["fingerprints"].items()
    }
    seeds = [
        {"seed": seed, **summarize_seed(attacked, images.classes)}
        for seed, attacked in zip(config.seeds, found)
    ]
    public_labels = np.bincount(public.labels, minlength=len(images.classes))
    attacked_labels = found[0]["rows"]["label"]
    summary = {
        "query": config.dejavu.query,
        "reference": config.dejavu.reference,
        # how many images, of f and of the classifier it is compared with
        "trained_on": found[0].get("trained_on"),
        "representation": REPRESENTATION,
        "checkpoint": {"name": checkpoint, "epoch": found[0]["epoch"]},
        "score": {str(percent): mean_and_spread([seed["at"][str(percent)]["score"] for seed in seeds]) for percent in REPORTED},
        "shares": {name: mean_and_spread([seed["shares"][name] for seed in seeds]) for name in OUTCOMES.values()},
        "chance": 1 / len(images.classes),
        "majority": {
            "label": images.classes[public_labels.argmax()],
            "share_of_public": float(public_labels.max() / public_labels.sum()),
            "accuracy": float((attacked_labels == public_labels.argmax()).mean()),
        },
        "public": {"split": public.split.name, "images": len(public.rows), "held_out": len(public.held_out), "k": config.dejavu.k},
        "seeds": seeds,
        "memorization_scores": compare_with_scores(found, scores, config.seeds),
        "settings": config.dejavu.model_dump(),
        "fingerprints": {
            **result.fingerprints, "public": public.split.fingerprint, "encoders": fingerprints,
        },
        "machine": describe_machine(device),
        "seconds": seconds,
    }  # fmt: skip
    with result.save({"dejavu.csv": table_of(found, config.seeds)}, Summary(**summary), PICTURES):
        draw_deja_vu_confidence(summary, folder / "confidence.png")
        draw_deja_vu_shares(summary, folder / "shares.png")
        draw_deja_vu_cases(found[0], images, public.split, folder / "cases.png")
    print_summary(summary, folder)


# --- attacks --------------------------------------------------------------------------------------


def attack_pair(run, seed, checkpoint, images, public):
    """f and g asked about S_C and S_I: f is the target of S_C and the reference of S_I, g the other
    way round. See `attacked`.
    """
    pair, subsets = run.pair(seed, checkpoint), run.subsets
    # In order of index, which decides between equal confidences.
    rows = np.concatenate([np.sort(subsets.candidate), np.sort(subsets.independent)])
    queries = queries_about(run, images.train, rows, seed, pair.f)
    guesses, knn = {}, {}
    for name, encoder in (("f", pair.f), ("g", pair.g)):
        guesses[name], knn[name] = guess_by_neighbors(run, encoder, queries, seed, images, public)
    found = attacked(queries, guesses, knn, images, subsets)
    return found | {"fingerprints": pair.fingerprints, "epoch": pair.epoch}


def attack_one_model(run, seed, checkpoint, images, public):
    """f asked about S_C, and a classifier of queries, trained on those of S_I, which f never saw.
    See `attacked`.
    """
    f, subsets = run.encoder(seed, "candidate", checkpoint), run.subsets
    fingerprints = {place_of(seed, "candidate"): f.weights_fingerprint}
    queries = queries_about(run, images.train, np.sort(subsets.candidate), seed, f)
    guess, knn = guess_by_neighbors(run, f, queries, seed, images, public)
    training = queries_about(run, images.train, subsets.independent, seed, f)
    held_out = queries_about(run, public.split, public.held_out.numpy(), seed, f)
    torch.manual_seed(seed)
    encoder = make_encoder(encoder_settings(name="resnet_small"), f.channels, f.size)
    network = nn.Sequential(encoder, nn.Linear(encoder.dim, len(images.classes)))
    labels = images.train.labels
    stopped = train_classifier(
        network,
        training,
        labels[training.rows],
        held_out,
        public.split.labels[held_out.rows],
        run.settings.reference_epochs,
        seed,
        run.device,
    )
    reference = infer_by_classifier(network, queries, queries.rows, labels.numpy()[queries.rows])
    guesses = {"f": guess, "reference": reference}
    found = attacked(queries, guesses, {"f": knn}, images, subsets)
    return found | {
        "fingerprints": fingerprints,
        "epoch": f.record["epoch"],
        "classifier": stopped,
        "trained_on": {
            "f": len(subsets.training_set("candidate")),
            "reference": len(training.rows),
        },
    }


def queries_about(run, split, rows, seed, encoder):
    """The Queries about some images of a split, (n,) int64."""
    return make_queries(split, torch.from_numpy(rows), encoder, run.settings, run.recipes, seed)


def guess_by_neighbors(run, encoder, queries, seed, images, public):
    """The Inference of an encoder, and its kNN accuracy on whole test images."""
    settings, device, split = run.settings, run.device, public.split

    def as_public(indices):
        if settings.public == "whole":
            return whole_images(split, indices, encoder.size, encoder.normalization)
        recipe = measuring_recipe(run.recipes, 0)
        draw = Draw(seed, "query", patch=encoder.patch)
        return augment(split, indices, recipe, encoder.normalization, draw)

    known = represent_public(
        encoder, as_public, public.rows, public.labels, settings.normalize, device
    )
    labels = images.train.labels.numpy()[queries.rows]
    guess = infer_by_neighbors(
        encoder, queries, queries.rows, labels, known, settings, len(images.classes), device
    )
    return guess, knn_on_test_images(run, encoder, known, images, public)


def knn_on_test_images(run, encoder, known, images, public):
    """kNN accuracy of whole test images in the public set as it is embedded: of the public images
    where they are test images, else of S_E.

    None where S_E has no labels.
    """
    settings, device, classes = run.settings, run.device, len(images.classes)
    of_test = public.split.name == "test"
    split, rows = (
        (public.split, public.rows)
        if of_test
        else (images.test, torch.from_numpy(run.subsets.external))
    )
    rows = rows[split.labels[rows] >= 0]
    if len(rows) == 0:
        return None
    if of_test and settings.public == "whole":
        whole = known.values
    else:
        whole = encode_images(encoder, split, rows, device).to(device)
        whole = normalize(whole, dim=1) if settings.normalize else whole
    return neighbor_accuracy(
        known,
        whole,
        split.labels.numpy()[rows],
        settings.k,
        classes,
        settings.memory_gb,
        leave_out=of_test,
    )


def attacked(queries, guesses, knn, images, subsets):
    """What was found about the images of one seed, a dict.

    rows: {"index", "subset", "label", "outcome"} of the N images; guesses: {model: Inference}, f
    first; attacks: for every attacked set the (target, reference) that `deja_vu` takes; right: of
    target and of reference, (N,) bool of all images; and what was passed in.
    """
    index = queries.rows.numpy()
    label = images.train.labels.numpy()[index]
    subset = np.where(np.isin(index, subsets.candidate), "candidate", "independent")
    first, second = guesses
    right = {name: guess.prediction == label for name, guess in guesses.items()}
    ours = subset == "candidate"  # f is the target of candidates, and the reference of independents
    right_target, right_reference = (
        np.where(ours, right[first], right[second]),
        np.where(ours, right[second], right[first]),
    )
    attacks = []
    for name, target, reference in (("candidate", first, second), ("independent", second, first)):
        chosen = subset == name
        if chosen.any():
            attacks.append(
                [
                    (right[model][chosen], guesses[model].confidence[chosen])
                    for model in (target, reference)
                ]
            )
    return {
        "rows": {"index": index, "subset": subset, "label": label, "outcome": outcomes(right_target, right_reference)},
        "queries": queries, "guesses": guesses, "knn": knn, "attacks": attacks, "right": (right_target, right_reference),
    }  # fmt: skip


# --- results --------------------------------------------------------------------------------------


def summarize_seed(found, classes):
    """What summary.json says of one seed, a dict of plain types. found: of `attacked`."""
    rows, (right_target, right_reference) = found["rows"], found["right"]
    target, reference, score = deja_vu(found["attacks"], PERCENTS)
    intervals = deja_vu_intervals(found["attacks"], REPORTED)
    subsets = list(dict.fromkeys(rows["subset"].tolist()))
    shares = {
        name: float(
            np.mean([(rows["outcome"][rows["subset"] == s] == name).mean() for s in subsets])
        )
        for name in OUTCOMES.values()
    }
    of_class = {
        name: {
            "images": int(chosen.sum()),
            "acc_target": float(right_target[chosen].mean()),
            "acc_reference": float(right_reference[chosen].mean()),
        }
        for label, name in enumerate(classes)
        if (chosen := rows["label"] == label).any()
    }
    return {
        "images": {subset: int((rows["subset"] == subset).sum()) for subset in subsets},
        "dropped": found["queries"].dropped,  # of the images that are asked about
        "boxes": found["queries"].boxes,
        "at": {
            str(percent): {
                "acc_target": float(target[percent - 1]),
                "acc_reference": float(reference[percent - 1]),
                "score": float(score[percent - 1]),
                "interval_95": interval.tolist(),
            }
            for percent, interval in zip(REPORTED, intervals)
        },
        "over_confidence": {
            "percent": PERCENTS, "acc_target": target.tolist(), "acc_reference": reference.tolist(), "score": score.tolist(),
        },
        "shares": shares,
        "net": {"memorized - forgotten": shares["memorized"] - shares["forgotten"], "mcnemar_p": mcnemar_p(right_target, right_reference)},
        "vote_ties": {name: guess.ties for name, guess in found["guesses"].items()},
        "knn_accuracy_whole": found["knn"],
        "per_class": of_class,
        **({"classifier": found["classifier"]} if "classifier" in found else {}),
    }  # fmt: skip


def compare_with_scores(found, scores, seeds):
    """How far Deja Vu and the memorization score agree about the candidates, a dict; None where
    there are no scores of at least two.

    Both rank every candidate, Deja Vu by how much more of f's vote than of the reference's goes to
    its label. Beside it the agreement of either with itself between two seeds, the ceiling, and the
    overlap expected by chance.
    """
    if scores is None:
        return None
    rows = found[0]["rows"]
    common = np.intersect1d(rows["index"][rows["subset"] == "candidate"], scores.index)
    top = min(TOP, len(common) // 2)
    if top == 0:
        return None
    places = np.searchsorted(rows["index"], common, sorter=(order := np.argsort(rows["index"])))
    margins = {}
    for seed, attacked_seed in zip(seeds, found):
        first, second = attacked_seed["guesses"].values()
        margins[seed] = (first.label_share - second.label_share)[order[places]]
    by_score = dict(zip(scores.seeds, scores.per_seed[:, np.searchsorted(scores.index, common)]))

    def between_seeds(values):
        pairs = [agreement(values[a], values[b], top) for a, b in itertools.combinations(values, 2)]
        return means_of(pairs)

    return {
        "candidates": len(common),
        "top": top,
        "deja_vu_and_score": means_of(
            [agreement(margins[seed], by_score[seed], top) for seed in margins if seed in by_score]
        ),
        "deja_vu_between_seeds": between_seeds(margins),
        "score_between_seeds": between_seeds(by_score),
        "top_overlap_by_chance": top / len(common),
    }


def means_of(agreements):
    """Mean and spread of every figure of some agreements; None where there are none."""
    return (
        {name: mean_and_spread([part[name] for part in agreements]) for name in agreements[0]}
        if agreements
        else None
    )


def table_of(found, seeds):
    """The bytes of dejavu.csv: a row for every seed and attacked image, in subset order, then
    index.
    """
    names = list(found[0]["guesses"])
    columns = [
        f"{what}_{name}" for name in names for what in ("prediction", "confidence", "label_share")
    ]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["seed", "index", "subset", "label", *columns, "outcome"])
    for seed, attacked_seed in zip(seeds, found):
        rows = attacked_seed["rows"]
        guesses = [
            getattr(attacked_seed["guesses"][name], what)
            for name in names
            for what in ("prediction", "confidence", "label_share")
        ]
        values = [rows["index"], rows["subset"], rows["label"], *guesses, rows["outcome"]]
        # "candidate" comes before "independent"
        order = np.lexsort([rows["index"], rows["subset"]])
        writer.writerows(
            (seed, *row) for row in zip(*(column[order].tolist() for column in values))
        )
    return table.getvalue().encode()


def print_summary(summary, folder):
    """A table of the scores, and what they are to be compared with."""
    public = summary["public"]
    print(
        f"\n{summary['checkpoint']['name']}: query {summary['query']}, k {public['k']} of {public['images']} public images"
    )
    caveat = no_proof(summary["trained_on"])
    names = (
        ("f", "classifier", "difference") if caveat else ("target", "reference", "Deja Vu score")
    )
    print(f"{'seed':>6} {'surest':>8} {names[0]:>9} {names[1]:>10} {names[2]:>14}   95 % interval")
    for seed in summary["seeds"]:
        for percent, at in seed["at"].items():
            low, high = at["interval_95"]
            figures = f"{at['acc_target']:>9.1%} {at['acc_reference']:>10.1%} {at['score']:>+14.1%}   {low:+.1%} to {high:+.1%}"
            print(f"{seed['seed']:>6} {percent:>6} % {figures}")
        names = dict(
            zip(
                seed["shares"],
                ("f alone", "both", "classifier alone", "neither") if caveat else seed["shares"],
            )
        )
        shares = ", ".join(f"{names[name]} {share:.1%}" for name, share in seed["shares"].items())
        meaning = (
            " that f and the classifier differ, which says nothing of memorization"
            if caveat
            else ""
        )
        print(
            f"       {shares}; McNemar's p {seed['net']['mcnemar_p']:.2g}{meaning}; vote ties {seed['vote_ties']}"
        )
        for reason, count in seed["dropped"].items():
            print(f"       {count} images dropped: {reason}")
        for what, count in seed["boxes"].items():
            if count:
                print(f"       {count} {what}")
        knn = ", ".join(
            f"{name} {share:.1%}"
            for name, share in seed["knn_accuracy_whole"].items()
            if share is not None
        )
        print(f"       kNN accuracy on whole test images: {knn}")
    if caveat:
        print(f"{caveat}; what f knows of images in general is in the difference, too")
    majority = summary["majority"]
    print(
        f"chance {summary['chance']:.1%}; always {majority['label']!r}, the most frequent public label: {majority['accuracy']:.1%}"
    )
    print_agreement(summary["memorization_scores"])
    print(f"searched in {summary['representation']}")
    print(
        f"{summary['seconds']:.0f} s; the pictures are in {escape(folder)}: confidence.png, shares.png, cases.png",
        flush=True,
    )


def print_agreement(found):
    """How alike Deja Vu and the memorization score rank candidates, and either itself between
    seeds. found: of `compare_with_scores`.
    """
    if found is None:
        print(
            "not compared with memorization scores: none by these settings, or no encoder g to check them against"
        )
        return
    by_chance = f"{found['top_overlap_by_chance']:.1%} by chance"
    print(
        f"of {found['candidates']} candidates two rankings have this share of their first {found['top']} in common ({by_chance}):"
    )
    compared = {
        "Deja Vu and memorization score": found["deja_vu_and_score"],
        "Deja Vu of two seeds": found["deja_vu_between_seeds"],
        "memorization score of two seeds": found["score_between_seeds"],
    }
    for name, alike in compared.items():
        if alike is not None:
            tau, overlap = alike["kendall_tau"], alike["top_overlap"]
            print(
                f"{name:>38} {overlap['mean']:.1%}{plus_minus(overlap, '.1%')}, Kendall's tau {tau['mean']:+.2f}{plus_minus(tau, '.2f')}"
            )


if __name__ == "__main__":
    main()
