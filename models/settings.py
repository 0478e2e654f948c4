"""What all settings have in common."""

import reprlib
from typing import ClassVar

import pydantic
from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A section of a config: unknown keys, wrong types and infinities are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class MethodSettings(Settings):
    """A config's `method:` section: its fields beside `name` are the arguments of the method."""

    def arguments(self, training=None):
        """The arguments of the method beside its encoder, a dict.

        training: the config's `training:` section, for methods whose schedules need it.
        """
        return self.model_dump(exclude={"name"})


class BaseEncoderSettings(Settings):
    """A config's `encoder:` section. `name`, a Literal, says which encoders it describes."""

    @property
    def patch_size(self):
        """Height and width of the patches that can be hidden from the encoder, or None."""
        return None

    @property
    def sees_patches(self):
        """Whether patches can be hidden from the encoder."""
        return self.patch_size is not None

    @property
    def label(self):
        """What the encoder is called on the screen."""
        return self.name

    def check(self):
        """Raise ValueError, naming the setting, if no images can make up for what is wrong: an
        unknown name, or a package that is missing.
        """

    def make(self, channels, size):
        """A fresh encoder for images (B, channels, size, size).

        Raises ValueError, naming the setting, if the settings do not fit the images.
        """
        raise NotImplementedError


class FirstEncoderSettings(BaseEncoderSettings):
    """Settings of the first eight encoders, whose records list the settings of all of them.

    encoder.pt and config.yaml keep this form: a setting that the encoder does not take is recorded,
    and accepted, at its default.
    """

    RECORDED: ClassVar = {
        "name": None,
        "stem": "small",
        "width": 32,
        "depth": 4,
        "patch": 4,
        "positions": "sincos",
        "pooling": "mean",
    }

    @pydantic.model_validator(mode="before")
    @classmethod
    def _drop_settings_of_others(cls, values):
        if type(values) is not dict:
            return values
        others = cls.RECORDED.keys() - cls.model_fields.keys()
        for key in sorted(others & values.keys()):
            value, recorded = values[key], cls.RECORDED[key]
            # the types first: a file may hold anything, also a tensor, which is not compared
            if (type(value), value) != (type(recorded), recorded):
                takes = ", ".join(sorted(cls.model_fields.keys() - {"name"}))
                value, name = reprlib.repr(value), values.get("name")
                raise ValueError(f"{key} is {value}, but {name} takes no {key}, only {takes}")
        return {key: value for key, value in values.items() if key not in others}

    @pydantic.model_serializer(mode="wrap")
    def _add_settings_of_others(self, dump):
        return self.RECORDED | dump(self)
