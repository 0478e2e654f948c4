"""Encoders by name."""

from models.resnet import resnet, resnet_small

ENCODERS = {
    "resnet_small": lambda settings, channels, size: resnet_small(channels, settings.width),
    "resnet18": lambda settings, channels, size: resnet("resnet18", channels, settings.stem),
    "resnet34": lambda settings, channels, size: resnet("resnet34", channels, settings.stem),
    "resnet50": lambda settings, channels, size: resnet("resnet50", channels, settings.stem),
}


def make_encoder(settings, channels, size):
    """A fresh encoder, its weights drawn from torch's global generator.

    settings: has .name and what that encoder takes (.stem, .width); channels, size: of the images, (B, channels, size, size).
    Raises ValueError for an unknown name.
    """
    if settings.name not in ENCODERS:
        raise ValueError(f"encoder.name: {settings.name!r} is not one of {', '.join(ENCODERS)}")
    return ENCODERS[settings.name](settings, channels, size)
