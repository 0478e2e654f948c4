"""The results that lie in a run folder: which there are, and what their summaries say."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from memorization.config import read_run_config
from memorization.machine.files import exists, is_folder, names_in, read_text, refuse_broken
from memorization.measuring.deja_vu_summary import DejaVuSummary
from memorization.measuring.layer_summary import LayersSummary
from memorization.measuring.membership import MembershipSummary
from memorization.measuring.probing import ProbeSummary
from memorization.measuring.removal_curve import CurveSummary
from memorization.measuring.score_summary import ScoresSummary
from memorization.measuring.unit_summary import UnitsSummary
from memorization.reporting.blocks import missing_result
from memorization.results import SUMMARY

CHECKPOINT = re.compile(r"epoch_\d{4,}")  # folders of results of an earlier checkpoint
SUMMARIES = {
    "scores": ScoresSummary,
    "membership": MembershipSummary,
    "layers": LayersSummary,
    "units": UnitsSummary,
    "dejavu": DejaVuSummary,
    "probe": ProbeSummary,
    "removal": CurveSummary,
}


@dataclass(frozen=True, eq=False)
class FoundResult:
    """A result in a run folder. name: of its folder within that of the measurement, "" for that
    folder itself; folder: its Path; summary: of its measurement.
    """

    name: str
    folder: Path
    summary: object


def find_results(run, section):
    """The FoundResults of a measurement in a Run, without those of earlier checkpoints: that of the
    run's own settings first, then the plain folder, then others, short names first.

    section: such as "scores". Raises WrongUse if a summary is broken.
    """
    folders = _result_folders(run.folder / section)
    names = [name for name in folders if not CHECKPOINT.match(name)]
    own = run.output(section).folder.relative_to(run.folder / section).as_posix()
    first = ["" if own == "." else own, ""]
    names.sort(key=lambda name: (name != first[0], name != first[1], len(name), name))
    return [_read(run.folder / section, name, SUMMARIES[section]) for name in names]


def find_checkpoints(run, section):
    """The FoundResults of earlier checkpoints that were measured with the run's own settings, in
    the order of their epochs, and that of the end behind them; empty if there are no earlier ones.
    """
    folders = _result_folders(run.folder / section)
    names = [name for name in folders if CHECKPOINT.fullmatch(name)]
    if names and exists(run.folder / section / SUMMARY):
        names.append("")
    results = [_read(run.folder / section, name, SUMMARIES[section]) for name in names]
    return sorted(results, key=lambda result: result.summary.checkpoint.epoch or 0)


def _result_folders(folder):
    """The names of the folders of results in that of a measurement, "" for that folder itself."""
    if not is_folder(folder):
        return []
    names = [name for name in sorted(names_in(folder)) if exists(folder / name / SUMMARY)]
    return [""] * exists(folder / SUMMARY) + names


def _read(folder, name, schema):
    place = folder / name
    with refuse_broken(place / SUMMARY, "not a whole summary of a result"):
        return FoundResult(name, place, schema.parse(read_text(place / SUMMARY)))


def command_of(run, section, *options):
    """The command that makes the results of a measurement of a Run."""
    return command(run, type(getattr(run.config, section)).SCRIPT, *options)


def missing_measurement(run, section, what, *options):
    """The block of a measurement of a Run without results: what, a sentence, and the command that
    makes them, if it can. options: of the command.
    """
    trained, roles = run.config.training is not None, getattr(run.config, section).roles
    if section == "removal" and not trained:
        return missing_result(f"{what} Others trained the encoders.", None)
    if not set(roles) <= set(run.trained_roles):
        instead = type(getattr(run.config, section)).WITHOUT_G
        words = f"{what} It takes g, which this run does not have; {instead}."
        return missing_result(words, None)
    if section == "removal" and len(run.subsets.shared):
        options = *options, "--removal.candidates_only", "true"  # the others have no score
    after = ""
    if not has_encoders(run):
        after = "After the training" if trained else "After the import"
    elif section == "removal" and not exists(run.scores_output().folder / SUMMARY):
        after = "After the memorization scores"
    return missing_result(what, command_of(run, section, *options), after)


def has_encoders(run):
    """Whether all encoders of a Run are there. What can be measured of f alone is measured of g,
    too, if the run has one.
    """
    folders = [run.folder_of(seed, role) for seed in run.seeds for role in run.trained_roles]
    return all(exists(folder / "encoder.pt") for folder in folders)


def command_of_encoders(run):
    """The command that makes the encoders of a Run."""
    if run.config.training is None:
        return command(run, "import_encoders.py")
    return command(run, f"train_{run.config.method['name']}.py")


def command_again(run, section, result):
    """The command that makes a FoundResult of a Run again, with its settings where they are not
    those of the run.
    """
    own, options = run.output(section), []
    for key, value in own.settings_in(result.summary.settings).items():
        if value != own.settings[key]:
            options += [f"--{key}", *_words(value)]
    seeds = _seeds_in(result.summary)
    if section != "removal" and seeds and set(seeds) != set(run.seeds):
        options += ["--seeds", *map(str, seeds)]
    return command_of(run, section, *options)


def _seeds_in(summary):
    """The seeds of a summary, a list; empty if they are not listed as such."""
    seeds = summary.seeds if isinstance(summary.seeds, list) else []
    return [getattr(seed, "seed", seed) for seed in seeds]


def _words(value):
    """A setting as words of a command line."""
    if isinstance(value, list) and value and not isinstance(value[0], dict):
        return [str(part) for part in value]
    return [value if isinstance(value, str) else json.dumps(value)]


def command(run, script, *options):
    """A command of this project that takes the config of a Run. script: its name, and more words
    that it needs.
    """
    path = f"{run.name.rstrip('/')}/config.yaml"
    trained = read_run_config(run.name)
    place = [] if trained.run == run.name else ["--run", run.name]
    if trained.data.root != run.config.data.root:
        place += ["--data.root", run.config.data.root]
    name, *more = script.split()
    return shlex.join(["python", name, "--config", path, *place, *more, *options])
