"""Every setting, its type, bounds and meaning; and how a YAML file and a command line become a
Config.
"""

import argparse
import difflib
import functools
import inspect
import operator
import os
import typing
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from memorization.data.catalogue import IN_FILES
from memorization.data.recipes import ViewRecipe
from memorization.errors import WrongUse, short_form, shorten
from memorization.fields import Seed, each_once, possible_path
from memorization.fingerprints import first_difference
from memorization.machine.files import exists, write_atomically
from memorization.machine.strict_yaml import dump_yaml, parse_yaml, read_yaml
from memorization.measuring.deja_vu import DejaVuSettings
from memorization.measuring.probing import ProbeSettings
from memorization.measuring.removal import RemovalSettings
from memorization.measuring.scores import ScoreSettings
from memorization.settings import TRAINED, Trained, check_views, not_compared, read_run_file
from memorization.validation import schemas_by_name, validated, with_options
from models.encoders import ENCODERS
from models.settings import Settings


class RunFolder(Settings):
    """Where a run lies: what a measuring script must know before it reads what was trained."""

    run: str = Field(description="the run folder")

    @pydantic.field_validator("run")
    @classmethod
    def _possible_path(cls, path):
        return possible_path(path)


class Job(RunFolder):
    """Where, how often, and on what."""

    seeds: list[Seed] = Field([0], min_length=1, description="each seed trains one pair")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$", description="auto, cpu, cuda or cuda:N"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads; null leaves the choice to torch"
    )

    @pydantic.field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, seeds):
        return each_once(seeds)


class Config(Trained, Job):
    """One whole experiment: what is trained, and a section for every measurement."""

    scores: ScoreSettings = ScoreSettings()
    dejavu: DejaVuSettings = DejaVuSettings()
    probe: ProbeSettings = ProbeSettings()
    removal: RemovalSettings = RemovalSettings()

    _actions: dict = pydantic.PrivateAttr(default_factory=dict)
    _recorded: Any = pydantic.PrivateAttr(default=None)

    @pydantic.model_validator(mode="after")
    def _scored_views_fit_the_encoder(self):
        if self.scores.augmentation:
            check_views(self.scores.augmentation, "scores.augmentation", self.encoder)
        return self

    @property
    def folder(self):
        """The run folder, a Path."""
        return Path(self.run).expanduser()

    @property
    def recorded(self):
        """The Config that is kept in the run folder, with all seeds that were trained there."""
        return self._recorded or self

    @property
    def actions(self):
        """The command line's actions, such as {"checkpoint": "all"}."""
        return self._actions


def read_config(doc, argv=None, method=None, actions=None, flags=None):
    """The Config of a script, from its YAML file and its command line.

    doc: the script's docstring, shown by --help. method: the schema of the method's settings, for a
    script that trains. Without it the script measures: what was trained is then taken from the run
    folder, and a value of it that was given and differs is refused. actions: {name: help} of the
    options beside the settings, strings that land in config.actions; flags: of those without a
    value, true or false there. Raises WrongUse, one line that names file, key, value and what is
    allowed.
    """
    schema = (
        Config
        if method is None
        else pydantic.create_model("Config", __base__=Config, method=(method, ...))
    )
    options = _options(schema)
    parser = _Parser(
        prog="",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="the experiment, a YAML file"
    )
    for name, meaning in (actions or {}).items():
        parser.add_argument(f"--{name}", help=meaning)
    for name, meaning in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=meaning)
    recipe = [f"  {name}: {_meaning(field)}" for name, field in ViewRecipe.model_fields.items()]
    parser.epilog = "\n".join(
        [
            "keys of a recipe in augmentation.views, such as '[{count: 2, size: 32, flip: 0.5}]':",
            *recipe,
        ]
    )
    settings = parser.add_argument_group("settings (each is a key of the YAML file)")
    for key, field in options.items():
        several = "+" if _is_list(field.annotation) else None
        settings.add_argument(
            f"--{key}",
            nargs=several,
            metavar=_type_name(field),
            help=_meaning(field).replace("%", "%%"),
        )
    arguments = vars(parser.parse_args(argv))

    source, values = arguments["config"], read_yaml(arguments["config"])
    words = {key: arguments[key] for key in options if arguments[key] is not None}
    given = {key: _parse_value(key, word, options[key]) for key, word in words.items()}
    if method is not None:
        _check_method(values, given, method, source)
    values, left_out = _without_what_cannot_apply(values, given)
    if method is None:
        config = _with_trained_part(values, given, source)
    else:
        config = validated(schema, values, source, given)
        is_given = "subsets.order" in given or "order" in values.get("subsets", {})
        config = _with_order_of_run(config, is_given)
        if _is_first_process():
            print("".join(f"command line: {line}\n" for line in left_out), end="", flush=True)
    config._actions.update({name: arguments[name] for name in {**(actions or {}), **(flags or {})}})
    return config


def read_run_config(run):
    """The Config that a run folder was trained with, its method section a plain dict.

    Raises WrongUse if there is none.
    """
    path, values = read_run_file(run)
    return validated(Config, values, path)


