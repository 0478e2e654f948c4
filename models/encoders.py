"""Encoders by name."""

from functools import partial
from typing import Literal

import pydantic
from pydantic import Field

from models.resnet import resnet, resnet_small
from models.settings import Settings
from models.vit import VIT_SIZES, vit

ENCODERS = {
    "resnet_small": lambda settings, channels, size: resnet_small(channels, settings.width),
    "resnet18": lambda settings, channels, size: resnet("resnet18", channels, settings.stem),
    "resnet34": lambda settings, channels, size: resnet("resnet34", channels, settings.stem),
    "resnet50": lambda settings, channels, size: resnet("resnet50", channels, settings.stem),
    **{name: partial(vit, name) for name in ("vit_mini", *VIT_SIZES)},
}


def settings_of_encoder(name):
    """The settings, beside its name, that an encoder takes."""
    takes = {"patch", "positions", "pooling"} if name.startswith("vit_") else {"stem"}
    return {"resnet_small": {"width"}, "vit_mini": {"width", "depth", *takes}}.get(name, takes)


class EncoderSettings(Settings):
    name: Literal[
        "resnet_small",
        "resnet18",
        "resnet34",
        "resnet50",
        "vit_mini",
        "vit_tiny",
        "vit_small",
        "vit_base",
    ] = Field(description="the encoder")
    stem: Literal["small", "standard"] = Field(
        "small", description="ResNet-18, -34, -50: 3x3 without max-pool, or 7x7 with it (ImageNet)"
    )
    # Convolutions with fewer channels than 8 write beyond their memory in oneDNN, torch's library
    # for CPUs, where there is no AVX-512.
    width: int = Field(
        32,
        ge=8,
        le=1024,
        description="resnet_small: channels of its first stage; vit_mini: of its tokens, a multiple of 32",
    )
    depth: int = Field(4, ge=1, le=64, description="vit_mini: its blocks")
    patch: int = Field(
        4,
        ge=1,
        description="vit_...: height and width of a patch, a divisor of the size of every view",
    )
    positions: Literal["sincos", "learned"] = Field(
        "sincos", description="vit_...: fixed sines and cosines, or learned (and decayed)"
    )
    pooling: Literal["mean", "class"] = Field(
        "mean", description="vit_...: the mean of the visible patches' tokens, or the class token"
    )

    @pydantic.model_validator(mode="after")
    def _takes_its_settings(self):
        takes = settings_of_encoder(self.name)
        for name, field in type(self).model_fields.items():
            if name not in {"name", *takes} and getattr(self, name) != field.default:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but {self.name} takes no {name}, only {', '.join(sorted(takes))}"
                )
        return self

    @property
    def sees_patches(self):
        """Whether patches can be hidden from it."""
        return self.name.startswith("vit_")


def make_encoder(settings, channels, size):
    """A fresh encoder, its weights drawn from torch's global generator.

    settings: has .name and what that encoder takes (.stem, .width, .patch, ...); channels, size: of
    the images, (B, channels, size, size). Raises ValueError, which names the setting, for an
    unknown name and for settings that do not fit the images.
    """
    if settings.name not in ENCODERS:
        raise ValueError(f"encoder.name: {settings.name!r} is not one of {', '.join(ENCODERS)}")
    return ENCODERS[settings.name](settings, channels, size)
