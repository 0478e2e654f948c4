"""Rates of a membership attack: AUC, the true positive rate at a low false positive rate, the
advantage, and intervals.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy

from memorization.significance import LEVEL, clopper_pearson, mean_and_spread

RATES = (0.01, 0.001, 0.0)  # false positive rates at which the true positive rate is reported
RESAMPLES, BATCH = 1000, 50  # of the bootstrap, and how many of them are worked on together
FEWEST = 10  # images of a list that is compared: fewer cannot be halved, or divided into folds


@dataclass(frozen=True, eq=False)
class Trial:
    """One attack on one encoder.

    signal: (N,) float64 of the rows of a table, large if it speaks for membership. members, others:
    (n,) and (m,) int64, the rows that the encoder saw, and did not see, and that are told apart.
    """

    signal: np.ndarray
    members: np.ndarray
    others: np.ndarray

    @property
    def signals(self):
        """Of members (n,) and of others (m,)."""
        return self.signal[self.members], self.signal[self.others]

    def among(self, rows):
        """The Trial of some rows alone. rows: (N,) bool."""
        members, others = (each[rows[each]] for each in (self.members, self.others))
        return Trial(self.signal, members, others)


def auc(losses_of_seen, losses_of_unseen, axis=-1):
    """P(loss of a seen image < loss of an unseen one) + P(equal) / 2: .5 if they are alike, 1 if
    every seen image is aligned better (Mann and Whitney 1947). Both: (..., n).
    """
    n, m = losses_of_seen.shape[axis], losses_of_unseen.shape[axis]
    ranks = scipy.stats.rankdata(
        np.concatenate([losses_of_seen, losses_of_unseen], axis), axis=axis
    )
    of_seen = np.take(ranks, range(n), axis).sum(axis)
    return 1 - (of_seen - n * (n + 1) / 2) / (n * m)


def auc_of(trial):
    """The AUC of a Trial: P(signal of a member > signal of another) + P(equal) / 2."""
    members, others = trial.signals
    return float(auc(-members, -others))


# --- intervals of AUC -----------------------------------------------------------------------------


def resample_aucs(trials, strata, share=1.0, seed=0):
    """The AUCs of Trials in bootstrap resamples of the images, (T, RESAMPLES) float64.

    strata: (N,), the names of the lists that the rows are from; each list is resampled by itself.
    share: of a list's images that are drawn in a resample; with half of them intervals are as wide
    as for half as many images. An image has the same weight in all Trials of a resample. No pair of
    images is compared: with the others in order of their signals, and their weights summed in this
    order, a member is above as much weight as its place tells. A resample costs n + m.
    """
    used = np.unique(np.concatenate([rows for t in trials for rows in (t.members, t.others)]))
    names = strata[used]
    lists = [used[names == name] for name in np.unique(names)]
    sizes = [math.ceil(share * len(rows)) for rows in lists]
    places = [_places(trial) for trial in trials]
    generator, parts = np.random.default_rng(seed), []
    for _ in range(0, RESAMPLES, BATCH):
        weights = _draw_weights(lists, sizes, len(strata), generator)
        parts.append([_weighted_auc(trial, of, weights) for trial, of in zip(trials, places)])
    return np.concatenate(parts, axis=1)


def _places(trial):
    """The others in ascending order of their signals, (m,) rows, and for every member how many of
    them are below it, and below or equal, (n,) both.
    """
    members, others = trial.signals
    order = np.argsort(others, kind="stable")
    below, up_to = (np.searchsorted(others[order], members, side) for side in ("left", "right"))
    return trial.others[order], below, up_to


def _draw_weights(lists, sizes, n_rows, generator):
    """How often each row stands in each of BATCH resamples, (n_rows, BATCH) float64. sizes: how
    many rows of each list are drawn.
    """
    weights = np.zeros((n_rows, BATCH))
    for rows, size in zip(lists, sizes):
        n = len(rows)
        drawn = generator.integers(0, n, (size, BATCH)) * BATCH + np.arange(BATCH)
        weights[rows] = np.bincount(drawn.ravel(), minlength=BATCH * n).reshape(n, BATCH)
    return weights


def _weighted_auc(trial, places, weights):
    """The AUC of a Trial whose rows have weights, (N, B): (B,). NaN if no member has any."""
    others, below, up_to = places
    sums = np.zeros((len(others) + 1, weights.shape[1]))
    np.cumsum(weights[others], axis=0, out=sums[1:])
    of_members = weights[trial.members]
    above = (of_members * (sums[below] + sums[up_to])).sum(0) / 2
    with np.errstate(invalid="ignore"):  # a resample without a member
        return above / (of_members.sum(0) * sums[-1])


def interval_of(resampled):
    """The 95 % percentile interval of a bootstrap, [low, high]. resampled: (R,)."""
    tails = 100 * (1 - LEVEL) / 2
    return [float(bound) for bound in np.nanpercentile(resampled, [tails, 100 - tails])]


def mean_auc(trials, resampled):
    """The mean AUC of Trials: {"value", "interval_95", "over_encoders"}, the interval over the
    choice of images, and the spread over encoders. resampled: (T, R), of `resample_aucs`.
    """
    values = [auc_of(trial) for trial in trials]
    return {
        "value": float(np.mean(values)),
        "interval_95": interval_of(resampled.mean(0)),
        "over_encoders": mean_and_spread(values),
    }


# --- thresholds -----------------------------------------------------------------------------------


def threshold_at(others, rate):
    """The least threshold above which lie at most this share of others' signals, (m,): what is
    above it is taken for a member. None if m is less than 1 / rate, as m others show no such rate;
    a rate of 0 is shown by any.
    """
    if rate and len(others) * rate < 1 - 1e-9:
        return None
    allowed = math.floor(rate * len(others) + 1e-9)
    return np.sort(others)[len(others) - 1 - allowed]


def rates_at(rate, trials, chooses, share=1.0):
    """What an attacker gains who accepts a false positive rate; None if the others are too few to
    show it.

    Thresholds are chosen on one half of the others, chooses: (N,) bool; true positives are counted
    among all members, false positives among the other half. Means over the Trials. Intervals are
    those of as many trials as there are different images, however many encoders they were tried on,
    or of a share of them, see `resample_aucs`.
    Returns {"true_positive_rate": {"value", "interval_95"}, "false_positive_rate": ..., "exposed":
    members above the threshold, "members": how many there are, both of one encoder, and
    "others_to_choose", to find the threshold}.
    """
    hits, alarms, exposed, seen, judged = [], [], [], [], []
    for trial in trials:
        members, others = trial.signals
        is_judged = ~chooses[trial.others]
        threshold = threshold_at(others[~is_judged], rate)
        if threshold is None or not len(members) or not is_judged.any():
            return None
        above = members > threshold
        hits.append(above.mean())
        alarms.append((others[is_judged] > threshold).mean())
        exposed.append(int(above.sum()))
        seen.append(trial.members)
        judged.append(trial.others[is_judged])
    return {
        "true_positive_rate": _rate(hits, seen, share),
        "false_positive_rate": _rate(alarms, judged, share),
        "exposed": float(np.mean(exposed)),
        "members": float(np.mean([len(rows) for rows in seen])),
        "others_to_choose": int(min(chooses[trial.others].sum() for trial in trials)),
    }


def _rate(values, rows, share):
    """The mean of rates with its interval. rows: of each rate, the images it was observed on."""
    value, n_images = float(np.mean(values)), len(np.unique(np.concatenate(rows)))
    return {"value": value, "interval_95": clopper_pearson(value, share * n_images)}


def advantage(trials, chooses):
    """The membership advantage, true less false positive rate (Yeom et al. 2018): the threshold is
    the best one on one half of the images, chooses: (N,) bool, and the rates are those of the other
    half. The mean over Trials, a float.
    """
    values = []
    for trial in trials:
        members, others = trial.among(chooses).signals
        false, true, thresholds = roc(members, others)
        best = max(1, np.argmax(true - false))  # 0 is above all
        threshold = thresholds[best - 1 : best + 1].mean()  # half way to the least one above it
        members, others = trial.among(~chooses).signals
        values.append((members > threshold).mean() - (others > threshold).mean())
    return float(np.mean(values))


def roc(members, others):
    """False and true positive rates at every threshold, from the highest to the lowest, and the
    thresholds, (K,) each. The first ones are 0 at the highest signal, the last ones 1 at -inf.

    members: (n,) signals; others: (m,).
    """
    thresholds = np.append(np.unique(np.concatenate([members, others]))[::-1], -np.inf)
    rates = [
        1 - np.searchsorted(np.sort(values), thresholds, side="right") / len(values)
        for values in (others, members)
    ]
    return *rates, thresholds
