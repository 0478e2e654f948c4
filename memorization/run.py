"""Run: a trained experiment, opened once, for whatever measures it."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from memorization.checkpoint import chosen_checkpoints, folder_of, load_pair, load_trained
from memorization.config import Config, read_config, read_run_config
from memorization.data.images import open_images
from memorization.data.subsets import ROLES, load_subsets
from memorization.errors import WrongUse, short_form
from memorization.fingerprints import first_difference
from memorization.machine.device import choose_device
from memorization.machine.files import exists, is_folder, refuse_broken
from memorization.machine.resources import OTHER_DEVICE, memory_for
from memorization.machine.screen import say
from memorization.measuring.candidate_scores import load_candidate_scores, read_scores_summary
from memorization.results import SUMMARY, Result, hash_of_file

MOST_NAME = 100  # characters of a folder's name
HASH = 8  # digits of a hash in a name
# Settings that are false by default, and what is written for true.
TRUE = {"probe.fine_tune": "fine_tuned", "units.prune": "pruned"}


def open_run(doc, argv=None, section="scores", actions=None, flags=None):
    """The Run of a measuring script, from its YAML file, its command line and the run folder.

    doc: the script's docstring, shown by --help; section: of the measurement; actions, flags: see
    `read_config`. Raises WrongUse, one line, if what was given does not belong to the run.
    """
    sections = (section, *_settings_class(section).BUILT_ON)
    config = read_config(doc, argv, actions=actions, flags=flags, sections=sections)
    device = choose_device(config.device, config.threads)
    run = Run(config, section, device, load_subsets(config.folder / "subsets.npz"))
    _check_roles(run)
    if "checkpoint" in run.actions:
        for checkpoint in run.checkpoints:
            run.output(checkpoint=checkpoint).check_place()
    return run


def read_run(folder, root=None, is_import=False):
    """The Run in a run folder as its config.yaml says, on the CPU, for what reads its results.

    folder: a text; root: of the data set, if it is not where it was in training; is_import: whether
    others trained its encoders, for the message. Raises WrongUse if the folder is no run.
    """
    settings = read_run_config(folder, is_import)
    data = settings.data if root is None else settings.data.model_copy(update={"root": root})
    settings = settings.model_copy(update={"run": folder, "data": data})
    device = choose_device("cpu", settings.threads)
    return Run(settings, "scores", device, load_subsets(settings.folder / "subsets.npz"))


def check_different(paths):
    """Raise WrongUse if two paths of a command line lead to one run folder."""
    places = {}
    for path in paths:
        place = Path(path).expanduser().resolve()
        if place in places:
            raise WrongUse(f"command line: {path}: the same run as {places[place]}")
        places[place] = path


def short_names(paths):
    """The names of run folders, for tables: the last parts of their paths, as many as it takes to
    tell them apart.
    """
    parts = [Path(path).expanduser().resolve().parts[1:] for path in paths]
    length = 1
    while len({path[-length:] for path in parts}) < len(parts):
        length += 1
    return ["/".join(path[-length:]) for path in parts]


def _check_roles(run):
    """Raise WrongUse if a measurement needs an encoder that others did not train."""
    missing = [role for role in run.roles if role not in run.trained_roles]
    if missing:
        alone = f"{run.name} has f alone (import.independent is null)"
        instead = _settings_class(run.section).WITHOUT_G
        raise WrongUse(f"{run.section}: {alone}, but g is needed; {instead}")


@dataclass(frozen=True, eq=False)
class Run:
    """A trained experiment, opened once.

    config: what was trained, and how it is measured; section: of the measurement; device: on which
    it is measured; subsets: the Subsets of training.
    """

    config: Config
    section: str
    device: object
    subsets: object

    @property
    def folder(self):
        """The run folder, a Path."""
        return self.config.folder

    @property
    def name(self):
        """The run folder as it was given, for messages."""
        return self.config.run

    @property
    def seeds(self):
        """The seeds of the measured pairs, a list."""
        return self.config.seeds

    @property
    def settings(self):
        """The settings of the measurement."""
        return getattr(self.config, self.section)

    @property
    def recipes(self):
        """The recipes of the views of training, a list."""
        return self.config.augmentation.views

    @property
    def actions(self):
        """The command line's actions, such as {"checkpoint": "all"}."""
        return self.config.actions

    @cached_property
    def images(self):
        """The Images of the four subsets. Raises WrongUse if others than those of training lie in
        `data.root`.
        """
        data = self.config.data
        images = open_images(data).prepare(self.subsets.train, self.subsets.external)
        difference = first_difference(images.fingerprint, self.subsets.data)
        if difference:
            key, value, trained = (short_form(part) for part in difference)
            others = f"{data.root} holds other images than {self.name} was trained on"
            raise WrongUse(f"data.root: {others}: {difference[0]} is {value}, not {trained}")
        return images

    @cached_property
    def images_on_device(self):
        """The Images of the four subsets, gathered on the device."""
        with memory_for("device", self.config.device, OTHER_DEVICE):
            return self.images.to(self.device)

    @property
    def roles(self):
        """The roles of the encoders that the measurement needs."""
        return self.settings.roles

    @property
    def trained_roles(self):
        """The roles of the encoders that the run has, or will have once it is trained."""
        imported = self.config.import_settings
        return ROLES if imported is None else tuple(imported.weights)

    @property
    def _origin(self):
        """What a summary says of encoders that others trained, a dict of plain types."""
        imported, encoder = self.config.import_settings, self.config.encoder
        if imported is None:
            return {}
        return {"import": imported.model_dump(), "encoder": encoder.model_dump()}

    @cached_property
    def checkpoints(self):
        """The measured checkpoints, a list: those that the action `checkpoint` names; see
        `chosen_checkpoints`.
        """
        action = self.actions["checkpoint"]
        return chosen_checkpoints(action, self.folder, self.seeds, self.roles)

    def folder_of(self, seed, role):
        """The folder of one encoder, a Path."""
        return folder_of(self.folder, seed, role)

    def encoder(self, seed, role, checkpoint="encoder"):
        """One Encoder; see `load_trained`."""
        return load_trained(self.folder, seed, role, checkpoint)

    def pair(self, seed, checkpoint="encoder"):
        """The Pair of a seed; see `load_pair`."""
        return load_pair(self.folder, seed, checkpoint)

    def pairs(self, checkpoint="encoder"):
        """The Pair of every seed, a list."""
        return [self.pair(seed, checkpoint) for seed in self.seeds]

    def output(self, section=None, checkpoint="encoder", encoder=None, seeds=None):
        """The Result of a measurement, in a folder named after its differences from the settings of
        the run's config.yaml.

        section: of the measurement, by default this run's own; encoder: the identity of one that
        is not of the run; seeds: of other pairs than those of this run.
        """
        section = self.section if section is None else section
        seeds = list(self.seeds if seeds is None else seeds)
        keys = self._keys(section)
        for other in _settings_class(section).DETERMINED_BY:
            keys += self._keys(other)
        names = [] if checkpoint == "encoder" else [checkpoint]
        names += [] if encoder is None else [f"encoder_{encoder[:HASH]}"]
        names += self._differences(section)
        if set(seeds) != set(self.config.run_config.seeds):
            names.append("_".join(["seeds", *map(str, seeds)]))
        fingerprints = {"subsets": self.subsets.fingerprint, "data": self.subsets.data}
        if section == "probe":
            fingerprints = {}  # of the probed data sets, which are not open yet
        if "dejavu.boxes" in keys:
            keys.remove("dejavu.boxes")
            fingerprints["boxes"] = _hash_of_path(self.config.dejavu.boxes)
        return Result(
            folder=self.folder / section / _folder_name(names),
            again=_settings_class(section).SCRIPT,
            settings={key: self._value(key) for key in keys},
            defaults={key: _default(key) for key in keys},
            seeds=seeds,
            fingerprints=fingerprints,
            origin=self._origin,
        )

    def scores_output(self, checkpoint="encoder"):
        """The Result of scores of this run's seeds, or of all seeds of training if its own are
        scored there alone.
        """
        own = self.output("scores", checkpoint)
        of_all = self.output("scores", checkpoint, seeds=self.config.run_config.seeds)
        if exists(own.folder / SUMMARY) or not exists(of_all.folder / SUMMARY):
            return own
        return of_all if set(self.seeds) <= set(read_scores_summary(of_all.folder).seeds) else own

    def candidate_scores(self, checkpoint="encoder"):
        """The CandidateScores of a checkpoint; see `load_candidate_scores`."""
        result = self.scores_output(checkpoint)
        return load_candidate_scores(
            result, checkpoint, self.subsets, lambda seed: self.pair(seed, checkpoint)
        )

    def scores_if_made(self, checkpoint, left_out):
        """The CandidateScores of a checkpoint; None, after a line that says what is left out, if
        there are no scores.
        """
        if exists(self.scores_output(checkpoint).folder / SUMMARY):
            return self.candidate_scores(checkpoint)
        option = "" if checkpoint == "encoder" else f" --checkpoint {checkpoint}"
        first = f"memorization_scores.py with the same config{option} makes them"
        say(f"{self.section}: no memorization scores of {checkpoint}, so {left_out}: {first}")
        return None

    def _keys(self, section):
        """The settings of a section that determine its numbers, such as "scores.views"."""
        return [f"{section}.{name}" for name in getattr(self.config, section).determining()]

    def _differences(self, section):
        """The parts of a folder's name for the settings that differ from the run's config.yaml."""
        names = []
        for part in (section, *_settings_class(section).BUILT_ON):
            plain_values = getattr(self.config, part).PLAIN if part == section else {}
            for key in self._keys(part):
                name = key.split(".")[1]
                value = self._value(key)
                if name in plain_values:
                    names += [_text(key, value)] if value != plain_values[name] else []
                    if key == "dejavu.query" and value == "boxes":
                        names[-1] += self._text_of_boxes()
                elif value != self._value(key, of_run=True) and key != "dejavu.boxes":
                    # seeds alone are those of the run
                    words = [name] if part == section and name != "seeds" else [part, name]
                    names.append("_".join([*words, _text(key, value)]))
        return names

    def _text_of_boxes(self):
        boxes = self.config.dejavu.boxes
        return "" if boxes == self.config.run_config.dejavu.boxes else f"_{_hash_of_path(boxes)}"

    def _value(self, key, of_run=False):
        """A setting as a plain value: of this measurement, or `of_run`, in its config.yaml.
        Settings that mean the same have the same value.
        """
        section, name = key.split(".")
        settings = getattr(self.config.run_config if of_run else self.config, section)
        value = settings.model_dump()[name]
        return value or [self.config.data.name] if key == "probe.datasets" else value


