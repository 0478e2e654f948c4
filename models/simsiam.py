"""SimSiam: Exploring Simple Siamese Representation Learning (Chen and He 2021, arXiv
2011.10566).
"""

from typing import Literal

import torch.nn as nn
import torch.nn.functional as F
from pydantic import Field

from models.heads import projection_head
from models.precision import in_full_precision
from models.settings import MethodSettings


class SimSiamSettings(MethodSettings):
    """The config's `method:` section."""

    name: Literal["simsiam"]
    hidden_dim: int = Field(
        2048, ge=1, le=16384, description="width of the projector's hidden layers"
    )
    projection_dim: int = Field(
        2048, ge=1, le=16384, description="width of the output of projector and predictor"
    )
    projector_layers: int = Field(
        3, ge=2, le=3, description="layers of the projector; 2 in the paper's recipe for CIFAR-10"
    )
    predictor_dim: int = Field(
        512, ge=1, le=16384, description="width of the predictor's hidden layer, a bottleneck"
    )
    constant_predictor_rate: bool = Field(
        True, description="the predictor's learning rate stays at its full value, without decay"
    )
    head_norm: Literal["batch", "layer", "none"] = Field(
        "batch", description="normalization in projector and predictor"
    )


class SimSiam(nn.Module):
    """From one view of an image, the predictor predicts the projection of the other view by the
    same network. No gradient passes through what is predicted.

    The projector's output is normalized without weights and biases, that of the predictor is not.
    Each view is a batch of its own.
    """

    def __init__(
        self,
        encoder,
        hidden_dim,
        projection_dim,
        projector_layers,
        predictor_dim,
        constant_predictor_rate,
        head_norm,
    ):
        super().__init__()
        self.encoder = encoder
        widths = encoder.dim, hidden_dim, projection_dim
        self.projector = projection_head(*widths, head_norm, projector_layers, last_norm=True)
        self.predictor = projection_head(projection_dim, predictor_dim, projection_dim, head_norm)
        self.constant_predictor_rate = constant_predictor_rate

    def forward(self, first, second):
        """Two views of the same B images. Returns the loss, a scalar in [-1, 1]: half the error of
        predicting each view from the other (eq. 4).
        """
        z1, z2 = (
            self.projector(self.encoder(view.pixels, view.visible)) for view in (first, second)
        )
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return (negative_cosine(p1, z2.detach()) + negative_cosine(p2, z1.detach())) / 2

    def parameter_groups(self):
        """The predictor in a group of its own, whose rate is constant if the settings say so."""
        others = [*self.encoder.parameters(), *self.projector.parameters()]
        predictor = {"params": list(self.predictor.parameters())}
        if self.constant_predictor_rate:
            predictor["constant_lr"] = True
        return [{"params": others}, predictor]


def negative_cosine(p, z):
    """- cos(p, z), the mean over B, a scalar (eq. 1 of the paper), computed in at least float32.

    p: (B, D), predictions; z: (B, D), projections to be predicted, without gradient.
    """
    p, z = map(in_full_precision, (p, z))
    return -F.cosine_similarity(p, z, dim=1).mean()
