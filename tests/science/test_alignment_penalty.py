import copy
import itertools

import pytest
import torch
import torch.nn as nn
from conftest import METHODS, TINY_TRAINING, fake_images, two_views

from memorization.data.augmentations import Draw, View, training_views
from memorization.data.recipes import ViewRecipe
from memorization.optimizers import make_optimizer
from memorization.training import train_step
from models.alignment_penalty import AlignmentPenalty, mean_distance, penalize_alignment
from models.encoders import encoder_settings, make_encoder

WEIGHT = 0.3
OPTIONAL = ["parameter_groups", "before_step", "after_step", "pictures", "online_encoder"]


def draw_views(name, count=2):
    """Views of six images by the recipes of a method, two or more of them of full size."""
    images = fake_images(size=16)
    recipes = [ViewRecipe(**recipe) for recipe in METHODS[name].views]
    size = max(recipe.size for recipe in recipes)
    if sum(recipe.count for recipe in recipes if recipe.size == size) < 2:
        recipes = [recipe.model_copy(update={"count": count}) for recipe in recipes]
    settings = encoder_settings(**METHODS[name].changes["encoder"])
    draw = Draw(0, "training", 0, settings.patch_size)
    return training_views(images.train, torch.arange(6), recipes, images.normalization, draw)


def make_method(name, channels=3):
    """(method, the encoder that it was given), as of the tiny experiment."""
    torch.manual_seed(0)
    of_name = METHODS[name]
    encoder = make_encoder(encoder_settings(**of_name.changes["encoder"]), channels, 16)
    arguments = of_name.schema(**of_name.changes["method"]).arguments(TINY_TRAINING)
    return of_name.module(encoder, **arguments), encoder


def slow_distance(encoder, views):
    """E d(f(x'), f(x'')) written out: the mean over images and pairs of full-size views."""
    size, distances = max(view.pixels.shape[-1] for view in views), []
    views = [view for view in views if view.pixels.shape[-1] == size]
    representations = [encoder(view.pixels, view.visible).double() for view in views]
    for first, second in itertools.combinations(representations, 2):
        for one, other in zip(first, second):
            difference = one / one.square().sum().sqrt() - other / other.square().sum().sqrt()
            distances.append(difference.square().sum().sqrt())
    return sum(distances) / len(distances)


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_that_of_the_method_less_the_distance_of_views_written_out(name):
    method, encoder = make_method(name)
    encoder.eval()  # each view alone then gives what it gives in a batch of all
    alone, views = copy.deepcopy(method), draw_views(name)
    penalized = AlignmentPenalty(method, WEIGHT)(*views)
    expected = (1 - WEIGHT) * alone(*views).item() - WEIGHT * slow_distance(encoder, views).item()
    assert slow_distance(encoder, views) > 0.05
    assert penalized.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_of_the_encoder_is_that_of_the_loss_written_out(name):
    method, encoder = make_method(name)
    encoder.eval()
    alone, views = copy.deepcopy(method), draw_views(name)
    AlignmentPenalty(method, WEIGHT)(*views).backward()
    copied = getattr(alone, "online_encoder", alone.encoder)
    ((1 - WEIGHT) * alone(*views) - WEIGHT * slow_distance(copied, views)).backward()
    for parameter, other in zip(encoder.parameters(), copied.parameters(), strict=True):
        assert torch.allclose(parameter.grad, other.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_batch_norms_and_buffers_see_each_view_once(name):
    method, views = make_method(name)[0], draw_views(name)
    alone = copy.deepcopy(method)
    penalized = AlignmentPenalty(method, WEIGHT)
    penalized(*views), alone(*views)
    buffers = dict(alone.named_buffers())
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in method.named_buffers())


@pytest.mark.parametrize("name", METHODS)
def test_a_penalized_method_has_the_parts_and_the_weights_of_the_method_alone(name):
    method, _ = make_method(name)
    penalized = AlignmentPenalty(method, WEIGHT)
    assert penalized.encoder is method.encoder
    for part in OPTIONAL:
        assert hasattr(penalized, part) == hasattr(method, part)
    assert list(penalized.parameters()) == list(method.parameters())
    assert [f"method.{key}" for key in method.state_dict()] == list(penalized.state_dict())


