"""MAE: Masked Autoencoders Are Scalable Vision Learners (He et al. 2022, arXiv 2111.06377)."""

from typing import Literal

import torch
import torch.nn as nn
from pydantic import Field

from models.settings import MethodSettings
from models.vit import (
    Positions,
    VisionTransformer,
    initialize_linear,
    patchify,
    take_tokens,
    transformer_blocks,
    unpatchify,
)

PICTURED = 8  # images a picture


class MAESettings(MethodSettings):
    """The config's `method:` section. How much is hidden belongs to the view: mask_ratio in
    augmentation.views.
    """

    name: Literal["mae"]
    decoder_dim: int = Field(512, ge=4, le=4096, multiple_of=4, description="width of the decoder")
    decoder_depth: int = Field(8, ge=1, le=64, description="blocks of the decoder")
    decoder_heads: int = Field(
        16, ge=1, description="attention heads of the decoder, a divisor of decoder_dim"
    )
    normalize_pixels: bool = Field(
        True, description="reconstruct the pixels of a patch less their mean, over their deviation"
    )


class MAE(nn.Module):
    """The encoder sees the visible patches of an image; from its tokens a small decoder
    reconstructs the hidden ones.
    """

    is_mean_over_images = True

    def __init__(self, encoder, decoder_dim, decoder_depth, decoder_heads, normalize_pixels):
        super().__init__()
        if not isinstance(encoder, VisionTransformer):
            needed = "MAE hides patches, which only a vision transformer (vit_...) can leave out"
            raise ValueError(f"encoder.name: {needed}")
        if decoder_dim % decoder_heads:
            indivisible = f"{decoder_heads} does not divide decoder_dim ({decoder_dim})"
            raise ValueError(f"method.decoder_heads: {indivisible}")
        self.encoder = encoder
        self.embed = nn.Linear(encoder.dim, decoder_dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(decoder_dim))
        self.positions = Positions(decoder_dim, encoder.grid, "sincos")
        self.blocks = transformer_blocks(decoder_dim, decoder_depth, decoder_heads)
        self.norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.predict = nn.Linear(decoder_dim, encoder.channels * encoder.patch**2)
        self.normalize_pixels = normalize_pixels
        for module in (self.embed, self.blocks, self.predict):  # the encoder has its own weights
            initialize_linear(module)

    def forward(self, *views):
        """Masked views of the same B images, usually one. Returns the loss, a scalar: the mean
        squared error over the pixels of the hidden patches, and over the views.
        """
        return torch.stack([self.reconstruction_loss(view) for view in views]).mean()

    def reconstruction_loss(self, view):
        """The mean squared error over the pixels of the hidden patches of one view, a scalar."""
        if view.visible is None:
            raise ValueError("augmentation.views: MAE needs a mask_ratio above 0, such as 0.75")
        hidden = hidden_patches(view.visible, self.encoder.grid**2)
        if hidden.shape[1] == 0:
            patches = f"the {self.encoder.grid**2} patches of an image"
            raise ValueError(f"augmentation.views: mask_ratio hides none of {patches}")
        # (B, T - K, C patch^2)
        predicted = take_tokens(self.reconstruct(view.pixels, view.visible), hidden)
        target = take_tokens(patchify(view.pixels, self.encoder.patch), hidden)
        if self.normalize_pixels:
            mean, std = patch_statistics(target)
            target = (target - mean) / std
        return (predicted - target).square().mean()

    def reconstruct(self, pixels, visible):
        """Predict all patches from the visible ones. Returns (B, T, C patch^2), row by row."""
        # (B, 1 + K, decoder_dim)
        tokens = self.embed(self.encoder(pixels, visible, pooled=False))
        # (B, T, decoder_dim)
        patches = restore_order(tokens[:, 1:], visible, self.mask_token, self.encoder.grid**2)
        tokens = torch.cat([tokens[:, :1], patches + self.positions(self.encoder.grid)], dim=1)
        return self.predict(self.norm(self.blocks(tokens)))[:, 1:]

    @torch.no_grad()
    def pictures(self, views):
        """Some images: whole, with the hidden patches blank, and with the hidden patches
        reconstructed, each (n, C, H, W).

        With normalize_pixels the decoder does not predict the mean and the standard deviation of a
        patch. The pictures take the true ones.
        """
        pixels, visible = views[0].pixels[:PICTURED], views[0].visible[:PICTURED]
        patches = patchify(pixels, self.encoder.patch)
        predicted = self.reconstruct(pixels, visible).float()
        if self.normalize_pixels:
            mean, std = patch_statistics(patches)
            predicted = predicted * std + mean
        hidden = hidden_patches(visible, self.encoder.grid**2)
        hidden = hidden[:, :, None].expand(-1, -1, patches.shape[2])
        masked = patches.scatter(1, hidden, 0.0)
        reconstruction = patches.scatter(1, hidden, predicted.gather(1, hidden))
        return {
            "original": pixels,
            "masked": unpatchify(masked, self.encoder.patch),
            "reconstruction": unpatchify(reconstruction, self.encoder.patch),
        }


def hidden_patches(visible, T):
    """The patches that are not visible, in ascending order. visible: (B, K) of T patches. Returns
    (B, T - K) int64.
    """
    is_visible = torch.zeros(len(visible), T, dtype=torch.int8, device=visible.device)
    is_visible = is_visible.scatter(1, visible, 1)  # not in place: see models/private_loss.py
    return is_visible.argsort(dim=1, stable=True)[:, : T - visible.shape[1]]


def restore_order(tokens, visible, mask_token, T):
    """Every visible patch's token at its own place, and the mask token at all others.

    tokens: (B, K, D) of the patches `visible` (B, K); mask_token: (D,). Returns (B, T, D).
    """
    B, _, D = tokens.shape
    everywhere = mask_token.to(tokens.dtype).expand(B, T, D)
    return everywhere.scatter(1, visible[:, :, None].expand(-1, -1, D), tokens)


def patch_statistics(patches):
    """Mean and standard deviation of the pixels of each patch over all channels, (B, T, 1) each.

    patches: (B, T, C patch^2).
    """
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return mean, (variance + 1e-6).sqrt()
