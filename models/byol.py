"""BYOL: Bootstrap Your Own Latent (Grill et al. 2020, arXiv 2006.07733)."""

from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from pydantic import Field

from models.heads import projection_head
from models.momentum import follow, momentum_at, slow_copy
from models.precision import in_full_precision
from models.settings import MethodSettings


class BYOLSettings(MethodSettings):
    """The config's `method:` section."""

    name: Literal["byol"]
    hidden_dim: int = Field(
        4096, ge=1, le=16384, description="width of the hidden layers of projector and predictor"
    )
    projection_dim: int = Field(
        256, ge=1, le=16384, description="width of the output of projector and predictor"
    )
    momentum: float = Field(
        0.99,
        ge=0,
        le=1,
        description="momentum of the slow network at the start; it rises to 1 by half a cosine",
    )
    head_norm: Literal["batch", "layer", "none"] = Field(
        "batch", description="normalization in projector and predictor"
    )
    kept: Literal["online", "momentum"] = Field(
        "online", description="which of the two encoders is measured and kept"
    )


class BYOL(nn.Module):
    """From one view of an image, the online network predicts the projection of the other view by
    the momentum network, its slow copy.

    As in the paper's code, the batch norms of the momentum network normalize by their own batch and
    keep their own running statistics; only parameters are averaged. Each view is a batch of its
    own.
    """

    def __init__(self, encoder, hidden_dim, projection_dim, momentum, head_norm, kept):
        super().__init__()
        self.online_encoder = encoder
        self.projector = projection_head(encoder.dim, hidden_dim, projection_dim, head_norm)
        self.predictor = projection_head(projection_dim, hidden_dim, projection_dim, head_norm)
        self.momentum_encoder = slow_copy(encoder)
        self.momentum_projector = slow_copy(self.projector)
        self.base_momentum = momentum
        self.kept = kept

    @property
    def encoder(self):
        """The encoder that is measured and kept."""
        return self.momentum_encoder if self.kept == "momentum" else self.online_encoder

    def forward(self, first, second):
        """Two views of the same B images. Returns the loss, a scalar: the error of predicting each
        view from the other (eq. 2, symmetric).
        """
        p1, p2 = (
            self.predictor(self.projector(self.online_encoder(view.pixels, view.visible)))
            for view in (first, second)
        )
        with torch.no_grad():
            z1, z2 = (
                self.momentum_projector(self.momentum_encoder(view.pixels, view.visible))
                for view in (first, second)
            )
        return prediction_loss(p1, z2) + prediction_loss(p2, z1)

    def after_step(self, progress):
        """Move the momentum network towards the online network."""
        slow = [self.momentum_encoder, self.momentum_projector]
        online = [self.online_encoder, self.projector]
        follow(slow, online, momentum_at(progress, self.base_momentum))


def prediction_loss(p, z):
    """2 - 2 cos(p, z), the squared distance between the l2-normalized p and z: the mean over B, a
    scalar, computed in at least float32.

    p: (B, D), predictions; z: (B, D), projections to be predicted.
    """
    p, z = map(in_full_precision, (p, z))
    return 2 - 2 * F.cosine_similarity(p, z, dim=1).mean()
