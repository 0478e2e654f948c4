"""ConvNeXt-Tiny (Liu et al. 2022, arXiv 2201.03545) as an encoder."""

from typing import Literal

import torch.nn as nn
import torchvision
from pydantic import Field
from torchvision.models.convnext import CNBlock

from models.resnet import ConvolutionalEncoder
from models.settings import BaseEncoderSettings

# Height and width of the patches that the stem embeds. In small images a patch is a pixel, as in
# github.com/filipbasara0/simple-convnext, whose README reports an F1 of 0.92 on CIFAR-10, and about
# 6 and 12 points less with patches of 2 and 4 pixels.
STEMS = {"small": 1, "standard": 4}
DOWNSAMPLING = 8  # of the layers after the stem, three times by 2


class ConvNeXtSettings(BaseEncoderSettings):
    name: Literal["convnext_tiny"] = Field(description="the encoder")
    stem: Literal["small", "standard"] = Field(
        "small", description="1x1 of stride 1, or 4x4 of stride 4 (ImageNet)"
    )

    def make(self, channels, size):
        check_size(size, self.stem)
        return convnext(self.name, channels, self.stem)


class ConvNeXtEncoder(ConvolutionalEncoder):
    """A representation is what torchvision's classifier sees: the mean of the last feature map,
    under a layer norm. Tokens are the positions of that map, without the norm.
    """

    def __init__(self, modules, norm, stem):
        super().__init__(modules, *norm.normalized_shape)
        self.norm, self.stem = norm, stem

    def forward(self, pixels, visible=None):
        """pixels: (B, C, H, W), normalized. Returns (B, D)."""
        return self.norm(super().forward(pixels, visible))

    def _feature_map(self, pixels, visible):
        check_size(min(pixels.shape[2:]), self.stem)
        return super()._feature_map(pixels, visible)


def check_size(size, stem):
    """Raise ValueError if images are too small for the layers after a stem."""
    least = STEMS[stem] * DOWNSAMPLING
    if size < least:
        too_small = f"{stem} takes images of at least {least} pixels, not of {size}"
        raise ValueError(f"encoder.stem: {too_small}")


class Block(CNBlock):
    """torchvision's block. Its layer scale is a vector, so that optimizers see no matrix in it:
    like biases and norms it is not decayed, as in the paper's code, and LARS does not adapt it.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.layer_scale = nn.Parameter(self.layer_scale.detach().flatten())

    def forward(self, x):
        """(B, D, h, w) -> (B, D, h, w)"""
        return x + self.layer_scale[:, None, None] * self.block(x)


def convnext(name, channels, stem):
    """torchvision's ConvNeXt without its classifier and without stochastic depth.

    name: convnext_tiny; stem: "small" or "standard".
    """
    network = torchvision.models.get_model(name, weights=None, block=Block)
    embedding = network.features[0]
    if (channels, stem) != (3, "standard"):
        patch = STEMS[stem]
        embedding[0] = nn.Conv2d(channels, embedding[0].out_channels, patch, stride=patch)
        nn.init.trunc_normal_(embedding[0].weight, std=0.02)
        nn.init.zeros_(embedding[0].bias)
    norm = network.classifier[0]  # (B, D, 1, 1) there, (B, D) here
    vector_norm = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
    modules = [(f"features.{number}", module) for number, module in enumerate(network.features)]
    return ConvNeXtEncoder(modules, vector_norm, stem)
