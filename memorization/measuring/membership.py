"""Membership: do the images that f saw stand out from others, by f alone?

An image that an encoder was trained on is aligned better, so a small alignment loss speaks for
membership. Images differ in how well any encoder aligns them, so one image tells nothing: without
g there is no memorization score.
"""

import numpy as np
from scipy.stats import rankdata

from memorization.data.subsets import ROLES, SUBSETS
from memorization.errors import escape
from memorization.machine.screen import caution, say
from memorization.measuring.score_tables import csv_of
from memorization.measuring.scores import ScoreSettings, align_images
from memorization.results import Checkpoint, Number, Summary
from memorization.significance import bootstrap_interval, describe, p_against

PICTURE = "losses.png"
COLUMNS = ["index", "split", "subset", "label", "alignment_loss_f", "stderr_views", "p"]
MEANING = (
    "membership of sets of images; no memorization score, as that needs g; no verdict on one image"
)
SEEN, UNSEEN = ("candidate", "shared"), ("external", "independent")  # by f
CHANCE = 0.5  # the AUC of what tells nothing
SURE = 1.7  # half widths of a 95 % interval from the mean, beyond which one of 1,000 lies


class MembershipSettings(ScoreSettings):
    """The views by which alignment losses are measured, as for scores."""

    SCRIPT = "membership_inference.py"

    @property
    def roles(self):
        """The roles of the encoders that are needed."""
        return ROLES[:1]


class MembershipSummary(Summary):
    """summary.json of the alignment losses of f alone.

    subsets: of the losses; auc: {"candidate against external": {"value", "interval_95"}}, how often
    f aligns an image that it saw better than one that it did not see; auc_untrained: the same of an
    encoder before training, which should be .5.
    """

    meaning: str
    seeds: list[int]
    subsets: dict[str, dict[str, Number]]
    auc: dict[str, dict]
    auc_untrained: dict[str, dict]
    checkpoint: Checkpoint
    settings: dict
    fingerprints: dict
    machine: dict
    seconds: Number


def auc(losses_of_seen, losses_of_unseen, axis=-1):
    """P(loss of a seen image < loss of an unseen one) + P(equal) / 2: .5 if they are alike, 1 if
    every seen image is aligned better (Mann and Whitney 1947). Both: (..., n).
    """
    n, m = losses_of_seen.shape[axis], losses_of_unseen.shape[axis]
    ranks = rankdata(np.concatenate([losses_of_seen, losses_of_unseen], axis), axis=axis)
    of_seen = np.take(ranks, range(n), axis).sum(axis)
    return 1 - (of_seen - n * (n + 1) / 2) / (n * m)


def align_rows(encoder, images, rows, recipes, scoring):
    """The alignment losses of rows under one encoder and their jackknife errors, (2, N) float64.

    images: Images on the device; rows: of `rows_to_score`, those of the training set first.
    """
    parts = []
    for split in (images.train, images.test):
        indices = rows["index"][rows["split"] == split.name]
        parts.append(align_images(encoder, split, indices, recipes, scoring))
    return np.concatenate(parts, axis=1)


def table_of_losses(rows, losses):
    """All that is known of every row, a dict of (N,) arrays. losses: (S, 2, N), of `align_rows` for
    every seed. alignment_loss_f: mean over the seeds; stderr_views: its error by the choice of
    views; p: share of S_E's images that are aligned as well, see `p_against`; NaN for S_E.
    """
    loss = losses[:, 0].mean(0)
    is_external = rows["subset"] == "external"
    p = np.where(is_external, np.nan, p_against(-loss[is_external], -loss))
    error = np.sqrt(np.square(losses[:, 1]).sum(0)) / len(losses)
    return rows | {"alignment_loss_f": loss, "stderr_views": error, "p": p}


def aucs(subsets, losses):
    """{"candidate against external": {"value", "interval_95"}} of every seen and unseen subset that
    there are. subsets, losses: (N,).
    """
    of = {name: losses[subsets == name] for name in SUBSETS}
    result = {}
    for seen in SEEN:
        for unseen in UNSEEN:
            if len(of[seen]) and len(of[unseen]):
                value = float(auc(of[seen], of[unseen]))
                interval = bootstrap_interval(auc, of[seen], of[unseen])
                result[f"{seen} against {unseen}"] = {"value": value, "interval_95": interval}
    return result


def summarize(table, untrained):
    """The statistics of summary.json, a dict of plain types. table: of `table_of_losses`;
    untrained: (N,), the losses of an encoder before training.
    """
    subsets, losses = table["subset"], table["alignment_loss_f"]
    there = [name for name in SUBSETS if (subsets == name).any()]
    return {
        "subsets": {name: describe(losses[subsets == name]) for name in there},
        "auc": aucs(subsets, losses),
        "auc_untrained": aucs(subsets, untrained),
    }


def files_of(table):
    """{name: bytes} of membership.csv."""
    return {"membership.csv": csv_of(table, COLUMNS)}


def print_summary(summary, folder):
    """The summary on the screen, and a warning if images differ without training. folder: of the
    result.
    """
    say(f"\nalignment loss of f alone, {MEANING}:")
    for name, values in summary.subsets.items():
        mean, std = (f"{values[key]:.4f}" for key in ("mean", "std"))
        say(f"{name:>12}: n {values['n']}  mean {mean}  std {std}")
    say(f"{'how often a seen image is aligned better (AUC)':>48}   f alone              untrained")
    for pair, of_f in summary.auc.items():
        both = (of_f, summary.auc_untrained[pair])
        words = [f"{one['value']:.3f} ({_interval(one)})" for one in both]
        say(f"{pair:>48}   {words[0]:<20} {words[1]}")
        low, high = both[1]["interval_95"]
        if abs(both[1]["value"] - CHANCE) > SURE * (high - low) / 2:
            doubt = f"an untrained encoder has an AUC of {both[1]['value']:.3f} of {pair}"
            caution(f"{doubt}: these images differ in more than membership")
    say(f"the results are in {escape(folder)}: membership.csv, summary.json, {PICTURE}")


def _interval(one):
    low, high = one["interval_95"]
    return f"{low:.3f} to {high:.3f}"
