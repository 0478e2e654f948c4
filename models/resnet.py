"""ResNets as encoders: those of torchvision, and a small one for CPUs."""

from dataclasses import replace
from typing import Literal

import torch.nn as nn
import torchvision
from pydantic import Field
from torchvision.models.resnet import BasicBlock

from models.layer_tracing import trace_layers, twice
from models.layers import outputs_of_layers
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

    modules: [(name, module)], one after the other, (B, C, H, W) -> (B, dim, h, w); their layers are
    named after them. dim: D, its channels.
    """

    def __init__(self, modules, dim):
        super().__init__()
        self.layers = Layers(modules)
        self.dim = dim

    def forward(self, pixels, visible=None):
        """pixels: (B, C, H, W), normalized. Returns (B, D)."""
        return self._feature_map(pixels, visible).mean((2, 3))

    def tokens(self, pixels, visible=None):
        """pixels: (B, C, H, W), normalized. Returns (B, T, D), T = h w positions, row by row."""
        return self._feature_map(pixels, visible).flatten(2).transpose(1, 2)

    def find_layers(self, pixels, visible=None):
        """See models/__init__.py."""
        return self.layers.find_layers(pixels, visible)

    def pass_once(self, pixels, visible=None):
        """See models/__init__.py."""
        return self.tokens(pixels, visible)

    def pool(self, output):
        """(B, T, D) of a layer -> (B, D)."""
        return output.mean(1)

    def _feature_map(self, pixels, visible):
        return self.layers.pass_once(pixels, visible)  # (B, D, h, w)


class Layers(nn.Sequential):
    """The modules of a convolutional encoder, one after the other. Called, they give what comes out
    of each layer. Weights in encoder.pt are named after them.

    modules: [(name, module)], named as people know them.
    """

    def __init__(self, modules):
        super().__init__(*(module for _, module in modules))
        self.names = [name for name, _ in modules]

    def forward(self, pixels, visible=None):
        """{name: (B, T, D)}, see models/__init__.py."""
        return outputs_of_layers(self, pixels, visible)

    def find_layers(self, pixels, visible=None):
        """See models/__init__.py."""
        found = trace_layers(self, lambda: self.pass_once(twice(pixels), visible))
        return [replace(layer, name=self._known_name(layer.name)) for layer in found]

    def pass_once(self, pixels, visible=None):
        """What comes out of the last module, (B, D, h, w). Raises ValueError for a mask."""
        if visible is not None:
            whole = "a convolutional network sees whole images"
            raise ValueError(f"{whole}; only a vision transformer takes a mask")
        return super().forward(pixels)

    def _known_name(self, name):
        """Such as "layer1.0.conv1" of "4.0.conv1"."""
        number, *inside = name.split(".")
        return ".".join([self.names[int(number)], *inside])


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
    # all but the pooling and the classifier
    return ConvolutionalEncoder(list(network.named_children())[:-2], dim)


def resnet_small(channels, width):
    """A ResNet of three blocks for 28 to 32 pixels on a CPU: a stem of stride 2, then width, 2
    width and 4 width channels.
    """
    modules = [
        ("conv1", nn.Conv2d(channels, width, kernel_size=3, stride=2, padding=1, bias=False)),
        ("bn1", nn.BatchNorm2d(width)),
        ("relu", nn.ReLU(inplace=True)),
        ("layer1.0", BasicBlock(width, width)),
        ("layer2.0", _downsampling_block(width, 2 * width)),
        ("layer3.0", _downsampling_block(2 * width, 4 * width)),
    ]
    encoder = ConvolutionalEncoder(modules, 4 * width)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return encoder


def _downsampling_block(inputs, outputs):
    shortcut = nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=1, stride=2, bias=False), nn.BatchNorm2d(outputs)
    )
    return BasicBlock(inputs, outputs, stride=2, downsample=shortcut)
