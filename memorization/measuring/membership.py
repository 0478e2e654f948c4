"""Membership: can an attacker tell which images an encoder was trained on?

An image that an encoder was trained on is aligned better, so a small alignment loss speaks for
membership. Images differ in how well any encoder aligns them, so by f alone one image tells
nothing: without g there is no memorization score.
"""

import io
from typing import Annotated, Literal

import numpy as np
import scipy
from pydantic import Field

from memorization.data.subsets import ROLES, SUBSETS
from memorization.errors import WrongUse
from memorization.fields import Distinct
from memorization.measuring.membership_attacks import ATTACKS, INDEPENDENT, halve
from memorization.measuring.membership_rates import (
    FEWEST,
    RATES,
    Trial,
    advantage,
    auc_of,
    interval_of,
    mean_auc,
    rates_at,
    resample_aucs,
)
from memorization.measuring.score_tables import csv_of
from memorization.measuring.scores import ScoreSettings
from memorization.results import Checkpoint, Number, Summary
from memorization.significance import describe, p_against

PICTURES = ["losses.png", "roc.png", "scatter.png", "training_curve.png"]
COLUMNS = ["index", "split", "subset", "label", "alignment_loss_f", "stderr_views", "p", "member"]
# by the number of encoders of a seed
MEANINGS = {
    1: "membership of sets of images; no memorization score, as that needs g; no verdict on one "
    "image",
    2: "membership of sets of images; no verdict on one image",
}
SEEN, UNSEEN = ("candidate", "shared"), ("external", "independent")  # by f
LEAST_IMAGES = 20  # members, and others
# Whom an attack tells apart; see `Evidence.relation`.
COMPARISONS = {
    "own against external": ("own", "external"),
    "own against other": ("own", "other"),
    "shared against external": ("shared", "external"),
}
LISTS = {
    "own": "images that this encoder saw and the other one of its pair did not",
    "other": "images that the other encoder of the pair saw and this one did not",
    "shared": "images that both encoders saw",
    "external": "images that neither saw",
}
POOLED = "f and g"


class MembershipSettings(ScoreSettings):
    """The views by which alignment losses are measured, as for scores, and the attacks."""

    attacks: Annotated[list[Literal[tuple(ATTACKS)]], Field(min_length=1), Distinct] | None = Field(
        None,
        description="which attacks; null: all that apply, but crops, which takes as long as all "
        "others together",
    )

    SCRIPT = "membership_inference.py"

    @property
    def roles(self):
        """The roles of the encoders that are needed."""
        return ROLES[:1]

    def determining(self):
        return [*super().determining(), "attacks"]


class MembershipSummary(Summary):
    """summary.json of a membership inference.

    subsets: of the alignment losses of f, in a crossover of the encoder with the image; auc:
    {"candidate against external": {"value", "interval_95"}}, how often f aligns an image that it
    saw better than one that it did not see, by the losses' means over the seeds; auc_untrained: the
    same of an encoder before training, which should be .5.

    guards, duplicates: see `measure_guards`, `find_shared_images`; attacks: see `evaluate`; lists:
    what their names mean; exposure: see `correlate`; left_out: {attack: why it was not made}.
    Earlier versions lack these.
    """

    meaning: str
    seeds: list[int]
    guards: dict[str, dict[str, dict]] | None = None
    duplicates: dict[str, list] | None = None
    lists: dict[str, str] | None = None
    attacks: dict[str, dict] | None = None
    exposure: dict[str, dict] | None = None
    left_out: dict[str, str] | None = None
    subsets: dict[str, dict[str, Number]]
    auc: dict[str, dict]
    auc_untrained: dict[str, dict]
    checkpoint: Checkpoint
    settings: dict
    fingerprints: dict
    machine: dict
    seconds: Number


