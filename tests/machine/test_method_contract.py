"""What the training loop calls of a method, by the contract in models/__init__.py."""

import pytest
import torch.nn as nn
from conftest import METHODS, TINY_TRAINING

from benchmarks.training import all_cases, find_method
from memorization.config import read_config
from memorization.data.images import open_images
from memorization.optimizers import make_optimizer, set_learning_rate
from memorization.training import train_pair
from models.encoders import make_encoder
from models.simclr import SimCLR, SimCLRSettings


def test_a_method_may_bring_its_own_groups():
    model = nn.Linear(2, 2)
    slow = {"params": [model.weight], "lr_scale": 0.1}
    model.parameter_groups = lambda: [slow, {"params": [model.bias], "constant_lr": True}]
    optimizer = make_optimizer(model, TINY_TRAINING)
    set_learning_rate(optimizer, rate=0.5, full_rate=2.0)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.05), 2.0]


def parameters_and_settings(optimizer, *keys):
    """Of each group of an optimizer: the shapes of its parameters, and the values of some keys."""
    return [
        ([tuple(p.shape) for p in group["params"]], *(group.get(key) for key in keys))
        for group in optimizer.param_groups
    ]


def test_a_group_that_says_no_decay_is_split_into_weights_and_the_rest():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 4))
    model[2].weight.requires_grad_(False)
    groups = [
        {"params": model[:2].parameters(), "constant_lr": True},
        {"params": [model[2].weight, model[2].bias]},
    ]
    model.parameter_groups = lambda: groups
    settings = TINY_TRAINING.model_copy(update={"optimizer": "lars", "weight_decay": 0.1})
    optimizer = make_optimizer(model, settings)
    keys = "weight_decay", "adapt", "constant_lr"
    assert parameters_and_settings(optimizer, *keys) == [
        ([(2, 3)], 0.1, True, True),
        ([(2,), (2,), (2,)], 0.0, False, True),
        ([(4,)], 0.0, False, None),  # the weight has no gradient
    ]


def test_a_group_that_says_its_decay_stays_whole():
    model = nn.Linear(3, 2)
    model.parameter_groups = lambda: [{"params": model.parameters(), "weight_decay": 0.3}]
    settings = TINY_TRAINING.model_copy(update={"optimizer": "lars", "weight_decay": 0.1})
    optimizer = make_optimizer(model, settings)
    assert parameters_and_settings(optimizer, "weight_decay", "adapt") == [
        ([(2, 3), (2,)], 0.3, True)
    ]


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_one_group_of_all_parameters_is_trained_as_a_method_without_groups(name):
    settings = TINY_TRAINING.model_copy(update={"optimizer": name, "weight_decay": 0.1})
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    without = make_optimizer(model, settings).state_dict()
    model.parameter_groups = lambda: [{"params": model.parameters()}]
    assert repr(make_optimizer(model, settings).state_dict()) == repr(without)


class Hooked(SimCLR):
    """A method that uses every optional part of the contract."""

    calls, rates = [], []

    def parameter_groups(self):
        slow = {"params": self.encoder.parameters(), "lr_scale": 0.5}
        return [slow, {"params": self.projector.parameters()}]

    def before_step(self, progress, optimizer):
        assert all(p.grad is not None for p in self.parameters())
        scales = [
            (group.get("lr_scale"), group["weight_decay"]) for group in optimizer.param_groups
        ]
        assert scales == [(0.5, 0.1), (0.5, 0.0), (None, 0.1), (None, 0.0)]
        self.calls.append(("before", progress))
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def after_step(self, progress):
        self.calls.append(("after", progress))

    def pictures(self, views):
        return {"first view": views[0].pixels[:4], "second view": views[1].pixels[:4]}


def test_the_loop_calls_the_optional_parts_of_a_method(write_config):
    changes = {"training.epochs": 1, "training.pictures_every": 1, "training.weight_decay": 0.1}
    path = write_config(changes)
    config = read_config("", ["--config", path], method=SimCLRSettings)

    def make_method():
        return Hooked(make_encoder(config.encoder, 3, 16), **config.method.arguments())

    train_pair(make_method, open_images(config.data), config)
    assert Hooked.calls == 2 * [(when, k / 3) for k in range(3) for when in ("before", "after")]
    assert Hooked.rates[0] == [0.005, 0.005, 0.01, 0.01]
    assert (config.folder / "seed_0/candidate/pictures_epoch_0001.png").stat().st_size > 1000


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_method_is_timed(device):
    assert {case.method for case in all_cases(device)} == METHODS.keys()
    for name, method in METHODS.items():
        assert find_method(name) == (method.module, method.schema)
