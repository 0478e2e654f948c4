"""The memorization scores of the candidates, read back from the files of memorization_scores.py."""

from dataclasses import dataclass

import numpy as np

from memorization.alignment import memorization_score
from memorization.data.subsets import SUBSETS
from memorization.errors import WrongUse, short_form
from memorization.fingerprints import first_difference
from memorization.machine.archives import read_arrays
from memorization.machine.files import exists, read_text, refuse_broken
from memorization.measuring.calibration import against_external
from memorization.measuring.score_summary import ScoresSummary
from memorization.measuring.score_tables import ARRAYS, FORMAT
from memorization.results import SUMMARY, Summary, check_files

LATER = ("sign", "local_offset")  # arrays that earlier versions, which knew no crossover, lack


@dataclass(frozen=True)
class CandidateScores:
    """What scores.npz knows of the scored samples of S_C, in a crossover of the pool, in ascending
    order of index.
    """

    index: np.ndarray  # (N,) int64, in the training set
    label: np.ndarray  # (N,) int64, -1 if there is none
    losses_f: np.ndarray  # (S, N) float64, L_align of the encoder with the image, of every seed
    losses_g: np.ndarray  # (S, N) float64, L_align of the encoder without it
    q: np.ndarray  # (N,) float64, of their mean scores against S_E; see `against_external`
    seeds: list  # S of them

    @property
    def score(self):
        """The memorization scores, (N,), means over the seeds."""
        return memorization_score(self.losses_f.mean(0), self.losses_g.mean(0))

    @property
    def per_seed(self):
        """The memorization scores of every seed, (S, N)."""
        return memorization_score(self.losses_f, self.losses_g)


def load_candidate_scores(result, checkpoint, subsets, pair_of):
    """The CandidateScores that memorization_scores.py wrote for a checkpoint of a run.

    result: the Result of those scores; subsets: of the run; pair_of: seed -> its Pair. Raises
    WrongUse if files are missing, broken, of another format or not of one scoring, or if the scores
    are those of another split, checkpoint or settings, or of other encoders.
    """
    folder = result.folder
    summary, arrays = _read_scores(folder, subsets)
    with refuse_broken(folder, "not whole scores"):
        scored = result.settings_in(summary.settings)
        encoders = summary.fingerprints["encoders"]
    _check_equal({"checkpoint": summary.checkpoint.name}, {"checkpoint": checkpoint}, folder)
    _check_equal(_without_section(scored), _without_section(result.settings), folder)
    _check_hashes(folder, summary)
    trained = {}
    try:
        for seed in summary.seeds:
            trained |= pair_of(seed).fingerprints
    except WrongUse as error:
        raise WrongUse(f"{folder}: scores of encoders that cannot be read: {error}") from None
    _check_equal({"encoders": encoders}, {"encoders": trained}, folder)
    # in the order of the losses
    _check_equal({"seeds": list(encoders)}, {"seeds": list(trained)}, folder)
    return _candidates_in(arrays, summary.seeds, subsets, folder)


def read_scores(folder, subsets):
    """(ScoresSummary, {name: array} of scores.npz) in a folder of scores.

    subsets: of the run. Of the ARRAYS, earlier versions wrote no sign and no local_offset. Raises
    WrongUse if files are missing, broken, of another format or not of one scoring, or if the scores
    are those of another split. That the encoders are still the scored ones is not checked.
    """
    summary, arrays = _read_scores(folder, subsets)
    _check_hashes(folder, summary)
    return summary, arrays


def _read_scores(folder, subsets):
    """The same, before it is known that the files are of one scoring."""
    summary = read_scores_summary(folder)
    with refuse_broken(folder, "not whole scores"):
        fingerprint = summary.fingerprints["subsets"]
        file = read_arrays(folder / "scores.npz")
        arrays = {name: file[name] for name in ARRAYS if name in file or name not in LATER}
        _check_shapes(arrays, len(summary.seeds))
    _check_equal({"subsets": fingerprint}, {"subsets": subsets.fingerprint}, folder)
    return summary, arrays


