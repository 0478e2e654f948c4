"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al. 2020, arXiv 2002.05709)."""

from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field


class SimCLRSettings(BaseModel):
    """The config's `method:` section."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    name: Literal["simclr"]
    hidden_dim: int = Field(512, ge=1, description="width of the projector's hidden layer")
    projection_dim: int = Field(128, ge=1, description="width of the projector's output, in which views are compared")
    temperature: float = Field(0.5, gt=0, description="temperature of the softmax over similarities")
    head_norm: Literal["batch", "layer", "none"] = Field("batch", description="normalization in the projector")
    one_pass: bool = Field(False, description="both views through the encoder in one batch: batch norm then sees them together")

    def arguments(self):
        """The arguments of `SimCLR` beside its encoder."""
        return self.model_dump(exclude={"name"})


class SimCLR(nn.Module):
    """Both views of an image attract each other and repel all other images of the batch."""

    def __init__(self, encoder, hidden_dim, projection_dim, temperature, head_norm, one_pass):
        super().__init__()
        self.encoder = encoder
        self.projector = nn.Sequential(
            nn.Linear(encoder.dim, hidden_dim, bias=head_norm == "none"),
            HEAD_NORMS[head_norm](hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, projection_dim),
        )
        self.temperature = temperature
        self.one_pass = one_pass

    def forward(self, first, second):
        """Two views of the same B images. Returns the loss, a scalar."""
        if self.one_pass:
            z1, z2 = self.project(torch.cat([first.pixels, second.pixels])).chunk(2)
        else:
            z1, z2 = self.project(first.pixels), self.project(second.pixels)
        return nt_xent(z1, z2, self.temperature)

    def project(self, pixels):
        """(B, C, H, W) -> (B, projection_dim)."""
        return self.projector(self.encoder(pixels))


HEAD_NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": lambda dim: nn.Identity()}


def nt_xent(z1, z2, temperature):
    """The normalized temperature-scaled cross entropy (eq. 1 of the paper), a scalar.

    z1, z2: (B, D), projections of two views of the same B images, in the same order. Each of the 2B views has to find its partner among the
    2B - 1 others by cosine similarity; the loss is the mean over all 2B. Computed in at least float32.
    """
    B = len(z1)
    z = torch.cat([z1, z2])
    z = F.normalize(z.float() if z.dtype in (torch.float16, torch.bfloat16) else z, dim=1)  # (2B, D)
    with torch.autocast(z.device.type, enabled=False):
        similarity = z @ z.T / temperature  # (2B, 2B)
    itself = torch.eye(2 * B, dtype=torch.bool, device=z.device)
    partner = torch.arange(2 * B, device=z.device).roll(B)
    return F.cross_entropy(similarity.masked_fill(itself, -torch.inf), partner)
