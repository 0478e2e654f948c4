import itertools
import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import make_vit, random_pixels, with_hidden_pixels

from memorization.data.augmentations import View
from models.encoders import encoder_settings, make_encoder
from models.vit import Block, Positions, patchify, sincos_positions, transformer_blocks, unpatchify


def two_blocks(channels=1, size=16, **settings):
    return make_vit(channels, size, **{"depth": 2} | settings).eval()


def test_patches_are_numbered_row_by_row():
    pixels = torch.arange(2 * 16.0).view(1, 2, 4, 4)
    patches = patchify(pixels, 2)
    assert patches.shape == (1, 4, 8)
    # top right, first channel then second
    assert patches[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]
    assert patches[0, 2].tolist() == [8, 9, 12, 13, 24, 25, 28, 29]  # bottom left


@pytest.mark.parametrize("channels, size, patch", [(1, 28, 4), (3, 32, 2), (3, 8, 8), (1, 6, 3)])
def test_unpatchify_undoes_patchify_exactly(channels, size, patch):
    pixels = random_pixels(3, channels, size)
    assert torch.equal(unpatchify(patchify(pixels, patch), patch), pixels)


@pytest.mark.parametrize("name, dim, depth, heads, millions", [
    ("vit_tiny", 192, 12, 3, 5.5), ("vit_small", 384, 12, 6, 21.7), ("vit_base", 768, 12, 12, 85.8),
])  # fmt: skip
def test_the_sizes_are_those_of_the_literature(name, dim, depth, heads, millions):
    """Parameters of DeiT and ViT at 224 pixels and patches of 16, without the classifier."""
    with torch.device("meta"):
        encoder = make_encoder(encoder_settings(name=name, patch=16, positions="learned"), 3, 224)
    assert (encoder.dim, len(encoder.blocks)) == (dim, depth)
    assert encoder.blocks[0].self_attn.num_heads == heads
    count = sum(parameter.numel() for parameter in encoder.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_pooling_is_the_class_token_or_the_mean_of_the_visible_patches(pooling):
    encoder, pixels = two_blocks(pooling=pooling), random_pixels(3, 1, 16)
    for visible in (None, torch.tensor([[0, 5], [2, 3], [7, 15]])):
        tokens = encoder.tokens(pixels, visible)
        expected = tokens[:, 0] if pooling == "class" else tokens[:, 1:].mean(1)
        assert torch.equal(encoder(pixels, visible), expected)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_all_patches_visible_is_the_whole_image_and_their_order_says_nothing(positions):
    """Patches listed in another order keep their own positions, and their tokens follow."""
    encoder, pixels = two_blocks(positions=positions), random_pixels(3, 1, 16)
    order = torch.rand(3, 16, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    whole, tokens = encoder.tokens(pixels), encoder.tokens(pixels, order)
    assert torch.allclose(tokens[:, 0], whole[:, 0], atol=1e-5)
    for row in range(3):
        assert torch.allclose(tokens[row, 1:], whole[row, 1 + order[row]], atol=1e-5)


def test_a_patch_that_is_moved_is_seen_elsewhere():
    encoder, patches = two_blocks(), patchify(random_pixels(1, 1, 16), 4)
    moved = patches.clone()
    moved[:, 9] = patches[:, 4]
    one = encoder(unpatchify(patches, 4), torch.tensor([[4]]))
    other = encoder(unpatchify(moved, 4), torch.tensor([[9]]))
    assert not torch.allclose(one, other, atol=1e-3)


def test_hidden_patches_are_not_seen():
    encoder, pixels = two_blocks(), random_pixels(2, 1, 16)
    visible = torch.tensor([[0, 3, 9], [1, 2, 15]])
    changed = with_hidden_pixels(View(pixels, visible), 7.0).pixels
    assert torch.equal(encoder(pixels, visible), encoder(changed, visible))
    assert not torch.allclose(encoder(pixels), encoder(changed), atol=1e-3)


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("training", [True, False])
def test_a_block_is_attention_and_a_perceptron_each_normalized_first_written_out(training, heads):
    torch.manual_seed(0)
    blocks = transformer_blocks(12, 1, heads).train(training)
    block, attention = blocks[0], blocks[0].self_attn
    for parameter in block.parameters():
        parameter.data = torch.randn(parameter.shape)
    x = 1e-3 * torch.randn(3, 5, 12)  # small enough for the norm's epsilon to show
    normed = F.layer_norm(x, (12,), block.norm1.weight, block.norm1.bias, eps=1e-6)
    packed = F.linear(normed, attention.in_proj_weight, attention.in_proj_bias)
    parts = zip(*(projection.chunk(heads, dim=2) for projection in packed.chunk(3, dim=2)))
    attended = [((q @ k.transpose(1, 2)) / (12 / heads) ** 0.5).softmax(2) @ v for q, k, v in parts]
    expected = x + attention.out_proj(torch.cat(attended, dim=2))
    normed = F.layer_norm(expected, (12,), block.norm2.weight, block.norm2.bias, eps=1e-6)
    expected = expected + block.linear2(F.gelu(block.linear1(normed)))
    with torch.no_grad():
        assert torch.allclose(blocks(x), expected, atol=1e-3, rtol=1e-4)


def test_attention_equals_torchs_own_and_so_do_its_gradients():
    torch.manual_seed(0)
    block, tokens = Block(64, heads=2), torch.randn(3, 5, 64)
    layer = block.self_attn
    weights = [layer.in_proj_weight, layer.in_proj_bias]
    packed = F.linear(tokens, *weights).view(3, 5, 3, 2, 32)
    mixed = F.scaled_dot_product_attention(*packed.permute(2, 0, 3, 1, 4))
    expected = layer.out_proj(mixed.transpose(1, 2).reshape(3, 5, 64))
    found = block.attention(tokens)
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad(out.square().sum(), weights) for out in (found, expected)]
    assert all(torch.equal(one, other) for one, other in zip(*gradients))


def test_a_fresh_transformer_has_no_biases_a_head_per_32_channels_and_small_learned_positions():
    encoder = two_blocks(width=96, positions="learned")
    assert encoder.blocks[0].self_attn.num_heads == 3
    linear = [layer for layer in encoder.modules() if isinstance(layer, nn.Linear)]
    assert len(linear) == 1 + 3 * 2 and not any(layer.bias.any() for layer in linear)
    assert encoder.positions.table.std().item() == pytest.approx(0.02, rel=0.1)


def test_fixed_positions_are_the_sines_and_cosines_written_out():
    table = sincos_positions(8, 3)
    for row, column in itertools.product(range(3), range(3)):
        expected = []
        for place in (column, row):
            angles = (place, place / 100)  # place / 10,000^(i / 2)
            expected += [*map(math.sin, angles), *map(math.cos, angles)]
        assert table[3 * row + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_fixed_positions_are_no_parameters_and_learned_ones_are():
    fixed, learned = two_blocks(positions="sincos"), two_blocks(positions="learned")
    assert "positions.table" not in dict(fixed.named_parameters())
    assert "positions.table" in fixed.state_dict()
    assert dict(learned.named_parameters())["positions.table"].shape == (16, 32)


def test_positions_are_interpolated_for_other_sizes():
    """A grid of three times the size meets every place again, in the middle of 3 x 3 places."""
    positions = Positions(4, 8, "learned")
    positions.table.data = random_pixels(4, 1, 8).view(4, 64).T
    assert positions(8) is positions.table
    larger = positions(24).view(24, 24, 4)
    assert torch.allclose(larger[1::3, 1::3].flatten(0, 1), positions.table, atol=1e-5)
    table = torch.arange(8.0)[:, None, None].expand(8, 8, 4)  # of every place, its row
    positions.table.data = table.flatten(0, 1)
    expected = F.interpolate(table.permute(2, 0, 1)[None], (12, 12), mode="bicubic")[0]
    assert torch.equal(positions(12).view(12, 12, 4)[:, 0], expected[:, :, 0].T)
    rows = positions(24).view(24, 24, 4)
    assert torch.allclose(rows, rows[:, :1].expand(-1, 24, -1), atol=1e-5)
    assert (rows[3:-2, 0].diff(dim=0) > 0).all()
    assert two_blocks(size=16)(random_pixels(1, 1, 32)).shape == (1, 32)


def test_the_rows_of_a_batch_are_encoded_each_by_itself():
    encoder, pixels = two_blocks(), random_pixels(5, 1, 16)
    alone = torch.cat([encoder(row) for row in pixels.split(1)])
    assert torch.allclose(encoder(pixels), alone, atol=1e-6)
