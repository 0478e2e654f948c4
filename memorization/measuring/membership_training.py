"""Membership over training: what attacks gain at every kept checkpoint, beside what the encoder is
worth. Who stops early gives away less.
"""

import numpy as np

from memorization.machine.screen import say
from memorization.measuring.membership import POOLED

COMPARED = "own against external"
NAME, COLUMN = 24, 12  # characters


def follow_training(summaries, logs):
    """What K checkpoints give away, and are worth: {"epoch": (K,), "knn_accuracy": (K,), attack:
    {"auc": (K,), "interval": (K, 2), "found": (K,)}}, means over the encoders.

    knn_accuracy: NaN if it was not measured then; found: the true positive rate at 1 % false
    positives, NaN if it cannot be shown. summaries: the MembershipSummary of each; logs: the lines
    of every encoder's log.jsonl.
    """
    epochs = [summary.checkpoint.epoch for summary in summaries]
    measured = dict(zip(*knn_over_training(logs)))
    table = {"epoch": np.array(epochs)}
    table["knn_accuracy"] = np.array([measured.get(epoch, np.nan) for epoch in epochs])
    for attack, of_comparison in summaries[0].attacks.items():
        if COMPARED not in of_comparison:
            continue
        of = [summary.attacks[attack][COMPARED] for summary in summaries]
        of = [groups.get(POOLED) or next(iter(groups.values())) for groups in of]
        rates = [one["rates"]["0.01"] for one in of]
        table[attack] = {
            "auc": np.array([one["auc"]["value"] for one in of]),
            "interval": np.array([one["auc"]["interval_95"] for one in of]),
            "found": np.array([_found(rate) for rate in rates]),
        }
    return table


def _found(rates):
    return np.nan if rates is None else rates["true_positive_rate"]["value"]


def knn_over_training(logs):
    """The epochs at which kNN accuracies were measured, and their means over the encoders, two
    arrays (K,). logs: the lines of every encoder's log.jsonl.
    """
    accuracies = {}
    for log in logs:
        for line in log:
            if line["knn_accuracy"] is not None:
                accuracies.setdefault(line["epoch"], []).append(line["knn_accuracy"])
    epochs = sorted(epoch for epoch, values in accuracies.items() if len(values) == len(logs))
    return np.array(epochs, int), np.array([np.mean(accuracies[epoch]) for epoch in epochs])


def print_training(table):
    """The table of `follow_training` on the screen."""
    say(f"\n{COMPARED}, over training")
    words = " ".join(f"{epoch:>{COLUMN}}" for epoch in table["epoch"])
    say(f"{'epoch':>{NAME}} {words}")
    say(f"{'kNN accuracy, %':>{NAME}} {_in_words(100 * table['knn_accuracy'], '.1f')}")
    for attack, of in table.items():
        if isinstance(of, dict):
            say(f"{attack:>{NAME}} {_in_words(of['auc'], '.3f')}")
            say(f"{'found at 1 %, %':>{NAME}} {_in_words(100 * of['found'], '.1f')}")


def _in_words(values, form):
    words = ["-" if np.isnan(value) else f"{value:{form}}" for value in values]
    return " ".join(f"{word:>{COLUMN}}" for word in words)
