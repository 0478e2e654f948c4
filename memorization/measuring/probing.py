"""Linear probes: how well a linear layer, or the nearest neighbours, tell classes apart in frozen
representations.
"""

import copy
from typing import Annotated, ClassVar, Literal

import numpy as np
import pydantic
import torch
import torch.nn as nn
import torch.nn.functional as F
from pydantic import Field
from tqdm import tqdm

from memorization.data.augmentations import whole_images
from memorization.data.catalogue import IN_FILES, OF_TORCHVISION
from memorization.data.randomness import permutation
from memorization.data.subsets import first_by_hash
from memorization.errors import WrongUse
from memorization.fields import MOST_EPOCHS, Distinct, Rate, Seed
from memorization.machine import processes
from memorization.machine.device import to_device
from memorization.measuring.representations import (
    ENCODING_BATCH,
    Examples,
    in_channels,
    stored_examples,
    varying_dimensions,
)
from memorization.neighbors import knn_accuracy
from memorization.normalization import moderate_scales
from memorization.optimizers import OptimizerSettings, StackedOptimizer, schedule, set_learning_rate
from memorization.significance import mean_and_spread

VALIDATION_SHARE = 0.1  # of the training images: they choose learning rate and weight decay
FEWEST = 10  # labelled training images, of which one is held out
# the kNN accuracies beside the probe's
NEIGHBORS = {"knn_20": {"k": 20}, "knn_200": {"k": 200, "temperature": 0.1}}


class ProbeSettings(OptimizerSettings):
    datasets: Annotated[list[Literal[tuple(OF_TORCHVISION)]], Distinct] = Field(
        [], description="the probed datasets, looked for in data.root; [] for the one of training"
    )
    seeds: Annotated[list[Seed], Field(min_length=1), Distinct] = Field(
        [0, 1, 2], description="each seed trains one probe"
    )
    train_images: int | None = Field(
        None,
        ge=200,
        description="probe with so many training images only, the first by hash; null for all",
    )
    epochs: int = Field(90, ge=1, le=MOST_EPOCHS, description="passes over the training images")
    batch_size: int = Field(
        4096, ge=1, description="images a step; a quarter of the training images where that is less"
    )
    optimizer: Literal["sgd", "adamw", "lars"] = Field("lars", description="the optimizer")
    learning_rates: Annotated[list[Rate], Field(min_length=1, max_length=100), Distinct] = Field(
        [1.6, 6.4, 25.6],
        description="learning rates to choose from, for batch_size; less where the batch is less",
    )
    weight_decays: Annotated[
        list[Annotated[float, Field(ge=0)]], Field(min_length=1, max_length=100), Distinct
    ] = Field([0.0, 0.001, 0.003, 0.01, 0.03], description="weight decays to choose from")
    warmup_epochs: int = Field(10, ge=0, description="epochs of linear warm-up, before the cosine")
    fine_tune: bool = Field(False, description="train all weights, not the linear layer alone")
    fine_tune_epochs: int = Field(
        30, ge=1, le=MOST_EPOCHS, description="fine_tune: passes over the training images"
    )
    fine_tune_batch_size: int = Field(
        256,
        ge=1,
        description="fine_tune: images a step; a quarter of the training images where that is less",
    )
    fine_tune_learning_rate: Rate = Field(0.001, description="fine_tune: learning rate of AdamW")

    @pydantic.model_validator(mode="after")
    def _warmup_within_the_epochs(self):
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}, but must be less than epochs ({self.epochs})"
            )
        return self

    PLAIN: ClassVar = {"fine_tune": False}  # see ScoreSettings

    def determining(self):
        """The names of the settings that determine the numbers of a result."""
        names = ["fine_tune", "datasets", "seeds", "train_images"]
        if self.fine_tune:
            names += ["fine_tune_epochs", "fine_tune_batch_size", "fine_tune_learning_rate"]
            return names
        names += ["epochs", "batch_size", "optimizer", "learning_rates", "weight_decays"]
        of_optimizer = {
            "sgd": ["momentum"],
            "lars": ["momentum", "lars_eta", "lars_clip"],
            "adamw": ["betas"],
        }
        return [*names, "warmup_epochs", *of_optimizer[self.optimizer]]