def _default(key):
    """The default of a setting, for summaries of earlier versions, which lack it."""
    section, name = key.split(".")
    return _settings_class(section).model_fields[name].default


def _settings_class(section):
    return Config.model_fields[section].annotation


def _text(key, value):
    """A value as a part of a folder's name."""
    if key in TRUE:
        return TRUE[key]
    if key.endswith(".augmentation") and value != "training":
        digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()
        return f"augmentation_{digest[:HASH]}"
    if value is None:
        return "all"
    if isinstance(value, list):
        return "_".join(_text(key, part) for part in value) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _folder_name(names):
    """The name of a folder; one that is too long ends in a hash."""
    name = "_".join(names)
    if len(name) <= MOST_NAME:
        return name
    return f"{name[: MOST_NAME - HASH - 1]}_{hashlib.sha256(name.encode()).hexdigest()[:HASH]}"


def _hash_of_path(path):
    """A short hash of what lies at a path: of a file, or of the XML files in a folder; of nothing
    if it is missing.
    """
    path, content = Path(path).expanduser(), b""
    with refuse_broken(path, "cannot be read"):
        if is_folder(path):
            files = sorted(path.rglob("*.xml"))
            lines = [f"{file.relative_to(path)} {hash_of_file(file)}\n" for file in files]
            content = "".join(lines).encode(errors="surrogateescape")
        elif exists(path):
            return hash_of_file(path)[:HASH]
    return hashlib.sha256(content).hexdigest()[:HASH]
