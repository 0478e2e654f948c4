"""Scores of the four subsets: which images are scored, the table of their scores, and its files."""

import csv
import io
from typing import Annotated

import numpy as np
import pydantic
import scipy.io
from scipy import stats

from memorization.alignment import memorization_score
from memorization.data.subsets import SUBSETS, first_by_hash
from memorization.fields import Distinct, Seed
from memorization.measuring.scores import ImageScores, score_images
from memorization.results import Checkpoint, Number, Summary
from memorization.significance import (
    bootstrap_interval,
    describe,
    one_sample_test,
    paired_test,
    welch_test,
)

FORMAT = "memorization scores 1"  # of summary.json and scores.npz
COLUMNS = [
    "index", "split", "subset", "label", "alignment_loss_f", "alignment_loss_g", "score",
    "score_range", "score_ratio", "stderr",
]  # fmt: skip
ARRAYS = ("index", "split", "subset", "label", "L_f", "L_g", "jackknife")  # of scores.npz
# One-sided tests between subsets: (greater, smaller).
COMPARISONS = [
    ("candidate", "shared"),
    ("candidate", "external"),
    ("shared", "independent"),
    ("external", "independent"),
    ("candidate", "independent"),
]
# What the paper expects of the mean of each subset against 0.
AGAINST_ZERO = {
    "shared": "two-sided",
    "candidate": "greater",
    "independent": "less",
    "external": "two-sided",
}
MEANING = "tests over samples: they hold for these encoders, not for pairs in general"
TOP = 10  # the mean of the highest tenth of a subset is reported
CHECKED = 64  # images of each subset that are scored in fp32, too, to check scores in bf16


class ScoresSummary(Summary):
    """What summary.json says of scores."""

    format: str | None = None
    seeds: Annotated[list[Annotated[Seed, pydantic.Strict()]], Distinct]
    subsets: dict[str, dict[str, dict[str, Number]]]  # of a subset, on a scale, a statistic
    given_this_pair: dict
    offset_on_unseen_images: Number
    free_of_the_offset: dict[str, dict]
    over_seeds: dict | None = None  # with several seeds
    checkpoint: Checkpoint
    settings: dict
    error_of_precision: dict | None = None
    fingerprints: dict
    machine: dict
    seconds: Number
    images_per_second: Number


def rows_to_score(subsets, images, per_subset):
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


def score_rows(pair, images, rows, recipes, scoring):
    """The ImageScores of rows by one pair; see `score_images`.

    images: Images on the device. rows: of `rows_to_score`, those of the training set first.
    """
    parts = []
    for split in (images.train, images.test):
        indices = rows["index"][rows["split"] == split.name]
        parts.append(score_images(pair.f, pair.g, split, indices, recipes, scoring))
    names = ("loss_f", "loss_g", "error")
    return ImageScores(*(np.concatenate([getattr(part, n) for part in parts]) for n in names))


