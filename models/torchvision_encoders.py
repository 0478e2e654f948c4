"""Encoders of torchvision, any of its networks that classify images."""

from functools import partial
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision.models as tv
from pydantic import Field

from models.foreign import (
    ForeignSettings,
    Reading,
    make_on_any_device,
    refuse_images,
    state_nearest,
)

# Arguments that leave out the classifiers beside the last one, and their warnings.
ARGUMENTS = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
HEADS = ("avgpool", "dropout", "fc", "classifier", "flatten", "head")  # after the feature map


class TorchvisionSettings(ForeignSettings):
    name: Literal["torchvision"] = Field(description="the encoder")
    model: str = Field(min_length=1, max_length=200, description="the library's name of a network")

    @property
    def title(self):
        return f"encoder.model: {self.model}"

    def check(self):
        known = tv.list_models(module=tv)
        if self.model not in known:
            hint = state_nearest(self.model, known)
            raise ValueError(f"{self.title}: torchvision has no such classifier; {hint}")

    def build(self, channels, size):
        self.check()
        with refuse_images(self.title, channels, size):
            network = make_on_any_device(partial(_create, self.model, size))
        _remove_classifier(network)
        if channels != 3:
            _replace_first_convolution(network, channels)
        if isinstance(network, tv.VisionTransformer):
            return network, Reading(_pool, _tokens_of_vit, before=1, has_class=True)
        return network, Reading(_pool, _tokens, before=0)


def _create(model, size):
    arguments = ARGUMENTS.get(model, {})
    if model.startswith("vit_"):
        arguments = {"image_size": size}
    elif model.startswith("maxvit_"):
        arguments = {"input_size": (size, size)}
    return tv.get_model(model, weights=None, **arguments)


def _remove_classifier(network):
    """Put an identity in the place of the last linear layer, whose outputs are the classes, or of
    the convolution that SqueezeNet has there. Hidden layers of a classifier stay.
    """
    kind = nn.Conv2d if isinstance(network, tv.SqueezeNet) else nn.Linear
    name = [name for name, module in network.named_modules() if isinstance(module, kind)][-1]
    network.set_submodule(name, nn.Identity())


def _replace_first_convolution(network, channels):
    """Make the first convolution take another number of channels.

    Its weights are those of the library's draw for the first of three channels.
    """
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    weight = first.weight.detach()[:, :1].repeat(1, channels, 1, 1)
    first.in_channels, first.weight = channels, nn.Parameter(weight)


def _pool(network, pixels):
    return network(pixels)


def _tokens(network, pixels):
    """The last feature map before it is pooled, (B, T, D), row by row."""
    features = pixels
    for name, module in network.named_children():
        if name in HEADS:
            break
        features = module(features)
    if isinstance(network, tv.DenseNet):
        features = F.relu(features)
    return features.flatten(2).transpose(1, 2)


def _tokens_of_vit(network, pixels):
    """The class token and the patches, (B, 1 + T, D)."""
    patches = network._process_input(pixels)
    class_token = network.class_token.expand(len(patches), -1, -1)
    return network.encoder(torch.cat([class_token, patches], dim=1))
