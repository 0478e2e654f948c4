"""Deja Vu: what f tells of an image's class from a part of it."""

import csv
import io
from collections import Counter

from memorization.machine.files import exists, read_text, refuse_broken
from memorization.measuring.deja_vu import OUTCOMES
from memorization.reporting.blocks import (
    axis,
    clean,
    figure,
    note,
    number,
    table,
    text,
    trace,
)
from memorization.results import check_files

COLORS = {
    "memorized": "candidate",
    "correlated": "external",
    "forgotten": "independent",
    "unassociated": "shared",
}
MOST_BYTES = 1 << 28  # of dejavu.csv


def deja_vu_blocks(result, place):
    """Deja Vu score and shares of outcomes. result: a FoundResult; place: its number among the
    results.
    """
    summary, words = result.summary, result.summary.words
    columns = {"surest images": None, words.score: ".1%", "std over seeds": ".1%", "seeds": "d"}
    rows = [
        [f"{percent} %", spread.mean, spread.std, spread.n]
        for percent, spread in summary.score.items()
    ]
    names = [words.outcomes[name] for name in OUTCOMES.values()]
    shares = [summary.shares[name] for name in OUTCOMES.values()]
    low = [share.mean - (share.std or 0) for share in shares]
    high = [share.mean + (share.std or 0) for share in shares]
    means = [share.mean for share in shares]
    listing = ", ".join(f"{name} {number(mean, '.1%')}" for name, mean in zip(names, means))
    plot = figure(
        f"dejavu-{place}",
        "Outcomes of Deja Vu",
        f"Shares of images by outcome: {listing}. Error bars: standard deviation over seeds.",
        {"x": axis("outcome", "category"), "y": axis("share of images", form="percent")},
        [trace("bars", "share of images", "candidate", names, means, low=low, high=high)],
    )
    question = f"f is asked for the class of an image by a part of it (query {summary.query}), "
    question += (
        f"and compared with {'g' if summary.trained_on is None else 'a classifier of parts'}."
    )
    chance = f"By chance {number(summary.chance, '.1%')} of the guesses are right; always the most "
    chance += f"frequent class, {number(summary.majority.accuracy, '.1%')}."
    table_of_scores = table(
        f"dejavu-{place}-table", f"{words.score}: {words.equation}", columns, rows
    )
    blocks = [text(question, chance), table_of_scores, plot]
    if summary.caveat:
        blocks.append(note(f"{summary.caveat[0].upper()}{summary.caveat[1:]}."))
    return [*blocks, note(f"Searched in {summary.representation}.")]


def meanings_of_outcomes(summary):
    """{outcome: what it means}, in the words of a comparison. summary: a DejaVuSummary."""
    words = summary.words
    return {
        words.outcomes[name]: clean(" ".join(words.meanings[name].split()))
        for name in OUTCOMES.values()
    }


def outcomes_of_images(result):
    """{index: (its most frequent outcome over seeds, "3 of 4 seeds")} of the attacked images, in
    the words of the comparison. result: a FoundResult. Raises WrongUse if dejavu.csv is not of it.
    """
    path, words = result.folder / "dejavu.csv", result.summary.words.outcomes
    if not exists(path):
        return {}
    counts = {}
    with refuse_broken(path, "not a whole table of Deja Vu"):
        for row in csv.DictReader(io.StringIO(read_text(path, MOST_BYTES))):
            counts.setdefault(int(row["index"]), Counter())[words[row["outcome"]]] += 1
    check_files(result.folder, result.summary.files, "dejavu.py")
    order = list(words.values())
    outcomes = {}
    for index, of_image in counts.items():
        name = min(of_image, key=lambda outcome: (-of_image[outcome], order.index(outcome)))
        n_seeds = sum(of_image.values())
        seeds = "seed" if n_seeds == 1 else "seeds"
        outcomes[index] = name, f"{of_image[name]} of {n_seeds} {seeds}"
    return outcomes
