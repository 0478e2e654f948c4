"""Runs that are compared: their scores, in the same order, and the accuracy of their encoders."""

from dataclasses import dataclass, replace

import numpy as np

from memorization.data.subsets import SUBSETS
from memorization.errors import WrongUse, short_form
from memorization.fingerprints import first_difference
from memorization.machine.files import exists, read_text, refuse_broken
from memorization.measuring.candidate_scores import read_scores
from memorization.measuring.probing import ProbeSummary
from memorization.measuring.score_summary import ScoresSummary
from memorization.measuring.score_tables import ScoredSeed, table_of_scores
from memorization.measuring.scores import ImageScores
from memorization.results import SUMMARY, Spread
from memorization.significance import mean_and_spread


@dataclass(frozen=True, eq=False)
class ScoredRun:
    """A run and its scores.

    name: in tables and pictures; path: of the run folder, for messages; method, encoder: names;
    data: the fingerprint of its images; summary: of its scores; table: of `table_of_scores`, rows
    in ascending order of split and index; accuracy: top-1 of linear probes on f, over the seeds,
    and probe_images, how many images they were trained on; None without probes.
    """

    name: str
    path: str
    method: str
    encoder: str
    data: dict
    summary: ScoresSummary
    table: dict
    accuracy: Spread | None
    probe_images: int | None

    def select(self, subset, indices=None):
        """Whether each row is of a subset, and one of some indices, (N,) bool."""
        rows = self.table["subset"] == subset
        return rows if indices is None else rows & np.isin(self.table["index"], indices)

    def index(self, subset):
        """The indices of a subset, ascending, (n,) int64."""
        return self.table["index"][self.select(subset)]


def read_scored_run(run, name, folder):
    """The ScoredRun of a Run, without accuracies. name: in tables and pictures; folder: of the
    scores. Raises WrongUse as `read_scored` does.
    """
    summary, table = read_scored(folder, run.subsets)
    method = run.config.method
    return ScoredRun(
        name=name,
        path=run.name,
        method=method["name"] if method else "import",
        encoder=run.config.encoder.label,
        data=run.subsets.data,
        summary=summary,
        table=table,
        accuracy=None,
        probe_images=None,
    )


def add_accuracy(scored, run):
    """A ScoredRun with the accuracy of its Run's probes, if they are of the scored encoders."""
    if scored.summary.checkpoint.name != "encoder":
        return scored
    accuracy, probe_images = read_accuracy(run.folder / "probe", run.config.data.name)
    return replace(scored, accuracy=accuracy, probe_images=probe_images)


def read_scored(folder, subsets):
    """(ScoresSummary, table of `table_of_scores`) of a folder of scores. Its rows are in ascending
    order of split and index, whatever the order in the file.

    subsets: of the run. Raises WrongUse as `read_scores` does, and if scores are not finite, of an
    image twice, or of images that are no candidates.
    """
    summary, arrays = read_scores(folder, subsets)
    order = np.lexsort((arrays["index"], arrays["split"]))
    arrays = {name: values[..., order] for name, values in arrays.items()}
    shape = arrays["L_f"].shape
    arrays.setdefault("sign", np.ones(shape, dtype=np.int64))
    arrays.setdefault("local_offset", np.full(shape, np.nan))
    rows = {name: arrays[name] for name in ("index", "split", "subset", "label")}
    _check_rows(rows, subsets, folder)
    for name in ("L_f", "L_g", "jackknife"):
        if not np.isfinite(arrays[name]).all():
            raise WrongUse(f"{folder}: scores that are not finite")
    seeds = [
        ScoredSeed(ImageScores(*losses), sign, offset, explained=float("nan"))
        for *losses, sign, offset in zip(
            *(arrays[name] for name in ("L_f", "L_g", "jackknife", "sign", "local_offset"))
        )
    ]
    return summary, table_of_scores(rows, seeds)


def _check_rows(rows, subsets, folder):
    """Raise WrongUse unless each row is an image of its subset, and none stands twice."""
    if not all((rows["subset"] == name).any() for name in ("candidate", "external")):
        raise WrongUse(f"{folder}: scores without candidates or without external images")
    for subset, split in SUBSETS.items():
        is_of_subset = rows["subset"] == subset
        indices = rows["index"][is_of_subset]
        is_known = np.isin(indices, getattr(subsets, subset)).all()
        if not is_known or (rows["split"][is_of_subset] != split).any():
            raise WrongUse(f"{folder}: scores of images that are not in subset {subset}")
        if len(np.unique(indices)) < len(indices):
            raise WrongUse(f"{folder}: scores of an image twice")


def read_accuracy(folder, dataset):
    """(top-1 accuracy of linear probes on f, a Spread over the seeds of the run; number of images
    they were trained on), or (None, None) if f was not probed on a data set.

    folder: of the probe's result. Raises WrongUse if its summary is broken.
    """
    path = folder / SUMMARY
    if not exists(path):
        return None, None
    with refuse_broken(path, "not a whole summary of probes"):
        summary = ProbeSummary.parse(read_text(path))
    rows = [row for row in summary.results if row.dataset == dataset]
    rows = [row for row in rows if row.encoder.startswith("candidate seed ")]
    if not rows:
        return None, None
    return Spread(**mean_and_spread([row.top_1.mean for row in rows])), rows[0].train_images


def check_same_candidates(runs):
    """Raise WrongUse unless ScoredRuns have scored the same candidates: the same indices of the
    same training images.
    """
    first = runs[0]
    for run in runs[1:]:
        difference = first_difference(run.data["train"], first.data["train"], "train")
        if difference:
            key, *values = difference
            value, other = map(short_form, values)
            others = f"other images than those of {first.path}: {key} is {value}, not {other}"
            raise WrongUse(f"{run.path}: {others}")
        own, others = run.index("candidate"), first.index("candidate")
        if not np.array_equal(own, others):
            common = f"{len(np.intersect1d(own, others))} of them in common"
            both = f"{len(own)} candidates, not the {len(others)} of {first.path} ({common})"
            raise WrongUse(f"{run.path}: scores of {both}")