def _check_hashes(folder, summary):
    with refuse_broken(folder, "not whole scores"):
        hashes = summary.files | {"scores.npz": summary.fingerprints["scores"]}
    check_files(folder, hashes, "memorization_scores.py")


def _candidates_in(arrays, seeds, subsets, folder):
    """The CandidateScores in the arrays of scores.npz. Raises WrongUse if they are not finite, or
    not of candidates.
    """
    rows = arrays["subset"] == "candidate"
    for losses in (arrays["L_f"], arrays["L_g"]):
        if not np.isfinite(losses[:, rows]).all():
            raise WrongUse(f"{folder}: scores that are not finite")
    index = arrays["index"][rows]
    if not np.isin(index, subsets.candidate).all() or (np.diff(index) <= 0).any():
        not_candidates = "scores of images that are no candidates"
        raise WrongUse(f"{folder}: {not_candidates}, or not in ascending order of index")
    losses_with, losses_without = losses_f, losses_g = arrays["L_f"], arrays["L_g"]  # (S, N)
    if "sign" in arrays:  # of a crossover, in which g has half of the images
        has_f = arrays["sign"] > 0
        losses_with = np.where(has_f, losses_f, losses_g)
        losses_without = np.where(has_f, losses_g, losses_f)
    score = memorization_score(losses_with.mean(0), losses_without.mean(0))
    _, q = against_external(score, arrays["subset"])
    return CandidateScores(
        index, arrays["label"][rows], losses_with[:, rows], losses_without[:, rows], q[rows], seeds
    )


def read_scores_summary(folder):
    """The ScoresSummary in a folder of scores.

    Raises WrongUse if it is missing, broken or of another format.
    """
    if not exists(folder / SUMMARY):
        all_scores = next(place for place in (folder, *folder.parents) if place.name == "scores")
        others = sorted(all_scores.rglob(SUMMARY))
        hint = f"; there are scores by other settings, such as {others[0].parent}" if others else ""
        first = "run memorization_scores.py with the same config first"
        raise WrongUse(f"{folder}: no scores here; {first}{hint}")
    with refuse_broken(folder, "not whole scores"):
        text = read_text(folder / SUMMARY)
        written = Summary.parse(text).plain().get("format")
        _check_equal({"format": written}, {"format": FORMAT}, folder)
        return ScoresSummary.parse(text)


def _without_section(settings):
    """Settings by their own names: {"views": 10} of {"scores.views": 10}."""
    return {key.removeprefix("scores."): value for key, value in settings.items()}


def _check_equal(written, expected, folder):
    """Raise WrongUse if what a folder of scores says of itself is not as expected, both nested
    dicts.
    """
    difference = first_difference(written, expected)
    if difference:
        key, value, other = difference
        both = f"{key} is {short_form(value)}, but {short_form(other)} belongs here"
        raise WrongUse(f"{folder}: {both}; run memorization_scores.py again")


def _check_shapes(arrays, seeds):
    """Raise ValueError unless the arrays of scores.npz are what memorization_scores.py writes."""
    N = arrays["index"].size
    expected = {
        "index": ((N,), "i"),
        "label": ((N,), "i"),
        "split": ((N,), "U"),
        "subset": ((N,), "U"),
        "L_f": ((seeds, N), "f"),
        "L_g": ((seeds, N), "f"),
        "jackknife": ((seeds, N), "f"),
        "sign": ((seeds, N), "i"),
        "local_offset": ((seeds, N), "f"),
    }
    for name in arrays:
        shape, kind = expected[name]
        if arrays[name].shape != shape or arrays[name].dtype.kind != kind:
            raise ValueError(f"{name} is {arrays[name].dtype} of shape {arrays[name].shape}")
    if not np.isin(arrays["subset"], list(SUBSETS)).all():
        raise ValueError("a row of no subset")
