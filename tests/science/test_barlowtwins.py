import math

import pytest
import torch
import torch.nn as nn
from conftest import FlatPixels, losses_of, make_vit, masked_view, two_views, with_hidden_pixels

from memorization.data.augmentations import View
from models.barlowtwins import BarlowTwins, BarlowTwinsSettings, barlow_twins_loss
from models.heads import HEAD_NORMS


def normalize(column):
    """A dimension over the images, less its mean, divided by its population deviation."""
    mean = sum(column) / len(column)
    variance = sum((value - mean) ** 2 for value in column) / len(column)
    return [(value - mean) / math.sqrt(variance + 1e-5) for value in column]


def slow_barlow_twins_loss(z1, z2, redundancy):
    """Equations 1 and 2 of the paper, written out over dimensions and images."""
    B, D = z1.shape
    first, second = ([normalize(z[:, d].tolist()) for d in range(D)] for z in (z1, z2))
    loss = 0.0
    for d in range(D):
        for e in range(D):
            correlation = sum(first[d][i] * second[e][i] for i in range(B)) / B
            loss += (1 - correlation) ** 2 if d == e else redundancy * correlation**2
    return loss


def correlated_views(B=7, D=5, dtype=torch.float64):
    """Projections of two views, (B, D) each: alike, with a mean and scales of their own."""
    generator = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(2, B, D, generator=generator, dtype=torch.float64)
    scales = torch.linspace(0.1, 3, D, dtype=torch.float64)
    return (scales * (z1 + 0.3 * z1.roll(1, 1))).to(dtype), (2 + z1 + 0.5 * z2).to(dtype)


def make_barlow_twins(encoder=None, **settings):
    torch.manual_seed(0)
    settings = {"hidden_dim": 8, "projection_dim": 4} | settings
    settings = BarlowTwinsSettings(name="barlowtwins", **settings)
    return BarlowTwins(encoder or FlatPixels(), **settings.arguments())


@pytest.mark.parametrize("redundancy", [0.0, 0.005, 1.0])
@pytest.mark.parametrize("scale", [0.001, 1.0, 100.0])
def test_the_loss_equals_the_slow_sum_of_the_paper(redundancy, scale):
    z1, z2 = (scale * z for z in correlated_views())
    expected = slow_barlow_twins_loss(z1, z2, redundancy)
    assert barlow_twins_loss(z1, z2, redundancy).item() == pytest.approx(expected, rel=1e-12)


def test_uncorrelated_dimensions_that_agree_have_no_loss_and_opposite_ones_4_each():
    z = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert barlow_twins_loss(z, z, 1.0).item() == pytest.approx(0, abs=1e-8)
    assert barlow_twins_loss(z, -z, 1.0).item() == pytest.approx(8, abs=1e-3)
    # each dimension agrees with the other one only
    assert barlow_twins_loss(z, z.flip(1), 0.25).item() == pytest.approx(2.5, abs=1e-3)


def test_a_collapsed_projection_has_the_loss_of_no_correlation_and_a_finite_gradient():
    z = torch.ones(4, 3, requires_grad=True)
    loss = barlow_twins_loss(z, z, 0.005)
    loss.backward()
    assert loss.item() == pytest.approx(3)
    assert torch.isfinite(z.grad).all()


def test_the_loss_of_half_precision_is_computed_in_full_also_under_autocast():
    half = correlated_views(B=32, D=16, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = barlow_twins_loss(*half, 0.005)
    expected = slow_barlow_twins_loss(*(z.double() for z in half), 0.005)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_and_gradient_equal_those_of_lightly(dtype):
    theirs = pytest.importorskip("lightly.loss").BarlowTwinsLoss(lambda_param=0.005)
    for B, D in ((2, 3), (8, 16), (64, 128), (256, 32)):
        results = []
        for loss_of in (lambda *views: barlow_twins_loss(*views, 0.005), theirs):
            views = [z.requires_grad_() for z in correlated_views(B, D, dtype)]
            loss = loss_of(*views)
            loss.backward()
            results.append((loss.item(), *(z.grad for z in views)))
        (loss, *gradients), (expected, *expected_gradients) = results
        assert loss == pytest.approx(expected, rel=1e-6)
        for gradient, expected in zip(gradients, expected_gradients):
            assert (gradient - expected).abs().max() < 1e-6


def test_the_loss_is_that_of_the_projected_views_at_the_methods_settings():
    for redundancy, loss_scale in ((0.005, 1.0), (0.5, 0.1)):
        settings = {"redundancy": redundancy, "loss_scale": loss_scale, "head_norm": "layer"}
        twins = make_barlow_twins(**settings)
        z1, z2 = (twins.projector(view.pixels.flatten(1)) for view in two_views())
        expected = loss_scale * slow_barlow_twins_loss(z1, z2, redundancy)
        assert twins(*two_views()).item() == pytest.approx(expected, rel=1e-5)


def test_each_view_is_encoded_under_its_own_mask():
    twins = make_barlow_twins(make_vit(), head_norm="layer")
    views = masked_view(seed=0), masked_view(seed=1)
    loss = twins(*views)
    assert torch.equal(twins(*(with_hidden_pixels(view, 7.0) for view in views)), loss)
    z1, z2 = (twins.projector(twins.encoder(*view)) for view in views)
    assert loss.item() == pytest.approx(slow_barlow_twins_loss(z1, z2, 0.005), rel=1e-5)


@pytest.mark.parametrize("layers", [2, 3, 4])
@pytest.mark.parametrize("head_norm", HEAD_NORMS)
def test_the_projector_has_the_layers_the_widths_and_the_norm_of_the_settings(head_norm, layers):
    twins = make_barlow_twins(head_norm=head_norm, projector_layers=layers)
    linear = [layer for layer in twins.projector if isinstance(layer, nn.Linear)]
    widths = [twins.encoder.dim] + (layers - 1) * [8] + [4]
    assert [(layer.in_features, layer.out_features) for layer in linear] == list(
        zip(widths, widths[1:])
    )
    assert type(twins.projector[1]) is type(HEAD_NORMS[head_norm](8))


def test_the_projector_has_no_bias_that_the_loss_takes_out_again():
    z1, z2 = correlated_views()
    moved = barlow_twins_loss(z1 + 5, z2 + 5, 0.005)
    assert moved.item() == pytest.approx(barlow_twins_loss(z1, z2, 0.005).item())
    assert make_barlow_twins().projector[-1].bias is None


def test_barlow_twins_learns_what_views_share_and_does_not_collapse():
    twins, (first, _) = make_barlow_twins(), two_views(B=32)
    noise = 0.1 * torch.randn(first.pixels.shape, generator=torch.Generator().manual_seed(2))
    pair = first, View(first.pixels + noise)
    losses = losses_of(twins, lambda: pair, steps=60, learning_rate=0.01)
    assert losses[-1] < 0.1 * losses[0]
    z1, z2 = (twins.projector(view.pixels.flatten(1)) for view in pair)
    correlations = torch.corrcoef(torch.cat([z1, z2], dim=1).T)[:4, 4:]
    assert (correlations - torch.eye(4)).abs().max() < 0.3
