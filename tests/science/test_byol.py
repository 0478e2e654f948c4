import copy

import pytest
import torch
import torch.nn as nn
from conftest import losses_of, make_vit, masked_view, two_views, with_hidden_pixels

from memorization.data.augmentations import View
from models.byol import BYOL, BYOLSettings, prediction_loss
from models.heads import HEAD_NORMS


class Convolution(nn.Sequential):
    """An encoder with a batch norm."""

    dim = 6

    def __init__(self):
        super().__init__(nn.Conv2d(3, 6, 2), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1))

    def forward(self, pixels, visible=None):
        return super().forward(pixels).flatten(1)


def make_byol(encoder=None, **settings):
    torch.manual_seed(0)
    settings = BYOLSettings(name="byol", hidden_dim=8, projection_dim=4, **settings)
    return BYOL(encoder or Convolution(), **settings.arguments())


def slow_prediction_loss(p, z):
    """Equation 2 of the paper, written out: the squared distance of the normalized vectors."""
    p, z = (x.double() / x.double().square().sum(1, keepdim=True).sqrt() for x in (p, z))
    return ((p - z) ** 2).sum(1).mean().item()


def test_the_loss_equals_the_slow_sum_of_the_paper():
    p, z = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert prediction_loss(p, z).item() == pytest.approx(slow_prediction_loss(p, z), abs=1e-12)
    assert prediction_loss(p, 3 * p).item() == pytest.approx(0)
    assert prediction_loss(p, -p).item() == pytest.approx(4)


def test_the_loss_of_half_precision_is_computed_in_full():
    p, z = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert prediction_loss(p, z).dtype == torch.float32
    assert prediction_loss(p, z).item() == pytest.approx(slow_prediction_loss(p, z), rel=1e-5)


def test_each_view_predicts_the_momentum_networks_projection_of_the_other():
    byol, both = make_byol(head_norm="layer"), two_views()
    for parameter in [*byol.momentum_encoder.parameters(), *byol.momentum_projector.parameters()]:
        parameter.data += 0.1  # so that the two networks differ
    p1, p2 = (byol.predictor(byol.projector(byol.online_encoder(view.pixels))) for view in both)
    z1, z2 = (byol.momentum_projector(byol.momentum_encoder(view.pixels)) for view in both)
    expected = slow_prediction_loss(p1, z2) + slow_prediction_loss(p2, z1)
    assert byol(*both).item() == pytest.approx(expected, rel=1e-5)
    assert byol(*both[::-1]).item() == pytest.approx(expected, rel=1e-5)


def test_both_networks_see_each_view_under_its_own_mask():
    byol = make_byol(make_vit(), head_norm="layer")
    masked = masked_view(seed=0), masked_view(seed=1)
    loss = byol(*masked)
    assert torch.equal(byol(*(with_hidden_pixels(view, 7.0) for view in masked)), loss)
    assert not torch.allclose(byol(*(View(view.pixels) for view in masked)), loss, atol=1e-4)


@pytest.mark.parametrize("head_norm", HEAD_NORMS)
def test_projector_and_predictor_have_the_widths_and_the_norm_of_the_settings(head_norm):
    byol = make_byol(head_norm=head_norm)
    for head, widths in ((byol.projector, [(8, 6), (4, 8)]), (byol.predictor, [(8, 4), (4, 8)])):
        shapes = [tuple(layer.weight.shape) for layer in head if isinstance(layer, nn.Linear)]
        assert shapes == widths and type(head[1]) is type(HEAD_NORMS[head_norm](8))


def test_the_momentum_network_starts_as_a_copy_has_no_gradient_and_follows():
    byol = make_byol(momentum=0.9)
    online = [*byol.online_encoder.parameters(), *byol.projector.parameters()]
    slow = [*byol.momentum_encoder.parameters(), *byol.momentum_projector.parameters()]
    assert len(online) == len(slow)
    assert all(torch.equal(a, b) and a is not b for a, b in zip(online, slow))
    trained = {id(parameter) for parameter in byol.parameters() if parameter.requires_grad}
    assert trained >= set(map(id, online)) and not trained & set(map(id, slow))
    byol(*two_views()).backward()
    assert all(parameter.grad is None for parameter in slow)
    before = copy.deepcopy(slow)
    for parameter in online:
        parameter.data += torch.rand(parameter.shape)
    byol.after_step(progress=0.5)
    for a, b, c in zip(online, slow, before):
        assert torch.allclose(b, 0.95 * c + 0.05 * a, atol=1e-6) and not torch.equal(b, c)


def test_batch_norms_of_the_momentum_network_use_their_own_batch_and_keep_their_own_statistics():
    byol, (first, second) = make_byol(), two_views()
    byol(first, second)
    online, slow = (encoder[1] for encoder in (byol.online_encoder, byol.momentum_encoder))
    assert int(slow.num_batches_tracked) == 2  # both views passed, one after the other
    assert torch.allclose(online.running_mean, slow.running_mean)  # the networks are still equal
    statistics = slow.running_mean.clone()
    online.running_mean += 1
    byol.after_step(progress=0.0)
    assert torch.equal(slow.running_mean, statistics)  # not averaged
    z = byol.momentum_projector[:2](byol.momentum_encoder(first.pixels))  # after its batch norm
    assert z.mean(0).abs().max() < 1e-5  # of this batch, not of the running statistics


@pytest.mark.parametrize("kept", ["online", "momentum"])
def test_the_encoder_that_is_kept_is_the_one_named(kept):
    byol = make_byol(kept=kept)
    assert byol.encoder is getattr(byol, f"{kept}_encoder")


def test_byol_learns_to_predict_and_does_not_collapse():
    byol, (first, _) = make_byol(momentum=0.9), two_views(B=32)
    noise = 0.1 * torch.randn(first.pixels.shape, generator=torch.Generator().manual_seed(2))
    pair = first, View(first.pixels + noise)
    losses = losses_of(byol, lambda: pair, steps=60, learning_rate=0.01)
    assert losses[-1] < 0.5 * losses[0]
    assert nn.functional.normalize(byol.encoder(first.pixels), dim=1).std(0).mean() > 0.1
