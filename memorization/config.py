"""Config: one whole experiment, read from a YAML file and a command line."""

import dataclasses
import typing
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import Field

from memorization.data.catalogue import IN_FILES
from memorization.errors import WrongUse, short_form, shorten
from memorization.fields import NOT_COMPARED, Distinct, PathName, Seed
from memorization.fingerprints import first_difference
from memorization.imports.settings import FROM_MODEL, ImportSettings
from memorization.machine.files import exists, write_atomically
from memorization.machine.screen import say
from memorization.machine.strict_yaml import dump_yaml
from memorization.measuring.deja_vu import DejaVuSettings
from memorization.measuring.layers import LayerSettings
from memorization.measuring.membership import MembershipSettings
from memorization.measuring.probing import ProbeSettings
from memorization.measuring.removal import RemovalSettings
from memorization.measuring.scores import ScoreSettings
from memorization.measuring.units import UnitSettings
from memorization.options import read_experiment
from memorization.settings import (
    OF_TRAINING,
    TRAINED,
    Trained,
    TrainingSettings,
    check_views,
    names_not_compared,
    read_run_file,
)
from memorization.validation import validate
from models.encoders import ENCODERS
from models.settings import Settings


class RunFolder(Settings):
    """Where a run lies: what a measuring script must know before it reads what was trained."""

    run: PathName = Field(description="the run folder")


class Job(RunFolder):
    """Where, how often, and on what."""

    seeds: Annotated[list[Seed], Field(min_length=1), Distinct] = Field(
        [0], description="each seed trains one pair"
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$", description="auto, cpu, cuda or cuda:N"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads; null leaves the choice to torch"
    )


class Config(Trained, Job):
    """One whole experiment: what is trained, and a section for every measurement."""

    scores: ScoreSettings = ScoreSettings()
    dejavu: DejaVuSettings = DejaVuSettings()
    probe: ProbeSettings = ProbeSettings()
    removal: RemovalSettings = RemovalSettings()
    membership: MembershipSettings = MembershipSettings()
    layers: LayerSettings = LayerSettings()
    units: UnitSettings = UnitSettings()

    _actions: dict = pydantic.PrivateAttr(default_factory=dict)
    _run_config: Any = pydantic.PrivateAttr(default=None)

    @pydantic.model_validator(mode="after")
    def _check_scored_views(self):
        for section in ("scores", "membership"):
            recipes = getattr(self, section).augmentation
            if recipes:
                check_views(recipes, f"{section}.augmentation", self.encoder)
        return self

    @property
    def folder(self):
        """The run folder, a Path."""
        return Path(self.run).expanduser()

    @property
    def run_config(self):
        """The Config that is kept in the run folder, with all seeds that were trained there."""
        return self._run_config or self

    @property
    def actions(self):
        """The command line's actions, such as {"checkpoint": "all"}."""
        return self._actions

    def save(self):
        """Write config.yaml into the run folder."""
        write_atomically(self.folder / "config.yaml", dump_yaml(self.model_dump()))

    def for_training(self, experiment):
        """This Config with the order of subsets of its run, unless the experiment sets one.

        In an earlier version image_folder had another default.
        """
        if "order" in experiment.all_values.get("subsets", {}):
            return self
        if exists(self.folder / "config.yaml"):
            order = read_run_config(self.run).subsets.order
            return self.model_copy(
                update={"subsets": self.subsets.model_copy(update={"order": order})}
            )
        if self.data.name in IN_FILES and not self.subsets.file:
            shuffled = "a folder is shuffled, as its files come class by class"
            say(f"warning: subsets.order is not given: {shuffled}")
        return self

    def for_measuring(self, experiment):
        """The Config of an experiment that measures the run of this Config.

        Raises WrongUse if the experiment differs in what was trained.
        """
        self._check_same_origin(experiment)
        self._check_names(experiment)
        experiment = _drop_from_model(experiment)
        values = _merge(self.model_dump(include=set(TRAINED)), experiment.values)
        config = dataclasses.replace(experiment, values=values).validate(Config)
        self._check_trained(config, experiment)
        data = self.data.model_copy(
            update={name: getattr(config.data, name) for name in names_not_compared(config.data)}
        )
        of_run = {section: getattr(self, section) for section in TRAINED} | {"data": data}
        # The order of seeds changes no number.
        of_run["seeds"] = [seed for seed in self.seeds if seed in config.seeds]
        config = config.model_copy(update=of_run)
        config._run_config = self
        return config

    def _check_same_origin(self, experiment):
        """Raise WrongUse if an experiment trains what this run imports, or the reverse."""
        others, origin = ("import",), "trained here"
        if self.import_settings is not None:
            others, origin = OF_TRAINING, "trained by others and imported"
        for section in others:
            if section in experiment.all_values:
                place = experiment.place_of(section)
                where = f"the encoders of {experiment.all_values['run']} were {origin}"
                raise WrongUse(f"{place}: {section}: is not allowed: {where}")

    def _check_names(self, experiment):
        """Raise WrongUse if an experiment differs from this run in a name, or in a setting of the
        method, whose schema is unknown to measuring scripts.
        """
        sections = {"data": self.data.model_dump(), "encoder": self.encoder.model_dump()}
        for section, trained in (sections | {"method": self.method or {}}).items():
            values = experiment.all_values.get(section, {})
            for key, value in (values if isinstance(values, dict) else {"name": values}).items():
                is_checked = key == "name" or section == "method"
                if is_checked and value != trained.get(key):
                    _refuse_other(experiment, f"{section}.{key}", value, trained.get(key))

    def _check_trained(self, other, experiment):
        """Raise WrongUse if what an experiment says of the training is not what this run did.

        other: the experiment's Config, which takes from this run what the experiment leaves open.
        """
        values = experiment.all_values
        keys = {section: values[section] for section in TRAINED if section in values}
        keys.pop("method", None)
        difference = first_difference(
            _select(other.trained_part(), keys), _select(self.trained_part(), keys)
        )
        if difference:
            _refuse_other(experiment, *difference)
        # Two files may hold the same subsets; but here the file would go unread.
        if other.subsets.file != self.subsets.file:
            _refuse_other(experiment, "subsets.file", other.subsets.file, self.subsets.file)
        for seed in other.seeds:
            if seed not in self.seeds:
                _refuse_other(experiment, "seeds", seed, self.seeds)