def probe(encoder, images, settings, cache, device):
    """What a linear layer and nearest neighbours find in an encoder's representations of a dataset, a
    dict of plain types.

    images: of open_images; settings: the config's `probe:` section; cache: folder in which
    representations are kept, or None. The layer is trained on the labelled training images, or
    `train_images` of them, once for each of `seeds`; the test images are met once for each. Raises
    WrongUse where labels are missing, representations are not finite or all alike, or the layer
    diverges.
    """
    train, test = (
        stored_examples(encoder, split, rows, cache, device)
        for split, rows in probed_rows(images, settings)
    )
    classes = len(images.classes)

    def probed(seed):
        layer, choice = fit_probe(train, classes, settings, seed)
        logits = layer(test.values)
        confusion = confusion_matrix(logits.argmax(1), test.labels, classes).cpu()
        return {"seed": seed, **choice}, accuracies(logits, test.labels), confusion

    choices, shares, confusions = zip(*processes.map_parts(probed, settings.seeds, "probing"))
    result = {
        "train_images": len(train.labels),
        "test_images": len(test.labels),
        "classes": list(images.classes),
    }
    result["seeds"] = [choice | of_seed for choice, of_seed in zip(choices, shares)]
    for name in shares[0]:
        result[name] = mean_and_spread([of_seed[name] for of_seed in shares])
    confusion = sum(confusions)
    tested = confusion.sum(1)
    result["per_class"] = [
        share if n else None
        for share, n in zip((confusion.diagonal() / tested).tolist(), tested.tolist())
    ]
    result["confusion"] = confusion.tolist()  # [label][prediction], summed over the seeds
    for name, rule in NEIGHBORS.items():
        if rule["k"] > len(train.labels):
            continue  # all images would vote for every query
        result[name] = knn_accuracy(test.values, test.labels, train.values, train.labels, **rule)
    return result


def fit_probe(train, classes, settings, seed):
    """A linear layer that tells classes apart, its learning rate and weight decay chosen on a tenth
    of the images, then trained on all.

    The pair of the grid with the least cross entropy is chosen: on a few hundred images accuracy is
    too coarse to choose by. train: Examples. Returns (layer, choice): layer maps (N, D) to (N,
    classes) logits; choice is a dict of plain types.
    """
    standardize = Standardization(train.values)
    train = Examples(standardize(train.values), train.labels)
    held_out = round(VALIDATION_SHARE * len(train.labels))
    order = to_device(permutation(len(train.labels), seed, "probing"), train.labels.device)
    validation, rest = train[order[:held_out]], train[order[held_out:]]
    grid = [(rate, decay) for rate in settings.learning_rates for decay in settings.weight_decays]
    tried = train_layers(rest, classes, settings, grid, seed)
    losses = [F.cross_entropy(layer(validation.values), validation.labels) for layer in tried]
    losses = torch.stack(losses).tolist()
    best = min(range(len(grid)), key=lambda i: losses[i] if np.isfinite(losses[i]) else np.inf)
    (layer,) = train_layers(train, classes, settings, grid[best : best + 1], seed)
    if not (layer.weight.isfinite().all() and layer.bias.isfinite().all()):
        raise WrongUse(
            f"probe.learning_rates: the linear layer diverged at {grid[best][0]}, with weight decay {grid[best][1]}; take less"
        )
    choice = {
        "learning_rate": grid[best][0],
        "weight_decay": grid[best][1],
        "validation_loss": losses[best],
    }
    return nn.Sequential(standardize, layer), choice


