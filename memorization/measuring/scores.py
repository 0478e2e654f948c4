"""Memorization scores: their settings, and those of the candidates, read back."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pydantic
from pydantic import Field

from memorization.alignment import memorization_score
from memorization.data.recipes import Recipes
from memorization.data.subsets import SUBSETS
from memorization.errors import WrongUse, short_form
from memorization.fields import MOST_VIEWS
from memorization.fingerprints import first_difference
from memorization.machine.files import exists, parse_json, read_arrays, read_text, refuse_broken
from memorization.results import SUMMARY, check_files
from models.settings import Settings

FORMAT = "memorization scores 1"  # of summary.json and scores.npz


class ScoreSettings(Settings):
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
        description="bf16 lets the encoders multiply in bfloat16; how far its scores are from those of fp32 is measured as well",
    )

    # Values that add nothing to the name of a result's folder, whatever the run's config.yaml says.
    PLAIN: ClassVar = {"representation": "pooled", "augmentation": "training", "precision": "fp32"}

    @pydantic.field_validator("augmentation", mode="before")
    @classmethod
    def _read_training(cls, value):
        if isinstance(value, str) and value != "training":
            allowed = "allowed are 'training' and a list of recipes"
            raise ValueError(f"{short_form(value)} is not allowed: {allowed}")
        return None if value == "training" else value

    @pydantic.field_serializer("augmentation", mode="wrap")
    def _write_training(self, recipes, write):
        return "training" if recipes is None else write(recipes)

    def determining(self):
        """The names of the settings that determine the numbers of a result."""
        return ["representation", "augmentation", "precision", "views", "per_subset"]


@dataclass(frozen=True)
class CandidateScores:
    """What scores.npz knows of the scored samples of S_C, in ascending order of index."""

    index: np.ndarray  # (N,) int64, in the training set
    label: np.ndarray  # (N,) int64, -1 where there is none
    losses_f: np.ndarray  # (S, N) float64, L_align(f, x) of every seed
    losses_g: np.ndarray  # (S, N) float64
    seeds: list  # S of them

    @property
    def score(self):
        """The memorization scores, (N,), means over the seeds."""
        return memorization_score(self.losses_f.mean(0), self.losses_g.mean(0))

    @property
    def per_seed(self):
        """The memorization scores of every seed, (S, N)."""
        return memorization_score(self.losses_f, self.losses_g)


def scored_seeds(result):
    """The seeds of the scores in a folder, a list; empty if it does not say.

    result: a Result of memorization_scores.py. Raises WrongUse if it is missing, broken or of
    another format.
    """
    seeds = _read_summary(result).get("seeds")
    return seeds if isinstance(seeds, list) else []


def load_candidate_scores(result, checkpoint, subsets, load_pair):
    """The CandidateScores that memorization_scores.py wrote for a checkpoint of a run.

    result: the Result of those scores; subsets: of the run; load_pair: seed -> its Pair. Raises
    WrongUse if files are missing, broken, of another format or not of one scoring, or the scores
    are those of another split, checkpoint or settings, or of other encoders.
    """
    folder, summary = result.folder, _read_summary(result)
    with refuse_broken(folder, "not whole scores"):
        fingerprints, seeds = summary["fingerprints"], list(summary["seeds"])
        _check_seeds(seeds)
        found = {"subsets": fingerprints["subsets"], "checkpoint": summary["checkpoint"]["name"]}
        found |= _without_section(result.settings_in(summary))
        encoders = fingerprints["encoders"]
        files = summary.get("files", {}) | {"scores.npz": fingerprints["scores"]}
        file = read_arrays(folder / "scores.npz")
        arrays = {name: file[name] for name in ("index", "label", "subset", "L_f", "L_g")}
        _check_shapes(arrays, len(seeds))
    wanted = {"subsets": subsets.fingerprint, "checkpoint": checkpoint}
    _check_equal(found, wanted | _without_section(result.settings), folder)
    check_files(folder, files, "memorization_scores.py")
    trained = {}
    try:
        for seed in seeds:
            trained |= load_pair(seed).fingerprints
    except WrongUse as error:
        raise WrongUse(f"{folder}: scores of encoders that cannot be read: {error}") from None
    _check_equal({"encoders": encoders}, {"encoders": trained}, folder)
    # in the order of the losses
    _check_equal({"seeds": list(encoders)}, {"seeds": list(trained)}, folder)
    chosen = arrays["subset"] == "candidate"
    for losses in (arrays["L_f"], arrays["L_g"]):
        if not np.isfinite(losses[:, chosen]).all():
            raise WrongUse(f"{folder}: scores that are not finite")
    index = arrays["index"][chosen]
    if not np.isin(index, subsets.candidate).all() or (np.diff(index) <= 0).any():
        not_candidates = "scores of images that are no candidates"
        raise WrongUse(f"{folder}: {not_candidates}, or not in ascending order of index")
    losses_f, losses_g = arrays["L_f"][:, chosen], arrays["L_g"][:, chosen]
    return CandidateScores(index, arrays["label"][chosen], losses_f, losses_g, seeds)


def _without_section(settings):
    """Settings by their own names: {"views": 10} of {"scores.views": 10}."""
    return {key.removeprefix("scores."): value for key, value in settings.items()}


def _read_summary(result):
    """The dict in the summary.json of a Result of memorization_scores.py.

    Raises WrongUse if it is missing, broken or of another format.
    """
    folder = result.folder
    if not exists(folder / SUMMARY):
        all_scores = next(place for place in (folder, *folder.parents) if place.name == "scores")
        others = sorted(all_scores.rglob(SUMMARY))
        hint = f"; there are scores by other settings, such as {others[0].parent}" if others else ""
        raise WrongUse(
            f"{folder}: no scores here; run memorization_scores.py with the same config first{hint}"
        )
    with refuse_broken(folder, "not whole scores"):
        summary = parse_json(read_text(folder / SUMMARY))
    has_format = summary.get("format") if isinstance(summary, dict) else None
    _check_equal({"format": has_format}, {"format": FORMAT}, folder)
    return summary


def _check_equal(found, wanted, folder):
    """Raise WrongUse where what a folder of scores says of itself is not what is wanted of it, both
    nested dicts.
    """
    difference = first_difference(found, wanted)
    if difference:
        key, value, other = difference
        raise WrongUse(
            f"{folder}: {key} is {short_form(value)}, but {short_form(other)} belongs here; run memorization_scores.py again"
        )


def _check_seeds(seeds):
    """Raise ValueError unless seeds are what memorization_scores.py writes."""
    if not all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds) or len(set(seeds)) < len(
        seeds
    ):
        raise ValueError(f"seeds are {seeds}")


def _check_shapes(arrays, seeds):
    """Raise ValueError unless the arrays of scores.npz are what memorization_scores.py writes."""
    N = arrays["index"].size
    expected = {
        "index": ((N,), "i"),
        "label": ((N,), "i"),
        "subset": ((N,), "U"),
        "L_f": ((seeds, N), "f"),
        "L_g": ((seeds, N), "f"),
    }
    for name, (shape, kind) in expected.items():
        if arrays[name].shape != shape or arrays[name].dtype.kind != kind:
            raise ValueError(f"{name} is {arrays[name].dtype} of shape {arrays[name].shape}")
    if not np.isin(arrays["subset"], list(SUBSETS)).all():
        raise ValueError("a row of no subset")
