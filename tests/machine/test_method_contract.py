"""What the training loop calls of a method, by the contract in models/__init__.py."""

import pytest
import torch.nn as nn
from conftest import TINY_TRAINING

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


class Hooked(SimCLR):
    """A method that uses every optional part of the contract."""

    calls, rates = [], []

    def parameter_groups(self):
        slow = {"params": self.encoder.parameters(), "lr_scale": 0.5}
        return [slow, {"params": self.projector.parameters()}]

    def before_step(self, progress, optimizer):
        assert all(p.grad is not None for p in self.parameters())
        assert [group.get("lr_scale") for group in optimizer.param_groups] == [0.5, None]
        self.calls.append(("before", progress))
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def after_step(self, progress):
        self.calls.append(("after", progress))

    def pictures(self, views):
        return {"first view": views[0].pixels[:4], "second view": views[1].pixels[:4]}


def test_the_loop_calls_the_optional_parts_of_a_method(write_config):
    path = write_config({"training.epochs": 1, "training.pictures_every": 1})
    config = read_config("", ["--config", path], method=SimCLRSettings)

    def make_method():
        return Hooked(make_encoder(config.encoder, 3, 16), **config.method.arguments())

    train_pair(make_method, open_images(config.data), config)
    assert Hooked.calls == 2 * [(when, k / 3) for k in range(3) for when in ("before", "after")]
    assert Hooked.rates[0] == [0.005, 0.01]
    assert (config.folder / "seed_0/candidate/pictures_epoch_0001.png").stat().st_size > 1000
