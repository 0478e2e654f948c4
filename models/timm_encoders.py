"""Encoders of the package timm (github.com/huggingface/pytorch-image-models)."""

from typing import Literal

import torch
from pydantic import Field

from models.foreign import (
    INSTALL,
    ForeignSettings,
    Reading,
    make_on_any_device,
    refuse_images,
    state_nearest,
)


class TimmSettings(ForeignSettings):
    name: Literal["timm"] = Field(description="the encoder")
    model: str = Field(min_length=1, max_length=200, description="the library's name of a network")

    @property
    def title(self):
        return f"encoder.model: {self.model}"

    def check(self):
        timm = _import_timm()
        # timm takes names with a scheme, such as hf-hub:, from the network.
        if ":" in self.model or "/" in self.model or not timm.is_model(self.model):
            hint = state_nearest(self.model.partition(".")[0], timm.list_models())
            raise ValueError(f"{self.title}: timm {timm.__version__} has no such model; {hint}")
        try:
            timm.models.get_pretrained_cfg(self.model)
        except RuntimeError as error:
            raise ValueError(f"{self.title}: {error}") from None

    def build(self, channels, size):
        self.check()
        with refuse_images(self.title, channels, size):
            network = make_on_any_device(lambda: _create(self.model, channels, size))
        before = getattr(network, "num_prefix_tokens", None)
        has_class = getattr(network, "cls_token", None) is not None and before != 0
        if before is None and not has_class:
            before = 0
        return network, Reading(_pool, _tokens, before, has_class)


def _import_timm():
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ValueError(f"encoder.name: timm: the package timm is missing; {INSTALL}") from None
    return timm


def _create(model, channels, size):
    """timm's network without classifier, with random weights. Nothing is downloaded."""
    timm = _import_timm()
    settings = {"pretrained": False, "num_classes": 0, "in_chans": channels}
    try:
        return timm.create_model(model, img_size=size, **settings)
    except TypeError as error:  # an architecture for images of any size
        if "'img_size'" not in str(error):
            raise
        return timm.create_model(model, **settings)


def _pool(network, pixels):
    return network(pixels)


def _tokens(network, pixels):
    features = network.forward_features(pixels)
    if not isinstance(features, torch.Tensor):
        raise TypeError(f"its features are no tensor, but {type(features).__name__}")
    if features.ndim == 3:
        return features  # (B, T, D)
    if getattr(network, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, h w, D)
