"""Encoders by name."""

from functools import partial

from models.resnet import resnet, resnet_small
from models.vit import VIT_SIZES, vit

ENCODERS = {
    "resnet_small": lambda settings, channels, size: resnet_small(channels, settings.width),
    "resnet18": lambda settings, channels, size: resnet("resnet18", channels, settings.stem),
    "resnet34": lambda settings, channels, size: resnet("resnet34", channels, settings.stem),
    "resnet50": lambda settings, channels, size: resnet("resnet50", channels, settings.stem),
    **{name: partial(vit, name) for name in ("vit_mini", *VIT_SIZES)},
}


def make_encoder(settings, channels, size):
    """A fresh encoder, its weights drawn from torch's global generator.

    settings: has .name and what that encoder takes (.stem, .width, .patch, ...); channels, size: of
    the images, (B, channels, size, size). Raises ValueError, which names the setting, for an
    unknown name and for settings that do not fit the images.
    """
    if settings.name not in ENCODERS:
        raise ValueError(f"encoder.name: {settings.name!r} is not one of {', '.join(ENCODERS)}")
    return ENCODERS[settings.name](settings, channels, size)
