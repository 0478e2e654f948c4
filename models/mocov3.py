"""MoCo v3: An Empirical Study of Training Self-Supervised Vision Transformers (Chen, Xie and He
2021, arXiv 2104.02057).
"""

from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from pydantic import Field

from models.gather import gather, own_places
from models.heads import projection_head
from models.momentum import follow, momentum_at, slow_copy
from models.precision import in_full_precision
from models.settings import MethodSettings
from models.vit import VisionTransformer


class MoCoV3Settings(MethodSettings):
    """The config's `method:` section."""

    name: Literal["mocov3"]
    hidden_dim: int = Field(
        4096, ge=1, le=16384, description="width of the hidden layers of projector and predictor"
    )
    projection_dim: int = Field(
        256, ge=1, le=16384, description="width of the output, in which views are compared"
    )
    projector_layers: int = Field(
        2, ge=2, le=3, description="layers of the projector; 3 in the paper's vision transformers"
    )
    predictor_norm: bool = Field(
        False, description="normalize the predictor's output, too, as in the paper"
    )
    temperature: float = Field(
        0.2, gt=0, description="temperature of the softmax over similarities"
    )
    momentum: float = Field(
        0.99,
        ge=0,
        le=1,
        description="momentum of the slow network at the start; it rises to 1 by half a cosine",
    )
    freeze_patch_embedding: bool = Field(
        False,
        description="leave a vision transformer's embedding of patches at its random weights",
    )
    head_norm: Literal["batch", "layer", "none"] = Field(
        "batch", description="normalization in projector and predictor"
    )
    kept: Literal["online", "momentum"] = Field(
        "online", description="which of the two encoders is measured and kept"
    )


class MoCoV3(nn.Module):
    """A view's query has to find the key of the other view of its image, which a slow copy of the
    network makes, among the keys of all images of the batch.

    The projector's output is normalized without weights and biases. Batch norms of the momentum
    network normalize by their own batch and keep their own running statistics; only parameters are
    averaged. Each view is a batch of its own.
    """

    def __init__(
        self,
        encoder,
        hidden_dim,
        projection_dim,
        projector_layers,
        predictor_norm,
        temperature,
        momentum,
        freeze_patch_embedding,
        head_norm,
        kept,
    ):
        super().__init__()
        if freeze_patch_embedding:
            freeze_patches(encoder)
        self.online_encoder = encoder
        widths = encoder.dim, hidden_dim, projection_dim
        self.projector = projection_head(*widths, head_norm, projector_layers, last_norm=True)
        widths = projection_dim, hidden_dim, projection_dim
        self.predictor = projection_head(*widths, head_norm, last_norm=predictor_norm)
        self.momentum_encoder = slow_copy(encoder)
        self.momentum_projector = slow_copy(self.projector)
        self.temperature = temperature
        self.base_momentum = momentum
        self.kept = kept

    @property
    def encoder(self):
        """The encoder that is measured and kept."""
        return self.momentum_encoder if self.kept == "momentum" else self.online_encoder

    def forward(self, first, second):
        """Two views of the same B images. Returns the loss, a scalar: the queries of each view
        search the keys of the other, which are gathered from all processes (algorithm 1).
        """
        q1, q2 = (
            self.predictor(self.projector(self.online_encoder(view.pixels, view.visible)))
            for view in (first, second)
        )
        with torch.no_grad():
            k1, k2 = (
                self.momentum_projector(self.momentum_encoder(view.pixels, view.visible))
                for view in (first, second)
            )
        of_first = contrastive_loss(q1, gather(k2), own_places(q1), self.temperature)
        of_second = contrastive_loss(q2, gather(k1), own_places(q2), self.temperature)
        return of_first + of_second

    def after_step(self, progress):
        """Move the momentum network towards the online network."""
        slow = [self.momentum_encoder, self.momentum_projector]
        online = [self.online_encoder, self.projector]
        follow(slow, online, momentum_at(progress, self.base_momentum))


def freeze_patches(encoder):
    """Train nothing in a vision transformer's embedding of patches (section 4 of the paper).

    Raises ValueError if the encoder is no vision transformer of this project.
    """
    if not isinstance(encoder, VisionTransformer):
        needed = "True needs a vision transformer (vit_...), which embeds patches"
        raise ValueError(f"method.freeze_patch_embedding: {needed}")
    encoder.embed.requires_grad_(False)


def contrastive_loss(q, k, places, temperature):
    """2 T times the cross entropy of the softmax over q k^T / T (eq. 1 and algorithm 1 of the
    paper): the mean over B, a scalar, computed in at least float32.

    q: (B, D), queries; k: (N, D), keys, without gradient; places: (B,) int64, the key of each
    query's own image. All are compared by cosine similarity.
    """
    q, k = map(in_full_precision, (q, k))
    q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
    with torch.autocast(q.device.type, enabled=False):
        similarity = q @ k.T / temperature  # (B, N)
    return 2 * temperature * F.cross_entropy(similarity, places)
