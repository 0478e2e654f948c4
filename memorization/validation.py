"""Values checked by a schema of settings: what is wrong, in one line that names where it was given."""

import copy
import difflib
import inspect
import re
import typing

import pydantic
from pydantic import BaseModel

from memorization.errors import WrongUse, short_form, shorten


def validated(schema, values, source, options=None):
    """Values with options, {dotted key: value}, put over them, checked by the schema.

    Raises WrongUse, which names the first thing that is wrong, and where it was given: the source
    of the values, or the command line.
    """
    try:
        return schema.model_validate(with_options(values, options or {}))
    except pydantic.ValidationError as error:
        problem = _problems(error, schema)[0]
    key, message = _key_and_message(problem)
    place = _place(schema, values, source, options or {}, problem, key or message.split(":")[0])
    raise WrongUse(f"{place}: {f'{key}: ' if key else ''}{message}")


def _problems(error, schema):
    """What pydantic found, the first to be told first: a misspelt key explains a missing one."""
    problems = [_without_tags(problem, schema) for problem in error.errors()]
    return sorted(problems, key=lambda problem: problem["type"] != "extra_forbidden")


def _place(schema, values, source, options, problem, key):
    """The source of a problem: options of the command line, or `source`. key: the setting or
    section of its message.
    """
    if any(key == option or key.startswith(f"{option}.") for option in options):
        return "command line"
    causes = _options_to_blame(schema, values, options, problem, key.split(".")[0])
    words = []
    for option, value in causes.items():
        word = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        words.append(f"--{option} {shorten(word)}")
    return f"command line: {' '.join(words)}" if words else source


def _options_to_blame(schema, values, options, problem, section):
    """The options that cause a problem of a section; none if the values alone have it."""

    def problems(options):
        try:
            schema.model_validate(with_options(values, options))
        except pydantic.ValidationError as error:
            return _problems(error, schema)
        return []

    def has(problems):
        found = (problem["loc"], problem["type"], problem["msg"])
        return any((one["loc"], one["type"], one["msg"]) == found for one in problems)

    # A rule is checked only if nothing is missing; an option that another section lacks in the file
    # lets the rule be checked, but is not why it fails.
    lacking = [one["loc"] for one in problems({}) if one["type"] == "missing"]
    needed = {}
    for option, value in options.items():
        path = tuple(option.split("."))
        if path[0] != section and any(path[: len(key)] == key for key in lacking):
            needed[option] = value
    if has(problems(needed)):
        return {}
    causes = {}
    for option, value in options.items():
        left = problems({other: options[other] for other in options if other != option})
        if not has(left) and (not left or option.split(".")[0] == section):
            causes[option] = value
    return causes or {option: value for option, value in options.items() if option not in needed}


def _without_tags(problem, schema):
    """A problem of pydantic with plain keys in `loc`, and in `section` the Settings class that the
    last of them should belong to.

    Pydantic adds the name that tells the schemas of a section apart, such as "resnet18" of
    `encoder:`, to the path of its keys, and says in its own words if the name is missing or unknown.
    """
    section, schemas, path = schema, {}, []
    for part in problem["loc"]:
        if part in schemas:
            section, schemas = schemas[part], {}
            continue
        field = section.model_fields.get(part) if isinstance(part, str) else None
        if field is not None:
            schemas = schemas_by_name(field)
            section = section_in(field.annotation) or section
        path.append(part)
    problem = {**problem, "loc": tuple(path), "section": section}
    if problem["type"] == "union_tag_not_found":
        return problem | {"type": "missing", "loc": (*path, "name")}
    if problem["type"] == "union_tag_invalid":
        allowed = f"Input should be one of {problem['ctx']['expected_tags']}"
        name = problem["input"]["name"]
        return problem | {"loc": (*path, "name"), "input": name, "msg": allowed}
    return problem


def schemas_by_name(field):
    """{name: Settings class} of a section whose `name` tells its schemas apart; {} of any other."""
    if field.discriminator is None:
        return {}
    return {
        name: schema
        for schema in typing.get_args(field.annotation)
        for name in typing.get_args(schema.model_fields["name"].annotation)
    }


def _key_and_message(problem):
    """Of what pydantic found: the dotted key, and its value and what is allowed."""
    path = problem["loc"]
    key = ".".join(map(str, path))
    if problem["type"] == "extra_forbidden":
        known = list(problem["section"].model_fields)
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        return key, "no such setting; " + (
            f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        )
    if problem["type"] == "missing":
        return key, "is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return key, message
    hint = (
        _hint(problem["input"])
        if problem["type"] in ("int_type", "float_type", "bool_type")
        else ""
    )
    return (
        key,
        f"{short_form(problem['input'])} is not allowed: {message[0].lower()}{message[1:]}{hint}",
    )


def _hint(value):
    """How to write the number, true or false that a text seems to mean, in words; "" if it seems to
    mean none.
    """
    if not isinstance(value, str):
        return ""
    if value.lower() in ("yes", "no", "on", "off", "y", "n"):
        return " (write true or false)"
    if re.fullmatch(r"[-+]?0[0-9]+(\.[0-9]*)?", value):
        return f" (write it without the zeros before it, as {re.sub('0+(?=[0-9])', '', value, count=1)})"
    if re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", value, re.IGNORECASE):
        return " (YAML reads this as text; write it without quotes or an exponent, such as 0.001)"
    if re.fullmatch(r"[-+]?[0-9][0-9a-z_:.+-]*", value, re.IGNORECASE):
        return " (a number has decimal digits alone, such as 10 or 0.001)"
    return ""


def section_in(annotation):
    """The Settings class in an annotation such as `list[ViewRecipe]`, or None."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return next(
        (found for part in typing.get_args(annotation) if (found := section_in(part))), None
    )


def with_options(values, options):
    """Nested dicts with options, {dotted key: value}, put over their values."""
    values = copy.deepcopy(values)
    for key, value in options.items():
        _put(values, key, value)
    return values


def _put(values, key, value):
    """Set a dotted key in nested dicts."""
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise WrongUse(
                f"{section}: {short_form(values)} is not allowed: it is a section with keys of its own"
            )
    values[name] = value
