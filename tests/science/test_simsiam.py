import copy
import math

import pytest
import torch
import torch.nn as nn
from conftest import (
    TINY_TRAINING,
    FlatPixels,
    losses_of,
    make_vit,
    masked_view,
    two_views,
    with_hidden_pixels,
)

from memorization.data.augmentations import View
from memorization.optimizers import make_optimizer, set_learning_rate
from models.heads import HEAD_NORMS, PLAIN_NORMS
from models.simsiam import SimSiam, SimSiamSettings, negative_cosine


def make_simsiam(encoder=None, **settings):
    torch.manual_seed(0)
    widths = {"hidden_dim": 6, "projection_dim": 8, "predictor_dim": 3}
    settings = SimSiamSettings(name="simsiam", **widths | settings)
    return SimSiam(encoder or FlatPixels(), **settings.arguments())


def slow_negative_cosine(p, z):
    """Equation 1 of the paper, written out: the mean of - p / ||p|| . z / ||z||."""
    total = 0.0
    for of_p, of_z in zip(p.tolist(), z.tolist()):
        lengths = [math.sqrt(sum(x * x for x in row)) for row in (of_p, of_z)]
        for x, y in zip(of_p, of_z):
            total -= x / lengths[0] * y / lengths[1]
    return total / len(p)


def random_rows(B=5, D=3):
    """Two tensors (B, D) of float64."""
    return torch.randn(2, B, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_loss_equals_the_slow_sum_of_the_paper():
    p, z = random_rows()
    assert negative_cosine(p, z).item() == pytest.approx(slow_negative_cosine(p, z), abs=1e-12)
    assert negative_cosine(p, 3 * p).item() == pytest.approx(-1)
    assert negative_cosine(p, -p).item() == pytest.approx(1)


@pytest.mark.parametrize("B, D", [(2, 3), (64, 128)])
def test_the_loss_equals_lightlys(B, D):
    lightly = pytest.importorskip("lightly.loss")
    p, z = random_rows(B, D)
    theirs = lightly.NegativeCosineSimilarity()
    for dtype, error in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        expected = theirs(p.to(dtype), z.to(dtype)).item()
        assert negative_cosine(p.to(dtype), z.to(dtype)).item() == pytest.approx(
            expected, abs=error
        )


def test_the_loss_of_half_precision_is_computed_in_full():
    p, z = random_rows(8, 16).bfloat16()
    assert negative_cosine(p, z).dtype == torch.float32
    assert negative_cosine(p, z).item() == pytest.approx(slow_negative_cosine(p, z), rel=1e-5)


def test_each_view_predicts_the_projection_of_the_other():
    simsiam, both = make_simsiam(head_norm="layer"), two_views()
    z1, z2 = (simsiam.projector(simsiam.encoder(view.pixels)) for view in both)
    p1, p2 = simsiam.predictor(z1), simsiam.predictor(z2)
    expected = (slow_negative_cosine(p1, z2) + slow_negative_cosine(p2, z1)) / 2
    assert simsiam(*both).item() == pytest.approx(expected, rel=1e-5)
    assert simsiam(*both[::-1]).item() == pytest.approx(expected, rel=1e-5)


def test_no_gradient_passes_through_what_is_predicted():
    """Its gradient is that of a loss whose projections come from a copy of the network."""
    simsiam, both = make_simsiam(head_norm="layer"), two_views()
    twin = copy.deepcopy(simsiam)
    z1, z2 = (twin.projector(twin.encoder(view.pixels)) for view in both)
    p1, p2 = (simsiam.predictor(simsiam.projector(simsiam.encoder(v.pixels))) for v in both)
    cosines = [torch.cosine_similarity(p, z).mean() for p, z in ((p1, z2), (p2, z1))]
    (-sum(cosines) / 2).backward()
    expected = [parameter.grad.clone() for parameter in simsiam.parameters()]
    simsiam.zero_grad()
    simsiam(*both).backward()
    for parameter, gradient in zip(simsiam.parameters(), expected):
        assert torch.allclose(parameter.grad, gradient, atol=1e-7)
    assert any(parameter.grad.abs().max() > 1e-3 for parameter in twin.projector.parameters())


def test_each_view_is_encoded_under_its_own_mask():
    simsiam = make_simsiam(make_vit(), head_norm="layer")
    masked = masked_view(seed=0), masked_view(seed=1)
    loss = simsiam(*masked)
    assert torch.equal(simsiam(*(with_hidden_pixels(view, 7.0) for view in masked)), loss)
    assert not torch.allclose(simsiam(*(View(view.pixels) for view in masked)), loss, atol=1e-4)


@pytest.mark.parametrize("layers, widths", [
    (2, [(6, 48), (8, 6)]), (3, [(6, 48), (6, 6), (8, 6)]),
])  # fmt: skip
@pytest.mark.parametrize("head_norm", HEAD_NORMS)
def test_the_projectors_output_is_normalized_and_the_predictors_is_not(layers, widths, head_norm):
    simsiam = make_simsiam(projector_layers=layers, head_norm=head_norm)
    for head, expected in ((simsiam.projector, widths), (simsiam.predictor, [(3, 8), (8, 3)])):
        shapes = [tuple(layer.weight.shape) for layer in head if isinstance(layer, nn.Linear)]
        assert shapes == expected and type(head[1]) is type(HEAD_NORMS[head_norm](8))
    last = simsiam.projector[-1]
    assert type(last) is type(PLAIN_NORMS[head_norm](8)) and not list(last.parameters())
    assert isinstance(simsiam.predictor[-1], nn.Linear)


@pytest.mark.parametrize("constant", [True, False])
def test_the_predictors_rate_is_constant_only_if_the_settings_say_so(constant):
    simsiam = make_simsiam(constant_predictor_rate=constant)
    optimizer = make_optimizer(simsiam, TINY_TRAINING.model_copy(update={"weight_decay": 0.1}))
    set_learning_rate(optimizer, rate=0.5, full_rate=2.0)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(simsiam.parameters()))
    in_groups = sum(len(group["params"]) for group in optimizer.param_groups)
    assert in_groups == len(rates)
    for name, parameter in simsiam.named_parameters():
        assert rates[parameter] == (2.0 if constant and name.startswith("predictor") else 0.5)
    for group in optimizer.param_groups:
        assert group["weight_decay"] == (0.1 if group["params"][0].ndim > 1 else 0)


def test_simsiam_learns_to_predict_and_does_not_collapse():
    simsiam, (first, _) = make_simsiam(), two_views(B=32)
    noise = 0.1 * torch.randn(first.pixels.shape, generator=torch.Generator().manual_seed(2))
    pair = first, View(first.pixels + noise)
    losses = losses_of(simsiam, lambda: pair, steps=60, learning_rate=0.01)
    assert losses[0] > -0.2 and losses[-1] < -0.6
    z = simsiam.projector(simsiam.encoder(first.pixels))
    assert nn.functional.normalize(z, dim=1).std(0).mean() > 0.5 / math.sqrt(8)
