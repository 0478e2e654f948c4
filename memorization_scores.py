"""Score every image of a trained run: how much better f aligns its views than g does. Positive
means f memorized it.

    python memorization_scores.py --config configs/simclr_cifar10.yaml
    python memorization_scores.py --config configs/simclr_cifar10.yaml --checkpoint epoch_0100
    python memorization_scores.py --config configs/simclr_cifar10.yaml --checkpoint all

Reads the run folder (encoder.pt of every seed and role, subsets.npz, config.yaml) and the data set.
Writes into scores/ of the run folder: scores.csv, scores.npz, scores.mat, summary.json,
histogram.png, scatter.png and gallery.png; for another checkpoint, representation, augmentation or
precision, and for other seeds or settings than those of the run's config.yaml, into a folder in it,
named after them.

With --checkpoint all every kept checkpoint is scored, and training_curve.png drawn.
"""

import csv
import hashlib
import io
import time

import numpy as np
import scipy.io
import torch
from scipy import stats

from memorization.alignment import (
    encoder_distances,
    jackknife_error,
    mean_over_pairs,
    memorization_score,
)
from memorization.checkpoint import folder_of
from memorization.data.augmentations import Draw, augment_all, measuring_recipe
from memorization.data.confounders import warn_of_confounders
from memorization.data.subsets import SUBSETS, first_by_hash
from memorization.encoder import Pair
from memorization.errors import WrongUse, escape
from memorization.figures import draw_gallery, draw_histogram, draw_scatter, draw_training_curve
from memorization.machine import processes
from memorization.machine.command import one_line_errors
from memorization.machine.device import (
    describe_machine,
    uses_bf16,
    warn_of_emulation,
)
from memorization.machine.files import exists
from memorization.machine.resources import OTHER_DEVICE, memory_for, print_estimate, seconds_of
from memorization.measuring.scores import FORMAT
from memorization.results import Summary, read_summary
from memorization.run import open_run
from memorization.significance import (
    bootstrap_interval,
    describe,
    one_sample_test,
    paired_test,
    welch_test,
)
from memorization.training import read_log

ACTIONS = {
    "checkpoint": "encoder (the default), epoch_NNNN for a kept one, or all for the score over training"
}
COLUMNS = [
    "index",
    "split",
    "subset",
    "label",
    "alignment_loss_f",
    "alignment_loss_g",
    "score",
    "score_range",
    "score_ratio",
    "stderr",
]
# One-sided tests between subsets, (greater, smaller), and what the paper expects of each subset
# against 0.
COMPARISONS = [
    ("candidate", "shared"),
    ("candidate", "external"),
    ("shared", "independent"),
    ("external", "independent"),
    ("candidate", "independent"),
]
PICTURES = ["histogram.png", "scatter.png", "gallery.png", "training_curve.png"]
LONG = 20  # batches from which on one is tried first, to tell what all will take
CHECKED = 64  # images of each subset scored in fp32 too, to tell how far scores in bf16 are off
BYTES_A_ROW = 600  # of scores.csv, scores.npz and scores.mat together, about
AGAINST_ZERO = {
    "shared": "two-sided",
    "candidate": "greater",
    "independent": "less",
    "external": "two-sided",
}


@one_line_errors
def main(argv=None):
    run = open_run(__doc__, argv, "scores", ACTIONS)
    config, device, subsets = run.config, run.device, run.subsets
    results = {name: run.output(checkpoint=name) for name in run.checkpoints()}
    for result in results.values():
        result.check_place()
    images = run.images
    warn_of_confounders(subsets, images, config.subsets)
    with memory_for("device", config.device, OTHER_DEVICE):
        images = images.to(device)
    warn_of_emulation("scores.precision", config.scores.precision, device)

    logs = training_logs(config) if config.actions["checkpoint"] == "all" else None
    for name, result in results.items():
        score_checkpoint(name, result, run.pairs(name), images, subsets, config, device)
    if logs and processes.is_first():
        summaries = [
            read_summary(result.folder, result.again).plain() for result in results.values()
        ]
        with result.lock():
            draw_training_curve(summaries, logs, result.folder / "training_curve.png")


