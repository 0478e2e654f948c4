"""YAML without its surprises: decimal numbers, true and false, and text.

No key stands twice. There are no aliases, no merge keys and no other types.
"""

import re

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from memorization.errors import WrongUse, shorten
from memorization.machine.files import read_text

MOST_YAML = 2**18  # bytes of a config
MOST_DIGITS = 1000  # of an integer; Python itself reads 4,300
PREFIX = "tag:yaml.org,2002:"
MERGE = PREFIX + "merge"
WHOLE = "(?:0|[1-9][0-9]*)"  # without zeros before it: who writes 010 may mean 8 or 10
# What plain text is read as, by its first character; all else is text. YAML 1.1 would read 010 as
# 8, 1:30 as 90, `no` as false, and 2024-01-01 as a date.
PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (rf"[-+]?{WHOLE}", list("-+0123456789")),
    "float": (
        rf"[-+]?{WHOLE}\.[0-9]*(?:[eE][-+][0-9]+)?|\.[0-9]+(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    "merge": (r"<<", ["<"]),
}


class Unsupported(yaml.YAMLError):
    """YAML that is not allowed here."""


def parse_yaml(text, place):
    """The value of a YAML text.

    Raises WrongUse, naming the place of the text, if it is not such YAML.
    """
    try:
        return _value(text)
    except Unsupported as error:
        raise WrongUse(f"{place}: {error}") from None
    except RecursionError:
        raise WrongUse(f"{place}: not YAML (nested too deeply)") from None
    except Exception as error:  # PyYAML leaves what its own indexing raises as it is
        raise WrongUse(f"{place}: not YAML ({' '.join(str(error).split())})") from None


def dump_yaml(value):
    """A nested value of plain types as YAML, which `parse_yaml` and other programs read alike."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def _value(text):
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


class _Loader(Reader, Scanner, Parser, Composer, SafeConstructor, BaseResolver):
    """PyYAML's loader with other tables of what plain text means, and of what a tag may make."""

    yaml_implicit_resolvers = {}
    yaml_constructors = {}

    def __init__(self, text):
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        BaseResolver.__init__(self)

    def compose_node(self, parent, index):
        event = self.peek_event()
        line = event.start_mark.line + 1
        is_key = isinstance(parent, yaml.MappingNode) and index is None
        if isinstance(event, yaml.AliasEvent):
            alias = shorten(f"*{event.anchor}")
            raise Unsupported(
                f"line {line}: aliases ({alias}) are not supported; write the value out"
            )
        node = super().compose_node(parent, index)
        if is_key and node.tag == MERGE:
            raise Unsupported(f"line {line}: merge keys (<<) are not supported; write the keys out")
        return node

    def construct_mapping(self, node, deep=False):
        keys = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"an unhashable key in line {line}")
            if key.tag != PREFIX + "str":
                raise yaml.YAMLError(f"key {shorten(key.value)} in line {line} is no text")
            if key.value in keys:
                start = node.start_mark.line + 1
                name = shorten(repr(key.value))
                raise yaml.YAMLError(f"key {name} stands twice in line {start} and below")
            keys.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_null(self, node):
        self._plain(node, "null")

    def construct_bool(self, node):
        return self._plain(node, "bool").lower() == "true"

    def construct_int(self, node):
        text = self._plain(node, "int")
        if len(text) > MOST_DIGITS:
            digits = f"an integer of {len(text)} digits, but {MOST_DIGITS} are the most"
            raise Unsupported(f"line {node.start_mark.line + 1}: {digits}")
        return int(text)

    def construct_float(self, node):
        text = self._plain(node, "float").lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))

    def _plain(self, node, kind):
        """The text of a scalar. Raises YAMLError if it is not of this kind: any text may stand
        behind !!int.
        """
        text = self.construct_scalar(node)
        if not re.fullmatch(PLAIN[kind][0], text):
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"{shorten(text)!r} in line {line} is no {kind}")
        return text


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes what YAML 1.1 or `PLAIN` would read as something else than text."""

    def ignore_aliases(self, data):
        return True


for name, (pattern, first) in PLAIN.items():
    for table in (_Loader, _Dumper):
        table.add_implicit_resolver(PREFIX + name, re.compile(f"(?:{pattern})\\Z"), first)
for name, construct in {
    "null": _Loader.construct_null,
    "bool": _Loader.construct_bool,
    "int": _Loader.construct_int,
    "float": _Loader.construct_float,
    "merge": SafeConstructor.construct_yaml_str,
    "str": SafeConstructor.construct_yaml_str,
    "seq": SafeConstructor.construct_yaml_seq,
    "map": SafeConstructor.construct_yaml_map,
    None: SafeConstructor.construct_undefined,
}.items():
    _Loader.add_constructor(name and PREFIX + name, construct)


def read_yaml(path):
    """The mapping in a YAML file; a key that stands twice is refused."""
    try:
        text = read_text(path, MOST_YAML)
    except FileNotFoundError:
        raise WrongUse(f"{path}: no such file") from None
    except OSError as error:
        raise WrongUse(
            f"{shorten(str(path))}: cannot be read ({error.strerror or error})"
        ) from None
    except ValueError as error:
        raise WrongUse(f"{path}: cannot be read ({error})") from None
    content = parse_yaml(text, path)
    if not isinstance(content, dict):
        raise WrongUse(
            f"{path}: holds {type(content).__name__}, but a config is a mapping of keys to values"
        )
    return content