# The sections that say how a trained run is measured.
MEASUREMENTS = tuple(
    name for name in Config.model_fields if name not in {*Trained.model_fields, *Job.model_fields}
)


def read_config(doc, argv=None, method=None, actions=None, flags=None, sections=MEASUREMENTS):
    """The Config of a script, from its YAML file and its command line.

    doc: the script's docstring, shown by --help. method: the schema of the method's settings, for a
    script that trains. Without it the script measures: what was trained is then taken from the run
    folder, and a value of the experiment that differs is refused. actions: {name: help} of the
    options beside the settings, strings that land in config.actions; flags: of those without a
    value, true or false there. sections: of a script that measures, those that it reads. The file
    has all sections, but an option of another one is refused. Raises WrongUse, one line that names
    file, key, value and what is allowed.
    """
    schema = Config
    if method is not None:
        of_training = {"method": (method, ...), "training": (TrainingSettings, ...)}
        schema = pydantic.create_model("Config", __base__=Config, **of_training)

    def is_shown(key, setting):
        section = key.rpartition(".")[0]
        if method is not None:
            return section.split(".")[0] not in ("import", *MEASUREMENTS)
        may_differ = section == "data" and setting.json_schema_extra == NOT_COMPARED
        return section in ("", *sections) or may_differ

    experiment = read_experiment(argv, doc, schema, is_shown, actions or {}, flags or {})
    if method is not None:
        _check_method(experiment, method)
    experiment, lines = _drop_what_cannot_apply(experiment)
    if method is None:
        _check_options(experiment.options, sections)
        folder = dataclasses.replace(
            experiment, values=_only_run(experiment.values), options=_only_run(experiment.options)
        )
        run, is_import = folder.validate(RunFolder).run, "import" in experiment.all_values
        config = read_run_config(run, is_import).for_measuring(experiment)
    else:
        config = experiment.validate(schema).for_training(experiment)
        _check_encoder(config.encoder, experiment)
        for line in lines:
            say(f"command line: {line}")
    config._actions.update(experiment.actions)
    return config


def read_import_config(doc, argv=None):
    """The Config of import_encoders.py. doc, argv, errors: see `read_config`."""
    section = {"import": (ImportSettings, ...)}
    schema = pydantic.create_model("Config", __base__=Config, **section)

    def is_shown(key, setting):
        return key.split(".")[0] not in (*OF_TRAINING, *MEASUREMENTS)

    experiment = read_experiment(argv, doc, schema, is_shown, {}, {})
    config = experiment.validate(schema)
    _check_encoder(config.encoder, experiment)
    if config.subsets.file is None and "order" not in experiment.all_values["subsets"]:
        images = "it says which images each encoder saw, or subsets.file does"
        raise WrongUse(f"{experiment.place_of('subsets')}: subsets.order: is missing: {images}")
    return config.for_training(experiment)


def read_run_config(run, is_import=False):
    """The Config that a run folder was trained with, its method section a plain dict.

    is_import: see `read_run_file`. Raises WrongUse if there is none.
    """
    path, values = read_run_file(run, is_import)
    return validate(Config, values, path)


def _check_options(options, sections):
    """Raise WrongUse if an option of a measuring script is of a measurement that it does not read.

    options: {dotted key: value} of the command line; sections: those that the script reads.
    """
    for key in options:
        section = key.split(".")[0]
        if section in MEASUREMENTS and section not in sections:
            script, *_ = Config.model_fields[section].annotation.SCRIPT.split()
            raise WrongUse(f"command line: --{key}: {script} reads it, this script does not")


