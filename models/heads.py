"""Projectors and predictors: small networks on top of an encoder that exist only in training."""

import torch.nn as nn

HEAD_NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": lambda dim: nn.Identity()}
# The same without weights and biases.
PLAIN_NORMS = {
    "batch": lambda dim: nn.BatchNorm1d(dim, affine=False),
    "layer": lambda dim: nn.LayerNorm(dim, elementwise_affine=False),
    "none": lambda dim: nn.Identity(),
}


def projection_head(inputs, hidden, outputs, norm, layers=2, last_norm=False):
    """A perceptron of `layers` linear layers, (B, inputs) -> (B, outputs).

    norm: of the hidden layers, "batch", "layer" or "none". last_norm: whether the output is
    normalized, too, without weights and biases.
    """
    parts, width = [], inputs
    for _ in range(layers - 1):
        linear = nn.Linear(width, hidden, bias=norm == "none")  # a norm has a bias of its own
        parts += [linear, HEAD_NORMS[norm](hidden), nn.ReLU(inplace=True)]
        width = hidden
    if not last_norm:
        return nn.Sequential(*parts, nn.Linear(width, outputs))
    linear = nn.Linear(width, outputs, bias=norm == "none")
    return nn.Sequential(*parts, linear, PLAIN_NORMS[norm](outputs))
