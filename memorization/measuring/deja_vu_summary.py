"""The results of Deja Vu: summary.json and dejavu.csv, and the words that describe them."""

import csv
import io
import itertools
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel

from memorization.measuring.deja_vu import (
    OUTCOMES,
    agreement,
    deja_vu,
    deja_vu_intervals,
    mcnemar_p,
)
from memorization.results import Checkpoint, Spread, Summary
from memorization.significance import mean_and_spread

PERCENTS = list(range(1, 101))  # of the images, the surest first
REPORTED = (100, 20, 5)
ACCURACIES = ("acc_target", "acc_reference", "score")
TOP = 100  # of the candidates, whose overlap with the most memorized is counted
REPRESENTATION = (
    "the encoder's pooled output, which is known to show less than the projector's output that "
    "Meehan et al. search in"
)


# --- words ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """The words for a comparison. Words of memory would claim too much of a classifier that is
    compared with f: the two differ in more than the images that they saw.

    target, reference, full_reference: the models; score: their difference, axis: the same on an
    axis, topic: the same in a title; equation: what the difference is; outcomes: {outcome: name};
    meanings: {outcome: explanation}; no_cases: there is no striking case; tested: what McNemar's p
    is about.
    """

    target: str
    reference: str
    full_reference: str
    score: str
    axis: str
    topic: str
    equation: str
    outcomes: dict
    meanings: dict
    no_cases: str
    tested: str


WORDS = {
    "independent": Words(
        target="target",
        reference="reference",
        full_reference="reference",
        score="Deja Vu score",
        axis="Deja Vu score, %",
        topic="Deja Vu",
        equation="Deja Vu score = memorized - forgotten",
        outcomes={name: name for name in OUTCOMES.values()},
        meanings={
            "memorized": "target right,\nreference wrong",
            "correlated": "both right",
            "forgotten": "target wrong,\nreference right",
            "unassociated": "both wrong",
        },
        no_cases="No candidate was memorized",
        tested="",
    ),
    "crops": Words(
        target="f",
        reference="classifier",
        full_reference="classifier of parts",
        score="difference",
        axis="difference of accuracies, %",
        topic="f less a classifier of parts",
        equation="difference = f alone - classifier alone",
        outcomes={
            "memorized": "f alone",
            "correlated": "both",
            "forgotten": "classifier alone",
            "unassociated": "neither",
        },
        meanings={
            "memorized": "classifier wrong",
            "correlated": "",
            "forgotten": "f wrong",
            "unassociated": "",
        },
        no_cases="No candidate that f tells and the classifier does not",
        tested=" that f and the classifier differ, which says nothing of memorization",
    ),
}


# --- summary.json ---------------------------------------------------------------------------------


class Majority(BaseModel):
    """The most frequent label of the public set, and how often it is right."""

    label: str
    share_of_public: float
    accuracy: float


class Public(BaseModel):
    """The public set: numbers of neighbours and of held-out images."""

    split: str
    images: int
    held_out: int
    k: int


class Accuracies(BaseModel):
    """On the surest images of each model, and the 95 % interval of the score."""

    acc_target: float
    acc_reference: float
    score: float
    interval_95: list[float]


class OverConfidence(BaseModel):
    """Accuracies on the surest `percent` of the images, lists."""

    percent: list[int]
    acc_target: list[float]
    acc_reference: list[float]
    score: list[float]


class OfClass(BaseModel):
    images: int
    acc_target: float
    acc_reference: float


class OfSeed(BaseModel):
    """One seed. dropped and boxes: see Queries; at: {percent: Accuracies}; classifier: of
    `train_classifier`, if there is one.
    """

    seed: int
    images: dict[str, int]
    dropped: dict[str, int]
    boxes: dict[str, int]
    at: dict[str, Accuracies]
    over_confidence: OverConfidence
    shares: dict[str, float]
    net: dict[str, float]
    vote_ties: dict[str, int]
    knn_accuracy_whole: dict[str, float | None]
    per_class: dict[str, OfClass]
    classifier: dict | None = None


class Agreement(BaseModel):
    """Of two rankings; see `agreement`."""

    kendall_tau: Spread
    top_overlap: Spread


class Comparison(BaseModel):
    """How far Deja Vu and the memorization score agree about the candidates."""

    candidates: int
    top: int
    deja_vu_and_score: Agreement | None
    deja_vu_between_seeds: Agreement | None
    score_between_seeds: Agreement | None
    top_overlap_by_chance: float


class DejaVuSummary(Summary):
    """summary.json of dejavu.py. score and shares are means over seeds, of {percent} and {outcome}.

    trained_on: how many images f and the classifier were trained on; None if f is compared with g.
    """

    query: str
    reference: str
    trained_on: dict[str, int] | None
    representation: str
    checkpoint: Checkpoint
    score: dict[str, Spread]
    shares: dict[str, Spread]
    chance: float
    majority: Majority
    public: Public
    seeds: list[OfSeed]
    memorization_scores: Comparison | None
    settings: dict
    fingerprints: dict
    machine: dict
    seconds: float

    @property
    def words(self):
        """The Words for this comparison."""
        return WORDS[self.reference]

    @property
    def caveat(self):
        """A sentence: the difference between f and a classifier proves nothing, since f saw more
        images. Empty if f is compared with g.
        """
        if self.trained_on is None:
            return ""
        f, reference = self.trained_on["f"], self.trained_on["reference"]
        images = f"f saw {f} images, the classifier {reference} ({f / reference:.1f} times as many)"
        return f"no proof of memorization: {images}"


def summarize(attacks, sets, settings, scores):
    """What follows from the Attacks of all seeds, a dict of fields of a DejaVuSummary.

    sets: AttackSets; settings: DejaVuSettings; scores: CandidateScores, or None.
    """
    public, classes, trained_on = sets.public, sets.public.classes, attacks[0].trained_on
    seeds = [_summarize_seed(attack, classes) for attack in attacks]
    images_of_label = np.bincount(public.labels, minlength=len(classes))
    labels = np.concatenate([attack.label for attack in attacks])
    scores_at = {str(percent): [] for percent in REPORTED}
    shares = {name: [] for name in OUTCOMES.values()}
    for seed in seeds:
        for percent, values in scores_at.items():
            values.append(seed["at"][percent]["score"])
        for name, values in shares.items():
            values.append(seed["shares"][name])
    return {
        "query": settings.query,
        "reference": settings.reference,
        "trained_on": trained_on,
        "representation": REPRESENTATION,
        "score": {percent: mean_and_spread(values) for percent, values in scores_at.items()},
        "shares": {name: mean_and_spread(values) for name, values in shares.items()},
        "chance": 1 / len(classes),
        "majority": {
            "label": classes[images_of_label.argmax()],
            "share_of_public": float(images_of_label.max() / images_of_label.sum()),
            "accuracy": float(np.mean(labels == images_of_label.argmax())),
        },
        "public": {
            "split": public.split.name,
            "images": len(public.rows),
            "held_out": len(public.held_out),
            "k": settings.k,
        },
        "seeds": seeds,
        "memorization_scores": compare_with_scores(attacks, scores),
        "settings": settings.model_dump(),
    }


def fingerprints_of(attacks, public):
    """The fingerprints of the public images and of all attacked encoders, a dict."""
    encoders = {}
    for attack in attacks:
        encoders |= attack.fingerprints
    return {"public": public.split.fingerprint, "encoders": encoders}


def _summarize_seed(attack, classes):
    """The fields of OfSeed, a dict."""
    right_target, right_reference = attack.right
    sweep = [values.tolist() for values in deja_vu(attack.answers, PERCENTS)]
    over_confidence = dict(zip(("percent", *ACCURACIES), (PERCENTS, *sweep)))
    at = {}
    for percent, interval in zip(REPORTED, deja_vu_intervals(attack.answers, REPORTED)):
        at[str(percent)] = {name: over_confidence[name][percent - 1] for name in ACCURACIES}
        at[str(percent)]["interval_95"] = interval.tolist()
    outcomes_of = {
        subset: attack.outcome[attack.subset == subset]
        for subset in dict.fromkeys(attack.subset.tolist())
    }
    shares = {}
    for name in OUTCOMES.values():
        of_subsets = [(outcomes == name).mean() for outcomes in outcomes_of.values()]
        shares[name] = float(np.mean(of_subsets))
    per_class = {}
    for label, name in enumerate(classes):
        rows = attack.label == label
        if rows.any():
            per_class[name] = {
                "images": int(rows.sum()),
                "acc_target": float(right_target[rows].mean()),
                "acc_reference": float(right_reference[rows].mean()),
            }
    return {
        "seed": attack.seed,
        "images": {subset: len(outcomes) for subset, outcomes in outcomes_of.items()},
        "dropped": attack.queries.dropped,
        "boxes": attack.queries.boxes,
        "at": at,
        "over_confidence": over_confidence,
        "shares": shares,
        "net": {
            "memorized - forgotten": shares["memorized"] - shares["forgotten"],
            "mcnemar_p": mcnemar_p(right_target, right_reference),
        },
        "vote_ties": {name: inference.ties for name, inference in attack.inferences.items()},
        "knn_accuracy_whole": attack.knn,
        "per_class": per_class,
        **({"classifier": attack.classifier} if attack.classifier else {}),
    }


def compare_with_scores(attacks, scores):
    """How far Deja Vu and the memorization score agree about the candidates, the fields of a
    Comparison; None if there are no scores of at least two of them.

    Both rank every candidate, in a crossover every image of the pool: Deja Vu by the margin of an
    Attack, the score by L_align, each of the seed's encoder with the image against the one without
    it. For comparison, the agreement of either with itself between two seeds, the ceiling, and the
    overlap expected by chance. If f alone is attacked in a crossover, each seed has other images:
    Deja Vu has then no ceiling, and that of the score is about the images of the first seed.
    """
    if scores is None:
        return None
    margins = {attack.seed: _margins_of_scored(attack, scores) for attack in attacks}
    images = margins[attacks[0].seed][0]
    fewest = min(len(places) for places, _ in margins.values())
    top = min(TOP, fewest // 2)
    if top == 0:
        return None
    by_score = dict(zip(scores.seeds, scores.per_seed))
    both = [
        (margin, by_score[seed][places])
        for seed, (places, margin) in margins.items()
        if seed in by_score
    ]
    alike = all(np.array_equal(places, images) for places, _ in margins.values())
    between_margins = itertools.combinations([margin for _, margin in margins.values()], 2)
    between_scores = itertools.combinations(scores.per_seed[:, images], 2)
    return {
        "candidates": fewest,
        "top": top,
        "deja_vu_and_score": _mean_agreement(both, top),
        "deja_vu_between_seeds": _mean_agreement(between_margins if alike else (), top),
        "score_between_seeds": _mean_agreement(between_scores, top),
        "top_overlap_by_chance": top / fewest,
    }


def _margins_of_scored(attack, scores):
    """The attacked images that have a score: (their places in CandidateScores, their margins)."""
    _, attacked, places = np.intersect1d(attack.index, scores.index, return_indices=True)
    return places, attack.margin[attacked]


def _mean_agreement(pairs, top):
    """Mean and spread of the agreement of pairs of rankings, a dict; None if there are no pairs."""
    agreements = [agreement(one, other, top) for one, other in pairs]
    if not agreements:
        return None
    return {name: mean_and_spread([x[name] for x in agreements]) for name in agreements[0]}


# --- dejavu.csv -----------------------------------------------------------------------------------


def table_of(attacks):
    """The bytes of dejavu.csv: a row for every seed and attacked image, in order of subset, then
    index.
    """
    models = list(attacks[0].inferences)
    of_inference = ("prediction", "confidence", "label_share")
    names = [f"{what}_{model}" for model in models for what in of_inference]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["seed", "index", "subset", "label", *names, "outcome"])
    for attack in attacks:
        columns = [attack.index, attack.subset, attack.label]
        for inference in attack.inferences.values():
            columns += [getattr(inference, what) for what in of_inference]
        columns.append(attack.outcome)
        order = np.lexsort([attack.index, attack.subset])  # "candidate" before "independent"
        rows = zip(*(column[order].tolist() for column in columns))
        writer.writerows((attack.seed, *row) for row in rows)
    return table.getvalue().encode()
