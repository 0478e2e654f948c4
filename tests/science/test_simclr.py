import math

import pytest
import torch
import torch.nn as nn
from conftest import FlatPixels, losses_of, make_vit, masked_view, two_views, with_hidden_pixels

from memorization.data.augmentations import View
from models.simclr import SimCLR, SimCLRSettings, nt_xent


def slow_nt_xent(z1, z2, temperature):
    """Equation 1 of the paper, written out."""
    z, B, total = torch.cat([z1, z2]).double(), len(z1), 0.0
    similarity = torch.cosine_similarity(z[:, None], z[None], dim=2)  # (2B, 2B)
    exponentials = (similarity / temperature).exp().tolist()
    for i, row in enumerate(exponentials):
        total -= math.log(row[(i + B) % (2 * B)] / (sum(row) - row[i]))
    return total / (2 * B)


def make_simclr(encoder=None, **settings):
    torch.manual_seed(0)
    settings = SimCLRSettings(name="simclr", hidden_dim=6, projection_dim=4, **settings)
    return SimCLR(encoder or FlatPixels(), **settings.arguments())


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_equals_the_slow_sum_of_the_paper(temperature):
    generator = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    expected = slow_nt_xent(z1, z2, temperature)
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(expected, abs=1e-12)


def test_nt_xent_of_indistinguishable_views_is_the_log_of_the_others():
    z = torch.ones(4, 3)
    assert nt_xent(z, z, 0.5).item() == pytest.approx(math.log(7))


def test_nt_xent_of_half_precision_is_computed_in_full():
    z1, z2 = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    loss = nt_xent(z1, z2, 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_nt_xent(z1, z2, 0.1), rel=1e-5)


def test_one_pass_differs_only_through_batch_norm():
    layer, layer_one, batch, batch_one = (
        make_simclr(head_norm=norm, one_pass=one_pass)(*two_views())
        for norm in ("layer", "batch")
        for one_pass in (False, True)
    )
    assert torch.allclose(layer_one, layer, atol=1e-6)
    assert not torch.allclose(batch_one, batch, atol=1e-4)


@pytest.mark.parametrize("one_pass", [True, False])
def test_each_view_is_encoded_under_its_own_mask(one_pass):
    simclr = make_simclr(make_vit(), head_norm="layer", one_pass=one_pass)
    views = masked_view(seed=0), masked_view(seed=1)
    loss = simclr(*views)
    assert torch.equal(simclr(*(with_hidden_pixels(view, 7.0) for view in views)), loss)
    z1, z2 = (simclr.projector(simclr.encoder(*view)) for view in views)
    assert loss.item() == pytest.approx(slow_nt_xent(z1, z2, 0.5), rel=1e-5)


def test_the_loss_is_that_of_the_projected_views_at_the_methods_temperature():
    for temperature in (0.1, 0.7):
        simclr = make_simclr(head_norm="layer", temperature=temperature)
        z1, z2 = (simclr.projector(view.pixels.flatten(1)) for view in two_views())
        expected = slow_nt_xent(z1, z2, temperature)
        assert simclr(*two_views()).item() == pytest.approx(expected, rel=1e-5)


NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}


@pytest.mark.parametrize("head_norm", NORMS)
def test_head_norm_is_the_one_named(head_norm):
    assert type(make_simclr(head_norm=head_norm).projector[1]) is NORMS[head_norm]


def test_simclr_learns_to_tell_images_apart():
    first, _ = two_views()
    pair = first, View(first.pixels + 0.1)
    losses = losses_of(make_simclr(), lambda: pair, steps=50, learning_rate=0.01)
    assert losses[-1] < losses[0] - 0.3
