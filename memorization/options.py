"""A command line: the YAML file of an experiment, with its settings as options, and --help."""

import argparse
import difflib
import functools
import inspect
import operator
import shutil
import textwrap
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from memorization.data.recipes import ViewRecipe
from memorization.errors import WrongUse, shorten
from memorization.machine.strict_yaml import parse_yaml, read_yaml
from memorization.validation import put_over, schemas_by_name, section_in, validate

SETTINGS = "settings (each is a key of the YAML file)"
MOST_METAVAR = 48  # characters; a longer list of choices stands in the help of an option
RECIPES = "keys of a recipe, such as '[{count: 2, size: 32, flip: 0.5}]'"


@dataclass(frozen=True)
class Experiment:
    """An experiment as it is written.

    path: of its YAML file; values: nested dicts, the content of the file; options: {dotted key:
    value}, the settings of the command line, which are put over them; actions: {name: text, None,
    True or False}, the options beside the settings.
    """

    path: str
    values: dict
    options: dict
    actions: dict = field(default_factory=dict)

    @property
    def all_values(self):
        """The values with the options put over them."""
        return put_over(self.values, self.options)

    def validate(self, schema):
        """An instance of a schema, a Settings class. Raises WrongUse; see `validate`."""
        return validate(schema, self.values, self.path, self.options)

    def place_of(self, key):
        """Where a dotted key was written: the file, or "command line"."""
        options = [f"{option}." for option in self.options]
        on_line = any(f"{key}.".startswith(option) for option in options)
        return "command line" if on_line else self.path


def read_experiment(argv, doc, schema, is_shown, actions, flags):
    """The Experiment of a command line and its YAML file.

    doc, is_shown: what --help shows, the docstring of a script, and a function (dotted key, field)
    -> bool of the settings; schema: of all settings; actions, flags: {name: help}, of options with
    and without a value. Raises WrongUse, one line.
    """
    settings = settings_of(schema)
    parser = _Parser(
        prog="",
        description=_wrap(doc),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
        usage=argparse.SUPPRESS,
    )
    _add_actions(parser, actions, flags)
    _add_settings(parser, settings, is_shown)
    words = vars(parser.parse_args(argv))
    values = read_yaml(words["config"])
    options = {
        key: _value(key, words[key], setting.annotation)
        for key, setting in settings.items()
        if words[key] is not None
    }
    _check_sections(options)
    chosen = {name: words[name] for name in {**actions, **flags}}
    return Experiment(words["config"], values, options, chosen)


def read_words(argv, doc, places, options):
    """{name: text, or list of texts} of the command line of a script that reads no YAML file.

    doc: what --help shows; places: (name, help) of the words without an option; options: {name:
    (metavar, default, help)}. Raises WrongUse, one line.
    """
    parser = _Parser(
        prog="",
        description=_wrap(doc),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
        usage=argparse.SUPPRESS,
    )
    name, meaning = places
    parser.add_argument_group("arguments").add_argument(name, nargs="*", help=meaning)
    group = parser.add_argument_group("options")
    group.add_argument("-h", "--help", action="help", help="show this text, and end")
    for option, (kind, default, meaning) in options.items():
        group.add_argument(f"--{option}", metavar=kind, default=default, help=meaning)
    return vars(parser.parse_args(argv))


def _wrap(doc):
    """A docstring in lines as wide as those of argparse. Its indented lines are commands, which are
    continued after a backslash.
    """
    width, whole_words, paragraphs = _width(), {"break_on_hyphens": False}, []
    for paragraph in doc.split("\n\n"):
        if paragraph.startswith("  "):
            commands = []
            for line in paragraph.splitlines():
                parts = textwrap.wrap(line, width - 2, subsequent_indent="        ", **whole_words)
                commands.append(" \\\n".join(parts))
            paragraphs.append("\n".join(commands))
        else:
            paragraphs.append(textwrap.fill(paragraph, width, **whole_words))
    return "\n\n".join(paragraphs)


def _width():
    return max(20, shutil.get_terminal_size().columns - 2)  # as argparse.HelpFormatter