def save_config(config):
    """Write config.yaml into the run folder."""
    write_atomically(config.folder / "config.yaml", dump_yaml(config.model_dump()))


def _check_method(values, given, method, source):
    """Raise WrongUse if a file or an option names another method than the script trains."""
    (own,) = typing.get_args(method.model_fields["name"].annotation)
    section, place = values.get("method"), source
    name = section.get("name") if isinstance(section, dict) else None
    if "method.name" in given:
        name, place = given["method.name"], "command line"
    if not isinstance(name, str) or name == own:
        return
    scripts = sorted(path.name for path in Path(__file__).parents[1].glob("train_*.py"))
    if f"train_{name}.py" in scripts:
        raise WrongUse(f"{place}: method.name is {name}: run train_{name}.py")
    refused = f"method.name: {short_form(name)} is not allowed: no script trains it"
    there = ", ".join(scripts)
    raise WrongUse(f"{place}: {refused}; this one trains {own!r}, and there are {there}")


def _without_what_cannot_apply(values, given):
    """The values of a file without those that the options make meaningless, and lines that say so.

    Fewer epochs leave out later checkpoints; another encoder leaves out the settings of the file's
    one. A value that does not fit within the file, or that is an option itself, stays and is
    refused later.
    """
    lines = []
    beyond = _checkpoints_beyond(values.get("training"), given)
    if beyond:
        training, fewer = values["training"], given["training.epochs"]
        kept = [epoch for epoch in training["checkpoint_epochs"] if epoch <= fewer]
        values = values | {"training": training | {"checkpoint_epochs": kept}}
        dropped = shorten(", ".join(map(str, beyond)))
        lines.append(f"--training.epochs {fewer}: no checkpoint at {dropped}")
    others = _settings_of_the_other_encoder(values.get("encoder"), given)
    if others:
        encoder = values["encoder"]
        values = values | {"encoder": {key: encoder[key] for key in encoder if key not in others}}
        before = f"{', '.join(others)} of {encoder['name']}"
        lines.append(f"--encoder.name {given['encoder.name']}: without {before}")
    return values, lines


def _checkpoints_beyond(training, given):
    """The checkpoint epochs of a `training:` section that come after the epochs of the options."""
    fewer = given.get("training.epochs")
    if not isinstance(training, dict) or "training.checkpoint_epochs" in given:
        return []
    epochs, kept = training.get("epochs"), training.get("checkpoint_epochs")
    if type(fewer) is not int or type(epochs) is not int or type(kept) is not list:
        return []
    fits = all(type(epoch) is int and epoch <= epochs for epoch in kept)
    return [epoch for epoch in kept if epoch > fewer] if fits else []


def _settings_of_the_other_encoder(encoder, given):
    """The settings of an `encoder:` section that the encoder of the options does not take."""
    if not isinstance(encoder, dict):
        return []
    before, after = (
        ENCODERS.get(name) for name in (encoder.get("name"), given.get("encoder.name"))
    )
    if before is None or after is None:
        return []
    of_the_other = before.model_fields.keys() - after.model_fields.keys()
    return [key for key in encoder if key in of_the_other and f"encoder.{key}" not in given]


def _is_first_process():
    """Whether this process is the first of a job whose processes have not met yet."""
    return os.environ.get("RANK", "0") == "0"


def _with_trained_part(values, given, source):
    """The config with what was trained taken from its run folder.

    Raises WrongUse if the file or the options say something else of what was trained.
    """
    in_file, on_line = ({k: v for k, v in part.items() if k == "run"} for part in (values, given))
    run = read_run_config(validated(RunFolder, in_file, source, on_line).run)
    said = with_options(values, given)
    said_trained = {key: said[key] for key in TRAINED if key in said and key != "method"}
    _check_names(said, run.model_copy(update={"run": said["run"]}))
    merged = _merged(run.model_dump(include=set(TRAINED)), values)
    config = validated(Config, merged, source, given)
    parts = (_restricted(part.trained_part(), said_trained) for part in (config, run))
    difference = first_difference(*parts)
    if difference:
        key, value, trained = difference
        raise WrongUse(
            f"{key}: {short_form(value)} was given, but {config.run} was trained with {short_form(trained)}"
        )
    # may differ where the same is trained, but here it would go unread
    if config.subsets.file != run.subsets.file:
        given_file, trained_file = short_form(config.subsets.file), short_form(run.subsets.file)
        raise WrongUse(
            f"subsets.file: {given_file} was given, but {config.run} was trained with {trained_file}"
        )
    for seed in config.seeds:
        if seed not in run.seeds:
            raise WrongUse(
                f"seeds: {seed} was given, but {config.run} was trained with {run.seeds}"
            )
    data = run.data.model_copy(
        update={name: getattr(config.data, name) for name in not_compared(config.data)}
    )
    of_run = {section: getattr(run, section) for section in TRAINED} | {"data": data}
    # their order changes no number
    of_run["seeds"] = [seed for seed in run.seeds if seed in config.seeds]
    config = config.model_copy(update=of_run)
    config._recorded = run
    return config