class Standardization(nn.Module):
    """(N, D) representations less the mean of some, over their standard deviation; dimensions that
    vary by rounding alone are only centred.

    Raises WrongUse where no dimension varies.
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
    """A linear layer for each (learning rate, weight decay) of a grid, all trained on the same
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
    """A frozen linear layer of a weight (classes, D) and a bias (classes,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device).requires_grad_(False)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer


def accuracies(logits, labels):
    """Shares of rows whose label has the largest logit, and is among the five largest where there
    are more classes than five.

    logits: (N, classes); labels: (N,). Returns {"top_1": float, "top_5": float}.
    """
    shares = {"top_1": (logits.argmax(1) == labels).float().mean()}
    if logits.shape[1] > 5:
        shares["top_5"] = (logits.topk(5, dim=1).indices == labels[:, None]).any(1).float().mean()
    return dict(zip(shares, torch.stack(list(shares.values())).tolist()))


def confusion_matrix(predictions, labels, classes):
    """(classes, classes) int64: how often each label, a row, was predicted as each class, a column."""
    return torch.bincount(classes * labels + predictions, minlength=classes**2).view(
        classes, classes
    )


# --- the probed data sets -------------------------------------------------------------------------


def probed_data(config):
    """The DataSettings of the probed data sets: those of `probe.datasets`, found where the training
    data are, or the training data.
    """
    if not config.probe.datasets:
        return [config.data]
    sizes = {name: config.augmentation.size for name in IN_FILES}
    return [
        config.data.model_copy(update={"name": name, "size": sizes.get(name)})
        for name in config.probe.datasets
    ]


def prepared_for_probing(images, settings):
    """The dataset from which all images that a probe uses can be gathered."""
    images = images.leave_out_broken(*(rows.numpy() for _, rows in probed_rows(images, settings)))
    return images.prepare(*(rows for _, rows in probed_rows(images, settings)))


def probed_rows(images, settings):
    """The labelled images of a dataset that a probe uses: [(training split, indices), (test split,
    indices)], indices (n,) int64.

    Raises WrongUse if there are none, too few, or images of one class alone.
    """
    rows = []
    for split, count in ((images.train, settings.train_images), (images.test, None)):
        labelled = images.keep(split.name, np.flatnonzero(split.labels.numpy() >= 0))
        if len(labelled) == 0:
            raise WrongUse(
                f"probe.datasets: {images.name} has no labelled {split.name} image; a probe needs labels"
            )
        rows.append((split, torch.from_numpy(np.sort(first_by_hash(labelled, count, split.name)))))
    labels = images.train.labels[rows[0][1]]
    if len(labels) < FEWEST:
        raise WrongUse(
            f"probe.datasets: {images.name} has {len(labels)} labelled training images; a probe needs {FEWEST} of them"
        )
    if labels.min() == labels.max():
        raise WrongUse(
            f"probe.datasets: the {len(labels)} labelled training images of {images.name} are of one class: nothing to tell"
        )
    return rows


# --- fine-tuning ----------------------------------------------------------------------------------


def fine_tune(encoder, images, settings, device):
    """What an encoder finds in a dataset once all its weights are trained with a linear layer on
    top, a dict of plain types.

    AdamW with `fine_tune_learning_rate` for `fine_tune_epochs`, half a cosine, weight decay 0.01,
    no augmentation; once for each seed.
    """
    runs = processes.map_parts(
        lambda seed: _fine_tune_once(encoder, images, settings, seed, device),
        settings.seeds,
        "fine-tuning",
    )
    shares = {
        name: mean_and_spread([run[name] for run in runs]) for name in runs[0] if name != "seed"
    }
    return {"classes": list(images.classes), "seeds": runs, **shares}


def _fine_tune_once(encoder, images, settings, seed, device):
    (train, train_rows), (test, test_rows) = (
        (in_channels(split, encoder.channels).to(device), rows)
        for split, rows in probed_rows(images, settings)
    )
    model = _train_all_weights(
        encoder, train, train_rows, len(images.classes), settings, seed, device
    )
    model.eval()
    with torch.inference_mode():
        views = (
            whole_images(test, rows, encoder.size, encoder.normalization).pixels
            for rows in test_rows.split(ENCODING_BATCH)
        )
        logits = torch.cat([model(pixels) for pixels in views])
    return {"seed": seed, **accuracies(logits, test.labels[test_rows].to(device))}


def _train_all_weights(encoder, train, train_rows, classes, settings, seed, device):
    """A copy of an encoder with a linear layer on top, both trained on some images of a split.

    Returns a module, (B, C, H, W) -> (B, classes).
    """
    network = copy.deepcopy(encoder.network).to(device)
    with torch.no_grad():  # still in eval mode, so that no batch norm takes note
        dim = network(
            whole_images(train, train_rows[:2], encoder.size, encoder.normalization).pixels
        ).shape[1]
    network.requires_grad_(True).train()
    layer = nn.Linear(dim, classes, device=device)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    model = nn.Sequential(network, layer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.fine_tune_learning_rate, weight_decay=0.01
    )
    batch_size = min(settings.fine_tune_batch_size, len(train_rows) // 4)
    steps_per_epoch = len(train_rows) // batch_size
    steps = settings.fine_tune_epochs * steps_per_epoch
    for step in tqdm(
        range(steps), desc=f"seed {seed}", leave=False, disable=processes.hidden_bar()
    ):
        epoch, i = divmod(step, steps_per_epoch)
        if i == 0:
            order = permutation(len(train_rows), seed, "probing", epoch=1 + epoch)
        rows = train_rows[order[i * batch_size : (i + 1) * batch_size]]
        set_learning_rate(
            optimizer,
            settings.fine_tune_learning_rate * schedule(step, steps, 0),
            settings.fine_tune_learning_rate,
        )
        logits = model(whole_images(train, rows, encoder.size, encoder.normalization).pixels)
        loss = F.cross_entropy(logits, to_device(train.labels[rows], device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return model
