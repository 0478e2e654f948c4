"""What summary.json says of scores: subsets, single images, and how well their ranking repeats."""

from typing import Annotated

import numpy as np
import pydantic
import scipy

from memorization.data.subsets import SUBSETS
from memorization.fields import Distinct, Seed
from memorization.measuring.calibration import headline
from memorization.measuring.score_tables import score_rows
from memorization.reliability import (
    agreement,
    agreement_of_halves,
    components,
    expected_overlap,
    predicted_reliability,
    reliability_of_mean,
    spearman_brown,
)
from memorization.results import Checkpoint, Number, Summary
from memorization.significance import (
    bootstrap_interval,
    describe,
    false_share,
    one_sample_test,
    paired_test,
    welch_test,
)

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
OF_PAPER = "as in the paper; not free of the offset of a pair"
TOP = 10  # the mean of the highest tenth of a subset is reported
SHOWN = 16  # most memorized images in the gallery
LEVELS = (0.1, 0.05)  # of q, at which the memorized images are counted
CHECKED = 64  # images of each subset that are scored in fp32, too, to check scores in bf16


class ScoresSummary(Summary):
    """What summary.json says of scores."""

    format: str | None = None
    seeds: Annotated[list[Annotated[Seed, pydantic.Strict()]], Distinct]
    subsets: dict[str, dict[str, dict[str, Number]]]  # of a subset, on a scale, a statistic
    class_counts: dict | None = None
    class_test: dict | None = None  # chi-square: None if there are no classes to compare
    given_this_pair: dict
    offset_on_unseen_images: Number
    free_of_the_offset: dict[str, dict]
    single_images: dict | None = None  # earlier versions do not say
    reliability: dict | None = None  # with several seeds
    reliability_local: dict | None = None  # the same of local scores
    over_seeds: dict | None = None  # with several seeds
    checkpoint: Checkpoint
    settings: dict
    error_of_precision: dict | None = None
    fingerprints: dict
    machine: dict
    seconds: Number
    images_per_second: Number

    @property
    def headline(self):
        """The column that single images are ranked by; see `calibration.headline`."""
        return (self.single_images or {}).get("headline", "score")  # as in earlier versions

    @property
    def ranking_reliability(self):
        """The reliability of that ranking, None for one seed."""
        return self.reliability if self.headline == "score" else self.reliability_local


def summarize(table, seeds):
    """The statistics of summary.json, a dict of plain types. table: of `table_of_scores`; seeds:
    the ScoredSeed of each.
    """
    of, noise, subsets = {}, {}, {}
    for name in SUBSETS:
        rows = table["subset"] == name
        if not rows.any():  # disjoint halves have no shared images, a pool no independent ones
            continue
        of[name] = table["score"][rows]
        noise[name] = float(np.square(table["stderr_views"][rows]).mean())
        top = np.sort(of[name])[-max(1, len(of[name]) // TOP) :]
        subsets[name] = {
            "raw": describe(of[name]) | {"top_tenth_mean": float(top.mean())},
            "range": describe(table["score_range"][rows]),
            "ratio": describe(table["score_ratio"][rows]),
        }
    statistics = {"subsets": subsets} | _compare_subsets(of, noise)
    explained = [seed.explained for seed in seeds]
    statistics["single_images"] = _single_images(table) | {"local_offset_explains": explained}
    if len(table["per_seed"]) > 1:
        statistics["reliability"] = _reliability(table, "per_seed")
        statistics["reliability_local"] = _reliability(table, "per_seed_local")
        means = {name: table["per_seed"][:, table["subset"] == name].mean(1) for name in of}
        statistics["over_seeds"] = {
            "means": {name: values.tolist() for name, values in means.items()},
            "paired": {f"{a} > {b}": paired_test(means[a], means[b]) for a, b in _pairs_among(of)},
        }
    return statistics


def _compare_subsets(of, noise):
    """Tests between subsets and contrasts. of: {subset: its scores}; noise: {subset: the mean
    variance of a score that the choice of views leaves}.
    """
    against_zero = {
        name: {"alternative": alternative} | one_sample_test(of[name], alternative)
        for name, alternative in AGAINST_ZERO.items()
        if name in of
    }
    welch = {
        f"{a} > {b}": welch_test(of[a], of[b], (noise[a], noise[b])) for a, b in _pairs_among(of)
    }
    contrasts = {"candidate - external": _contrast(of["candidate"], of["external"], weight=1.0)}
    if "independent" in of:
        half = _contrast(of["candidate"], of["independent"], weight=0.5)
        contrasts["(candidate - independent) / 2"] = half
    return {
        "given_this_pair": {
            "meaning": MEANING,
            "welch": welch,
            "against_zero_is": OF_PAPER,
            "against_zero": against_zero,
        },
        "offset_on_unseen_images": float(of["external"].mean()),
        "free_of_the_offset": contrasts,
    }


def _pairs_among(of):
    """The (greater, smaller) of COMPARISONS whose subsets are there."""
    return [(a, b) for a, b in COMPARISONS if a in of and b in of]


def _contrast(first, second, weight):
    """The weighted difference of two subsets' means, with its bootstrap interval."""

    def difference(a, b, axis=-1):
        return weight * (a.mean(axis) - b.mean(axis))

    interval = bootstrap_interval(difference, first, second)
    return {"value": float(difference(first, second)), "interval_95": interval}


# --- single images --------------------------------------------------------------------------------


def _single_images(table):
    """How many candidates are memorized beyond what S_E shows by chance, and how many of those that
    rank first are expected to be false, for the score and for the local score.
    """
    candidate = table["subset"] == "candidate"
    external = table["subset"] == "external"
    counts = {"candidates": int(candidate.sum()), "external": int(external.sum())}
    counts["headline"] = headline(table["score_local"], table["subset"])
    for name, suffix in (("score", ""), ("score_local", "_local")):
        p, q = table[f"p{suffix}"][candidate], table[f"q{suffix}"][candidate]
        counts[name] = {f"q < {level}": int((q < level).sum()) for level in LEVELS}
        counts[name] |= {
            "false_share_of_first_16": false_share(p, min(SHOWN, len(p))),
            "false_share_of_first_tenth": false_share(p, max(1, len(p) // TOP)),
        }
    counts["score_local"]["unlike_all_external"] = int(np.isnan(table["q_local"][candidate]).sum())
    counts["noise"] = float(table["stderr"][external].mean())
    counts["mean_effect"] = float(
        table["score"][candidate].mean() - table["score"][external].mean()
    )
    return counts


def _reliability(table, column):
    """How well the ranking of images by "per_seed" or "per_seed_local" repeats between seeds, for
    candidates, and for S_E beside them, where nothing can be memorized.
    """
    seeds, result = len(table["per_seed"]), {}
    for name in ("candidate", "external"):
        rows = table["subset"] == name
        scores, errors = table[column][:, rows], table["jackknife"][:, rows]
        variances = components(scores, errors)
        of_mean = predicted_reliability(variances, seeds)
        # Increasing in the reliability of one seed, so it carries that interval on.
        interval = [spearman_brown(r, seeds) for r in variances["reliability"]["interval_95"]]
        result[name] = {
            "between_seeds": agreement(scores),
            "between_halves": agreement_of_halves(scores),
            "of_the_mean": reliability_of_mean(scores),
            "components": variances,
            "predicted": of_mean,
            "predicted_interval_95": interval,
            "predicted_overlap_of_first_tenth": expected_overlap(of_mean),
        }
    return result


# --- the error of bf16 ----------------------------------------------------------------------------


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
        correlation = float(scipy.stats.spearmanr(rough, exact.score).statistic)
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