def error_of_precision(scores, pair, images, rows, settings, of_training):
    """How far the scores of a pair are off those in fp32, for some images of every subset: a dict
    of plain types.

    scores: of `score_rows`; settings: the ScoreSettings by which they were scored; of_training: the
    recipes of training. score_error is a score less that in fp32; beside it stands the median
    standard error that the choice of views leaves in a score.
    """
    checked = []
    for subset in SUBSETS:
        places = np.flatnonzero(rows["subset"] == subset)
        checked.append(places[:: max(1, len(places) // CHECKED)][:CHECKED])
    checked = np.concatenate(checked)
    in_fp32 = settings.model_copy(update={"precision": "fp32"}).scoring(pair.seed)
    some_rows = {name: values[checked] for name, values in rows.items()}
    exact = score_rows(pair, images, some_rows, settings.recipes(of_training), in_fp32)
    rough = scores.score[checked]
    off = rough - exact.score
    correlation = None
    if np.ptp(rough) and np.ptp(exact.score):
        correlation = float(stats.spearmanr(rough, exact.score).statistic)
    return {
        "against": "fp32",
        "seed": pair.seed,
        "score_error": {
            "n": len(off),
            "mean": float(off.mean()),
            "std": float(off.std(ddof=1)),
            "largest": float(np.abs(off).max()),
        },
        "standard_error_of_scores": float(np.median(exact.error)),
        "rank_correlation": correlation,
    }


def table_of_scores(rows, scores):
    """All that is known of every row: a dict of (N,) arrays, and per seed "L_f", "L_g" and
    "jackknife" (S, N).

    scores: the ImageScores of every seed. Losses and scores are means over the seeds. The standard
    error of a score is the jackknife's over views with one seed. With several seeds, which score by
    different views, it is that of their mean.
    """
    losses_f = np.stack([of_seed.loss_f for of_seed in scores])  # (S, N)
    losses_g = np.stack([of_seed.loss_g for of_seed in scores])
    errors = np.stack([of_seed.error for of_seed in scores])
    per_seed = memorization_score(losses_f, losses_g)
    loss_f, loss_g = losses_f.mean(0), losses_g.mean(0)
    score = memorization_score(loss_f, loss_g)
    span = score.max() - score.min() or 1.0  # f against itself: every score is 0
    sums = losses_g + losses_f
    ratios = np.divide(per_seed, sums, out=np.zeros_like(per_seed), where=sums > 0)
    seeds = len(scores)
    return rows | {
        "alignment_loss_f": loss_f,
        "alignment_loss_g": loss_g,
        "score": score,
        "score_range": score / span,
        "score_ratio": ratios.mean(0),
        "stderr": per_seed.std(0, ddof=1) / seeds**0.5 if seeds > 1 else errors[0],
        "L_f": losses_f,
        "L_g": losses_g,
        "jackknife": errors,
    }


def summarize(table):
    """The statistics of summary.json, a dict of plain types. table: of `table_of_scores`."""
    of, subsets = {}, {}
    for name in SUBSETS:
        rows = table["subset"] == name
        if not rows.any():  # disjoint halves have no shared images
            continue
        of[name] = table["score"][rows]
        top = np.sort(of[name])[-max(1, len(of[name]) // TOP) :]
        subsets[name] = {
            "raw": describe(of[name]) | {"top_tenth_mean": float(top.mean())},
            "range": describe(table["score_range"][rows]),
            "ratio": describe(table["score_ratio"][rows]),
        }
    compared = {f"{a} > {b}": (a, b) for a, b in COMPARISONS if a in of and b in of}
    against_zero = {}
    for name, alternative in AGAINST_ZERO.items():
        if name in of:
            test = one_sample_test(of[name], alternative)
            against_zero[name] = {"alternative": alternative} | test
    candidate, independent, external = of["candidate"], of["independent"], of["external"]
    statistics = {
        "subsets": subsets,
        "given_this_pair": {
            "meaning": MEANING,
            "welch": {name: welch_test(of[a], of[b]) for name, (a, b) in compared.items()},
            "against_zero": against_zero,
        },
        "offset_on_unseen_images": float(external.mean()),
        "free_of_the_offset": {
            "candidate - external": _contrast(candidate, external, weight=1.0),
            "(candidate - independent) / 2": _contrast(candidate, independent, weight=0.5),
        },
    }
    if len(table["L_f"]) > 1:
        per_seed = memorization_score(table["L_f"], table["L_g"])  # (S, N)
        means = {name: per_seed[:, table["subset"] == name].mean(1) for name in of}
        statistics["over_seeds"] = {
            "means": {name: values.tolist() for name, values in means.items()},
            "paired": {name: paired_test(means[a], means[b]) for name, (a, b) in compared.items()},
        }
    return statistics


def _contrast(first, second, weight):
    """The weighted difference of two subsets' means, with its bootstrap interval."""

    def difference(a, b, axis=-1):
        return weight * (a.mean(axis) - b.mean(axis))

    interval = bootstrap_interval(difference, first, second)
    return {"value": float(difference(first, second)), "interval_95": interval}


def files_of(table):
    """{name: bytes} of scores.csv, scores.npz and scores.mat. table: of `table_of_scores`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(zip(*(table[column].tolist() for column in COLUMNS)))
    arrays, matlab = io.BytesIO(), io.BytesIO()
    np.savez(arrays, **{name: table[name] for name in ARRAYS})
    as_cells = {name: table[name].astype(object) for name in ("split", "subset")}
    scipy.io.savemat(matlab, table | as_cells, oned_as="column")
    return {
        "scores.csv": text.getvalue().encode(),
        "scores.npz": arrays.getvalue(),
        "scores.mat": matlab.getvalue(),
    }
