"""The images of a page: a row for each with its numbers, and the columns that they are in."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from memorization.data.subsets import SUBSETS, first_by_hash
from memorization.reliability import rank_intervals
from memorization.reporting.blocks import clean, round_off

MOST_OTHERS = 5000  # rows of each subset beside the candidates
MOST_PER_SEED = 10**5  # scores of single seeds in the page


@dataclass(frozen=True, eq=False)
class Rows:
    """N images in the order of the page: candidates by their score from high to low, then the
    other subsets by index.

    places: (N,) int64, in the table that they are of; split, subset: (N,) texts; index, label: (N,)
    int64; n_candidates: how many are candidates.
    """

    places: np.ndarray
    split: np.ndarray
    index: np.ndarray
    subset: np.ndarray
    label: np.ndarray
    n_candidates: int

    @cached_property
    def row_of(self):
        """{(split, index): row}."""
        pairs = zip(self.split.tolist(), self.index.tolist())
        return {pair: row for row, pair in enumerate(pairs)}


def order_rows(table, scores):
    """The Rows of a page. table: dict of (n,) arrays split, index, subset and label; scores: (n,),
    by which candidates are ordered, NaN last.
    """
    candidates = np.flatnonzero(table["subset"] == "candidate")
    ranking = np.where(np.isnan(scores[candidates]), -np.inf, scores[candidates])
    parts = [candidates[np.argsort(-ranking, kind="stable")]]
    for subset, split in SUBSETS.items():
        if subset != "candidate":
            of_subset = np.flatnonzero(table["subset"] == subset)
            index = table["index"][of_subset]
            is_listed = np.isin(index, first_by_hash(index, MOST_OTHERS, split))
            parts.append(of_subset[is_listed])
    places = np.concatenate(parts)
    columns = {name: table[name][places] for name in ("split", "index", "subset", "label")}
    return Rows(places, n_candidates=len(candidates), **columns)


class Columns:
    """The columns of a page's images. descriptions: their keys, titles, types and meanings, a list
    of dicts; values: {key: N plain values}.
    """

    def __init__(self):
        self.descriptions, self.values = [], {}

    def add(self, key, values, title, type_name, meaning, **more):
        """Add a column. type_name: "number", "integer", "text", "class", "subset", "outcome" or
        "split"; more: what the page may need beside it, such as digits.
        """
        described = {"key": key, "title": title, "type": type_name, "meaning": meaning} | more
        self.descriptions.append({"in_gallery": False, "high_first": True} | described)
        if type_name == "number":
            values = [round_off(value) for value in np.asarray(values, dtype=float).tolist()]
        self.values[key] = list(values)


def add_places(columns, rows, images):
    """Columns that say which image a row is. images: Images."""
    columns.add("index", rows.index.tolist(), "index", "integer", "its place in its split")
    columns.add("split", rows.split.tolist(), "split", "split", "training or test set")
    subset = "which encoders were trained on it"
    columns.add("subset", rows.subset.tolist(), "subset", "subset", subset, in_gallery=True)
    columns.add("label", rows.label.tolist(), "class", "class", "its class", in_gallery=True)
    if images.train.names is not None:
        names = [
            clean(getattr(images, split).names[index])
            for split, index in zip(rows.split.tolist(), rows.index.tolist())
        ]
        columns.add("file", names, "file", "text", "the name of its file")


def add_scores(columns, rows, run):
    """Columns of scores. run: a ScoredRun."""
    table, column = run.table, run.summary.headline
    of = {name: values[rows.places] for name, values in table.items() if values.ndim == 1}
    words = words_of_losses(table["subset"])
    score = f"L_align {words['g']} less L_align {words['f']}; positive means memorized"
    columns.add("score", of["score"], "score", "number", score, digits=4, in_gallery=True)
    local = "score less what external images of its kind score"
    columns.add(
        "score_local", of["score_local"], "local score", "number", local, digits=4, in_gallery=True
    )
    _add_ranks(columns, rows, of[column], run.summary)
    columns.add(
        "stderr",
        of["stderr"],
        "standard error",
        "number",
        "how much the score would differ in a repetition, with other views and another training",
        digits=4,
    )
    for suffix, name in (("", "score"), ("_local", "local score")):
        p = f"share of external images whose {name} is as high"
        q = f"p of the {name}, corrected for the number of candidates"
        columns.add(f"p{suffix}", of[f"p{suffix}"], f"p ({name})", "number", p, kind="p")
        columns.add(f"q{suffix}", of[f"q{suffix}"], f"q ({name})", "number", q, kind="p")
    for name, words in words_of_losses(table["subset"]).items():
        key = f"alignment_loss_{name}"
        loss = "mean distance between views of the image: small means well aligned"
        columns.add(key, of[key], f"L_align {words}", "number", loss, digits=4, high_first=False)


def words_of_losses(subset):
    """{"f": what the losses of the encoder with the image are of, "g": and of the one without it}.
    In a crossover these are f for some seeds, and g for others. subset: (n,) names.
    """
    if (subset == "independent").any():
        return {"f": "of f", "g": "of g"}
    return {"f": "with the image", "g": "without the image"}


def _add_ranks(columns, rows, scores, summary):
    """The ranks of the candidates and, if their reliability is known, intervals of the ranks.
    scores: (N,), by which candidates are ranked; summary: a ScoresSummary.
    """
    n_ranked = int((~np.isnan(scores[: rows.n_candidates])).sum())  # they come first
    rest = [None] * (len(scores) - n_ranked)
    rank = f"place among the {n_ranked} ranked candidates, 1 for the highest {summary.headline}"
    columns.add("rank", [*range(1, n_ranked + 1), *rest], "rank", "integer", rank, high_first=False)
    if not summary.ranking_reliability:
        return
    reliability = summary.ranking_reliability["candidate"]["predicted"]
    if reliability is None:  # all scores are equal
        return
    intervals = rank_intervals(scores[:n_ranked], reliability).astype(int)
    for key, ends, words in zip(("rank_low", "rank_high"), intervals.T, ("best", "worst")):
        meaning = f"{words} rank that the image may have in truth: 95 % interval by the reliability"
        title = f"rank, {'from' if key == 'rank_low' else 'to'}"
        columns.add(key, [*ends.tolist(), *rest], title, "integer", meaning, high_first=False)


def add_outcomes(columns, rows, outcomes):
    """Columns of the outcome of Deja Vu. outcomes: {index in the training set: (outcome, of how
    many seeds)}.
    """
    of_rows = [
        outcomes.get(index, (None, None)) if split == "train" else (None, None)
        for split, index in zip(rows.split.tolist(), rows.index.tolist())
    ]
    names, seeds = zip(*of_rows) if of_rows else ((), ())
    meaning = "the most frequent outcome of Deja Vu over the seeds"
    columns.add("outcome", names, "Deja Vu", "outcome", meaning, in_gallery=True)
    columns.add("outcome_seeds", seeds, "Deja Vu in", "text", "in how many seeds it came out so")


def scores_by_seed(rows, run):
    """The scores of the candidates by every seed, lists (candidates, seeds), or None if there are
    very many or one seed. run: a ScoredRun.
    """
    key = "per_seed_local" if run.summary.headline == "score_local" else "per_seed"
    scores = run.table[key][:, rows.places[: rows.n_candidates]].T
    if scores.shape[1] == 1 or scores.size > MOST_PER_SEED:
        return None
    return [[round_off(value) for value in of_image] for of_image in scores.tolist()]
