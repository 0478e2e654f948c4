"""An encoder of your own, to train or to import:

encoder: {name: function, file: examples/own_encoder.py, function: make_encoder}
"""

import torch.nn as nn


def make_encoder(channels, size):
    """A module that maps images (B, channels, size, size) to representations (B, 64)."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, kernel_size=3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
