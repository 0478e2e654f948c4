"""Label inference from a part of an image: who guesses right, how surely, and the Deja Vu score
(Meehan et al. 2023, arXiv 2304.13850).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pydantic
import torch
from pydantic import Field
from scipy import stats

from memorization.errors import WrongUse
from memorization.fields import MOST_EPOCHS, MOST_VIEWS, possible_path
from memorization.measuring.representations import encode_views, varying_dimensions
from memorization.neighbors import count_votes, elected, nearest_neighbors, vote_confidence
from memorization.normalization import normalize
from models.settings import Settings

SHOWN = 4  # neighbours kept for a picture
RESAMPLES = 2000
RESAMPLED_AT_ONCE = 100
OUTCOMES = {
    (True, False): "memorized",
    (True, True): "correlated",
    (False, True): "forgotten",
    (False, False): "unassociated",
}


class DejaVuSettings(Settings):
    query: Literal["training", "corner", "center_masked", "boxes", "whole"] = Field(
        "training",
        description="what is asked with: views of training, a corner, all but the middle, the largest part between bounding boxes, or the "
        "whole image (a control)",
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
    boxes: str | None = Field(
        None,
        description="query boxes: a CSV file (index,xmin,ymin,xmax,ymax, in original pixels) or a folder of ImageNet's XML files",
    )
    public: Literal["whole", "training"] = Field(
        "whole", description="how the public set is embedded: whole images, or a training view"
    )
    public_split: Literal["test", "train"] = Field(
        "test",
        description="the public set: the labelled test images, or those of the training set that neither encoder saw",
    )
    public_images: int | None = Field(
        None, ge=2, description="take so many public images only, the first by hash; null for all"
    )
    normalize: bool = Field(
        False, description="l2-normalize representations before neighbours are searched"
    )
    reference: Literal["independent", "crops"] = Field(
        "independent",
        description="what f is compared with: g, or a classifier of the queries alone, for people with one encoder",
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

    @pydantic.field_validator("boxes")
    @classmethod
    def _possible_path(cls, path):
        return possible_path(path)

    @pydantic.model_validator(mode="after")
    def _boxes_where_needed(self):
        if (self.query == "boxes") != (self.boxes is not None):
            raise ValueError(
                f"boxes is {self.boxes!r}, but query is {self.query}; query boxes needs a file or folder, the others take none"
            )
        return self

    PLAIN: ClassVar = {"query": "training", "reference": "independent"}  # see ScoreSettings

    def determining(self):
        """The names of the settings that determine the numbers of a result."""
        names = ["query", "reference", "k", "public", "public_split", "public_images", "normalize"]
        names += {
            "training": ["views"],
            "corner": ["corner", "corner_fraction"],
            "center_masked": ["masked_fraction"],
            "boxes": ["boxes"],
        }.get(self.query, [])
        return names + (["reference_epochs"] if self.reference == "crops" else [])


@dataclass(frozen=True)
class PublicSet:
    """The labelled images X whose neighbourhood tells a label: where they are, and how one encoder
    represents them.
    """

    indices: torch.Tensor  # (P,) int64, in their split
    labels: np.ndarray  # (P,) int64
    values: torch.Tensor  # (P, D) float32, on the device of the search


@dataclass(frozen=True)
class Inference:
    """What one model guesses of the labels of N images."""

    prediction: np.ndarray  # (N,) int64
    confidence: np.ndarray  # (N,) float64, larger where it is surer
    # (N,) float64, how much of its vote or probability goes to the true label
    label_share: np.ndarray
    ties: int = 0  # among the votes
    # (N, SHOWN) int64, the nearest of X to the first view, as indices in its split
    neighbors: np.ndarray | None = None


def represent_public(source, make_view, indices, labels, normalized, device):
    """The PublicSet of an encoder. make_view: indices (B,) -> View; normalized: l2-normalize.
    Raises WrongUse for a collapsed encoder.
    """
    values = _represented(source, make_view, indices, normalized, device)
    try:
        varying_dimensions(values)
    except WrongUse as error:
        raise WrongUse(f"{source.name}: {error}") from None
    return PublicSet(indices, labels, values)


def infer_by_neighbors(source, queries, rows, labels, public, settings, classes, device):
    """The Inference of an encoder: the k nearest of X to each view of an image vote for its label,
    the votes of all views together.

    queries: of `make_queries`; rows: (N,) int64, the images asked about; labels: (N,) int64,
    theirs; settings: the `dejavu:` section.
    """
    votes, distances, neighbors = (
        np.zeros((len(rows), classes), dtype=np.int64),
        np.zeros((len(rows), classes)),
        None,
    )
    for view in range(queries.views):
        values = _represented(
            source,
            lambda batch, view=view: queries.make_view(batch, view),
            rows,
            settings.normalize,
            device,
        )
        found, how_far = (
            part.cpu().numpy()
            for part in nearest_neighbors(values, public.values, settings.k, settings.memory_gb)
        )
        for total, part in zip(
            (votes, distances), count_votes(public.labels[found], how_far, classes)
        ):
            total += part
        if view == 0:
            neighbors = public.indices.numpy()[found[:, :SHOWN]]
    prediction, tied = elected(votes, distances)
    label_share = votes[np.arange(len(rows)), labels] / votes.sum(1)
    return Inference(prediction, vote_confidence(votes), label_share, int(tied.sum()), neighbors)


def neighbor_accuracy(public, queries, query_labels, k, classes, memory_gb, leave_out):
    """Share of whole images whose k nearest of X vote for their label; leave_out: they are X
    itself, and none is its own neighbour.
    """
    found, how_far = (
        part.cpu().numpy()
        for part in nearest_neighbors(queries, public.values, k + leave_out, memory_gb)
    )
    if leave_out:
        itself = found == np.arange(len(found))[:, None]
        itself[~itself.any(1), -1] = True  # as many equal images before it: the last of them goes
        found, how_far = (part[~itself].reshape(len(part), k) for part in (found, how_far))
    return float(
        (elected(*count_votes(public.labels[found], how_far, classes))[0] == query_labels).mean()
    )


def _represented(source, make_view, rows, normalized, device):
    """Representations of a view of each image, (n, D), on the device, l2-normalized where that is
    asked for.
    """
    values = encode_views(source, make_view, rows, device)
    return (normalize(values, dim=1) if normalized else values).to(device)


# --- what it means --------------------------------------------------------------------------------


def accuracies_at(right, order, percents):
    """Accuracy on the most confident images, a float for each of percents: on the first ceil(p N /
    100), at least one.

    right: (..., N); order: (..., N) int64, of `by_confidence`.
    """
    running = np.take_along_axis(np.asarray(right, dtype=np.float64), order, -1).cumsum(-1)
    counts = [max(1, -(-percent * running.shape[-1] // 100)) for percent in percents]
    return np.stack([running[..., count - 1] / count for count in counts], axis=-1)


def by_confidence(confidence):
    """Positions from the surest to the least sure, equal ones as they stand (in order of sample
    index). confidence: (..., N).
    """
    return np.argsort(-confidence, axis=-1, kind="stable")


def deja_vu(attacks, percents):
    """acc_target, acc_reference and the Deja Vu score, their difference, of the surest images,
    (percents,) each.

    attacks: for every attacked set (target, reference), each (right, confidence) of its N images:
    who trained on them, and who did not. Accuracies are means over the sets; every model ranks by
    its own confidence. Meehan et al., section 4.
    """
    target, reference = (
        np.mean(
            [
                accuracies_at(right, by_confidence(confidence), percents)
                for right, confidence in models
            ],
            axis=0,
        )
        for models in zip(*attacks)
    )
    return target, reference, target - reference


def deja_vu_intervals(attacks, percents, seed=0):
    """95 % bootstrap intervals of the Deja Vu score, (percents, 2), over images, drawn anew for
    target and reference together.
    """
    generator = np.random.default_rng(seed)
    scores = []
    for _ in range(RESAMPLES // RESAMPLED_AT_ONCE):
        resampled = []
        for models in attacks:
            N = len(models[0][0])
            rows = np.sort(generator.integers(N, size=(RESAMPLED_AT_ONCE, N)), axis=1)
            resampled.append([(right[rows], confidence[rows]) for right, confidence in models])
        scores.append(deja_vu(resampled, percents)[2])
    return np.percentile(np.concatenate(scores), [2.5, 97.5], axis=0).T


def outcomes(right_target, right_reference):
    """The outcome of every image, (N,): "memorized", "correlated", "forgotten" or "unassociated".
    Both: (N,) bool.
    """
    return np.array(
        [
            OUTCOMES[bool(target), bool(reference)]
            for target, reference in zip(right_target, right_reference)
        ]
    )


def mcnemar_p(right_target, right_reference):
    """Exact two-sided p that target and reference are equally often right alone (McNemar 1947).
    Both: (N,) bool.
    """
    memorized, forgotten = (
        (right_target & ~right_reference).sum(),
        (right_reference & ~right_target).sum(),
    )
    return (
        float(stats.binomtest(memorized, memorized + forgotten).pvalue)
        if memorized + forgotten
        else 1.0
    )


def agreement(one, other, top):
    """Kendall's tau between two rankings of the same N samples, and the overlap of their first
    `top`, a share. one, other: (N,).
    """
    first, second = (set(by_confidence(values)[:top].tolist()) for values in (one, other))
    return {
        "kendall_tau": float(stats.kendalltau(one, other).statistic),
        "top_overlap": len(first & second) / top,
    }
