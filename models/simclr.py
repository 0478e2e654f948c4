"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al. 2020,
arXiv 2002.05709).
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


class SimCLRSettings(MethodSettings):
    """The config's `method:` section."""

    name: Literal["simclr"]
    hidden_dim: int = Field(
        512, ge=1, le=16384, description="width of the projector's hidden layer"
    )
    projection_dim: int = Field(
        128,
        ge=1,
        le=16384,
        description="width of the projector's output, in which views are compared",
    )
    temperature: float = Field(
        0.5, gt=0, description="temperature of the softmax over similarities"
    )
    head_norm: Literal["batch", "layer", "none"] = Field(
        "batch", description="normalization in the projector"
    )
    one_pass: bool = Field(
        False, description="encode both views in one batch, so that batch norm sees them together"
    )


class SimCLR(nn.Module):
    """Both views of an image attract each other and repel all other images of the batch."""

    def __init__(self, encoder, hidden_dim, projection_dim, temperature, head_norm, one_pass):
        super().__init__()
        self.encoder = encoder
        self.projector = projection_head(encoder.dim, hidden_dim, projection_dim, head_norm)
        self.temperature = temperature
        self.one_pass = one_pass

    def forward(self, first, second):
        """Two views of the same B images. Returns the loss, a scalar."""
        if self.one_pass:
            z1, z2 = self.project(*join_views(first, second)).chunk(2)
        else:
            z1, z2 = (self.project(view.pixels, view.visible) for view in (first, second))
        return nt_xent(gather(z1), gather(z2), self.temperature)

    def project(self, pixels, visible):
        """(B, C, H, W), and (B, K) or None -> (B, projection_dim)."""
        return self.projector(self.encoder(pixels, visible))


def join_views(first, second):
    """Two views of B images as one batch: pixels (2B, C, H, W), and visible (2B, K) or None.

    Raises ValueError if they differ in size, or in how many patches are visible.
    """

    def shapes(view):
        return view.pixels.shape, None if view.visible is None else view.visible.shape

    if shapes(first) != shapes(second):
        raise ValueError("method.one_pass: True needs two views of one size, under one mask ratio")
    visible = None if first.visible is None else torch.cat([first.visible, second.visible])
    return torch.cat([first.pixels, second.pixels]), visible


def nt_xent(z1, z2, temperature):
    """The normalized temperature-scaled cross entropy (eq. 1 of the paper), a scalar.

    z1, z2: (B, D), projections of two views of the same B images, in the same order. Each of the 2B
    views has to find its partner among the 2B - 1 others by cosine similarity. The loss is the mean
    over all 2B views, computed in at least float32.
    """
    B = len(z1)
    z = torch.cat([z1, z2])
    # (2B, D)
    z = F.normalize(in_full_precision(z), dim=1)
    with torch.autocast(z.device.type, enabled=False):
        similarity = z @ z.T / temperature  # (2B, 2B)
    itself = torch.eye(2 * B, dtype=torch.bool, device=z.device)
    partner = torch.arange(2 * B, device=z.device).roll(B)
    return F.cross_entropy(similarity.masked_fill(itself, -torch.inf), partner)
