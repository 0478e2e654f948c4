"""The removal curve: how well linear classifiers on retrained encoders do, by what was removed."""

import csv
import hashlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pydantic

from memorization.checkpoint import encoder_file, load_trained
from memorization.errors import WrongUse, escape
from memorization.fingerprints import first_difference
from memorization.machine.files import check_writable, exists, read_text, refuse_broken, write_json
from memorization.machine.resources import memory_for
from memorization.machine.screen import say
from memorization.measuring.probing import Accuracy, PairedTest, ProbeResult, ProbeSettings, probe
from memorization.measuring.removal import BeyondChance
from memorization.measuring.retraining import Steps
from memorization.results import Document, Summary
from memorization.significance import mean_and_spread, paired_test


@dataclass(frozen=True)
class CurveRow:
    """A row of curve.csv: the mean top-1 accuracy of probes on one retrained encoder."""

    dataset: str
    policy: str
    count: int
    draw: int
    seed: int
    top_1: float


class DatasetCurve(pydantic.BaseModel):
    """Accuracies on one dataset, over seeds and draws.

    policies: {policy: {count: Accuracy}}; random_above_memorized: {count: test}, paired over seeds.
    """

    nothing_removed: Accuracy
    policies: dict[str, dict[int, Accuracy]]
    random_above_memorized: dict[int, PairedTest]


class Seeds(pydantic.BaseModel):
    """The seeds of the scores that ranked the samples, and those that were retrained."""

    scores: list[int]
    retrained: list[int]


class CurveSummary(Summary):
    """summary.json of remove_samples.py.

    groups_of_near_duplicates: their number, None if they were not looked for; steps: {count:
    Steps}, of 0 for the whole training set.
    """

    datasets: dict[str, DatasetCurve]
    groups_of_near_duplicates: int | None
    beyond_chance: BeyondChance | None = None  # earlier versions do not say
    trained: dict
    settings: dict
    seeds: Seeds
    steps: dict[int, Steps]
    fingerprints: dict
    machine: dict


# --- probes of retrained encoders -----------------------------------------------------------------


class Origin(Document):
    """of: what was probed, and how; None in files of earlier versions."""

    of: dict | None = None


class KeptProbe(ProbeResult, Origin):
    """A file of removal/probes/: its origin, then the result."""


@dataclass(frozen=True)
class ProbeCache:
    """Probes of encoders, each made once.

    folder: of the kept probes; settings: ProbeSettings; device: on which probes are trained.
    """

    folder: Path
    settings: ProbeSettings
    device: object

    def accuracy(self, encoder, images):
        """The mean top-1 accuracy of probes on an encoder."""
        not_used = {name for name in ProbeSettings.model_fields if name.startswith("fine_tune")}
        settings = self.settings.model_dump(exclude=not_used | {"datasets"})
        origin = {"source": encoder.identity, "data": images.fingerprint, "probe": settings}
        digest = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()
        path = self.folder / f"{digest[:16]}.json"
        accuracy = read_accuracy(path, origin) if exists(path) else None
        if accuracy is not None:
            return accuracy
        check_writable(self.folder)
        with memory_for("probe.train_images", self.settings.train_images):
            result = probe(encoder, images, self.settings, None, self.device)
        write_json(path, KeptProbe(of=origin, **result.plain()).plain())
        return result.top_1.mean


def read_accuracy(path, origin=None):
    """The mean top-1 accuracy in a file of removal/probes/, or None if the file is of another
    origin.

    origin: what was probed, and how; None accepts any. Raises WrongUse if the file is broken or
    cannot be read.
    """
    advice = "; delete it, and it will be made again"
    with refuse_broken(path, "not a whole result of probing", advice):
        kept = KeptProbe.parse(read_text(path))
    if origin is None or first_difference(kept.of, json.loads(json.dumps(origin))) is None:
        return kept.top_1.mean
    other = "does not tell that it is of this encoder, data set and probe"
    say(f"{escape(path)}: {other}; made again")
    return None


def probe_all(jobs, datasets, probes, run, stop):
    """The accuracies of encoders on every dataset: a list of CurveRows, and {encoder: hash}.

    jobs: (Removal, seed) of each; probes: a ProbeCache; run: the run folder of f; stop: of
    `stop_requests`. Raises WrongUse if an encoder was trained in another precision than f.
    """
    rows, precisions, identities = [], {}, {}
    for removal, seed in jobs:
        folder = removal.folder_in(run)
        encoder = load_trained(folder, seed, "candidate")
        path = encoder_file(folder, seed, "candidate")
        precision = encoder.record["precision"]
        if precisions.setdefault(seed, precision) != precision:
            both = f"trained in {precision}, but f in {precisions[seed]}"
            raise WrongUse(f"{path}: {both}; retrain on the same kind of device")
        identities[str(path.parent.relative_to(run))] = encoder.identity
        for images in datasets:
            accuracy = probes.accuracy(encoder, images)
            policy, count, draw = removal.policy, removal.count, removal.draw
            rows.append(CurveRow(images.name, policy, count, draw, seed, accuracy))
            what = f"{policy} {count}, draw {draw}, seed {seed}"
            say(f"{images.name:>14}  {what}: top-1 {100 * accuracy:.2f} %")
            stop.check("what was retrained and probed so far is kept")
    return rows, identities


# --- the curve ------------------------------------------------------------------------------------


def curve_table(rows):
    """The bytes of curve.csv."""
    table = io.StringIO()
    writer = csv.DictWriter(table, CurveRow.__dataclass_fields__, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, rows))
    return table.getvalue().encode()


def summarize(rows):
    """{dataset: DatasetCurve}. rows: CurveRows of all encoders."""
    datasets = dict.fromkeys(row.dataset for row in rows)
    return {name: _summarize([row for row in rows if row.dataset == name]) for name in datasets}


def _summarize(rows):
    """The DatasetCurve of the rows of one dataset."""
    top_1 = {}  # {(policy, count): {seed: accuracies of its draws}}
    for row in rows:
        seeds = top_1.setdefault((row.policy, row.count), {})
        seeds.setdefault(row.seed, []).append(row.top_1)
    means = {
        removal: [np.mean(draws) for draws in seeds.values()] for removal, seeds in top_1.items()
    }
    nothing_removed = mean_and_spread(means.pop(("none", 0)))
    policies, tests = {}, {}
    for policy, count in means:
        accuracies = [row.top_1 for row in rows if (row.policy, row.count) == (policy, count)]
        policies.setdefault(policy, {})[count] = mean_and_spread(accuracies)
        random, memorized = (means.get((name, count), []) for name in ("random", "memorized"))
        if len(memorized) > 1 and random:
            tests[count] = paired_test(random, memorized)
    return DatasetCurve(
        nothing_removed=nothing_removed, policies=policies, random_above_memorized=tests
    )
