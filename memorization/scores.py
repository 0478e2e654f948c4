"""The scores of a run's candidates, read back for what builds on them."""

import hashlib
from dataclasses import dataclass

import numpy as np

from memorization.alignment import memorization_score
from memorization.checkpoint import load_pair, pair_fingerprints
from memorization.config import first_difference, shortened
from memorization.errors import WrongUse
from memorization.storage import exists, parse_json, read_arrays, read_bytes, read_text, refuse_broken
from memorization.subsets import SUBSETS

FORMAT = "memorization scores 1"  # of summary.json and scores.npz


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


def load_candidate_scores(config, subsets, checkpoint="encoder"):
    """The CandidateScores that memorization_scores.py wrote for a checkpoint of a run.

    subsets: of the run. Raises WrongUse where files are missing, broken or of another format, or the scores are those of another split,
    checkpoint, representation, augmentation or precision, or of other encoders.
    """
    folder = config.score_folder(checkpoint)
    summary = _read_summary(folder / "summary.json", config.folder / "scores")
    with refuse_broken(folder, "not whole scores"):
        fingerprints, settings, seeds = summary["fingerprints"], summary["settings"], list(summary["seeds"])
        _check_seeds(seeds)
        found = {"subsets": fingerprints["subsets"], "checkpoint": summary["checkpoint"]["name"]}
        found |= {name: settings[name] for name in ("representation", "augmentation")}
        found["precision"] = settings.get("precision", "fp32")  # older ones know no other
        encoders, written = fingerprints["encoders"], fingerprints["scores"]
        found["scores.npz"] = hashlib.sha256(read_bytes(folder / "scores.npz")).hexdigest()
        file = read_arrays(folder / "scores.npz")
        arrays = {name: file[name] for name in ("index", "label", "subset", "L_f", "L_g")}
        _check_shapes(arrays, len(seeds))
    wanted = {"subsets": subsets.fingerprint, "checkpoint": checkpoint}
    wanted |= config.scores.model_dump(include={"representation", "augmentation", "precision"})
    _check_equal(found, wanted | {"scores.npz": written}, folder)
    try:
        trained = pair_fingerprints({seed: load_pair(config.folder, seed, checkpoint) for seed in seeds})
    except WrongUse as error:
        raise WrongUse(f"{folder}: scores of encoders that cannot be read: {error}") from None
    _check_equal({"encoders": encoders}, {"encoders": trained}, folder)
    _check_equal({"seeds": list(encoders)}, {"seeds": list(trained)}, folder)  # in the order of the losses
    chosen = arrays["subset"] == "candidate"
    if not np.isfinite(arrays["L_f"][:, chosen]).all() or not np.isfinite(arrays["L_g"][:, chosen]).all():
        raise WrongUse(f"{folder}: scores that are not finite")
    index = arrays["index"][chosen]
    if not np.isin(index, subsets.candidate).all() or (np.diff(index) <= 0).any():
        raise WrongUse(f"{folder}: scores of images that are no candidates, or not in ascending order of index")
    return CandidateScores(
        arrays["index"][chosen], arrays["label"][chosen], arrays["L_f"][:, chosen], arrays["L_g"][:, chosen], seeds
    )  # fmt: skip


def _read_summary(path, all_scores):
    """The dict in a summary.json. Raises WrongUse where it is missing, broken or of another format.

    all_scores: the folder of all scores of the run, of which another is named where this one is missing.
    """
    if not exists(path):
        others = sorted(all_scores.rglob("summary.json"))
        hint = f"; there are scores by other settings, such as {others[0].parent}" if others else ""
        raise WrongUse(f"{path.parent}: no scores here; run memorization_scores.py with the same config first{hint}")
    with refuse_broken(path.parent, "not whole scores"):
        summary = parse_json(read_text(path))
    _check_equal({"format": summary.get("format") if isinstance(summary, dict) else None}, {"format": FORMAT}, path.parent)
    return summary


def _check_equal(found, wanted, folder):
    """Raise WrongUse where what a folder of scores says of itself is not what is wanted of it, both nested dicts."""
    difference = first_difference(found, wanted)
    if difference:
        key, value, other = difference
        raise WrongUse(f"{folder}: {key} is {shortened(value)}, but {shortened(other)} belongs here; run memorization_scores.py again")


def _check_seeds(seeds):
    """Raise ValueError unless seeds are what memorization_scores.py writes."""
    if not all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds are {seeds}")


def _check_shapes(arrays, seeds):
    """Raise ValueError unless the arrays of scores.npz are what memorization_scores.py writes."""
    N = arrays["index"].size
    expected = {"index": ((N,), "i"), "label": ((N,), "i"), "subset": ((N,), "U"), "L_f": ((seeds, N), "f"), "L_g": ((seeds, N), "f")}
    for name, (shape, kind) in expected.items():
        if arrays[name].shape != shape or arrays[name].dtype.kind != kind:
            raise ValueError(f"{name} is {arrays[name].dtype} of shape {arrays[name].shape}")
    if not np.isin(arrays["subset"], list(SUBSETS)).all():
        raise ValueError("a row of no subset")