def score_checkpoint(checkpoint, result, pairs, images, subsets, config, device):
    """Score one checkpoint of every seed, and write its folder. result: its Result."""
    encoders = {name: value for pair in pairs for name, value in pair.fingerprints.items()}
    rows = chosen_rows(subsets, images, config.scores.per_subset)
    with memory_for("scores.batch_size", config.scores.batch_size):
        print_plan(pairs, rows, images, config, device)
        start = time.monotonic()
        losses = []
        for pair in pairs:
            losses.append(score_pair(pair, rows, images, config, device))
            check_losses(*losses[-1][:2], pair)
        seconds = time.monotonic() - start
        error = None
        if config.scores.precision != "fp32":
            error = error_of_precision(losses[0], pairs[0], rows, images, config, device)
    if not processes.is_first():
        return
    scores = combine(rows, *(np.stack(parts) for parts in zip(*losses)))
    epoch = pairs[0].epoch
    summary = {
        "format": FORMAT,
        **summarize(scores, config.seeds),
        "checkpoint": {"name": checkpoint, "epoch": epoch},
        "settings": config.scores.model_dump(),
        "error_of_precision": error,
        "fingerprints": {
            "subsets": subsets.fingerprint,
            "data": subsets.data,
            "encoders": encoders,
        },
        "machine": describe_machine(device),
        "seconds": seconds,
        "images_per_second": len(rows["index"]) * len(config.seeds) / seconds,
    }
    files = files_of(scores)
    summary["fingerprints"]["scores"] = hashlib.sha256(files["scores.npz"]).hexdigest()
    folder = result.folder
    with result.save(files, Summary(**summary), PICTURES):
        draw_histogram(scores, folder / "histogram.png")
        draw_scatter(scores, folder / "scatter.png")
        draw_gallery(scores, images, folder / "gallery.png")
    print_summary(summary, folder)


def print_plan(pairs, rows, images, config, device):
    """What a long scoring will take, from a batch on trial."""
    images_to_score = len(rows["index"]) * len(config.seeds)
    if images_to_score < LONG * config.scores.batch_size:
        return
    pair = pairs[0]
    batch = torch.from_numpy(rows["index"][rows["split"] == "train"][: config.scores.batch_size])
    seconds = seconds_of(lambda: score_batch(pair, images.train, batch, config), device)
    seconds *= images_to_score / len(batch) / processes.count()
    what = f"scoring {images_to_score} images by {config.scores.views} views through two encoders"
    print_estimate(what, seconds, device, BYTES_A_ROW * len(rows["index"]), config.folder)


def score_pair(pair, rows, images, config, device):
    """L_align of f and of g, and the jackknife error of their difference, for every row: three (N,)
    float64 arrays.
    """
    pair = Pair(*(encoder.to(device) for encoder in pair), pair.seed)
    # Rows are in subset order: those of the training set come before those of the test set.
    indices = {
        split: torch.from_numpy(rows["index"][rows["split"] == split.name])
        for split in (images.train, images.test)
    }
    batches = [
        (split, batch)
        for split, of_split in indices.items()
        for batch in of_split.split(config.scores.batch_size)
    ]

    def scored(batch):
        # one transfer: a GPU waits for each
        measured = torch.stack(score_batch(pair, *batch, config)).cpu()
        for encoder, losses in zip(pair, measured):
            if not losses.isfinite().all():
                raise WrongUse(f"{encoder.name}: its representations are not finite")
        return measured

    return tuple(
        torch.cat(processes.map_parts(scored, batches, f"scoring seed {pair.seed}"), dim=1)
        .double()
        .numpy()
    )


