"""A linear classifier on frozen representations: a grid of them trained at once, and the best one
chosen on held-out images.
"""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from memorization.data.randomness import permutation
from memorization.errors import WrongUse
from memorization.machine.device import to_device
from memorization.measuring.representations import Examples, varying_dimensions
from memorization.normalization import moderate_scales
from memorization.optimizers import StackedOptimizer, schedule

VALIDATION_SHARE = 0.1  # of the training images: they choose learning rate and weight decay


def fit_probe(train, classes, settings, seed):
    """Train a linear classifier. Its learning rate and weight decay are chosen on a tenth of the
    images; then it is trained on all of them.

    The pair of the grid with the least cross entropy is chosen: on a few hundred images accuracy is
    too coarse to choose by. train: Examples; settings: ProbeSettings. Returns (classifier, choice):
    classifier maps (N, D) to (N, classes) logits; choice is a dict of plain types. Raises WrongUse
    if the classifier diverges, or if all representations are alike.
    """
    standardize = Standardization(train.values)
    train = Examples(standardize(train.values), train.labels)
    held_out = round(VALIDATION_SHARE * len(train.labels))
    order = to_device(permutation(len(train.labels), seed, "probing"), train.labels.device)
    validation, rest = train[order[:held_out]], train[order[held_out:]]
    grid = [(rate, decay) for rate in settings.learning_rates for decay in settings.weight_decays]
    layers = train_layers(rest, classes, settings, grid, seed)
    losses = [F.cross_entropy(layer(validation.values), validation.labels) for layer in layers]
    losses = torch.stack(losses).tolist()
    best = min(range(len(grid)), key=lambda i: losses[i] if np.isfinite(losses[i]) else np.inf)
    rate, decay = grid[best]
    (layer,) = train_layers(train, classes, settings, [(rate, decay)], seed)
    if not (layer.weight.isfinite().all() and layer.bias.isfinite().all()):
        diverged = f"the linear layer diverged at {rate}, with weight decay {decay}"
        raise WrongUse(f"probe.learning_rates: {diverged}; take less")
    choice = {"learning_rate": rate, "weight_decay": decay, "validation_loss": losses[best]}
    return nn.Sequential(standardize, layer), choice


class Standardization(nn.Module):
    """Representations (N, D) less the mean of some, divided by their standard deviation. Dimensions
    that vary by rounding alone are only centred.

    Raises WrongUse if no dimension varies.
    """

    def __init__(self, values):
        super().__init__()
        self.scale = moderate_scales(values)
        deviation, self.mean = torch.std_mean(values * self.scale, dim=0)
        varies = varying_dimensions(values)
        self.deviation = torch.where(varies, deviation, 1.0)

    def forward(self, values):
        return (values * self.scale - self.mean) / self.deviation


def train_layers(train, classes, settings, grid, seed):
    """Train a linear layer for each (learning rate, weight decay) of a grid, all on the same
    batches. train: Examples, standardized.
    """
    N, D = train.values.shape
    batch_size = max(1, min(settings.batch_size, N // 4))
    device = train.values.device
    # All layers in one tensor: a GPU would wait for the host to call operations on each by itself.
    weight = torch.zeros(len(grid), classes, D, device=device, requires_grad=True)
    bias = torch.zeros(len(grid), classes, device=device, requires_grad=True)
    rates, decays = ([float(value) for value in values] for values in zip(*grid))
    rates = [rate * (batch_size / settings.batch_size) for rate in rates]
    of_weight = StackedOptimizer(weight.detach(), rates, decays, settings)
    of_bias = StackedOptimizer(bias.detach(), rates, [0.0] * len(grid), settings, adapt=False)
    steps_per_epoch = N // batch_size
    steps, warmup = settings.epochs * steps_per_epoch, settings.warmup_epochs * steps_per_epoch
    for epoch in range(settings.epochs):
        order = permutation(N, seed, "probing", epoch=1 + epoch)
        batches = to_device(order, device).split(batch_size)[:steps_per_epoch]
        for i, rows in enumerate(batches):
            batch = train[rows]
            logits = F.linear(batch.values, weight.flatten(0, 1), bias.flatten())  # (B, G classes)
            labels = batch.labels[:, None].expand(-1, len(grid)).flatten()  # (B G,)
            losses = F.cross_entropy(logits.view(-1, classes), labels, reduction="none")
            loss = losses.view(-1, len(grid)).mean(0).sum()
            gradients = torch.autograd.grad(loss, [weight, bias])
            share = schedule(epoch * steps_per_epoch + i, steps, warmup)
            for optimizer, gradient in zip((of_weight, of_bias), gradients):
                optimizer.step(gradient, share)
    return [_linear_layer(*parameters) for parameters in zip(weight.detach(), bias.detach())]


def _linear_layer(weight, bias):
    """A frozen linear layer. weight: (classes, D); bias: (classes,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device).requires_grad_(False)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer


def accuracies(logits, labels):
    """Shares of rows whose label has the largest logit, and one of the five largest if there are
    more than five classes.

    logits: (N, classes); labels: (N,). Returns {"top_1": float, "top_5": float}.
    """
    shares = {"top_1": (logits.argmax(1) == labels).float().mean()}
    if logits.shape[1] > 5:
        shares["top_5"] = (logits.topk(5, dim=1).indices == labels[:, None]).any(1).float().mean()
    return dict(zip(shares, torch.stack(list(shares.values())).tolist()))


def confusion_matrix(predictions, labels, classes):
    """How often each label (row) was predicted as each class (column), (classes, classes) int64."""
    cells = torch.bincount(classes * labels + predictions, minlength=classes**2)
    return cells.view(classes, classes)