def check_rows(rows, subsets, per_subset, with_g=False):
    """Raise WrongUse if there are too few members or others. rows: of `rows_to_score`; with_g:
    whether g is attacked, too.
    """
    there = {name: int((rows["subset"] == name).sum()) for name in SUBSETS}
    if subsets.scheme == "crossover":
        there["candidate"] //= 2  # of one encoder
    words = {
        "candidate": "candidates, which f saw",
        "external": "external images, which no encoder saw",
    }
    if with_g and subsets.scheme == "fixed":
        words["independent"] = "independent images, which g saw"
    for name, what in words.items():
        if there[name] < LEAST_IMAGES:
            few = f"{there[name]} {what}, but at least {LEAST_IMAGES} are needed"
            of = f" (membership.per_subset is {per_subset})" if per_subset is not None else ""
            raise WrongUse(f"membership: there are {few}{of}")


# --- the table ------------------------------------------------------------------------------------


def table_of_losses(rows, evidence, signals, signs):
    """All that is known of every row, a dict of (N,) arrays.

    evidence: of S seeds with E encoders each; signals: {attack: (S, E, N)}; signs: (S, N), of
    `signs_of`. A column is of the encoder with the image: under a fixed split f, in a crossover f
    for half of the pool of a seed and g for the other half. alignment_loss_f and the signals: means
    over the seeds; stderr_views: its error by the choice of views; p: share of S_E's images that
    are aligned as well, see `p_against`, NaN for S_E; member: whether this encoder saw the image.
    """
    loss = of_encoder_with(evidence.loss, signs).mean(0)
    is_external = rows["subset"] == "external"
    p = np.where(is_external, np.nan, p_against(-loss[is_external], -loss))
    errors = of_encoder_with(evidence.error, signs)
    error = np.sqrt(np.square(errors).sum(0)) / len(errors)
    table = rows | {"alignment_loss_f": loss, "stderr_views": error, "p": p}
    table["member"] = np.isin(rows["subset"], SEEN).astype(np.int64)
    return table | {name: of_encoder_with(of, signs).mean(0) for name, of in signals.items()}


def of_encoder_with(values, signs):
    """Of the encoder with each image: (S, N) of values (S, E, N). signs: (S, N), 1 is f's."""
    return np.where(signs > 0, values[:, 0], values[:, -1])


def scores_of(evidence, signs):
    """The memorization scores of every seed, (S, N). signs: see `table_of_losses`."""
    return of_encoder_with(evidence.loss[:, ::-1] - evidence.loss, signs)


def files_of(table, evidence, signals):
    """{name: bytes} of membership.csv, and of membership.npz with the signals of every encoder."""
    arrays, rows = io.BytesIO(), {}
    for name in ("index", "split", "subset", "label"):
        rows[name] = table[name]
    member = evidence.is_member.astype(np.int8)
    np.savez(arrays, **rows, member=member, alignment_loss=evidence.loss, **signals)
    return {
        "membership.csv": csv_of(table, [*COLUMNS, *signals]),
        "membership.npz": arrays.getvalue(),
    }


# --- the summary ----------------------------------------------------------------------------------


def aucs(subsets, losses):
    """{"candidate against external": {"value", "interval_95"}} of every seen and unseen subset that
    there are. subsets, losses: (N,).
    """
    of = {name: np.flatnonzero(subsets == name) for name in SUBSETS}
    result = {}
    for seen in SEEN:
        for unseen in UNSEEN:
            if len(of[seen]) and len(of[unseen]):
                trial = Trial(-losses, of[seen], of[unseen])
                interval = interval_of(resample_aucs([trial], subsets)[0])
                value = auc_of(trial)
                result[f"{seen} against {unseen}"] = {"value": value, "interval_95": interval}
    return result


def summarize(table, untrained, signals, evidence, signs):
    """The statistics of summary.json, a dict of plain types. table: of `table_of_losses`;
    untrained: (N,), the losses of an encoder before training; signals, signs: as in the table.
    """
    subsets, losses = table["subset"], table["alignment_loss_f"]
    there = [name for name in SUBSETS if (subsets == name).any()]
    has_g = evidence.loss.shape[1] > 1
    return {
        "lists": LISTS,
        "attacks": evaluate(signals, evidence, table),
        "exposure": correlate(signals, evidence, subsets, signs) if has_g else {},
        "subsets": {name: describe(losses[subsets == name]) for name in there},
        "auc": aucs(subsets, losses),
        "auc_untrained": aucs(subsets, untrained),
    }


