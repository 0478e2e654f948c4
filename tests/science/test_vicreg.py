import math

import pytest
import torch
import torch.nn as nn
from conftest import FlatPixels, losses_of, make_vit, masked_view, two_views, with_hidden_pixels

from memorization.data.augmentations import View
from models.heads import HEAD_NORMS
from models.vicreg import VICReg, VICRegSettings, lack_of_variance, squared_covariances, vicreg_loss

WEIGHTS = (25.0, 25.0, 1.0)  # of the paper


def slow_vicreg_loss(z1, z2, invariance, variance, covariance):
    """Equations 1 to 6 of the paper and its algorithm 1, written out over images and dimensions."""
    views, loss = [z.tolist() for z in (z1, z2)], 0.0
    B, D = z1.shape
    for i in range(B):
        for d in range(D):
            loss += invariance * (views[0][i][d] - views[1][i][d]) ** 2 / (B * D)
    for z in views:
        means = [sum(z[i][d] for i in range(B)) / B for d in range(D)]
        for d in range(D):
            for e in range(D):
                products = ((z[i][d] - means[d]) * (z[i][e] - means[e]) for i in range(B))
                between = sum(products) / (B - 1)
                if d == e:
                    lack = max(0.0, 1 - math.sqrt(between + 1e-4))
                    loss += variance * lack / D / 2  # the mean over both views
                else:
                    loss += covariance * between**2 / D
    return loss


def correlated_views(B=7, D=5, scale=0.5, dtype=torch.float64):
    """Projections of two views, (B, D) each: alike, and with a dimension that hardly varies."""
    generator = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(2, B, D, generator=generator, dtype=torch.float64)
    z1, z2 = z1 + z1.roll(1, 1), z1 + 0.5 * z2 + 3
    z2[:, 0] *= 0.01
    return (scale * z1).to(dtype), (scale * z2).to(dtype)


def make_vicreg(encoder=None, **settings):
    torch.manual_seed(0)
    settings = {"hidden_dim": 8, "projection_dim": 4} | settings
    return VICReg(encoder or FlatPixels(), **VICRegSettings(name="vicreg", **settings).arguments())


@pytest.mark.parametrize("scale", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("weights", [WEIGHTS, (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_the_loss_equals_the_slow_sum_of_the_paper(weights, scale):
    views = correlated_views(scale=scale)
    expected = slow_vicreg_loss(*views, *weights)
    assert vicreg_loss(*views, *weights).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_the_three_terms_of_projections_that_can_be_computed_by_hand():
    z = torch.tensor([[0.3, 0.6], [-0.3, -0.6], [0.3, 0.6], [-0.3, -0.6]], dtype=torch.float64)
    # sums of squares .36 and 1.44, of products .72, all divided by 4 - 1
    lack = (2 - math.sqrt(0.12 + 1e-4) - math.sqrt(0.48 + 1e-4)) / 2
    assert lack_of_variance(z).item() == pytest.approx(lack)
    assert squared_covariances(z).item() == pytest.approx(2 * 0.24**2 / 2)
    assert vicreg_loss(z, z + 2, 1.0, 0.0, 0.0).item() == pytest.approx(4)
    assert vicreg_loss(z, 10 * z, 0.0, 1.0, 0.0).item() == pytest.approx(lack / 2)  # 10 z varies
    assert vicreg_loss(z, z, 0.0, 0.0, 1.0).item() == pytest.approx(2 * 0.24**2)


def test_a_collapsed_projection_has_the_greatest_lack_of_variance_and_a_finite_gradient():
    z = torch.ones(4, 3, requires_grad=True)
    loss = vicreg_loss(z, z, *WEIGHTS)
    loss.backward()
    assert loss.item() == pytest.approx(25 * (1 - 0.01))
    assert torch.isfinite(z.grad).all()


def test_the_loss_of_half_precision_is_computed_in_full_also_under_autocast():
    half = correlated_views(B=32, D=16, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = vicreg_loss(*half, *WEIGHTS)
    expected = slow_vicreg_loss(*(z.double() for z in half), *WEIGHTS)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_and_gradient_equal_those_of_lightly(dtype):
    theirs = pytest.importorskip("lightly.loss").VICRegLoss()
    for B, D, scale in ((2, 3, 1.0), (8, 16, 0.1), (64, 128, 0.5), (256, 32, 0.3)):
        results = []
        for loss_of in (lambda *views: vicreg_loss(*views, *WEIGHTS), theirs):
            views = [z.requires_grad_() for z in correlated_views(B, D, scale, dtype)]
            loss = loss_of(*views)
            loss.backward()
            results.append((loss.item(), *(z.grad for z in views)))
        (loss, *gradients), (expected, *expected_gradients) = results
        assert loss == pytest.approx(expected, rel=1e-6)
        for gradient, expected in zip(gradients, expected_gradients):
            assert (gradient - expected).abs().max() < 1e-6


def test_the_loss_is_that_of_the_projected_views_at_the_methods_weights():
    for weights in (WEIGHTS, (3.0, 2.0, 7.0)):
        names = dict(zip(("invariance", "variance", "covariance"), weights))
        vicreg = make_vicreg(head_norm="layer", **names)
        z1, z2 = (vicreg.projector(view.pixels.flatten(1)) for view in two_views())
        expected = slow_vicreg_loss(z1, z2, *weights)
        assert vicreg(*two_views()).item() == pytest.approx(expected, rel=1e-5)


def test_each_view_is_encoded_under_its_own_mask():
    vicreg = make_vicreg(make_vit(), head_norm="layer")
    views = masked_view(seed=0), masked_view(seed=1)
    loss = vicreg(*views)
    assert torch.equal(vicreg(*(with_hidden_pixels(view, 7.0) for view in views)), loss)
    z1, z2 = (vicreg.projector(vicreg.encoder(*view)) for view in views)
    assert loss.item() == pytest.approx(slow_vicreg_loss(z1, z2, *WEIGHTS), rel=1e-5)


@pytest.mark.parametrize("layers", [2, 3, 4])
@pytest.mark.parametrize("head_norm", HEAD_NORMS)
def test_the_projector_has_the_layers_the_widths_and_the_norm_of_the_settings(head_norm, layers):
    vicreg = make_vicreg(head_norm=head_norm, projector_layers=layers)
    linear = [layer for layer in vicreg.projector if isinstance(layer, nn.Linear)]
    widths = [vicreg.encoder.dim] + (layers - 1) * [8] + [4]
    assert [(layer.in_features, layer.out_features) for layer in linear] == list(
        zip(widths, widths[1:])
    )
    assert type(vicreg.projector[1]) is type(HEAD_NORMS[head_norm](8))


def test_the_projector_has_no_bias_that_the_loss_takes_out_again():
    z1, z2 = correlated_views()
    moved = vicreg_loss(z1 + 5, z2 + 5, *WEIGHTS)
    assert moved.item() == pytest.approx(vicreg_loss(z1, z2, *WEIGHTS).item())
    assert make_vicreg().projector[-1].bias is None


def test_vicreg_learns_what_views_share_and_does_not_collapse():
    vicreg, (first, _) = make_vicreg(), two_views(B=32)
    noise = 0.1 * torch.randn(first.pixels.shape, generator=torch.Generator().manual_seed(2))
    pair = first, View(first.pixels + noise)
    losses = losses_of(vicreg, lambda: pair, steps=60, learning_rate=0.01)
    assert losses[-1] < 0.5 * losses[0]
    z1, z2 = (vicreg.projector(view.pixels.flatten(1)) for view in pair)
    assert z1.std(0).min() > 0.5 and (z1 - z2).square().mean() < 0.1
