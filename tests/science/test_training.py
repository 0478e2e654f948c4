import copy
import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    EXPERIMENT,
    METHODS,
    FlatPixels,
    fake_images,
    first_config,
    log_of,
    make_tiny,
    train,
    two_views,
    write_experiment,
)

from memorization.config import read_config
from memorization.data.subsets import ROLES, draw_subsets, load_subsets
from memorization.training import loop
from memorization.training.diagnostics import measure_encoder, spread
from memorization.training.task import Task
from models.simclr import SimCLRSettings


def watch_training(folder, changes=(), method="simclr"):
    """Train a pair. Returns what was recorded of f and of g, and their subsets: the method, its
    optimizer and initial weights; of every step the source indices, views and learning rates.
    """
    runs = []
    make, draw, step = loop.make_optimizer, loop.training_views, loop.train_step

    def watched_optimizer(method, settings):
        run = {"initial": copy.deepcopy(method.state_dict()), "indices": [], "views": []}
        optimizer = make(method, settings)
        runs.append(SimpleNamespace(method=method, optimizer=optimizer, rates=[], **run))
        return optimizer

    def watched_views(images, indices, *rest):
        runs[-1].indices.append(indices)
        return draw(images, indices, *rest)

    def watched_step(method, optimizer, views, *rest, **named):
        runs[-1].views.append(views)
        runs[-1].rates.append([group["lr"] for group in optimizer.param_groups])
        return step(method, optimizer, views, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_optimizer", watched_optimizer)
        patch.setattr(loop, "training_views", watched_views)
        patch.setattr(loop, "train_step", watched_step)
        train(write_experiment(folder, changes), method=method)
    return *runs, load_subsets(folder / "run/subsets.npz")


@pytest.fixture(scope="module")
def watched_pair(tmp_path_factory):
    return watch_training(tmp_path_factory.mktemp("watched"))


def test_f_and_g_start_from_the_same_weights_and_both_change(watched_pair):
    f, g, _ = watched_pair
    for name, initial in f.initial.items():
        assert torch.equal(initial, g.initial[name])
    for run in (f, g):
        for name, parameter in run.method.named_parameters():
            assert not torch.equal(parameter, run.initial[name]), f"{name} was not trained"
    weights = [run.method.state_dict()["encoder.layers.0.weight"] for run in (f, g)]
    assert not torch.equal(*weights)


def test_each_optimizer_holds_its_own_models_parameters(watched_pair):
    f, g, _ = watched_pair
    own = [{id(parameter) for parameter in run.method.parameters()} for run in (f, g)]
    for run, parameters in zip((f, g), own):
        groups = run.optimizer.param_groups
        assert {id(p) for group in groups for p in group["params"]} == parameters
    assert own[0].isdisjoint(own[1])


def test_f_and_g_take_the_same_steps_at_the_same_rates(watched_pair):
    f, g, _ = watched_pair
    assert len(f.rates) == len(g.rates) == 3 * (56 // 16)
    assert f.rates == g.rates and f.rates[0][0] == 0.01 > f.rates[-1][0]


def test_shared_images_meet_the_same_views_in_the_same_slots(watched_pair):
    f, g, subsets = watched_pair
    shared, met = set(subsets.shared.tolist()), 0
    partner = dict(zip(subsets.candidate.tolist(), subsets.independent.tolist()))
    for of_f, of_g, views, others in zip(f.indices, g.indices, f.views, g.views):
        for slot, (one, other) in enumerate(zip(of_f.tolist(), of_g.tolist())):
            # the j-th independent stands in the place of the j-th candidate
            assert other == partner.get(one, one)
            are_equal = [torch.equal(v.pixels[slot], w.pixels[slot]) for v, w in zip(views, others)]
            assert all(are_equal) if one in shared else not are_equal[0]
            met += one in shared
    assert met > 50


def test_shared_images_meet_the_same_masks_and_no_two_epochs_do(tmp_path):
    f, g, subsets = watch_training(tmp_path, METHODS["mae"].changes, method="mae")
    shared, masks = set(subsets.shared.tolist()), {}
    for indices, (of_f,), (of_g,) in zip(f.indices, f.views, g.views):
        for index, mask, other in zip(indices.tolist(), of_f.visible, of_g.visible):
            masks.setdefault(index, set()).add(tuple(mask.tolist()))
            assert torch.equal(mask, other) == (index in shared)
    assert max(len(drawn) for drawn in masks.values()) == 3  # epochs


def test_an_epoch_meets_every_image_at_most_once_and_no_two_epochs_are_alike(watched_pair):
    f, _, subsets = watched_pair
    epochs = [torch.cat(f.indices[3 * e : 3 * e + 3]).tolist() for e in range(3)]
    training_set = set(subsets.training_set("candidate").tolist())
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 48 and set(epoch) <= training_set
    assert epochs[0] != epochs[1] != epochs[2]
    first, second = f.views[0]
    assert not torch.equal(first.pixels, second.pixels)


def test_rates_are_scaled_by_the_batch_and_warmed_up_over_epochs(tmp_path):
    changes = {"training.base_batch_size": 8, "training.warmup_epochs": 1}
    rates = [rate for rate, *_ in watch_training(tmp_path, changes)[0].rates]
    # 0.01 x 16 / 8, over the 3 steps of one epoch
    assert rates[:4] == pytest.approx([0.02 / 3, 0.04 / 3, 0.02, 0.02])
    assert rates[-1] == pytest.approx(0.02 * 0.5 * (1 + math.cos(math.pi * 5 / 6)))


def test_the_gradient_is_clipped_if_a_bound_is_set(write_config, tmp_path, watch_adamw):
    path, gradients = write_config({"training.epochs": 1}), []
    watch_adamw(lambda weights: gradients.append(torch.cat([w.grad.flatten() for w in weights])))
    train(path)
    train(path, "--run", str(tmp_path / "clipped"), "--training.clip_gradient", "0.001")
    norms = [gradient.norm().item() for gradient in gradients]
    assert min(norms[:6]) > 0.01 and max(norms[6:]) == pytest.approx(0.001, rel=1e-3)


@pytest.fixture
def measure(write_config):
    """measure(images, role, epoch=2) -> the subsets, and what is measured of the identity."""
    changes = {"training.knn_every": 2, "data.size": 8, "augmentation.views": [{"size": 8}]}
    config = read_config("", ["--config", write_config(changes)], method=SimCLRSettings)

    def measure_identity(images, role, epoch=2):
        subsets = draw_subsets(config.subsets, images)
        task = Task(config, images, subsets, torch.device("cpu"), config.folder, 0, role)
        return subsets, measure_encoder(FlatPixels(), two_views()[0], task, epoch)

    return measure_identity


@pytest.mark.parametrize("role", ROLES)
def test_knn_accuracy_is_of_external_images_among_the_labelled_training_images(role, measure):
    normalization = {"mean": (0.1, 0.5, 0.9), "std": (0.2, 0.3, 0.4)}
    images = dataclasses.replace(fake_images(), **normalization)
    images.train.labels[::3] = -1
    images.train.labels[60:] = 9  # no image of the independents may vote for f
    subsets, measured = measure(images, role)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalization.values())
    queries, bank = subsets.external, subsets.training_set(role)
    bank = bank[images.train.labels[bank] >= 0]
    pixels = (images.test.pixels[queries], images.train.pixels[bank])
    of_queries, of_bank = (((each / 255 - mean) / std).flatten(1) for each in pixels)
    similarity = torch.cosine_similarity(of_queries[:, None], of_bank[None], dim=2)
    votes = images.train.labels[bank][similarity.topk(20).indices]
    predictions = torch.stack([row.bincount().argmax() for row in votes])
    expected = (predictions == images.test.labels[queries]).float().mean().item()
    assert measured["knn_accuracy"] == pytest.approx(expected) and expected > 0
    assert measured["spread"] == pytest.approx(spread(two_views()[0].pixels.flatten(1)).item())
    assert measure(images, role, epoch=3)[1]["knn_accuracy"] is None


def test_images_of_one_class_have_no_knn_accuracy(measure):
    """It would be 100 %."""
    images = fake_images()
    images.train.labels[:56] = 3  # those of f
    of_f, of_g = (measure(images, role)[1]["knn_accuracy"] for role in ROLES)
    assert of_f is None and 0 <= of_g < 1


FEW_HUNDRED = {
    "subsets.shared": 192, "subsets.candidate": 64, "subsets.independent": 64,
    "training.batch_size": 64, "training.epochs": 8, "training.learning_rate": 0.003,
    "training.knn_every": 1,
}  # fmt: skip
MILD_CROPS = {
    "augmentation.views": EXPERIMENT["augmentation"]["views"],
    "encoder": EXPERIMENT["encoder"] | {"width": 16},
}
LEARNING = {  # of methods that do not learn from two mild crops as they are
    "mae": {
        "augmentation.views": [{"size": 16, "mask_ratio": 0.25}],
        "encoder": {"name": "vit_mini", "width": 64, "depth": 1, "patch": 8},
        "method.decoder_dim": 32,
        "training.batch_size": 32,
        "training.epochs": 40,
    },
    # else the loss rises at first: a teacher that is surer than its student spreads over prototypes
    "dino": MILD_CROPS | {"method.head_norm": "batch", "method.teacher_temperature": 0.1},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_from_a_few_hundred_images_without_collapse(method, write_config, tmp_path):
    small = make_tiny(first_config(method), METHODS[method].schema, most=64)
    changes = small | FEW_HUNDRED | LEARNING.get(method, MILD_CROPS)
    train(write_config(changes), "--role", "candidate", method=method)
    log = log_of(tmp_path / "run")
    losses = [line["loss"] for line in log]
    assert losses[0] - losses[-1] > 0.02 * max(1.0, abs(losses[0]))
    assert log[-1]["spread"] > 0.5  # 1 is the most, and 0 a collapse
    assert log[-1]["knn_accuracy"] > 0.3  # of ten classes


def test_spread_is_0_for_a_point_and_1_for_all_directions():
    assert spread(torch.ones(8, 5)).item() == pytest.approx(0, abs=1e-6)
    directions = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert spread(directions).item() == pytest.approx(1, abs=0.02)