def _with_order_of_run(config, is_given):
    """The config with the order of subsets of its run, unless one is given.

    In an earlier version image_folder had another default.
    """
    if is_given:
        return config
    if not exists(config.folder / "config.yaml"):
        if config.data.name in IN_FILES and not config.subsets.file and _is_first_process():
            print(
                "warning: subsets.order is not given: a folder is shuffled, as its files come class by class",
                flush=True,
            )
        return config
    order = read_run_config(config.run).subsets.order
    return config.model_copy(update={"subsets": config.subsets.model_copy(update={"order": order})})


def _check_names(said, run):
    """Raise WrongUse where a name, or a setting of the method, which no schema knows here, differs
    from that of the run.
    """
    for section, trained in (
        ("data", run.data.model_dump()),
        ("encoder", run.encoder.model_dump()),
        ("method", run.method),
    ):
        values = said.get(section, {})
        for key, value in (values if isinstance(values, dict) else {"name": values}).items():
            if (key == "name" or section == "method") and value != trained.get(key):
                was = short_form(trained.get(key))
                raise WrongUse(
                    f"{section}.{key}: {short_form(value)} was given, but {run.run} was trained with {was}"
                )


def _merged(values, changes):
    """Nested dicts with the values of another put over theirs."""
    if isinstance(values, dict) and isinstance(changes, dict):
        return values | {
            name: _merged(values.get(name), change) for name, change in changes.items()
        }
    return changes


def _restricted(values, keys):
    """The part of a nested dict that has the keys of another."""
    if isinstance(values, dict) and isinstance(keys, dict):
        return {name: _restricted(values[name], keys[name]) for name in keys if name in values}
    return values


# --- the command line -----------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse, but a wrong option is one line."""

    def error(self, message):
        if message.startswith("unrecognized arguments: "):
            unknown = message.removeprefix("unrecognized arguments: ").split()[0]
            near = difflib.get_close_matches(unknown, self._option_string_actions, n=1, cutoff=0.5)
            message = f"{unknown}: no such option" + (
                f"; did you mean {near[0]}?" if near else "; see --help"
            )
        raise WrongUse(f"command line: {message}")


def _options(schema, prefix=""):
    """{dotted key: field} of every setting that holds a value."""
    options = {}
    for name, field in schema.model_fields.items():
        if field.discriminator is not None:
            options |= _options_of_all(schemas_by_name(field), f"{prefix}{name}.")
        elif inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            options |= _options(field.annotation, f"{prefix}{name}.")
        elif field.annotation is not Any:
            options[prefix + name] = field
    return options


def _options_of_all(schemas, prefix):
    """{dotted key: field} of a section with several schemas; descriptions say which names take it.

    schemas: {name: Settings class}.
    """
    takers = {}  # {key: {(meaning, annotation): names}}
    for name, schema in schemas.items():
        for key, field in schema.model_fields.items():
            kinds = takers.setdefault(key, {})
            kinds.setdefault((_meaning(field), field.annotation), []).append(name)
    options = {}
    for key, kinds in takers.items():
        meanings = [f"{', '.join(names)}: {meaning}" for (meaning, _), names in kinds.items()]
        annotation = functools.reduce(operator.or_, [annotation for _, annotation in kinds])
        options[prefix + key] = FieldInfo(annotation=annotation, description="; ".join(meanings))
    name = next(iter(schemas.values())).model_fields["name"]
    options[f"{prefix}name"] = FieldInfo(
        annotation=Literal[tuple(schemas)], description=name.description
    )
    return options


def _parse_value(key, given, field):
    """The value of one option: read as YAML reads it, except where the setting is text. given: a
    word, or a list's words.
    """
    if field.annotation is str or (field.annotation == (str | None) and given != "null"):
        return given
    words = given if isinstance(given, list) else [given]
    values = [parse_yaml(word, f"command line: --{key}: {shorten(word)!r}") for word in words]
    # A list may also be given as one word, `[0, 1]`, and so may what stands in its place: null, or
    # a name.
    in_place = (
        (list, type(None))
        if typing.get_origin(field.annotation) is list
        else (list, type(None), str)
    )
    whole = given is not words or (len(values) == 1 and isinstance(values[0], in_place))
    return values[0] if whole else values


def _is_list(annotation):
    return typing.get_origin(annotation) is list or any(
        _is_list(part) for part in typing.get_args(annotation)
    )


def _type_name(field):
    names = str(
        field.annotation.__name__ if inspect.isclass(field.annotation) else field.annotation
    )
    if typing.get_origin(field.annotation) is Literal:
        return "|".join(str(choice) for choice in typing.get_args(field.annotation))
    return "LIST" if _is_list(field.annotation) else names.split("|")[0].strip().upper()


def _meaning(field):
    default = (
        ""
        if field.is_required()
        else f" (default: {'null' if field.default is None else field.default})"
    )
    return f"{field.description or ''}{default}"
