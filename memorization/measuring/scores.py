"""The scores of a run's candidates, read back for what builds on them."""

from dataclasses import dataclass

import numpy as np

from memorization.alignment import memorization_score
from memorization.checkpoint import load_pair, pair_fingerprints
from memorization.config import first_difference, shortened
from memorization.data.subsets import SUBSETS
from memorization.errors import WrongUse
from memorization.machine.files import exists, parse_json, read_arrays, read_text, refuse_broken
from memorization.results import SUMMARY, check_files, score_result, settings_in

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


def scored_folder(config, subsets, checkpoint="encoder"):
    """The folder of scores by a config's settings, a Path: of its seeds, or else of all seeds of
    the run if its own are scored there.
    """
    own = score_result(config, subsets, checkpoint).folder
    with_all_seeds = config.model_copy(update={"seeds": config.recorded.seeds})
    of_all = score_result(with_all_seeds, subsets, checkpoint).folder
    if exists(own / SUMMARY) or not exists(of_all / SUMMARY):
        return own
    scored = _read_summary(of_all, config.folder / "scores").get("seeds")
    has_all = isinstance(scored, list) and all(seed in scored for seed in config.seeds)
    return of_all if has_all else own


def load_candidate_scores(config, subsets, checkpoint="encoder"):
    """The CandidateScores that memorization_scores.py wrote for a checkpoint of a run.

    subsets: of the run. Raises WrongUse if files are missing, broken, of another format or not of
    one scoring, or the scores are those of another split, checkpoint or settings, or of other
    encoders.
    """
    folder = scored_folder(config, subsets, checkpoint)
    summary = _read_summary(folder, config.folder / "scores")
    settings = score_result(config, subsets, checkpoint).settings
    with refuse_broken(folder, "not whole scores"):
        fingerprints, seeds = summary["fingerprints"], list(summary["seeds"])
        _check_seeds(seeds)
        found = {"subsets": fingerprints["subsets"], "checkpoint": summary["checkpoint"]["name"]}
        found |= {
            key.removeprefix("scores."): value
            for key, value in settings_in(summary, settings).items()
        }
        encoders, files = (
            fingerprints["encoders"],
            summary.get("files", {}) | {"scores.npz": fingerprints["scores"]},
        )
        file = read_arrays(folder / "scores.npz")
        arrays = {name: file[name] for name in ("index", "label", "subset", "L_f", "L_g")}
        _check_shapes(arrays, len(seeds))
    wanted = {"subsets": subsets.fingerprint, "checkpoint": checkpoint}
    _check_equal(
        found,
        wanted | {key.removeprefix("scores."): value for key, value in settings.items()},
        folder,
    )
    check_files(folder, files, "memorization_scores.py")
    try:
        trained = pair_fingerprints(
            {seed: load_pair(config.folder, seed, checkpoint) for seed in seeds}
        )
    except WrongUse as error:
        raise WrongUse(f"{folder}: scores of encoders that cannot be read: {error}") from None
    _check_equal({"encoders": encoders}, {"encoders": trained}, folder)
    # in the order of the losses
    _check_equal({"seeds": list(encoders)}, {"seeds": list(trained)}, folder)
    chosen = arrays["subset"] == "candidate"
    if (
        not np.isfinite(arrays["L_f"][:, chosen]).all()
        or not np.isfinite(arrays["L_g"][:, chosen]).all()
    ):
        raise WrongUse(f"{folder}: scores that are not finite")
    index = arrays["index"][chosen]
    if not np.isin(index, subsets.candidate).all() or (np.diff(index) <= 0).any():
        raise WrongUse(
            f"{folder}: scores of images that are no candidates, or not in ascending order of index"
        )
    return CandidateScores(
        arrays["index"][chosen], arrays["label"][chosen], arrays["L_f"][:, chosen], arrays["L_g"][:, chosen], seeds
    )  # fmt: skip


def _read_summary(folder, all_scores):
    """The dict in the summary.json of a folder. Raises WrongUse if it is missing, broken or of
    another format.

    all_scores: the folder of all scores of the run, of which another is named if this one is
    missing.
    """
    if not exists(folder / SUMMARY):
        others = sorted(all_scores.rglob(SUMMARY))
        hint = f"; there are scores by other settings, such as {others[0].parent}" if others else ""
        raise WrongUse(
            f"{folder}: no scores here; run memorization_scores.py with the same config first{hint}"
        )
    with refuse_broken(folder, "not whole scores"):
        summary = parse_json(read_text(folder / SUMMARY))
    _check_equal(
        {"format": summary.get("format") if isinstance(summary, dict) else None},
        {"format": FORMAT},
        folder,
    )
    return summary


def _check_equal(found, wanted, folder):
    """Raise WrongUse where what a folder of scores says of itself is not what is wanted of it, both
    nested dicts.
    """
    difference = first_difference(found, wanted)
    if difference:
        key, value, other = difference
        raise WrongUse(
            f"{folder}: {key} is {shortened(value)}, but {shortened(other)} belongs here; run memorization_scores.py again"
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