def test_a_weight_of_zero_leaves_the_method_as_it_is():
    method, _ = make_method("simclr")
    assert penalize_alignment(method, 0.0) is method
    assert penalize_alignment(method, WEIGHT).method is method


def test_the_mean_distance_is_over_all_pairs_of_views_by_hand():
    views = torch.tensor([[[2.0, 0.0]], [[0.0, 3.0]], [[-1.0, 0.0]]])  # sqrt 2, 2 and sqrt 2 apart
    assert mean_distance(views).item() == pytest.approx((2 + 2 * 2**0.5) / 3)


def test_views_that_agree_have_distance_and_gradient_0():
    same = torch.randn(1, 4, 3).expand(2, 4, 3).clone().requires_grad_()
    distance = mean_distance(same)
    distance.backward()
    assert distance == 0 and (same.grad == 0).all()


def test_representations_of_zeros_have_a_finite_gradient():
    zeros = torch.zeros(2, 3, 4, requires_grad=True)
    mean_distance(zeros).backward()
    assert (zeros.grad == 0).all()


def test_half_precision_is_widened_before_views_are_compared():
    views = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert mean_distance(views).dtype == torch.float32
    assert torch.equal(mean_distance(views), mean_distance(views.float()))
    method, encoder = make_method("simclr")
    encoder.eval()
    penalized, views = AlignmentPenalty(method, 0.999), draw_views("simclr")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = penalized(*views)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(penalized(*views).item(), rel=0.02)


@pytest.mark.parametrize("name", METHODS)
def test_a_penalty_drives_views_apart(name):
    views = draw_views(name)

    def distance_after_steps(weight):
        method, encoder = make_method(name)
        method = penalize_alignment(method, weight)
        optimizer = make_optimizer(method, TINY_TRAINING)
        for _ in range(5):
            train_step(method, optimizer, views, TINY_TRAINING, share=0.5)
        return slow_distance(encoder.eval(), views).item()

    assert distance_after_steps(0.9) > distance_after_steps(0) + 0.01


def test_what_is_encoded_beside_the_loss_is_not_kept():
    method, encoder = make_method("simclr")
    encoder.eval()
    penalized, views = AlignmentPenalty(method, WEIGHT), draw_views("simclr")
    before = penalized(*views)
    encoder(views[0].pixels)
    assert penalized.calls.outputs == []
    with pytest.raises(TypeError):
        penalized(*views, views[0])  # a pass that fails
    encoder(views[0].pixels)
    assert penalized.calls.outputs == []
    assert torch.equal(penalized(*views), before)


@pytest.mark.parametrize("name", ["dino", "mae"])
def test_a_penalized_method_is_compiled_as_a_whole(name):
    views = draw_views(name)
    eager, penalized = (AlignmentPenalty(make_method(name)[0], WEIGHT) for _ in range(2))
    compiled = torch.compile(penalized, backend="eager", fullgraph=True)
    for _ in range(2):
        assert compiled(*views).item() == pytest.approx(eager(*views).item(), rel=1e-5)


class Twice(nn.Module):
    """A method that encodes the first view twice."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))

    def forward(self, first, second):
        return sum(self.encoder(view.pixels).mean() for view in (first, second, first))


def test_a_method_that_encodes_a_view_twice_or_whose_encoder_is_not_trained_is_refused():
    once = r"training.alignment_penalty: 0.3 needs a method that encodes every view once"
    with pytest.raises(ValueError, match=once):
        AlignmentPenalty(Twice(), WEIGHT)(*two_views())
    with pytest.raises(ValueError, match="gradients do not train the encoder of the method"):
        AlignmentPenalty(Twice().requires_grad_(False), WEIGHT)


def test_one_view_of_full_size_is_refused():
    method, views = make_method("dino")[0], draw_views("dino")
    small = View(views[1].pixels[..., :8, :8])
    one = r"needs two large views or more, but 1 of the largest size, 16 pixels, is drawn"
    with pytest.raises(ValueError, match=one):
        AlignmentPenalty(method, WEIGHT)(views[0], small)