def error_of_precision(losses, pair, rows, images, config, device):
    """How far the scores of a seed are off those in fp32, for some images of every subset: a dict
    of plain types.

    losses: of `score_pair`, for all rows. score_error is a
    score less that in fp32; beside it stands the median standard error that the choice of views
    leaves in a score.
    """
    of_subsets = [np.flatnonzero(rows["subset"] == subset) for subset in SUBSETS]
    checked = np.concatenate(
        [places[:: max(1, len(places) // CHECKED)][:CHECKED] for places in of_subsets]
    )
    exact = config.model_copy(
        update={"scores": config.scores.model_copy(update={"precision": "fp32"})}
    )
    loss_f, loss_g, errors = score_pair(
        pair, {name: values[checked] for name, values in rows.items()}, images, exact, device
    )
    score, rough = (
        memorization_score(loss_f, loss_g),
        memorization_score(losses[0], losses[1])[checked],
    )
    off = rough - score
    return {
        "against": "fp32",
        "seed": pair.seed,
        "score_error": {
            "n": len(off),
            "mean": float(off.mean()),
            "std": float(off.std(ddof=1)),
            "largest": float(np.abs(off).max()),
        },
        "standard_error_of_scores": float(np.median(errors)),
        "rank_correlation": float(stats.spearmanr(rough, score).statistic)
        if np.ptp(rough) and np.ptp(score)
        else None,
    }


def check_losses(losses_f, losses_g, pair):
    """Raise WrongUse if one encoder's losses of all scored images, (N,), show that nothing can be
    measured.

    A single image may well have views that are all alike, such as one of a single colour.
    """
    for encoder, losses in zip(pair, (losses_f, losses_g)):
        if not losses.any():
            raise WrongUse(
                f"{encoder.name}: all views are represented alike: the recipe has no chance in it, or it collapsed"
            )


@torch.inference_mode()
def score_batch(pair, split, indices, config):
    """L_align of f and of g, and the jackknife error of their difference, (B,) each."""
    recipes = config.scores.augmentation or config.augmentation.views
    recipes = [measuring_recipe(recipes, view) for view in range(config.scores.views)]
    views = augment_all(
        split,
        indices,
        recipes,
        pair.f.normalization,
        Draw(pair.seed, "scoring", patch=pair.f.patch),
    )
    in_bf16 = uses_bf16(config.scores.precision, split.device)
    with torch.autocast(split.device.type, dtype=torch.bfloat16, enabled=in_bf16):
        # the same views through f and g:
        distances_f = encoder_distances(pair.f.network, views, config.scores.representation)
        # their noise cancels in the difference
        distances_g = encoder_distances(pair.g.network, views, config.scores.representation)
    return (
        mean_over_pairs(distances_f),
        mean_over_pairs(distances_g),
        jackknife_error(distances_f, distances_g),
    )


def chosen_rows(subsets, images, per_subset):
    """The images to score, in subset order, then by index: a dict of (N,) arrays index, split,
    subset and label.
    """
    rows = {"index": [], "split": [], "subset": [], "label": []}
    for subset, split in SUBSETS.items():
        indices = np.sort(first_by_hash(getattr(subsets, subset), per_subset, split))
        rows["index"].append(indices)
        rows["split"].append(np.full(len(indices), split))
        rows["subset"].append(np.full(len(indices), subset))
        rows["label"].append(getattr(images, split).labels.numpy()[indices])
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def combine(rows, losses_f, losses_g, errors):
    """All that is known of every image, a dict of (N,) arrays, and per seed "L_f", "L_g" and
    "jackknife" (S, N).

    losses_f, losses_g, errors: (S, N). Losses and scores are means over the seeds. The standard
    error of a score is the jackknife's over views with one seed; with several, each with views of
    its own, that of their mean.
    """
    per_seed = memorization_score(losses_f, losses_g)  # (S, N)
    loss_f, loss_g = losses_f.mean(0), losses_g.mean(0)
    score = memorization_score(loss_f, loss_g)
    seeds = len(per_seed)
    return rows | {
        "alignment_loss_f": loss_f,
        "alignment_loss_g": loss_g,
        "score": score,
        # f against itself: every score is 0
        "score_range": score / (score.max() - score.min() or 1.0),
        "score_ratio": np.divide(
            per_seed,
            losses_g + losses_f,
            out=np.zeros_like(per_seed),
            where=losses_g + losses_f > 0,
        ).mean(0),
        "stderr": per_seed.std(0, ddof=1) / seeds**0.5 if seeds > 1 else errors[0],
        "L_f": losses_f,
        "L_g": losses_g,
        "jackknife": errors,
    }


def summarize(scores, seeds):
    """The statistics of summary.json, a dict of plain types."""
    of = {name: scores["score"][scores["subset"] == name] for name in SUBSETS}
    # disjoint halves have no shared images
    of = {name: values for name, values in of.items() if len(values)}
    summary = {
        "seeds": list(seeds),
        "subsets": {
            name: {
                "raw": describe(values)
                | {"top_tenth_mean": float(np.sort(values)[-max(1, len(values) // 10) :].mean())},
                "range": describe(scores["score_range"][scores["subset"] == name]),
                "ratio": describe(scores["score_ratio"][scores["subset"] == name]),
            }
            for name, values in of.items()
        },
        "given_this_pair": {
            "meaning": "tests over samples: they hold for these encoders, not for pairs in general",
            "welch": {
                f"{a} > {b}": welch_test(of[a], of[b])
                for a, b in COMPARISONS
                if a in of and b in of
            },
            "against_zero": {
                name: {"alternative": AGAINST_ZERO[name]}
                | one_sample_test(of[name], AGAINST_ZERO[name])
                for name in of
            },
        },
        "offset_on_unseen_images": float(of["external"].mean()),
        "free_of_the_offset": {
            "candidate - external": contrast(of["candidate"], of["external"], weight=1.0),
            "(candidate - independent) / 2": contrast(
                of["candidate"], of["independent"], weight=0.5
            ),
        },
    }
    if len(seeds) > 1:
        per_seed = memorization_score(scores["L_f"], scores["L_g"])  # (S, N)
        means = {name: per_seed[:, scores["subset"] == name].mean(1) for name in of}
        summary["over_seeds"] = {
            "means": {name: values.tolist() for name, values in means.items()},
            "paired": {
                f"{a} > {b}": paired_test(means[a], means[b])
                for a, b in COMPARISONS
                if a in of and b in of
            },
        }
    return summary


def contrast(first, second, weight):
    """The weighted difference of two subsets' means, with its bootstrap interval."""

    def difference(a, b, axis=-1):
        return weight * (a.mean(axis) - b.mean(axis))

    return {
        "value": float(difference(first, second)),
        "interval_95": bootstrap_interval(difference, first, second),
    }


def files_of(scores):
    """{name: bytes} of scores.csv, scores.npz and scores.mat."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(zip(*(scores[column].tolist() for column in COLUMNS)))
    arrays = io.BytesIO()
    np.savez(
        arrays,
        **{
            name: scores[name]
            for name in ("index", "split", "subset", "label", "L_f", "L_g", "jackknife")
        },
    )
    matlab = io.BytesIO()
    as_cells = {name: scores[name].astype(object) for name in ("split", "subset")}
    scipy.io.savemat(matlab, scores | as_cells, oned_as="column")
    return {
        "scores.csv": table.getvalue().encode(),
        "scores.npz": arrays.getvalue(),
        "scores.mat": matlab.getvalue(),
    }


def print_summary(summary, folder):
    """A table of the subsets and the tests."""
    print(
        f"\n{'subset':>12} {'n':>7} {'mean score':>12} {'std. error':>11} {'range scale':>12} {'ratio':>9}"
    )
    for name, scales in summary["subsets"].items():
        raw = scales["raw"]
        means = f"{raw['mean']:>12.5f} {raw['standard_error']:>11.5f} {scales['range']['mean']:>12.4f} {scales['ratio']['mean']:>9.4f}"
        print(f"{name:>12} {raw['n']:>7} {means}")
    print(
        f"\noffset of this pair on unseen images (mean of external): {summary['offset_on_unseen_images']:.5f}"
    )
    for name, difference in summary["free_of_the_offset"].items():
        low, high = difference["interval_95"]
        print(f"{name:>32}: {difference['value']:.5f}  (95 % interval {low:.5f} to {high:.5f})")
    print("\ngiven this pair, one-sided Welch tests:")
    for name, test in summary["given_this_pair"]["welch"].items():
        print(f"{name:>32}: t {test['t']:.2f}  p {test['p']:.2g}  Cohen's d {test['d']:.2f}")
    if "over_seeds" in summary:
        print(f"\nover {len(summary['seeds'])} seeds, paired t tests of the means:")
        for name, test in summary["over_seeds"]["paired"].items():
            print(
                f"{name:>32}: t {test['t']:.2f}  p {test['p']:.2g}  mean difference {test['mean_difference']:.5f}"
            )
    if summary["error_of_precision"]:
        precision = summary["settings"]["precision"]
        off, views = (
            summary["error_of_precision"][name]
            for name in ("score_error", "standard_error_of_scores")
        )
        print(
            f"\n{precision}, against fp32 on {off['n']} images of one seed: scores are off by {off['mean']:.2g} on average,"
        )
        print(
            f"std {off['std']:.2g}, at most {off['largest']:.2g}, where the choice of views leaves a standard error of {views:.2g}"
        )
    pictures = f"{escape(folder)}: gallery.png, histogram.png, scatter.png"
    print(
        f"\n{summary['images_per_second']:.0f} images/s; the pictures are in {pictures}", flush=True
    )


def training_logs(config):
    """The lines of log.jsonl of every f, a list for each seed."""
    logs = [folder_of(config.folder, seed, "candidate") / "log.jsonl" for seed in config.seeds]
    for log in logs:
        if not exists(log):
            raise WrongUse(f"--checkpoint all: {log} is missing")
    return [read_log(log) for log in logs]


if __name__ == "__main__":
    main()
