import math

import pytest
import torch
import torch.nn as nn

from memorization.optimizers import LARS, make_optimizer, schedule
from memorization.settings import TrainingSettings


def training(**changes):
    settings = {"epochs": 10, "batch_size": 512, "optimizer": "sgd", "learning_rate": 0.06}
    return TrainingSettings(**settings | changes)


def linear_with_norm():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def lars_on(values, gradient, momentum=0.0, weight_decay=0.0, clip=False):
    """A parameter that has a gradient, and the LARS that trains it."""
    parameter = nn.Parameter(torch.tensor([values]))
    parameter.grad = torch.tensor([gradient])
    return parameter, LARS([parameter], 0.5, momentum, weight_decay, eta=0.01, clip=clip)


def test_lars_takes_two_steps_as_in_the_paper():
    w, optimizer = lars_on([3.0, 4.0], [0.0, 2.0], momentum=0.9, weight_decay=0.1)  # norms 5 and 2
    optimizer.step()
    trust = 0.01 * 5 / (2 + 0.1 * 5)
    velocity = torch.tensor([[0.3, 2.4]]) * trust  # gradient + weight_decay w
    after_one = torch.tensor([[3.0, 4.0]]) - 0.5 * velocity
    assert torch.allclose(w, after_one)
    optimizer.step()
    norm = after_one.norm()
    trust = 0.01 * norm / (2 + 0.1 * norm)
    velocity = 0.9 * velocity + trust * (torch.tensor([[0.0, 2.0]]) + 0.1 * after_one)
    assert torch.allclose(w, after_one - 0.5 * velocity)


@pytest.mark.parametrize("weight, gradient, clip", [
    (400.0, 0.01, True),  # eta ||w|| / ||g|| = 500, far above 1
    (400.0, 6.25, True),  # 0.8, above the rate alone
    (0.0, 2.0, False),
])  # fmt: skip
def test_lars_takes_a_plain_step_if_it_is_clipped_or_a_norm_is_zero(weight, gradient, clip):
    w, optimizer = lars_on([0.75 * weight, weight], [0.0, gradient], clip=clip)
    optimizer.step()
    assert torch.allclose(w, torch.tensor([[0.75 * weight, weight - 0.5 * gradient]]))


def test_lars_leaves_biases_and_norms_unadapted():
    model, settings = linear_with_norm(), {"momentum": 0.0, "base_batch_size": None}
    optimizer = make_optimizer(model, training(optimizer="lars", weight_decay=0.1, **settings))
    weights, plain = optimizer.param_groups
    assert [p.ndim for p in weights["params"]] == [2] and len(plain["params"]) == 3
    assert plain["adapt"] is False and plain["weight_decay"] == 0
    bias, before = model[0].bias, model[0].bias.detach().clone()
    bias.grad = torch.ones_like(bias)
    optimizer.step()
    assert torch.allclose(bias, before - 0.06)


@pytest.mark.parametrize("settings, expected", [
    ({"optimizer": "sgd", "momentum": 0.7}, {"momentum": 0.7, "nesterov": False}),
    ({"optimizer": "adamw", "betas": [0.8, 0.95]}, {"betas": (0.8, 0.95)}),
    ({"optimizer": "lars", "momentum": 0.7, "lars_eta": 0.02, "lars_clip": True},
     {"momentum": 0.7, "eta": 0.02, "clip": True}),
])  # fmt: skip
def test_an_optimizer_follows_its_settings(settings, expected):
    optimizer = make_optimizer(nn.Linear(2, 2), training(base_batch_size=128, **settings))
    for group in optimizer.param_groups:
        assert expected.items() <= group.items() and group["lr"] == pytest.approx(0.24)


def test_biases_and_norms_are_not_decayed():
    for name in ("sgd", "adamw"):
        optimizer = make_optimizer(linear_with_norm(), training(optimizer=name, weight_decay=0.1))
        decays = [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        assert decays == [(1, 0.1), (3, 0.0)]


def test_an_optimizer_holds_every_trained_parameter_once():
    model = nn.Sequential(*linear_with_norm(), nn.Linear(2, 2).requires_grad_(False))
    groups = make_optimizer(model, training()).param_groups
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_learning_rate_is_scaled_by_batch_size():
    for base, rate in ((128, pytest.approx(0.24)), (None, 0.06)):
        optimizer = make_optimizer(nn.Linear(2, 2), training(base_batch_size=base))
        assert [group["lr"] for group in optimizer.param_groups] == [rate, rate]


def test_schedule_warms_up_linearly_and_ends_as_a_cosine():
    shares = [schedule(step, steps=10, warmup_steps=4) for step in range(10)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert shares[7] == pytest.approx(0.5)
    assert shares[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 5 / 6)))
    assert schedule(0, steps=10, warmup_steps=0) == 1.0