def trials_of(signal, relation, comparison):
    """The Trials of an attack on every encoder of a role, those of the seeds in order; an encoder
    with fewer than FEWEST such images has none. signal, relation: (S, N), see `Evidence`;
    comparison: a name.
    """
    own, unseen = COMPARISONS[comparison]
    trials = []
    for values, of_rows in zip(signal, relation):
        known = ~np.isnan(values)
        members, others = (np.flatnonzero(known & (of_rows == name)) for name in (own, unseen))
        if min(len(members), len(others)) >= FEWEST:
            trials.append(Trial(values, members, others))
    return trials


def evaluate(signals, evidence, rows):
    """What each attack gains: {attack: {comparison: {encoders: {"auc", "advantage", "rates"}}}}.

    signals: {attack: (S, E, N)}; rows: of `rows_to_score`. encoders are f, g, and both pooled; auc:
    see `mean_auc`; rates: {false positive rate: see `rates_at`}. Values are means over the
    encoders, which are attacked one by one. Intervals are over images, of which INDEPENDENT tells
    the share that counts.
    """
    chooses, _ = halve(rows)
    result = {attack: {} for attack in signals}
    for attack, signal in signals.items():
        for comparison in COMPARISONS:
            of_role = [
                trials_of(signal[:, role], evidence.relation[:, role], comparison)
                for role in range(signal.shape[1])
            ]
            trials = sum(of_role, [])
            if not trials:
                continue
            share = INDEPENDENT.get(attack, 1.0)
            resampled = resample_aucs(trials, rows["subset"], share)
            groups = {"f": range(len(of_role[0]))}
            if len(of_role) > 1:
                groups["g"] = range(len(of_role[0]), len(trials))
                groups[POOLED] = range(len(trials))
            result[attack][comparison] = {
                name: _evaluate_group([trials[i] for i in group], resampled[group], chooses, share)
                for name, group in groups.items()
                if len(group)
            }
    return result


def _evaluate_group(trials, resampled, chooses, share):
    return {
        "auc": mean_auc(trials, resampled),
        "advantage": advantage(trials, chooses),
        "rates": {f"{rate:g}": rates_at(rate, trials, chooses, share) for rate in RATES},
    }


# --- who is exposed -------------------------------------------------------------------------------


def correlate(signals, evidence, subset, signs):
    """Is who is exposed who is memorized? {attack: {"candidate", "external", "by_other_seeds"}},
    Spearman correlations of a signal with the memorization score, {"value", "interval_95"} each.

    candidate: of the means over seeds. The signal and the score of one seed share an encoder, and
    its views: so they correlate even if nothing is memorized, as much as those of external images
    do. by_other_seeds: of the signal of one seed with the mean score of all other seeds, which have
    nothing in common but the images; the mean over the seeds, None if there is one. subset: (N,);
    signs: (S, N), of `signs_of`.
    """
    per_seed = scores_of(evidence, signs)
    rows = {name: subset == name for name in ("candidate", "external")}
    result = {}
    for attack, signal in signals.items():
        of_seed = of_encoder_with(signal, signs)  # (S, N)
        result[attack] = {
            name: _spearman([(of_seed.mean(0)[of], per_seed.mean(0)[of])])
            for name, of in rows.items()
        }
        pairs, of = [], rows["candidate"]
        if len(per_seed) > 1:
            others = (per_seed.sum(0) - per_seed) / (len(per_seed) - 1)  # (S, N)
            pairs = [(one[of], score[of]) for one, score in zip(of_seed, others)]
        result[attack]["by_other_seeds"] = _spearman(pairs)
    return result


def _spearman(pairs):
    """The mean Spearman correlation of pairs of (n,) arrays, and its 95 % interval for n images
    (Bonett and Wright 2000); None if there is no pair, or one is constant or not known.
    """
    if not pairs or not all(np.ptp(one) > 0 for pair in pairs for one in pair):
        return None
    value = float(np.mean([scipy.stats.spearmanr(*pair).statistic for pair in pairs]))
    half = 1.96 * np.sqrt((1 + value**2 / 2) / (len(pairs[0][0]) - 3))
    center = np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
    return {"value": value, "interval_95": [float(np.tanh(center + s * half)) for s in (-1, 1)]}
