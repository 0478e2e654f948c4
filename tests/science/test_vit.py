import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from memorization.machine.device import use_exact_arithmetic
from models.encoders import encoder_settings, make_encoder
from models.vit import Block, Positions, patchify, sincos_positions, transformer_blocks, unpatchify


def make_vit(channels=1, size=16, seed=0, **settings):
    torch.manual_seed(seed)
    return make_encoder(
        encoder_settings(**{"name": "vit_mini", "width": 32, "depth": 2, "patch": 4} | settings),
        channels,
        size,
    ).eval()


def images(B, channels, size):
    return torch.randn(B, channels, size, size, generator=torch.Generator().manual_seed(1))


def test_patches_are_numbered_row_by_row():
    pixels = torch.arange(2 * 16.0).view(1, 2, 4, 4)
    patches = patchify(pixels, 2)
    assert patches.shape == (1, 4, 8)
    # top right, first channel then second
    assert patches[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]
    assert patches[0, 2].tolist() == [8, 9, 12, 13, 24, 25, 28, 29]  # bottom left


@pytest.mark.parametrize("channels, size, patch", [(1, 28, 4), (3, 32, 2), (3, 8, 8), (1, 6, 3)])
def test_unpatchify_undoes_patchify_exactly(channels, size, patch):
    pixels = images(3, channels, size)
    assert torch.equal(unpatchify(patchify(pixels, patch), patch), pixels)


@pytest.mark.parametrize("name, dim, depth, heads, millions", [
    ("vit_tiny", 192, 12, 3, 5.5), ("vit_small", 384, 12, 6, 21.7), ("vit_base", 768, 12, 12, 85.8),
])  # fmt: skip
def test_the_sizes_are_those_of_the_literature(name, dim, depth, heads, millions):
    """Parameters of DeiT and ViT at 224 pixels and patches of 16, without the classifier."""
    with torch.device("meta"):
        encoder = make_encoder(encoder_settings(name=name, patch=16, positions="learned"), 3, 224)
    assert (encoder.dim, len(encoder.blocks), encoder.blocks[0].self_attn.num_heads) == (
        dim,
        depth,
        heads,
    )
    assert sum(parameter.numel() for parameter in encoder.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.05
    )


