"""What transformers cost, and that they are measured as they were trained, and on a GPU too."""

import pytest
import torch
from conftest import make_vit, random_pixels
from torch.utils._python_dispatch import TorchDispatchMode

from memorization.machine.device import use_exact_arithmetic
from models.vit import Block


@pytest.mark.parametrize("count", [1, 16, 37])
def test_without_a_gradient_some_images_at_a_time_are_worked_on_and_all_come_out_in_order(count):
    encoder, pixels = make_vit(1, depth=2).eval(), random_pixels(count, 1, 16)
    expected, at_once = encoder.tokens(pixels), []
    encoder.blocks.register_forward_pre_hook(lambda module, inputs: at_once.append(len(inputs[0])))
    with torch.no_grad():
        found = encoder.tokens(pixels)
    assert found.shape == expected.shape and (found - expected).abs().max() < 1e-5
    assert sum(at_once) == count and max(at_once) <= 16


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


def test_attention_copies_the_gradient_of_its_projection_once():
    torch.manual_seed(0)
    block, tokens = Block(64, heads=2), torch.randn(3, 5, 64)
    weights = [block.self_attn.in_proj_weight, block.self_attn.in_proj_bias]
    loss = block.attention(tokens).square().sum()
    with CopiesOf(3 * 5 * 3 * 64) as copies:
        torch.autograd.grad(loss, weights)
    assert len(copies.operations) == 1


@pytest.mark.parametrize("heads", [1, 2])
def test_what_is_measured_is_computed_as_what_is_trained(heads, monkeypatch):
    """Torch's fused layer has another gelu on a GPU."""
    encoder, pixels = make_vit(1, width=32 * heads, depth=2).eval(), random_pixels(3, 1, 16)
    trained = encoder(pixels).detach()
    fused = "_transformer_encoder_layer_fwd"
    monkeypatch.setattr(torch, fused, lambda *_: pytest.fail("a fused layer"))
    with torch.no_grad():
        assert torch.allclose(encoder(pixels), trained, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [1, 2])
def test_a_gpu_measures_what_a_cpu_measures(heads):
    use_exact_arithmetic()
    encoder, pixels = make_vit(1, width=32 * heads, depth=2).eval(), random_pixels(9, 1, 16)
    with torch.no_grad():
        on_gpu = encoder.cuda()(pixels.cuda()).cpu()
        assert torch.allclose(on_gpu, encoder.cpu()(pixels), atol=1e-5)
