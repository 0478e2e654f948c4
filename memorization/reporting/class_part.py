"""The table of classes: how much each is memorized, and what f knows of it."""

from collections import Counter

import numpy as np

from memorization.measuring.deja_vu_summary import WORDS
from memorization.reporting.blocks import note, part, table

OUTCOME_NAMES = [name for words in WORDS.values() for name in words.outcomes.values()]


def classes_part(run, classes, outcomes, accuracies):
    """A row for each class, a part; None if there are no classes.

    run: a ScoredRun; classes: names; outcomes: {index: (outcome, seeds)} of Deja Vu; accuracies:
    {class: accuracy of probes on f}. Both may be empty.
    """
    labels, is_candidate = run.table["label"], run.select("candidate")
    if not classes or not (labels[is_candidate] >= 0).any():
        return None
    counts = Counter(name for name, _ in outcomes.values())
    names = [name for name in OUTCOME_NAMES if counts[name]]
    columns = {"class": None, "candidates": "d", "mean score": ".4f", "std error": ".4f"}
    columns |= {"mean of external": ".4f", "candidates - external": ".4f", "q < 0.1": "d"}
    columns |= {f"Deja Vu: {name}": ".1%" for name in names}
    columns |= {"accuracy of f": ".1%"} if accuracies else {}
    rows = []
    for label, name in enumerate(classes):
        of_class = is_candidate & (labels == label)
        if of_class.any():
            row = [name, *_numbers(run, of_class, run.select("external") & (labels == label))]
            row += _shares(run.table["index"][of_class], outcomes, names)
            rows.append(row + ([accuracies.get(name)] if accuracies else []))
    return part(
        "classes",
        "Classes",
        table("per-class", "Candidates by class", columns, rows),
        note(
            "Kinds of images differ in what they score without any memory: compare candidates with "
            "external images of the same class. Means of few images are uncertain."
        ),
    )


def _numbers(run, of_class, external):
    """The scores of a class: n, mean, its standard error, the mean of external images, the
    difference, and how many candidates have q < .1.
    """
    scores, others = run.table["score"][of_class], run.table["score"][external]
    q = run.table[run.summary.headline.replace("score", "q")][of_class]
    n, mean = len(scores), float(scores.mean())
    error = float(scores.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    of_others = float(others.mean()) if len(others) else None
    difference = None if of_others is None else mean - of_others
    return [n, mean, error, of_others, difference, int((q < 0.1).sum())]


def _shares(indices, outcomes, names):
    """The share of each outcome among images that have one."""
    of_class = [outcomes[index][0] for index in indices.tolist() if index in outcomes]
    return [of_class.count(name) / len(of_class) if of_class else None for name in names]
