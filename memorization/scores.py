"""The scores of a run's candidates, read back for what builds on them."""

import re
from dataclasses import dataclass

import numpy as np

from memorization.alignment import memorization_score
from memorization.checkpoint import load_pair, pair_fingerprints
from memorization.errors import WrongUse
from memorization.storage import parse_json, read_arrays, read_text
from memorization.subsets import SUBSETS


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


def load_candidate_scores(folder, run, subsets):
    """The CandidateScores in a folder that memorization_scores.py wrote for a run.

    subsets: of the run. Raises WrongUse where files are missing or broken, or the scores are those of another split or other encoders.
    """
    if not (folder / "summary.json").exists():
        raise WrongUse(f"{folder}: no scores here; run memorization_scores.py with the same config first")
    try:
        summary = parse_json(read_text(folder / "summary.json"))
        scored, seeds, checkpoint = dict(summary["fingerprints"]), list(summary["seeds"]), summary["checkpoint"]["name"]
        _check_source(seeds, checkpoint)
        file = read_arrays(folder / "scores.npz")
        arrays = {name: file[name] for name in ("index", "label", "subset", "L_f", "L_g")}
        _check_shapes(arrays, len(seeds))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WrongUse(f"{folder}: not whole scores ({type(error).__name__}: {error})") from None
    if scored.get("subsets") != subsets.fingerprint:
        raise WrongUse(f"{folder}: scores of other subsets, {str(scored.get('subsets'))[:12]}..., than those of {run}")
    try:
        encoders = pair_fingerprints({seed: load_pair(run, seed, checkpoint) for seed in seeds})
    except WrongUse as error:
        raise WrongUse(f"{folder}: scores of encoders that cannot be read: {error}") from None
    if scored.get("encoders") != encoders or list(scored["encoders"]) != list(encoders):
        raise WrongUse(f"{folder}: scores of other encoders than those in {run}; run memorization_scores.py again")
    chosen = arrays["subset"] == "candidate"
    if not np.isfinite(arrays["L_f"][:, chosen]).all() or not np.isfinite(arrays["L_g"][:, chosen]).all():
        raise WrongUse(f"{folder}: scores that are not finite")
    index = arrays["index"][chosen]
    if not np.isin(index, subsets.candidate).all() or (np.diff(index) <= 0).any():
        raise WrongUse(f"{folder}: scores of images that are no candidates, or not in ascending order of index")
    return CandidateScores(
        arrays["index"][chosen], arrays["label"][chosen], arrays["L_f"][:, chosen], arrays["L_g"][:, chosen], seeds
    )  # fmt: skip


def _check_source(seeds, checkpoint):
    """Raise ValueError unless seeds and checkpoint are what memorization_scores.py writes."""
    if not all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds are {seeds}")
    if not re.fullmatch(r"encoder|epoch_\d+", checkpoint):
        raise ValueError(f"checkpoint is {checkpoint!r}")


def _check_shapes(arrays, seeds):
    """Raise ValueError unless the arrays of scores.npz are what memorization_scores.py writes."""
    N = arrays["index"].size
    expected = {"index": ((N,), "i"), "label": ((N,), "i"), "subset": ((N,), "U"), "L_f": ((seeds, N), "f"), "L_g": ((seeds, N), "f")}
    for name, (shape, kind) in expected.items():
        if arrays[name].shape != shape or arrays[name].dtype.kind != kind:
            raise ValueError(f"{name} is {arrays[name].dtype} of shape {arrays[name].shape}")
    if not np.isin(arrays["subset"], list(SUBSETS)).all():
        raise ValueError("a row of no subset")
