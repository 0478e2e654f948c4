"""Memorization scores of images: how much better f aligns the views of an image than g does."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pydantic
import torch
from pydantic import Field

from memorization.alignment import (
    encoder_distances,
    jackknife_error,
    mean_over_pairs,
    memorization_score,
)
from memorization.data.augmentations import Draw, augment_all, measuring_recipe
from memorization.data.recipes import Recipes
from memorization.errors import WrongUse, short_form
from memorization.fields import MOST_VIEWS
from memorization.fingerprints import first_difference
from memorization.machine import processes
from memorization.machine.device import uses_bf16
from memorization.results import MeasurementSettings


class ScoreSettings(MeasurementSettings):
    views: int = Field(
        10, ge=3, le=MOST_VIEWS, description="views of each image, compared pair by pair"
    )
    representation: Literal["pooled", "tokens"] = Field(
        "pooled", description="the encoder's output, or all its positions before pooling"
    )
    # None for the views of training, which files, the command line and results call "training".
    augmentation: Recipes | None = Field(
        "training",
        validate_default=True,
        description="the views: those of training, or a list of other recipes",
    )
    per_subset: int | None = Field(
        None,
        ge=2,
        description="score only so many images of each subset, the first by hash; null for all",
    )
    batch_size: int = Field(
        256,
        ge=1,
        le=10**6,
        description="images worked on together; scores do not depend on it, but for rounding",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="bf16: encoders multiply in bfloat16, and the error of the scores is measured",
    )

    SCRIPT = "memorization_scores.py"
    PLAIN = {"representation": "pooled", "augmentation": "training", "precision": "fp32"}

    @pydantic.field_validator("augmentation", mode="before")
    @classmethod
    def _read_training(cls, value):
        if value is None or (isinstance(value, str) and value != "training"):
            raise ValueError(f"{short_form(value)} is neither 'training' nor a list of recipes")
        return None if value == "training" else value

    @pydantic.field_serializer("augmentation", mode="wrap")
    def _write_training(self, recipes, write):
        return "training" if recipes is None else write(recipes)

    def determining(self):
        """The names of the settings that determine the numbers of a result."""
        return ["representation", "augmentation", "precision", "views", "per_subset"]

    def recipes(self, of_training):
        """The recipes of the scored views. of_training: those that the encoders were trained on."""
        return self.augmentation or of_training

    def scoring(self, seed):
        """The Scoring by these settings. seed: of the views."""
        return Scoring(self.views, self.representation, self.precision, self.batch_size, seed)


@dataclass(frozen=True)
class Scoring:
    """How images are scored.

    views: V, at least 3, of each image. representation: "pooled", the encoder's output, or
    "tokens", all its positions before pooling. precision: "fp32", or "bf16", in which GPUs are
    faster and scores less exact. batch_size: images worked on together; it changes no score but for
    rounding. seed: of the views.
    """

    views: int = 10
    representation: str = "pooled"
    precision: str = "fp32"
    batch_size: int = 256
    seed: int = 0


@dataclass(frozen=True, eq=False)
class ImageScores:
    """Memorization scores of N images, in the order of their indices in the call."""

    loss_f: np.ndarray  # (N,) float64, L_align(f, x), a distance: small means well aligned
    loss_g: np.ndarray  # (N,) float64, L_align(g, x)
    error: np.ndarray  # (N,) float64, standard error of the score over the choice of views

    @property
    def score(self):
        """m(x) = L_align(g, x) - L_align(f, x), (N,); positive if f memorized the image."""
        return memorization_score(self.loss_f, self.loss_g)


def score_images(f, g, images, indices, recipes, scoring=None):
    """Memorization scores of images (SSLMem, arXiv 2401.12233), as ImageScores.

    f, g: Encoders of any origin that take the same images; f was trained on the images in question,
    g was not. images: a Split; the encoders are moved to its device.
    indices: (N,) integers, which of its images. recipes: a list of ViewRecipe; a score means most
    with those of training. View v is drawn by the full-size recipe number v modulo their count, the
    same view for f and g. scoring: a Scoring, None for the defaults.

    L_align(f, x) is the mean L2 distance, in [0, 2], between f's l2-normalized representations of
    two views of x, over all pairs of views. Raises WrongUse if f and g take different images, are
    in training mode, represent something as NaN or infinity, or all views alike.
    """
    scoring = scoring or Scoring()
    check_encoders(f, g, images)
    f, g = f.to(images.device), g.to(images.device)

    def score(batch):
        # All in one transfer, as a GPU waits for each.
        measured = torch.stack(score_batch(f, g, images, batch, recipes, scoring)).cpu()
        for encoder, losses in zip((f, g), measured):
            if not losses.isfinite().all():
                raise WrongUse(f"{encoder.place}: its representations are not finite")
        return measured

    batches = torch.as_tensor(indices).split(scoring.batch_size)
    parts = processes.map_in_processes(score, batches, f"scoring seed {scoring.seed}")
    scores = ImageScores(*torch.cat(parts, dim=1).double().numpy())  # 3 times (N,)
    check_chance(f, scores.loss_f)
    check_chance(g, scores.loss_g)
    return scores


@torch.inference_mode()
def score_batch(f, g, images, indices, recipes, scoring):
    """L_align of f and of g, and the jackknife error of their difference, three tensors (B,) on the
    device. See `score_images`; indices: (B,), one batch; f and g are on the device.
    """
    views, autocast = draw_views(f, images, indices, recipes, scoring)
    with autocast:
        # The noise of the views cancels in the difference, as f and g see the same ones.
        distances_f = encoder_distances(f.network, views, scoring.representation)
        distances_g = encoder_distances(g.network, views, scoring.representation)
    return (
        mean_over_pairs(distances_f),
        mean_over_pairs(distances_g),
        jackknife_error(distances_f, distances_g),
    )


def draw_views(encoder, images, indices, recipes, scoring):
    """The views of a batch of images, a list of View, and the torch.autocast in which encoders see
    them. See `score_images`; indices: (B,).
    """
    recipes = [measuring_recipe(recipes, view) for view in range(scoring.views)]
    draw = Draw(scoring.seed, "scoring", patch=encoder.patch)
    views = augment_all(images, indices, recipes, encoder.normalization, draw)
    in_bf16 = uses_bf16(scoring.precision, images.device)
    return views, torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=in_bf16)


def align_images(encoder, images, indices, recipes, scoring, measure=None):
    """What the distances between the views of images tell of one encoder alone, (K, N) float64: the
    alignment loss, and its jackknife error over the choice of views. See `score_images`, also for
    what it raises.

    measure: a function from distances (B, V, V) to more rows, (K - 2, B).
    """
    check_encoders(encoder, encoder, images)
    encoder = encoder.to(images.device)

    @torch.inference_mode()
    def align(batch):
        views, autocast = draw_views(encoder, images, batch, recipes, scoring)
        with autocast:
            distances = encoder_distances(encoder.network, views, scoring.representation)
        error = jackknife_error(distances, torch.zeros_like(distances))
        measured = torch.stack([mean_over_pairs(distances), error])
        if measure is not None:
            measured = torch.cat([measured, measure(distances)])
        measured = measured.cpu()  # in one transfer, as a GPU waits for each
        if not measured.isfinite().all():
            raise WrongUse(f"{encoder.place}: its representations are not finite")
        return measured

    batches = torch.as_tensor(indices).split(scoring.batch_size)
    parts = processes.map_in_processes(align, batches, f"aligning seed {scoring.seed}")
    measured = torch.cat(parts, dim=1).double().numpy()
    check_chance(encoder, measured[0])
    return measured


def check_chance(encoder, losses):
    """Raise WrongUse if an encoder represents all views of all images alike."""
    if not losses.any():  # the views of a single image may well be alike
        why = "the recipe has no chance in it, or it collapsed"
        raise WrongUse(f"{encoder.place}: all views are represented alike: {why}")


def check_encoders(f, g, images):
    """Raise WrongUse unless f and g are ready to measure and take the same images as there are."""
    for encoder in (f, g):
        if encoder.network.training:
            raise WrongUse(f"{encoder.name}: is in training mode; call eval() on its network first")
        if encoder.channels != images.pixels.shape[1]:
            both = f"{encoder.channels} channels, but the images have {images.pixels.shape[1]}"
            raise WrongUse(f"{encoder.name}: takes images of {both}")
    difference = first_difference(_inputs(f), _inputs(g))
    if difference:
        key, of_f, of_g = difference
        raise WrongUse(f"{key} is {of_f} of {f.name}, but {of_g} of {g.name}; they share all views")


def _inputs(encoder):
    """What an encoder takes, a dict of plain types."""
    mean, std = map(list, encoder.normalization)
    return {"size": encoder.size, "mean": mean, "std": std, "patch": encoder.patch}
