"""Optimizers by name, parameter groups, and the schedule of the learning rate."""

import math
from typing import Annotated

import torch
from pydantic import Field

from memorization.machine.device import to_device
from models.settings import Settings

ADAM_EPS = 1e-8  # torch's default


class OptimizerSettings(Settings):
    """Settings of an optimizer beside its name, learning rate and weight decay."""

    momentum: float = Field(0.9, ge=0, lt=1, description="sgd and lars: momentum")
    betas: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)
    ] = Field([0.9, 0.999], description="adamw: decay of the two moments")
    lars_eta: float = Field(0.001, gt=0, description="lars: trust coefficient")
    lars_clip: bool = Field(False, description="lars: never step further than the plain rate would")


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888), on top of SGD with
    momentum.

    Each weight takes steps in proportion to its own norm: its rate is lr x eta ||w|| / (||g|| +
    weight_decay ||w||), with clip at most lr. Groups with `adapt` false (usually biases and norms)
    take plain momentum steps.
    """

    def __init__(self, groups, lr, momentum, weight_decay, eta, clip):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(groups, defaults | {"eta": eta, "clip": clip, "adapt": True})

    @torch.no_grad()
    def step(self):
        """One step on every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._step_all(parameters, group)

    def _step_all(self, parameters, group):
        gradients = [parameter.grad for parameter in parameters]
        updates = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
        if group["adapt"]:
            weight_norms, gradient_norms = (
                torch.stack(torch._foreach_norm(tensors)) for tensors in (parameters, gradients)
            )
            norms = gradient_norms + group["weight_decay"] * weight_norms
            trust = group["eta"] * weight_norms / norms
            trust = torch.where((weight_norms > 0) & (gradient_norms > 0), trust, 1.0)
            if group["clip"]:
                trust = (trust / group["lr"]).clamp(max=1.0)
            torch._foreach_mul_(updates, list(trust))
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, updates)
        torch._foreach_add_(parameters, momenta, alpha=-group["lr"])


class StackedOptimizer:
    """SGD, AdamW or LARS for G layers in one tensor.

    layers: (G, ...), changed in place; learning_rates, weight_decays: G floats, one for each layer;
    settings: OptimizerSettings with `optimizer`; adapt: see LARS. Except for rounding, each layer
    is trained as `optimizer_of` would train it alone.
    """

    def __init__(self, layers, learning_rates, weight_decays, settings, adapt=True):
        def column(values):
            values = torch.tensor(values, dtype=torch.float64).view(-1, *[1] * (layers.ndim - 1))
            return to_device(values, layers.device)

        self.layers, self.settings, self.adapt = layers, settings, adapt
        self.rates, self.decays = column(learning_rates), column(weight_decays).to(layers.dtype)
        self.momentum, self.squares, self.steps = torch.zeros_like(layers), None, 0

    @torch.no_grad()
    def step(self, gradient, share):
        """One step. gradient: (G, ...); share: of the learning rates, see `schedule`."""
        rates = (share * self.rates).to(self.layers.dtype)
        steps = {"sgd": self._sgd_step, "lars": self._lars_step, "adamw": self._adamw_step}
        steps[self.settings.optimizer](gradient, rates)

    def _sgd_step(self, gradient, rates):
        self._descend(torch.addcmul(gradient, self.decays, self.layers), rates)

    def _lars_step(self, gradient, rates):
        updates = torch.addcmul(gradient, self.decays, self.layers)
        if self.adapt:
            norms, gradient_norms = (
                torch.linalg.vector_norm(x.flatten(1), dim=1).view_as(rates)
                for x in (self.layers, gradient)
            )
            trust = self.settings.lars_eta * norms / (gradient_norms + self.decays * norms)
            trust = torch.where((norms > 0) & (gradient_norms > 0), trust, 1.0)
            updates *= (trust / rates).clamp(max=1.0) if self.settings.lars_clip else trust
        self._descend(updates, rates)

    def _descend(self, updates, rates):
        self.momentum.mul_(self.settings.momentum).add_(updates)
        self.layers.addcmul_(rates, self.momentum, value=-1)

    def _adamw_step(self, gradient, rates):
        first, second = self.settings.betas
        self.steps += 1
        self.squares = torch.zeros_like(self.layers) if self.squares is None else self.squares
        self.layers.mul_(1 - rates * self.decays)
        self.momentum.lerp_(gradient, 1 - first)
        self.squares.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        deviations = self.squares.sqrt().div_((1 - second**self.steps) ** 0.5).add_(ADAM_EPS)
        self.layers.addcmul_(rates / (1 - first**self.steps), self.momentum / deviations, value=-1)


def make_optimizer(method, settings):
    """The optimizer of a method. settings: the config's `training:` section."""
    if hasattr(method, "parameter_groups"):
        groups = method.parameter_groups()
    else:
        groups = [{"params": method.parameters()}]
    parts = [part for group in groups for part in split_group(group, settings.optimizer)]
    parts = [{"weight_decay": settings.weight_decay, **part} for part in parts]
    return optimizer_of(parts, scaled_learning_rate(settings), settings)


def optimizer_of(groups, learning_rate, settings):
    """The optimizer that settings.optimizer names. groups: of parameters, each with its
    weight_decay; settings: OptimizerSettings.
    """
    return OPTIMIZERS[settings.optimizer](groups, learning_rate, settings)


OPTIMIZERS = {
    "sgd": lambda groups, lr, s: torch.optim.SGD(groups, lr=lr, momentum=s.momentum),
    "adamw": lambda groups, lr, s: torch.optim.AdamW(groups, lr=lr, betas=tuple(s.betas)),
    "lars": lambda groups, lr, s: LARS(groups, lr, s.momentum, 0.0, s.lars_eta, s.lars_clip),
}


def split_group(group, optimizer):
    """A group of parameters as two: weights; and biases and norms, which have no decay, and no
    adaptation by LARS. Both keep the group's other keys. Parameters without gradient are left out.

    group: as of a method's parameter_groups(); one with a weight_decay is not split; optimizer: the
    name of the optimizer.
    """
    if "weight_decay" in group:
        return [group]
    trained = [parameter for parameter in group["params"] if parameter.requires_grad]
    weights = {**group, "params": [parameter for parameter in trained if parameter.ndim > 1]}
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    plain = {**group, "params": vectors, "weight_decay": 0.0}
    if optimizer == "lars":
        plain["adapt"] = False
    return [part for part in (weights, plain) if part["params"]]


def scaled_learning_rate(settings):
    """The learning rate for the batch size in use."""
    if settings.base_batch_size is None:
        return settings.learning_rate
    return settings.learning_rate * settings.batch_size / settings.base_batch_size


def schedule(step, steps, warmup_steps):
    """Share of the learning rate in a step: linear warm-up to 1, then half a cosine towards 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))


def set_learning_rate(optimizer, rate, full_rate):
    """Set the rate of every group.

    A group's `lr_scale` multiplies its rate. A group with `constant_lr` takes the full rate.
    """
    for group in optimizer.param_groups:
        group["lr"] = group.get("lr_scale", 1.0) * (full_rate if group.get("constant_lr") else rate)
