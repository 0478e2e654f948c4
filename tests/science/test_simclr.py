import math

import pytest
import torch
import torch.nn as nn
from conftest import with_hidden_pixels

from memorization.data.augmentations import View
from models.encoders import encoder_settings, make_encoder
from models.simclr import SimCLR, SimCLRSettings, nt_xent


def slow_nt_xent(z1, z2, temperature):
    """Equation 1 of the paper, written out."""
    z = [row.tolist() for row in torch.cat([z1, z2])]
    count = len(z1)

    def sim(a, b):
        dot = sum(x * y for x, y in zip(a, b))
        return dot / (math.hypot(*a) * math.hypot(*b))

    total = 0.0
    for i in range(2 * count):
        j = (i + count) % (2 * count)
        denominator = sum(
            math.exp(sim(z[i], z[k]) / temperature) for k in range(2 * count) if k != i
        )
        total -= math.log(math.exp(sim(z[i], z[j]) / temperature) / denominator)
    return total / (2 * count)


class Flatten(nn.Module):
    dim = 12

    def forward(self, pixels, visible=None):
        return pixels.flatten(1)


def make_simclr(**changes):
    torch.manual_seed(0)
    settings = SimCLRSettings(name="simclr", hidden_dim=6, projection_dim=4, **changes)
    return SimCLR(Flatten(), **settings.arguments())


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_equals_the_slow_sum_of_the_paper(temperature):
    generator = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(
        slow_nt_xent(z1, z2, temperature), abs=1e-12
    )


def test_nt_xent_of_indistinguishable_views_is_the_log_of_the_others():
    z = torch.ones(4, 3)
    assert nt_xent(z, z, 0.5).item() == pytest.approx(math.log(7))


def test_nt_xent_of_half_precision_is_computed_in_full():
    z1, z2 = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert nt_xent(z1, z2, 0.1).dtype == torch.float32
    assert nt_xent(z1, z2, 0.1).item() == pytest.approx(
        slow_nt_xent(z1.float(), z2.float(), 0.1), rel=1e-5
    )


def views(B=6):
    first, second = torch.randn(2, B, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    return View(first), View(second)


def test_one_pass_differs_only_through_batch_norm():
    first, second = views()
    with_layer_norm = (
        make_simclr(head_norm="layer", one_pass=True)(first, second),
        make_simclr(head_norm="layer")(first, second),
    )
    with_batch_norm = make_simclr(one_pass=True)(first, second), make_simclr()(first, second)
    assert torch.allclose(*with_layer_norm, atol=1e-6)
    assert not torch.allclose(*with_batch_norm, atol=1e-4)


def masked_views(*counts):
    """Views of 6 images of 4 patches a side, each under masks of its own that leave `counts`
    patches.
    """
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(6, 16, generator=generator).argsort(dim=1)[:, :count] for count in counts]
    return [View(torch.randn(6, 3, 16, 16, generator=generator), mask) for mask in masks]


@pytest.mark.parametrize("one_pass", [True, False])
def test_each_view_is_encoded_under_its_own_mask(one_pass):
    torch.manual_seed(0)
    encoder = make_encoder(encoder_settings(name="vit_mini", depth=1), 3, 16)
    settings = SimCLRSettings(
        name="simclr", hidden_dim=6, projection_dim=4, head_norm="layer", one_pass=one_pass
    )
    simclr, views = SimCLR(encoder, **settings.arguments()), masked_views(5, 5)
    loss = simclr(*views)
    assert torch.equal(simclr(*(with_hidden_pixels(view, 7.0) for view in views)), loss)
    z1, z2 = (simclr.projector(encoder(view.pixels, view.visible)) for view in views)
    assert loss.item() == pytest.approx(slow_nt_xent(z1, z2, 0.5), rel=1e-5)


@pytest.mark.parametrize("counts", [(5, 8), (5, 16)])
def test_views_under_unequal_masks_do_not_pass_in_one_batch(counts):
    first, second = masked_views(*counts)
    for other in (second, View(second.pixels)):
        with pytest.raises(ValueError, match="one mask ratio"):
            make_simclr(one_pass=True)(first, other)


def test_the_loss_is_that_of_the_projected_views_at_the_methods_temperature():
    first, second = views()
    for temperature in (0.1, 0.7):
        simclr = make_simclr(head_norm="layer", temperature=temperature)
        z1, z2 = (
            simclr.projector(first.pixels.flatten(1)),
            simclr.projector(second.pixels.flatten(1)),
        )
        assert simclr(first, second).item() == pytest.approx(
            slow_nt_xent(z1, z2, temperature), rel=1e-5
        )


@pytest.mark.parametrize(
    "head_norm, kind", [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm), ("none", nn.Identity)]
)
def test_head_norm_is_the_one_named(head_norm, kind):
    assert type(make_simclr(head_norm=head_norm).projector[1]) is kind


def test_simclr_learns_to_tell_images_apart():
    simclr, (first, _) = make_simclr(), views()
    optimizer = torch.optim.Adam(simclr.parameters(), lr=0.01)
    history = []
    for _ in range(50):
        loss = simclr(first, View(first.pixels + 0.1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0] - 0.3
