"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929) as encoders. Patches can be
hidden from them.
"""

import math
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from pydantic import Field

from models.layers import Layer, outputs_of_layers
from models.settings import FirstEncoderSettings

# width, depth, heads
VIT_SIZES = {"vit_tiny": (192, 12, 3), "vit_small": (384, 12, 6), "vit_base": (768, 12, 12)}
MINI_HEAD_DIM = 32  # vit_mini has a head for every 32 channels
# images in a batch on a CPU when no gradient is computed: a fifth faster than large batches
IMAGES_IN_CACHE = 16


class _PatchSettings(FirstEncoderSettings):
    patch: int = Field(
        4, ge=1, description="height and width of a patch, a divisor of the size of every view"
    )
    positions: Literal["sincos", "learned"] = Field(
        "sincos", description="fixed sines and cosines, or learned (and decayed)"
    )
    pooling: Literal["mean", "class"] = Field(
        "mean", description="the mean of the visible patches' tokens, or the class token"
    )

    @property
    def patch_size(self):
        return self.patch

    def make(self, channels, size):
        return VisionTransformer(channels, size, self)


class ViTMiniSettings(_PatchSettings):
    name: Literal["vit_mini"] = Field(description="the encoder")
    width: int = Field(32, ge=8, le=1024, description="channels of its tokens, a multiple of 32")
    depth: int = Field(4, ge=1, le=64, description="its blocks")

    @property
    def shape(self):
        """Width, depth and heads."""
        if self.width % MINI_HEAD_DIM:
            needed = f"no multiple of {MINI_HEAD_DIM}, as vit_mini needs"
            raise ValueError(f"encoder.width: {self.width} is {needed}")
        return self.width, self.depth, self.width // MINI_HEAD_DIM


class ViTSettings(_PatchSettings):
    name: Literal["vit_tiny", "vit_small", "vit_base"] = Field(description="the encoder")

    @property
    def shape(self):
        """Width, depth and heads."""
        return VIT_SIZES[self.name]


class VisionTransformer(nn.Module):
    """A class token and a token for every visible patch, through transformer blocks that normalize
    first.

    channels, size: of the images; settings: with the shape of the blocks, the size of a patch, a
    divisor of `size`, the kind of positions, and the pooling: "mean" of the visible patches'
    tokens, or "class", the class token.
    """

    def __init__(self, channels, size, settings):
        super().__init__()
        patch = settings.patch
        dim, depth, heads = settings.shape
        if size % patch:
            raise ValueError(f"encoder.patch: {patch} does not divide the image size, {size}")
        self.patch, self.dim, self.pooling = patch, dim, settings.pooling
        self.channels, self.grid = channels, size // patch
        self.embed = nn.Linear(channels * patch**2, dim)
        self.class_token = nn.Parameter(0.02 * torch.randn(dim))
        self.positions = Positions(dim, self.grid, settings.positions)
        self.blocks = transformer_blocks(dim, depth, heads)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        initialize_linear(self)

    def forward(self, pixels, visible=None, pooled=True):
        """pixels: (B, C, H, W), normalized; visible: (B, K), indices of the patches to encode, or
        None for all. Returns (B, D); if not pooled, the tokens, (B, 1 + K, D).
        """
        tokens = self.tokens(pixels, visible)
        return self.pool(tokens) if pooled else tokens

    def tokens(self, pixels, visible=None):
        """pixels, visible: as above; patches are numbered row by row. Returns (B, 1 + K, D), the
        class token, then the patches as given.
        """
        tokens = self._embed(pixels, visible)
        if tokens.device.type == "cpu" and not torch.is_grad_enabled():
            return torch.cat(
                [self.norm(self.blocks(part)) for part in tokens.split(IMAGES_IN_CACHE)]
            )
        return self.norm(self.blocks(tokens))

    def layers(self, pixels, visible=None):
        """{name: (B, 1 + K, D)}, see models/__init__.py."""
        return outputs_of_layers(self, pixels, visible)

    def find_layers(self, pixels, visible=None):
        """See models/__init__.py."""
        of_blocks = []
        for number, block in enumerate(self.blocks):
            name = f"blocks.{number}"
            of_blocks += [
                Layer(f"{name}.attention", block.self_attn.out_proj),
                Layer(f"{name}.attention_sum", block.norm2, of_input=True),
                Layer(f"{name}.gelu", block.linear2, of_input=True, activates=True),
                Layer(f"{name}.mlp", block.linear2),
                Layer(name, block),
            ]
        first = Layer("embedding", self.blocks[0], of_input=True)
        return [first, *of_blocks, Layer("norm", self.norm)]

    def pass_once(self, pixels, visible=None):
        """See models/__init__.py."""
        return self.norm(self.blocks(self._embed(pixels, visible)))

    def pool(self, output):
        """(B, 1 + K, D) of a layer -> (B, D), pooled as the tokens are."""
        return output[:, 0] if self.pooling == "class" else output[:, 1:].mean(1)

    def _embed(self, pixels, visible):
        """The tokens that enter the first block, (B, 1 + K, D)."""
        patches = patchify(pixels, self.patch)  # (B, T, C patch^2)
        # (B, T, D)
        positions = self.positions(pixels.shape[2] // self.patch).expand(len(pixels), -1, -1)
        if visible is not None:
            patches, positions = take_tokens(patches, visible), take_tokens(positions, visible)
        tokens = self.embed(patches) + positions  # (B, K, D)
        return torch.cat([self.class_token.expand(len(tokens), 1, -1), tokens], dim=1)


class Positions(nn.Module):
    """A vector for each position in a square grid of patches, interpolated for other grids.

    kind: "sincos" (fixed) or "learned".
    """

    def __init__(self, dim, grid, kind):
        super().__init__()
        self.grid = grid
        if kind == "learned":
            self.table = nn.Parameter(0.02 * torch.randn(grid**2, dim))
        else:
            self.register_buffer("table", sincos_positions(dim, grid))

    def forward(self, grid):
        """The vectors of a grid x grid image, (grid^2, D), row by row."""
        if grid == self.grid:
            return self.table
        square = self.table.T.reshape(1, -1, self.grid, self.grid)
        return F.interpolate(square, size=(grid, grid), mode="bicubic").flatten(2)[0].T


def transformer_blocks(dim, depth, heads):
    """`depth` blocks one after the other; (B, T, dim) -> (B, T, dim)."""
    return nn.Sequential(*(Block(dim, heads) for _ in range(depth)))


class Block(nn.TransformerEncoderLayer):
    """Attention and a perceptron of 4 dim, each normalized first and added to what went in; (B, T,
    dim) -> (B, T, dim), without dropout.

    The weights are those of torch's layer, but not its forward pass. That one copies queries, keys
    and values. Without gradients it may also be fused: on a GPU an encoder that was trained with
    gelu would then be measured with the tanh approximation of gelu.
    """

    def __init__(self, dim, heads):
        super().__init__(
            dim,
            heads,
            4 * dim,
            dropout=0.0,
            activation="gelu",
            layer_norm_eps=1e-6,
            batch_first=True,
            norm_first=True,
        )

    def forward(self, tokens):
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.linear2(F.gelu(self.linear1(self.norm2(tokens))))

    def attention(self, tokens):
        """Every token becomes the mean of all values, weighted by how well its query fits their
        keys; (B, T, D) -> (B, T, D).
        """
        B, T, D = tokens.shape
        layer, heads = self.self_attn, self.self_attn.num_heads
        packed = F.linear(tokens, layer.in_proj_weight, layer.in_proj_bias)  # (B, T, 3 D)
        # chunk first, view second: the gradients of all three are then copied only once
        parts = [part.view(B, T, heads, D // heads) for part in packed.chunk(3, dim=2)]
        queries, keys, values = (part.transpose(1, 2) for part in parts)  # (B, heads, T, D / heads)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return layer.out_proj(mixed.transpose(1, 2).reshape(B, T, D))


def initialize_linear(module):
    """Draw Xavier-uniform weights and set biases to 0 in every linear layer (MAE, He et al. 2022,
    A.1).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def patchify(pixels, patch):
    """(B, C, H, W) -> (B, T, C patch^2): the patches row by row, each with its channels outermost.
    Undone by `unpatchify`.
    """
    B, C, H, W = pixels.shape
    if H % patch or W % patch:
        raise ValueError(f"encoder.patch: {patch} does not divide images of {H} x {W} pixels")
    x = pixels.reshape(B, C, H // patch, patch, W // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(B, -1, C * patch**2)


def unpatchify(patches, patch):
    """(B, T, C patch^2) -> (B, C, H, W), a square image: the inverse of `patchify`."""
    B, T, values = patches.shape
    grid = math.isqrt(T)
    x = patches.reshape(B, grid, grid, values // patch**2, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(B, -1, grid * patch, grid * patch)


def take_tokens(tokens, indices):
    """The tokens at some positions of each image. tokens: (B, T, D); indices: (B, K) int64. Returns
    (B, K, D).
    """
    return tokens.gather(1, indices[:, :, None].expand(-1, -1, tokens.shape[2]))


def sincos_positions(dim, grid):
    """Fixed positions (grid^2, dim), row by row (Vaswani et al. 2017, in two dimensions as in MoCo
    v3 and MAE).

    The first half holds sines and cosines of the column, the second half those of the row, at
    wavelengths from 2 pi to 20,000 pi. Raises ValueError unless 4 divides dim.
    """
    if dim % 4:
        raise ValueError(f"fixed positions need a width that 4 divides, {dim} given")
    frequency = 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angle = torch.arange(grid)[:, None] * frequency  # (grid, dim / 4)
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # (grid, dim / 2)
    column, row = line[None, :].expand(grid, -1, -1), line[:, None].expand(-1, grid, -1)
    return torch.cat([column, row], dim=2).flatten(0, 1).float()
