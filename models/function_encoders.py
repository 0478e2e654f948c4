"""Encoders that the user's own code makes."""

import hashlib
import inspect
import sys
import traceback
import types
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pydantic
import torch
import torch.nn as nn
from pydantic import Field

from models.foreign import ForeignSettings, Reading, read_file


class FunctionSettings(ForeignSettings):
    """A function, or a class, in a Python file, which is run.

    It is called with those of `channels` and `size` that are among its parameters, and returns a
    module: (B, C, H, W) -> (B, D). A method `tokens`, (B, C, H, W) -> (B, T, D), may be there.
    """

    name: Literal["function"] = Field(description="the encoder")
    file: str = Field(
        min_length=1, description="a Python file, which is run; its SHA-256 is recorded"
    )
    function: str = Field(
        min_length=1,
        description="a function in it that returns a module; it is called with channels and size, "
        "if these are its parameters",
    )
    sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="SHA-256 of the file, taken from it"
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _hash_file(cls, values):
        if type(values) is not dict or type(values.get("file")) is not str:
            return values
        if values.get("sha256") is not None:  # recorded; the file is compared when it is run
            return values
        try:
            content = read_file(Path(values["file"]).expanduser())
        except ValueError as error:
            raise ValueError(f"file is {values['file']!r}: {error}") from None
        return values | {"sha256": hashlib.sha256(content).hexdigest()}

    @property
    def title(self):
        return f"encoder.function: {self.function} of {self.file}"

    def check(self):
        _find(self)

    def build(self, channels, size):
        function = _find(self)
        arguments = _arguments(function, self.title, {"channels": channels, "size": size})
        # unlike that of a library, it may not work on the device meta
        with torch.device("cpu"), _failures_of(self):
            network = function(**arguments)
        if not isinstance(network, nn.Module):
            kind = type(network).__name__
            raise ValueError(f"{self.title}: returns {kind}, but a torch module is needed")
        has_tokens = callable(getattr(network, "tokens", None))
        return network, Reading(_pool, _tokens if has_tokens else None)


def _find(settings):
    """Run the file, and return the function. Raises ValueError if it is not the recorded file."""
    path = Path(settings.file).expanduser()
    try:
        content = read_file(path)
    except ValueError as error:
        raise ValueError(f"encoder.file: {settings.file}: {error}") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != settings.sha256:
        both = f"SHA-256 {digest[:12]}..., but {settings.sha256[:12]}... was recorded"
        raise ValueError(f"encoder.file: {settings.file}: was changed since: {both}")
    module = types.ModuleType(f"encoder_{digest[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    with _failures_of(settings):
        exec(compile(content, str(path), "exec"), module.__dict__)  # what was hashed, not the path
    function = getattr(module, settings.function, None)
    if not callable(function):
        has = [name for name, value in vars(module).items() if inspect.isroutine(value)]
        functions = f"there are {', '.join(has)}" if has else "it has none"
        name = f"encoder.function: {settings.function}"
        raise ValueError(f"{name}: {settings.file} has no such function; {functions}")
    return function


@contextmanager
def _failures_of(settings):
    """Turn what the user's code raises into a ValueError that names the line of the file."""
    try:
        yield
    except (Exception, SystemExit) as error:
        path = str(Path(settings.file).expanduser())
        lines = [
            place.lineno
            for place in traceback.extract_tb(error.__traceback__)
            if place.filename == path
        ]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else "?")
        reason = " ".join(str(error).split())
        name = type(error).__name__
        raise ValueError(f"encoder.file: {settings.file}, line {line}: {name}: {reason}") from error


def _arguments(function, title, offered):
    """Those of the offered arguments, {name: value}, that a function has as parameters.

    Raises ValueError if it needs others.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise ValueError(f"{title}: its parameters are not known; wrap it in a function") from None
    for name, parameter in parameters.items():
        is_needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if is_needed and (name not in offered or parameter.kind is parameter.POSITIONAL_ONLY):
            takes = f"needs {name}, but it is called with {' and '.join(offered)}, or without"
            raise ValueError(f"{title}: {takes}")
    return {name: value for name, value in offered.items() if name in parameters}


def _pool(network, pixels):
    return network(pixels)


def _tokens(network, pixels):
    return network.tokens(pixels)
