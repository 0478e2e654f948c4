"""Barlow Twins: Self-Supervised Learning via Redundancy Reduction (Zbontar et al. 2021, arXiv
2103.03230).
"""

from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from pydantic import Field

from models.gather import gather
from models.heads import projection_head
from models.precision import in_full_precision
from models.settings import MethodSettings

EPSILON = 1e-5  # added to every variance, as by a batch norm


class BarlowTwinsSettings(MethodSettings):
    """The config's `method:` section."""

    name: Literal["barlowtwins"]
    hidden_dim: int = Field(
        2048, ge=1, le=16384, description="width of the projector's hidden layers"
    )
    projection_dim: int = Field(
        2048,
        ge=2,
        le=16384,
        description="width of the projector's output, in which views are compared",
    )
    projector_layers: int = Field(3, ge=2, le=10, description="linear layers of the projector")
    redundancy: float = Field(
        0.005, ge=0, description="weight of the squared correlations of different dimensions"
    )
    loss_scale: float = Field(
        1.0, gt=0, description="factor of the whole loss, for recipes whose rates expect one"
    )
    head_norm: Literal["batch", "layer", "none"] = Field(
        "batch", description="normalization in the projector"
    )


class BarlowTwins(nn.Module):
    """The correlation between the dimensions of two views' projections is to be the identity: each
    dimension agrees with itself in the other view, and with no other dimension.

    If several processes train together, the loss is that of the whole batch.
    """

    def __init__(
        self,
        encoder,
        hidden_dim,
        projection_dim,
        projector_layers,
        redundancy,
        loss_scale,
        head_norm,
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = projection_head(
            encoder.dim, hidden_dim, projection_dim, head_norm, layers=projector_layers
        )
        self.projector[-1].bias = None  # a shift of all projections does not change the loss
        self.redundancy = redundancy
        self.loss_scale = loss_scale

    def forward(self, first, second):
        """Two views of the same B images. Returns the loss, a scalar.

        Raises ValueError if the whole batch is one image.
        """
        z1, z2 = (
            gather(self.projector(self.encoder(view.pixels, view.visible)))
            for view in (first, second)
        )
        return self.loss_scale * barlow_twins_loss(z1, z2, self.redundancy)


def barlow_twins_loss(z1, z2, redundancy):
    """The loss of Barlow Twins (eq. 1 and 2 of the paper, algorithm 1), a scalar, computed in at
    least float32.

    z1, z2: (B, D), projections of two views of the same B images, in the same order. Every
    dimension is normalized over the images as by a batch norm without weights: population variance,
    plus 1e-5. redundancy: weight of the squared correlations of different dimensions.
    Raises ValueError if B is 1.
    """
    if len(z1) < 2:
        needs = "Barlow Twins needs the correlations of 2 or more images"
        raise ValueError(f"training.batch_size: 1, but {needs}")
    z1, z2 = map(in_full_precision, (z1, z2))
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = (F.batch_norm(z, None, None, training=True, eps=EPSILON) for z in (z1, z2))
        correlation = z1.T @ z2 / len(z1)  # (D, D)
    itself = torch.eye(len(correlation), dtype=torch.bool, device=z1.device)
    disagreement = (1 - correlation.diagonal()).square().sum()
    return disagreement + redundancy * correlation.masked_fill(itself, 0).square().sum()