@pytest.mark.parametrize("patch, size", [(2, 28), (4, 32), (8, 96), (16, 48)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_that_the_patch_divides(patch, size, channels):
    tokens = make_vit(channels, size, patch=patch).tokens(images(2, channels, size))
    assert tokens.shape == (2, 1 + (size // patch) ** 2, 32)


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_pooling_is_the_class_token_or_the_mean_of_the_visible_patches(pooling):
    encoder, pixels = make_vit(pooling=pooling), images(3, 1, 16)
    for visible in (None, torch.tensor([[0, 5], [2, 3], [7, 15]])):
        tokens = encoder.tokens(pixels, visible)
        expected = tokens[:, 0] if pooling == "class" else tokens[:, 1:].mean(1)
        assert torch.equal(encoder(pixels, visible), expected)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_all_patches_visible_is_the_whole_image_and_their_order_says_nothing(positions):
    """Each patch is encoded at its own position: listing patches in another order permutes their
    tokens and changes nothing else.
    """
    encoder, pixels = make_vit(positions=positions), images(3, 1, 16)
    whole = encoder.tokens(pixels)
    order = torch.stack(
        [torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    )
    tokens = encoder.tokens(pixels, order)
    assert torch.allclose(tokens[:, 0], whole[:, 0], atol=1e-5)
    for row in range(3):
        assert torch.allclose(tokens[row, 1:], whole[row, 1 + order[row]], atol=1e-5)


def test_a_patch_that_is_moved_is_seen_elsewhere():
    encoder = make_vit()
    patches = patchify(images(1, 1, 16), 4)
    moved = patches.clone()
    moved[:, 9] = patches[:, 4]
    one = encoder(unpatchify(patches, 4), torch.tensor([[4]]))
    other = encoder(unpatchify(moved, 4), torch.tensor([[9]]))
    assert not torch.allclose(one, other, atol=1e-3)


def test_hidden_patches_are_not_seen():
    encoder, pixels = make_vit(), images(2, 1, 16)
    visible = torch.tensor([[0, 3, 9], [1, 2, 15]])
    is_visible = torch.zeros(2, 16, 1).scatter_(1, visible[:, :, None], 1.0).bool()
    changed = unpatchify(torch.where(is_visible, patchify(pixels, 4), 7.0), 4)
    assert torch.equal(encoder(pixels, visible), encoder(changed, visible))
    assert not torch.allclose(encoder(pixels), encoder(changed), atol=1e-3)


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("training", [True, False])
def test_a_block_is_attention_and_a_perceptron_each_normalized_first_written_out(training, heads):
    torch.manual_seed(0)
    blocks = transformer_blocks(12, 1, heads).train(training)
    block = blocks[0]
    for parameter in block.parameters():
        parameter.data = torch.randn(parameter.shape)
    x = 1e-3 * torch.randn(3, 5, 12)  # small enough for the norm's epsilon to show
    normed = F.layer_norm(x, (12,), block.norm1.weight, block.norm1.bias, eps=1e-6)
    q, k, v = F.linear(normed, block.self_attn.in_proj_weight, block.self_attn.in_proj_bias).chunk(
        3, dim=2
    )
    parts = zip(*(projection.chunk(heads, dim=2) for projection in (q, k, v)))
    attended = [((q @ k.transpose(1, 2)) / (12 / heads) ** 0.5).softmax(2) @ v for q, k, v in parts]
    expected = x + block.self_attn.out_proj(torch.cat(attended, dim=2))
    normed = F.layer_norm(expected, (12,), block.norm2.weight, block.norm2.bias, eps=1e-6)
    expected = expected + block.linear2(F.gelu(block.linear1(normed)))
    with torch.no_grad():
        assert torch.allclose(blocks(x), expected, atol=1e-3, rtol=1e-4)


def test_a_fresh_transformer_has_no_biases_a_head_per_32_channels_and_small_learned_positions():
    encoder = make_vit(width=96, positions="learned")
    assert encoder.blocks[0].self_attn.num_heads == 3
    linear = [layer for layer in encoder.modules() if isinstance(layer, nn.Linear)]
    assert len(linear) == 1 + 3 * 2 and not any(layer.bias.any() for layer in linear)
    assert encoder.positions.table.std().item() == pytest.approx(0.02, rel=0.1)


def test_fixed_positions_are_the_sines_and_cosines_written_out():
    table = sincos_positions(8, 3)
    for row in range(3):
        for column in range(3):
            expected = []
            for place in (column, row):
                angles = [place / 10_000 ** (i / 2) for i in range(2)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert table[3 * row + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_fixed_positions_are_no_parameters_and_learned_ones_are():
    fixed, learned = make_vit(positions="sincos"), make_vit(positions="learned")
    assert (
        "positions.table" not in dict(fixed.named_parameters())
        and "positions.table" in fixed.state_dict()
    )
    assert dict(learned.named_parameters())["positions.table"].shape == (16, 32)


def test_positions_are_interpolated_for_other_sizes():
    """A grid of three times the size meets every place of the table again, in the middle of its 3 x
    3 places.
    """
    positions = Positions(4, 8, "learned")
    positions.table.data = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    assert positions(8) is positions.table
    larger = positions(24).view(24, 24, 4)
    assert torch.allclose(larger[1::3, 1::3].flatten(0, 1), positions.table, atol=1e-5)
    positions.table.data = (torch.arange(64) // 8)[:, None].expand(-1, 4).float()  # the row
    assert torch.equal(
        positions(12).view(12, 12, 4)[:, 0],
        F.interpolate(
            torch.arange(8.0).view(1, 1, 8, 1).expand(-1, 4, -1, 8), (12, 12), mode="bicubic"
        )[0, :, :, 0].T,
    )
    rows = positions(24).view(24, 24, 4)
    assert (
        torch.allclose(rows, rows[:, :1].expand(-1, 24, -1), atol=1e-5)
        and (rows[3:-2, 0].diff(dim=0) > 0).all()
    )
    assert make_vit(size=16)(images(1, 1, 32)).shape == (1, 32)


@pytest.mark.parametrize("count", [1, 16, 37])
def test_without_a_gradient_some_images_at_a_time_are_worked_on_and_all_come_out_in_order(count):
    encoder, pixels = make_vit(), images(count, 1, 16)
    expected, at_once = encoder.tokens(pixels), []
    encoder.blocks.register_forward_pre_hook(lambda module, inputs: at_once.append(len(inputs[0])))
    with torch.no_grad():
        found = encoder.tokens(pixels)
    assert found.shape == expected.shape and (found - expected).abs().max() < 1e-5
    assert sum(at_once) == count and max(at_once) <= 16


@pytest.mark.parametrize("heads", [1, 2])
def test_what_is_measured_is_computed_as_what_is_trained(heads, monkeypatch):
    """Torch's fused layer has another gelu on a GPU."""
    encoder, pixels = make_vit(width=32 * heads).eval(), images(3, 1, 16)
    trained = encoder(pixels).detach()
    monkeypatch.setattr(
        torch, "_transformer_encoder_layer_fwd", lambda *_: pytest.fail("a fused layer")
    )
    with torch.no_grad():
        assert torch.allclose(encoder(pixels), trained, atol=1e-6)


def test_attention_equals_torchs_own_and_copies_the_gradient_of_its_projection_once():
    torch.manual_seed(0)
    block, tokens = Block(64, heads=2), torch.randn(3, 5, 64)
    layer = block.self_attn
    weight, bias, out = layer.in_proj_weight, layer.in_proj_bias, layer.out_proj
    packed = F.linear(tokens, weight, bias).view(3, 5, 3, 2, 32)
    mixed = F.scaled_dot_product_attention(*packed.permute(2, 0, 3, 1, 4))
    expected = out(mixed.transpose(1, 2).reshape(3, 5, 64))
    found = block.attention(tokens)
    assert torch.equal(found, expected)
    with CopiesOf(3 * 5 * 3 * 64) as copies:
        gradients = torch.autograd.grad(found.square().sum(), [weight, bias])
    assert len(copies.operations) == 1
    wanted = torch.autograd.grad(expected.square().sum(), [weight, bias])
    assert all(torch.equal(gradient, other) for gradient, other in zip(gradients, wanted))


class CopiesOf(TorchDispatchMode):
    """Notes the operations that only copy so many values."""

    def __init__(self, count):
        super().__init__()
        self.count, self.operations = count, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        name = str(operation).split(".")[1]
        if name in ("clone", "copy_", "_to_copy", "cat", "stack") and result.numel() == self.count:
            self.operations.append(name)
        return result


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("heads", [1, 2])
def test_a_gpu_measures_what_a_cpu_measures(heads):
    use_exact_arithmetic()
    encoder, pixels = make_vit(width=32 * heads).eval(), images(9, 1, 16)
    with torch.no_grad():
        assert torch.allclose(encoder.cuda()(pixels.cuda()).cpu(), encoder.cpu()(pixels), atol=1e-5)


def test_the_rows_of_a_batch_are_encoded_each_by_itself():
    encoder, pixels = make_vit(), images(5, 1, 16)
    alone = torch.cat([encoder(row) for row in pixels.split(1)])
    assert torch.allclose(encoder(pixels), alone, atol=1e-6)


@pytest.mark.parametrize("changes, size, words", [
    ({"patch": 5}, 16, "encoder.patch: 5 does not divide"),
    ({"width": 40}, 16, "encoder.width: 40"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(changes, size, words):
    with pytest.raises(ValueError, match=words):
        make_vit(size=size, **changes)


@pytest.mark.parametrize("height, width", [(18, 18), (8, 6), (6, 8)])
def test_another_size_that_the_patch_does_not_divide_is_refused(height, width):
    with pytest.raises(ValueError, match="encoder.patch: 4 does not divide"):
        make_vit()(torch.zeros(1, 1, height, width))


def test_fixed_positions_need_a_width_that_4_divides():
    with pytest.raises(ValueError, match="6 given"):
        sincos_positions(6, 2)
