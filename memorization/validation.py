"""Validation of settings by their schema. One line says what is wrong, and who wrote it: a file or
the command line.
"""

import copy
import difflib
import inspect
import re
import typing
from dataclasses import dataclass, field

import pydantic
from pydantic import BaseModel

from memorization.errors import WrongUse, short_form, shorten

WORDS_OF_TRUTH = ("yes", "no", "on", "off", "y", "n")
ZEROS_FIRST = re.compile(r"[-+]?0[0-9]+(\.[0-9]*)?")
WITH_EXPONENT = re.compile(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", re.IGNORECASE)
OTHER_NUMBER = re.compile(r"[-+]?[0-9][0-9a-z_:.+-]*", re.IGNORECASE)


def validate(schema, values, path, options=None):
    """An instance of a schema, a Settings class.

    values: nested dicts from a file at `path`; options: {dotted key: value} of the command line,
    put over them. Raises WrongUse, naming the file or the options, for the first thing that is
    wrong.
    """
    options = options or {}
    try:
        return schema.model_validate(put_over(values, options))
    except pydantic.ValidationError as error:
        problem = _problems(error, schema)[0]
    raise WrongUse(f"{_place(problem, schema, values, path, options)}: {problem.line}")


@dataclass(frozen=True)
class Problem:
    """Why pydantic refuses a value.

    path: its keys; kind: pydantic's name of the reason; reason: in words; value: what is refused;
    section: the Settings class that the last key should belong to.
    """

    path: tuple
    kind: str
    reason: str
    value: object = field(compare=False)
    section: type = field(compare=False)

    @property
    def key(self):
        """The dotted key; of a rule between sections, the one that its reason begins with."""
        return ".".join(map(str, self.path)) or self.reason.split(":")[0]

    @property
    def line(self):
        """The dotted key, the value, and what is allowed."""
        return f"{self.key}: {self._message()}" if self.path else self._message()

    def _message(self):
        if self.kind == "extra_forbidden":
            known = list(self.section.model_fields)
            near = difflib.get_close_matches(str(self.path[-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            return f"no such setting; {hint}"
        if self.kind == "missing":
            return "is missing"
        if self.kind == "value_error":
            return self.reason
        if self.kind in ("model_type", "model_attributes_type"):
            return (
                f"{short_form(self.value)} is not allowed: input should be a dictionary of settings"
            )
        hint = _hint(self.value) if self.kind in ("int_type", "float_type", "bool_type") else ""
        allowed = f"{self.reason[0].lower()}{self.reason[1:]}{hint}"
        return f"{short_form(self.value)} is not allowed: {allowed}"


def _hint(value):
    """How to write the number, true or false that a text seems to mean; "" if it means none."""
    if not isinstance(value, str):
        return ""
    if value.lower() in WORDS_OF_TRUTH:
        return " (write true or false)"
    if ZEROS_FIRST.fullmatch(value):
        plain = re.sub("0+(?=[0-9])", "", value, count=1)
        return f" (write it without the zeros before it, as {plain})"
    if WITH_EXPONENT.fullmatch(value):
        return " (YAML reads this as text; write it without quotes or an exponent, such as 0.001)"
    if OTHER_NUMBER.fullmatch(value):
        return " (a number has decimal digits alone, such as 10 or 0.001)"
    return ""


def _problems(error, schema):
    """The Problems of a pydantic error, misspelt keys first: they explain missing ones."""
    problems = [_problem(details, schema) for details in error.errors()]
    return sorted(problems, key=lambda problem: problem.kind != "extra_forbidden")


def _problem(details, schema):
    """The Problem in pydantic's details of an error.

    If a section has several schemas, pydantic adds the name that tells them apart, such as
    "resnet18" of `encoder:`, to the path of the keys. It has other kinds for a missing name.
    """
    section, schemas, path = schema, {}, []
    for part in details["loc"]:
        if part in schemas:
            section, schemas = schemas[part], {}
            continue
        setting = section.model_fields.get(part) if isinstance(part, str) else None
        if setting is not None:
            schemas = schemas_by_name(setting)
            section = section_in(setting.annotation) or section
        path.append(part)
    kind, value = details["type"], details["input"]
    reason = details["msg"].removeprefix("Value error, ")
    if kind == "union_tag_not_found":
        path, kind = [*path, "name"], "missing"
    elif kind == "union_tag_invalid":
        path, value = [*path, "name"], value["name"]
        reason = f"Input should be one of {details['ctx']['expected_tags']}"
    return Problem(tuple(path), kind, reason, value, section)


def _place(problem, schema, values, path, options):
    """Where a problem comes from: the file at `path`, or options of the command line.

    Of a rule between several settings the options that broke it are named.
    """
    if any(f"{problem.key}.".startswith(f"{option}.") for option in options):
        return "command line"

    def problems_with(some_options):
        try:
            schema.model_validate(put_over(values, some_options))
        except pydantic.ValidationError as error:
            return _problems(error, schema)
        return []

    # A rule is checked only if nothing is missing. An option of another section that the file lacks
    # lets the rule be checked, and does not break it.
    section = problem.key.split(".")[0]
    missing = [other.path for other in problems_with({}) if other.kind == "missing"]
    completing = {
        option: value
        for option, value in options.items()
        if option.split(".")[0] != section and _lies_in(option, missing)
    }
    if problem in problems_with(completing):
        return path
    changing = [option for option in options if option not in completing]
    blamed = [
        option
        for option in changing
        if problem not in problems_with({key: options[key] for key in options if key != option})
    ]
    words = [_words_of_option(option, options[option]) for option in blamed or changing]
    return f"command line: {' '.join(words)}"


def _lies_in(option, paths):
    """Whether an option is a setting at one of some paths of keys, or in one of their sections."""
    keys = tuple(option.split("."))
    return any(keys[: len(path)] == path for path in paths)


def _words_of_option(option, value):
    """An option and its value as they stand on a command line, a long value shortened."""
    word = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"--{option} {shorten(word)}"


def schemas_by_name(setting):
    """{name: Settings class} of a section whose `name` tells its schemas apart; {} of any other."""
    schemas = {}
    if setting.discriminator is not None:
        for schema in typing.get_args(setting.annotation):
            names = typing.get_args(schema.model_fields["name"].annotation)
            schemas |= dict.fromkeys(names, schema)
    return schemas


def section_in(annotation):
    """The Settings class in an annotation such as `list[ViewRecipe]`, or None."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    sections = (section_in(part) for part in typing.get_args(annotation))
    return next((section for section in sections if section), None)


def put_over(values, options):
    """Nested dicts with options, {dotted key: value}, put over their values.

    A section that is null gets the options of its keys. One that is something else stays as it is:
    the schema refuses it.
    """
    values = copy.deepcopy(values)
    for key, value in options.items():
        *sections, name = key.split(".")
        section = values
        for part in sections:
            if isinstance(section, dict):
                if section.get(part) is None:
                    section[part] = {}
                section = section[part]
        if isinstance(section, dict):
            section[name] = value
    return values