def _check_method(experiment, method):
    """Raise WrongUse if an experiment names another method than the script trains."""
    if "import" in experiment.all_values:
        place, others = experiment.place_of("import"), "encoders that others trained"
        raise WrongUse(f"{place}: import: {others} come in by import_encoders.py")
    (own,) = typing.get_args(method.model_fields["name"].annotation)
    section, place = experiment.all_values.get("method"), experiment.place_of("method.name")
    name = section.get("name") if isinstance(section, dict) else None
    if not isinstance(name, str) or name == own:
        return
    scripts = sorted(path.name for path in Path(__file__).parents[1].glob("train_*.py"))
    if f"train_{name}.py" in scripts:
        raise WrongUse(f"{place}: method.name is {name}: run train_{name}.py")
    refused = f"method.name: {short_form(name)} is not allowed: no script trains it"
    known = ", ".join(scripts)
    raise WrongUse(f"{place}: {refused}; this one trains {own!r}, and there are {known}")


def _check_encoder(settings, experiment):
    """Raise WrongUse if no such encoder can be made here, before images are read for it."""
    try:
        settings.check()
    except ValueError as error:
        key = str(error).partition(":")[0]
        raise WrongUse(f"{experiment.place_of(key)}: {error}") from None


def _drop_what_cannot_apply(experiment):
    """The experiment without the values of its file that its options make meaningless, and lines
    that say so.

    Fewer epochs leave out later checkpoints; another encoder leaves out the settings of the file's
    one. A value that does not fit within the file, or that is an option itself, stays and is
    refused later.
    """
    values, lines = experiment.values, []
    late = _late_checkpoints(values.get("training"), experiment.options)
    if late:
        training, epochs = values["training"], experiment.options["training.epochs"]
        kept = [epoch for epoch in training["checkpoint_epochs"] if epoch <= epochs]
        values = values | {"training": training | {"checkpoint_epochs": kept}}
        dropped = shorten(", ".join(map(str, late)))
        lines.append(f"--training.epochs {epochs}: no checkpoint at {dropped}")
    others = _settings_of_the_other_encoder(values.get("encoder"), experiment.options)
    if others:
        encoder, name = values["encoder"], experiment.options["encoder.name"]
        values = values | {"encoder": {key: encoder[key] for key in encoder if key not in others}}
        lines.append(f"--encoder.name {name}: without {', '.join(others)} of {encoder['name']}")
    return dataclasses.replace(experiment, values=values), lines


def _drop_from_model(experiment):
    """The experiment without a mean and std that its import was to look up: the run has numbers."""

    def drop(values):
        section = values.get("import")
        if not isinstance(section, dict):
            return values
        kept = {key: value for key, value in section.items() if value != FROM_MODEL}
        return values | {"import": kept}

    options = {
        key: value
        for key, value in experiment.options.items()
        if value != FROM_MODEL or not key.startswith("import.")
    }
    return dataclasses.replace(experiment, values=drop(experiment.values), options=options)


def _late_checkpoints(training, options):
    """The checkpoint epochs of a `training:` section that come after the epochs of the options."""
    fewer = options.get("training.epochs")
    if not isinstance(training, dict) or "training.checkpoint_epochs" in options:
        return []
    epochs, checkpoints = training.get("epochs"), training.get("checkpoint_epochs")
    if type(fewer) is not int or type(epochs) is not int or type(checkpoints) is not list:
        return []
    fits = all(type(epoch) is int and epoch <= epochs for epoch in checkpoints)
    return [epoch for epoch in checkpoints if epoch > fewer] if fits else []


def _settings_of_the_other_encoder(encoder, options):
    """The settings of an `encoder:` section that the encoder of the options does not take."""
    names = (
        encoder.get("name") if isinstance(encoder, dict) else None,
        options.get("encoder.name"),
    )
    if not all(isinstance(name, str) and name in ENCODERS for name in names):
        return []
    of_file, of_options = (ENCODERS[name].model_fields.keys() for name in names)
    return [
        key for key in encoder if key in of_file - of_options and f"encoder.{key}" not in options
    ]


def _refuse_other(experiment, key, value, trained):
    """Raise WrongUse: an experiment has another value of a key than its run was trained with."""
    place, run = experiment.place_of(key), experiment.all_values["run"]
    value, trained = short_form(value), short_form(trained)
    raise WrongUse(f"{place}: {key}: {value} was given, but {run} was trained with {trained}")


def _only_run(values):
    return {key: value for key, value in values.items() if key == "run"}


def _merge(values, changes):
    """Nested dicts with the values of another put over theirs."""
    if isinstance(values, dict) and isinstance(changes, dict):
        merged = {name: _merge(values.get(name), change) for name, change in changes.items()}
        return values | merged
    return changes


def _select(values, keys):
    """The part of a nested dict that has the keys of another."""
    if isinstance(values, dict) and isinstance(keys, dict):
        return {name: _select(values[name], keys[name]) for name in keys if name in values}
    return values
