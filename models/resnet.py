"""ResNets as encoders: those of torchvision, and a small one for CPUs."""

from typing import Literal

import torch.nn as nn
import torchvision
from pydantic import Field
from torchvision.models.resnet import BasicBlock

from models.settings import FirstEncoderSettings


class ResNetSmallSettings(FirstEncoderSettings):
    name: Literal["resnet_small"] = Field(description="the encoder")
    # On CPUs without AVX-512, convolutions with fewer than 8 channels write beyond their memory in
    # oneDNN, torch's library for CPUs.
    width: int = Field(32, ge=8, le=1024, description="channels of its first stage")

    def make(self, channels, size):
        return resnet_small(channels, self.width)


class ResNetSettings(FirstEncoderSettings):
    name: Literal["resnet18", "resnet34", "resnet50", "wide_resnet50_2"] = Field(
        description="the encoder"
    )
    stem: Literal["small", "standard"] = Field(
        "small", description="3x3 without max-pool, or 7x7 with it (ImageNet)"
    )

    def make(self, channels, size):
        return resnet(self.name, channels, self.stem)


class ConvolutionalEncoder(nn.Module):
    """A convolutional network whose output is the mean of its last feature map.

    layers: a module, (B, C, H, W) -> (B, dim, h, w); dim: D, its channels.
    """

    def __init__(self, layers, dim):
        super().__init__()
        self.layers = layers
        self.dim = dim

    def forward(self, pixels, visible=None):
        """pixels: (B, C, H, W), normalized. Returns (B, D)."""
        return self._feature_map(pixels, visible).mean((2, 3))

    def tokens(self, pixels, visible=None):
        """pixels: (B, C, H, W), normalized. Returns (B, T, D), T = h w positions, row by row."""
        return self._feature_map(pixels, visible).flatten(2).transpose(1, 2)

    def _feature_map(self, pixels, visible):
        if visible is not None:
            whole = "a convolutional network sees whole images"
            raise ValueError(f"{whole}; only a vision transformer takes a mask")
        return self.layers(pixels)  # (B, D, h, w)


def resnet(name, channels, stem):
    """torchvision's ResNet (He et al. 2016) without its classifier.

    name: resnet18, resnet34, resnet50 or wide_resnet50_2 (Zagoruyko and Komodakis 2016). stem:
    "standard", or "small" for images of about 32 pixels, a 3x3 convolution of stride 1 and no
    max-pool (Chen et al. 2020, B.9).
    """
    network = torchvision.models.get_model(name, weights=None)
    if stem == "small":
        network.conv1 = nn.Conv2d(channels, 64, kernel_size=3, stride=1, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    dim = network.fc.in_features
    layers = nn.Sequential(*list(network.children())[:-2])  # all but the pooling and the classifier
    return ConvolutionalEncoder(layers, dim)


def resnet_small(channels, width):
    """A ResNet of three blocks for 28 to 32 pixels on a CPU: a stem of stride 2, then width, 2
    width and 4 width channels.
    """
    layers = nn.Sequential(
        nn.Conv2d(channels, width, kernel_size=3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        BasicBlock(width, width),
        _downsampling_block(width, 2 * width),
        _downsampling_block(2 * width, 4 * width),
    )
    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return ConvolutionalEncoder(layers, 4 * width)


def _downsampling_block(inputs, outputs):
    shortcut = nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=1, stride=2, bias=False), nn.BatchNorm2d(outputs)
    )
    return BasicBlock(inputs, outputs, stride=2, downsample=shortcut)
