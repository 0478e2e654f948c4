"""Projectors and predictors: small networks on top of an encoder that exist only in training."""

import torch.nn as nn

HEAD_NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": lambda dim: nn.Identity()}


def projection_head(inputs, hidden, outputs, norm):
    """A perceptron of one hidden layer, (B, inputs) -> (B, outputs). norm: of the hidden layer,
    "batch", "layer" or "none".
    """
    return nn.Sequential(
        nn.Linear(inputs, hidden, bias=norm == "none"),
        HEAD_NORMS[norm](hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs),
    )