class _Parser(argparse.ArgumentParser):
    """argparse, but a wrong option is one line."""

    def error(self, message):
        unknown = message.partition("unrecognized arguments: ")[2].split()
        if unknown:
            options = self._option_string_actions
            near = difflib.get_close_matches(unknown[0], options, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "see --help"
            message = f"{unknown[0]}: no such option; {hint}"
        raise WrongUse(f"command line: {message}")


def _add_actions(parser, actions, flags):
    group = parser.add_argument_group("actions")
    group.add_argument("-h", "--help", action="help", help="show this text, and end")
    group.add_argument(
        "--config", required=True, metavar="FILE", help="the experiment, a YAML file"
    )
    for name, meaning in actions.items():
        group.add_argument(f"--{name}", help=meaning)
    for name, meaning in flags.items():
        group.add_argument(f"--{name}", action="store_true", help=meaning)


def _add_settings(parser, settings, is_shown):
    """Add every setting as an option, in one group a section; --help shows some of them."""
    groups = {"": parser.add_argument_group(SETTINGS)}
    for key, setting in settings.items():
        section = key.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        kind, meaning = _type_name(setting.annotation), _meaning(setting)
        if len(kind) > MOST_METAVAR:
            kind, meaning = "NAME", f"{meaning}: {kind.replace('|', ', ')}"
        groups[section].add_argument(
            f"--{key}",
            nargs="+" if list in _kinds(setting.annotation) else None,
            metavar=kind,
            help=meaning.replace("%", "%%") if is_shown(key, setting) else argparse.SUPPRESS,
        )
        if is_shown(key, setting) and section_in(setting.annotation) is ViewRecipe:
            recipe = ViewRecipe.model_fields.items()
            lines = [
                textwrap.fill(f"  {name}: {_meaning(one)}", _width(), subsequent_indent="    ")
                for name, one in recipe
            ]
            parser.epilog = "\n".join([RECIPES, *lines])


def settings_of(schema, prefix=""):
    """{dotted key: field} of every setting of a schema that holds a value."""
    settings = {}
    for name, one in schema.model_fields.items():
        schemas = schemas_by_name(one)
        if schemas:
            settings |= _settings_of_all(schemas, f"{prefix}{name}.")
        elif section := _only_section(one.annotation):
            if prefix and types.NoneType in _alternatives(one.annotation):
                settings[prefix + name] = one  # null leaves it out
            settings |= settings_of(section, f"{prefix}{name}.")
        elif one.annotation is not Any:
            settings[prefix + name] = one
    return settings


def _only_section(annotation):
    """The Settings class of a section that is always there, or may be null; else None."""
    classes = [kind for kind in _alternatives(annotation) if kind is not types.NoneType]
    is_section = len(classes) == 1 and inspect.isclass(classes[0])
    return classes[0] if is_section and issubclass(classes[0], BaseModel) else None


def _settings_of_all(schemas, prefix):
    """{dotted key: field} of a section with several schemas, {name: Settings class}.

    The description of a field tells which names take it.
    """
    takers = {}  # {key: {(meaning, annotation): names}}
    for name, schema in schemas.items():
        for key, one in schema.model_fields.items():
            names = takers.setdefault(key, {}).setdefault((_meaning(one), one.annotation), [])
            names.append(name)
    settings = {}
    for key, kinds in takers.items():
        meanings = [f"{', '.join(names)}: {meaning}" for (meaning, _), names in kinds.items()]
        annotation = functools.reduce(operator.or_, [annotation for _, annotation in kinds])
        settings[prefix + key] = FieldInfo(annotation=annotation, description="; ".join(meanings))
    description = next(iter(schemas.values())).model_fields["name"].description
    name = FieldInfo(annotation=Literal[tuple(schemas)], description=description)
    return settings | {f"{prefix}name": name}


def _check_sections(options):
    """Raise WrongUse if options set keys of a section that another one leaves out."""
    for section in (key for key, value in options.items() if value is None):
        for key in options:
            if key.startswith(f"{section}."):
                raise WrongUse(f"command line: --{section} null is not allowed beside --{key}")


def _value(key, typed, annotation):
    """The value of an option: a text as it is typed, all else as YAML reads it.

    typed: a word, or the words of a list.
    """
    kinds = _kinds(annotation)
    if str in kinds and not (types.NoneType in kinds and typed == "null"):
        return typed
    words = typed if isinstance(typed, list) else [typed]
    if list[str] in _alternatives(annotation) and words[0] != "null" and words[0][:1] != "[":
        return words  # a name may look like a number
    values = [parse_yaml(word, f"command line: --{key}: {shorten(word)!r}") for word in words]
    # A list may be typed as one word, `[0, 1]`, and so may null or a name in the place of a list.
    takes_no_name = kinds == [list] or _is_list_of_texts(annotation)
    in_place = (list, types.NoneType) if takes_no_name else (list, types.NoneType, str)
    is_whole = typed is not words or (len(values) == 1 and isinstance(values[0], in_place))
    return values[0] if is_whole else values


def _alternatives(annotation):
    """The types that an annotation allows: [int, NoneType] of `int | None`."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _alternatives(parts[0])
    if origin in (typing.Union, types.UnionType):
        return [alternative for part in parts for alternative in _alternatives(part)]
    return [annotation]


def _kinds(annotation):
    """The same without their parameters: [list, NoneType] of `list[int] | None`."""
    return [typing.get_origin(one) or one for one in _alternatives(annotation)]


def _is_list_of_texts(annotation):
    """Whether a setting is a list of texts or null: a single text is then an item of the list."""
    lists = [one for one in _alternatives(annotation) if typing.get_origin(one) is list]
    kinds = [kind for one in lists for item in typing.get_args(one) for kind in _kinds(item)]
    return bool(kinds) and set(kinds) <= {str, Literal}


def _type_name(annotation):
    if list in _kinds(annotation):
        return "LIST"
    names = []
    for one in _alternatives(annotation):
        is_choice = typing.get_origin(one) is Literal
        names += map(str, typing.get_args(one)) if is_choice else [one.__name__.upper()]
    is_section = _only_section(annotation) is not None
    return "null" if is_section else "|".join(name for name in names if name != "NONETYPE")


def _meaning(setting):
    """The description of a setting, and its default as YAML writes it."""
    if setting.is_required():
        return setting.description or ""
    default = setting.default
    if default is None or isinstance(default, bool):
        default = {None: "null", True: "true", False: "false"}[default]
    return f"{setting.description or ''} (default: {default})"
