"""Encoders by name."""

from functools import reduce
from operator import or_
from pkgutil import resolve_name
from typing import Annotated, get_args

from pydantic import Field

# Every class of encoder settings: its file and its name. A new encoder adds a line.
CLASSES = [
    "models.resnet:ResNetSmallSettings",
    "models.resnet:ResNetSettings",
    "models.vit:ViTMiniSettings",
    "models.vit:ViTSettings",
    "models.convnext:ConvNeXtSettings",
    "models.timm_encoders:TimmSettings",
    "models.torchvision_encoders:TorchvisionSettings",
    "models.transformers_encoders:TransformersSettings",
    "models.function_encoders:FunctionSettings",
]
_classes = tuple(resolve_name(path) for path in CLASSES)

# {name of an encoder: the class of its settings}
ENCODERS = {
    name: settings
    for settings in _classes
    for name in get_args(settings.model_fields["name"].annotation)
}
EncoderSettings = Annotated[reduce(or_, _classes), Field(discriminator="name")]


def encoder_settings(name, **settings):
    """The settings of the encoder of that name; those that are not given have their defaults.

    Raises pydantic.ValidationError if the encoder does not take them.
    """
    return ENCODERS[name](name=name, **settings)


def make_encoder(settings, channels, size):
    """A fresh encoder, its weights drawn from torch's global generator.

    settings: of `encoder_settings`; channels, size: of the images, (B, channels, size, size).
    Raises ValueError, naming the setting, if the settings do not fit the images.
    """
    return settings.make(channels, size)
