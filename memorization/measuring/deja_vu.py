"""Deja Vu: its settings, label inference from a part of an image, and the Deja Vu score
(Meehan et al. 2023, arXiv 2304.13850).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pydantic
import scipy
import torch
from pydantic import Field

from memorization.data.subsets import ROLES
from memorization.errors import WrongUse
from memorization.fields import MOST_EPOCHS, MOST_VIEWS, PathName
from memorization.measuring.representations import encode_views, varying_dimensions
from memorization.neighbors import count_votes, elect, nearest_neighbors, vote_confidence
from memorization.normalization import normalize
from memorization.results import MeasurementSettings

SHOWN = 4  # neighbours kept for a picture
RESAMPLES = 2000
RESAMPLED_AT_ONCE = 100
OUTCOMES = {
    (True, False): "memorized",
    (True, True): "correlated",
    (False, True): "forgotten",
    (False, False): "unassociated",
}


class DejaVuSettings(MeasurementSettings):
    query: Literal["training", "corner", "center_masked", "boxes", "whole"] = Field(
        "training",
        description="the part of an image that is shown: views of training, a corner, all but the "
        "middle, the largest part between bounding boxes, or the whole image (a control)",
    )
    k: int = Field(100, ge=1, description="neighbours that vote for a label")
    views: int = Field(
        10,
        ge=1,
        le=MOST_VIEWS,
        description="query training: views of an image, whose votes are summed",
    )
    corner: Literal["lower_left", "lower_right", "upper_left", "upper_right"] = Field(
        "lower_left", description="query corner: which"
    )
    corner_fraction: float = Field(
        0.3, gt=0, le=1, description="query corner: its share of each side"
    )
    masked_fraction: float = Field(
        0.5, gt=0, lt=1, description="query center_masked: what is blanked, as a share of each side"
    )
    boxes: PathName | None = Field(
        None,
        description="query boxes: a CSV file (index,xmin,ymin,xmax,ymax, in original pixels) or a "
        "folder of ImageNet's XML files",
    )
    public: Literal["whole", "training"] = Field(
        "whole", description="how the public set is embedded: whole images, or a training view"
    )
    public_split: Literal["test", "train"] = Field(
        "test",
        description="the public set: the labelled test images, or those of the training set that "
        "neither encoder saw",
    )
    public_images: int | None = Field(
        None, ge=2, description="take so many public images only, the first by hash; null for all"
    )
    normalize: bool = Field(
        False, description="l2-normalize representations before neighbours are searched"
    )
    reference: Literal["independent", "crops"] = Field(
        "independent",
        description="what f is compared with: g, or a classifier of the queries alone, for people "
        "with one encoder",
    )
    reference_epochs: int = Field(
        100,
        ge=1,
        le=MOST_EPOCHS,
        description="reference crops: epochs of the classifier at most; it stops early",
    )
    memory_gb: float = Field(
        0.25, gt=0, le=10**6, description="memory for the search, beside representations"
    )

    @pydantic.model_validator(mode="after")
    def _check_boxes(self):
        if (self.query == "boxes") != (self.boxes is not None):
            both = f"boxes is {self.boxes!r}, but query is {self.query}"
            raise ValueError(f"{both}; query boxes needs a file or folder, the others take none")
        return self

    SCRIPT = "dejavu.py"
    PLAIN = {"query": "training", "reference": "independent"}
    BUILT_ON = ("scores",)
    WITHOUT_G = "--dejavu.reference crops compares f with a classifier of the parts"

    @property
    def roles(self):
        """The roles of the encoders that are needed."""
        return ROLES[:1] if self.reference == "crops" else ROLES

    def determining(self):
        """The names of the settings that determine the numbers of a result."""
        names = ["query", "reference", "k", "public", "public_split", "public_images", "normalize"]
        names += {
            "training": ["views"],
            "corner": ["corner", "corner_fraction"],
            "center_masked": ["masked_fraction"],
            "boxes": ["boxes"],
            "whole": [],
        }[self.query]
        return names + (["reference_epochs"] if self.reference == "crops" else [])


# --- label inference ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PublicSet:
    """The labelled public images X, of which neither encoder saw one.

    split: their Split; rows: (P,) int64, the images whose neighbourhood tells a label; held_out:
    (n,) int64, other images, on which the classifier of parts is validated; classes: names of all.
    """

    split: object
    rows: torch.Tensor
    held_out: torch.Tensor
    classes: tuple

    @property
    def labels(self):
        """(P,) int64."""
        return self.split.labels.numpy()[self.rows]


@dataclass(frozen=True, eq=False)
class Bank:
    """A PublicSet as one encoder represents it."""

    public: PublicSet
    values: torch.Tensor  # (P, D) float32, on the device of the search


@dataclass(frozen=True, eq=False)
class Inference:
    """The labels that one model infers for N images."""

    prediction: np.ndarray  # (N,) int64
    confidence: np.ndarray  # (N,) float64, larger if the model is surer
    label_share: np.ndarray  # (N,) float64, the true label's share of the vote or probability
    ties: int = 0  # among the votes
    neighbors: np.ndarray | None = None  # (N, SHOWN) int64, of the first view, rows of X


def encode_public(encoder, public, make_view, normalized):
    """The Bank of an encoder.

    make_view: rows (B,) -> View; normalized: whether to l2-normalize representations. Raises
    WrongUse if the encoder has collapsed.
    """
    values = _encode(encoder, make_view, public.rows, normalized, public.split.device)
    try:
        varying_dimensions(values)
    except WrongUse as error:
        raise WrongUse(f"{encoder.name}: {error}") from None
    return Bank(public, values)


def infer_by_neighbors(encoder, queries, bank, settings):
    """The Inference of an encoder about the images of some Queries.

    The k nearest public images to each view of an image vote for its label; the votes of all views
    are summed. settings: DejaVuSettings.
    """
    shape = len(queries.rows), len(bank.public.classes)
    votes, distances, neighbors = np.zeros(shape, dtype=np.int64), np.zeros(shape), None
    for view in range(queries.views):
        values = _encode(
            encoder,
            lambda rows, view=view: queries.make_view(rows, view),
            queries.rows,
            settings.normalize,
            bank.values.device,
        )
        places, squares = _search(values, bank, settings.k, settings)
        view_votes, view_distances = count_votes(bank.public.labels[places], squares, shape[1])
        votes += view_votes
        distances += view_distances
        if view == 0:
            neighbors = bank.public.rows.numpy()[places[:, :SHOWN]]
    prediction, tied = elect(votes, distances)
    label_share = votes[np.arange(shape[0]), queries.labels.numpy()] / votes.sum(1)
    return Inference(prediction, vote_confidence(votes), label_share, int(tied.sum()), neighbors)


def neighbor_accuracy(values, labels, bank, settings, leave_out):
    """Share of whole images whose k nearest public images vote for their label.

    values: (n, D), representations of the images; labels: (n,) int64. leave_out: whether the images
    are the public images themselves; then none is its own neighbour.
    """
    k = settings.k
    places, squares = _search(values, bank, k + leave_out, settings)
    if leave_out:
        itself = places == np.arange(len(places))[:, None]
        itself[~itself.any(1), -1] = True  # k equal images come before it: leave out the last one
        places, squares = (part[~itself].reshape(len(part), k) for part in (places, squares))
    votes = count_votes(bank.public.labels[places], squares, len(bank.public.classes))
    return float((elect(*votes)[0] == labels).mean())


def _search(values, bank, k, settings):
    """Places in the bank of the k nearest to every row of values, and squared distances, arrays."""
    places, squares = nearest_neighbors(values, bank.values, k, settings.memory_gb)
    return places.cpu().numpy(), squares.cpu().numpy()


def _encode(encoder, make_view, rows, normalized, device):
    """Representations of a view of each image, (n, D), on the device."""
    values = encode_views(encoder, make_view, rows, device)
    return (normalize(values, dim=1) if normalized else values).to(device)


# --- the score ------------------------------------------------------------------------------------


def accuracies_at(right, order, percents):
    """Accuracy on the most confident images, a float for each of percents: on the first ceil(p N /
    100), at least one.

    right: (..., N) bool; order: (..., N) int64, of `by_confidence`.
    """
    running = np.take_along_axis(np.asarray(right, dtype=np.float64), order, -1).cumsum(-1)
    sizes = [max(1, -(-percent * running.shape[-1] // 100)) for percent in percents]
    return np.stack([running[..., size - 1] / size for size in sizes], axis=-1)


def by_confidence(confidence):
    """Positions from the surest to the least sure; equal ones in order of position. confidence:
    (..., N).
    """
    return np.argsort(-confidence, axis=-1, kind="stable")


def deja_vu(answers, percents):
    """acc_target, acc_reference and the Deja Vu score, their difference, on the surest images,
    (percents,) each.

    answers: for every attacked set the answers of (target, reference); the target trained on its N
    images, the reference did not. An answer is (right, confidence), (N,) each. Accuracies are means
    over the sets; every model ranks by its own confidence. Meehan et al., section 4.
    """
    accuracies = []
    for of_model in zip(*answers):
        of_sets = [
            accuracies_at(right, by_confidence(confidence), percents)
            for right, confidence in of_model
        ]
        accuracies.append(np.mean(of_sets, axis=0))
    target, reference = accuracies
    return target, reference, target - reference


def deja_vu_intervals(answers, percents, seed=0):
    """95 % bootstrap intervals of the Deja Vu score, (percents, 2). Images are resampled; target
    and reference meet the same ones.
    """
    generator = np.random.default_rng(seed)
    scores = []
    for _ in range(RESAMPLES // RESAMPLED_AT_ONCE):
        resampled = []
        for of_set in answers:
            N = len(of_set[0][0])
            rows = np.sort(generator.integers(N, size=(RESAMPLED_AT_ONCE, N)), axis=1)
            resampled.append([(right[rows], confidence[rows]) for right, confidence in of_set])
        scores.append(deja_vu(resampled, percents)[2])
    return np.percentile(np.concatenate(scores), [2.5, 97.5], axis=0).T


def outcomes(right_target, right_reference):
    """The outcome of every image, (N,): "memorized", "correlated", "forgotten" or "unassociated".
    Both: (N,) bool.
    """
    both = zip(right_target, right_reference)
    return np.array([OUTCOMES[bool(target), bool(reference)] for target, reference in both])


def mcnemar_p(right_target, right_reference):
    """Exact two-sided p that target and reference are equally often right alone (McNemar 1947).
    Both: (N,) bool.
    """
    memorized = (right_target & ~right_reference).sum()
    forgotten = (right_reference & ~right_target).sum()
    if memorized + forgotten == 0:
        return 1.0
    return float(scipy.stats.binomtest(memorized, memorized + forgotten).pvalue)


def agreement(one, other, top):
    """Kendall's tau between two rankings of the same N samples, and the overlap of their first
    `top`, a share. one, other: (N,).
    """
    first, second = (set(by_confidence(values)[:top].tolist()) for values in (one, other))
    return {
        "kendall_tau": float(scipy.stats.kendalltau(one, other).statistic),
        "top_overlap": len(first & second) / top,
    }
