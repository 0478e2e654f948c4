"""VICReg: Variance-Invariance-Covariance Regularization (Bardes et al. 2022, arXiv 2105.04906)."""

from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from pydantic import Field

from models.gather import gather
from models.heads import projection_head
from models.precision import in_full_precision
from models.settings import MethodSettings

EPSILON = 1e-4  # added to every variance, so that the gradient of its root is finite


class VICRegSettings(MethodSettings):
    """The config's `method:` section."""

    name: Literal["vicreg"]
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
    invariance: float = Field(
        25.0, ge=0, description="weight of the squared distance between two views of an image"
    )
    variance: float = Field(
        25.0,
        ge=0,
        description="weight of the lack of variance, a mean over both views; solo-learn takes the "
        "sum, and its 25 is 50 here",
    )
    covariance: float = Field(
        1.0, ge=0, description="weight of the squared covariances, a sum over both views"
    )
    head_norm: Literal["batch", "layer", "none"] = Field(
        "batch", description="normalization in the projector"
    )


class VICReg(nn.Module):
    """Both views of an image have the same projection, every dimension of the projections varies
    over the images, and no two dimensions vary together.

    The projector is the expander of the paper. If several processes train together, the loss is
    that of the whole batch.
    """

    def __init__(
        self,
        encoder,
        hidden_dim,
        projection_dim,
        projector_layers,
        invariance,
        variance,
        covariance,
        head_norm,
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = projection_head(
            encoder.dim, hidden_dim, projection_dim, head_norm, layers=projector_layers
        )
        self.projector[-1].bias = None  # a shift of all projections does not change the loss
        self.weights = invariance, variance, covariance

    def forward(self, first, second):
        """Two views of the same B images. Returns the loss, a scalar.

        Raises ValueError if the whole batch is one image.
        """
        z1, z2 = (
            gather(self.projector(self.encoder(view.pixels, view.visible)))
            for view in (first, second)
        )
        return vicreg_loss(z1, z2, *self.weights)


def vicreg_loss(z1, z2, invariance, variance, covariance):
    """The loss of VICReg (eq. 6 of the paper, algorithm 1), a scalar, computed in at least float32.

    z1, z2: (B, D), projections of two views of the same B images, in the same order. The other
    arguments are the weights of the mean squared difference, of the lack of variance, a mean over
    both views as in the paper's code, and of the covariances, a sum over both views.
    Raises ValueError if B is 1.
    """
    if len(z1) < 2:
        raise ValueError(
            "training.batch_size: 1, but VICReg needs the variance of 2 or more images"
        )
    z1, z2 = map(in_full_precision, (z1, z2))
    with torch.autocast(z1.device.type, enabled=False):
        distance = F.mse_loss(z1, z2)
        lack = (lack_of_variance(z1) + lack_of_variance(z2)) / 2
        redundancy = squared_covariances(z1) + squared_covariances(z2)
    return invariance * distance + variance * lack + covariance * redundancy


def lack_of_variance(z):
    """By how much standard deviations fall short of 1, the mean over dimensions (eq. 1 and 2).

    z: (B, D), of B images, at least 2. Small values mean that every dimension varies.
    """
    return F.relu(1 - torch.sqrt(z.var(dim=0) + EPSILON)).mean()


def squared_covariances(z):
    """The sum of the squared covariances of different dimensions, divided by D (eq. 3 and 4).

    z: (B, D), of B images, at least 2. Small values mean that no dimensions vary together.
    """
    B, D = z.shape
    z = z - z.mean(dim=0)
    covariance = z.T @ z / (B - 1)  # (D, D)
    itself = torch.eye(D, dtype=torch.bool, device=z.device)
    return covariance.masked_fill(itself, 0).square().sum() / D
