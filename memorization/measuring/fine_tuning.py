"""Fine-tuning: how well an encoder tells classes apart once all its weights are trained."""

import copy

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from memorization.data.augmentations import whole_images
from memorization.data.randomness import permutation
from memorization.machine import processes
from memorization.machine.device import to_device
from memorization.measuring.linear_classifier import accuracies
from memorization.measuring.probing import ProbeResult, probed_rows
from memorization.measuring.representations import ENCODING_BATCH, in_channels
from memorization.optimizers import schedule, set_learning_rate
from memorization.significance import mean_and_spread

WEIGHT_DECAY = 0.01


def fine_tune(encoder, images, settings, device):
    """The ProbeResult of an encoder whose weights are all trained on a dataset, with a linear layer
    on top.

    settings: ProbeSettings. For each seed a copy of the encoder is trained by AdamW at
    `fine_tune_learning_rate` for `fine_tune_epochs`: half a cosine, no augmentation.
    """

    def accuracies_of(seed):
        return {"seed": seed, **_fine_tune_once(encoder, images, settings, seed, device)}

    runs = processes.map_in_processes(accuracies_of, settings.seeds, "fine-tuning")
    names = [name for name in runs[0] if name != "seed"]
    shares = {name: mean_and_spread([run[name] for run in runs]) for name in names}
    return ProbeResult(classes=list(images.classes), seeds=runs, **shares)


def _fine_tune_once(encoder, images, settings, seed, device):
    """The accuracies on the test images after one training, a dict."""
    (train, train_rows), (test, test_rows) = (
        (in_channels(split, encoder.channels).to(device), rows)
        for split, rows in probed_rows(images, settings)
    )
    model = _train_all_weights(encoder, train, train_rows, len(images.classes), settings, seed)
    model.eval()
    logits = []
    with torch.inference_mode():
        for rows in test_rows.split(ENCODING_BATCH):
            logits.append(model(_pixels(encoder, test, rows)))
    return accuracies(torch.cat(logits), test.labels[test_rows].to(device))


def _train_all_weights(encoder, train, train_rows, classes, settings, seed):
    """A copy of an encoder with a linear layer on top, both trained on some images of a split.

    Returns a module, (B, C, H, W) -> (B, classes).
    """
    model = _with_linear_layer(encoder, train, train_rows, classes)
    full_rate = settings.fine_tune_learning_rate
    optimizer = torch.optim.AdamW(model.parameters(), lr=full_rate, weight_decay=WEIGHT_DECAY)
    batch_size = min(settings.fine_tune_batch_size, len(train_rows) // 4)
    steps_per_epoch = len(train_rows) // batch_size
    steps = settings.fine_tune_epochs * steps_per_epoch
    bar = tqdm(range(steps), desc=f"seed {seed}", leave=False, disable=processes.hidden_bar())
    for step in bar:
        epoch, i = divmod(step, steps_per_epoch)
        if i == 0:
            order = permutation(len(train_rows), seed, "probing", epoch=1 + epoch)
        rows = train_rows[order[i * batch_size : (i + 1) * batch_size]]
        set_learning_rate(optimizer, full_rate * schedule(step, steps, 0), full_rate)
        logits = model(_pixels(encoder, train, rows))
        loss = F.cross_entropy(logits, to_device(train.labels[rows], train.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return model


def _with_linear_layer(encoder, split, rows, classes):
    """A copy of an encoder's network, to be trained, with a linear layer of zeros on top."""
    network = copy.deepcopy(encoder.network).to(split.device)
    with torch.no_grad():  # still in eval mode, so that batch norms keep their statistics
        dim = network(_pixels(encoder, split, rows[:2])).shape[1]
    layer = nn.Linear(dim, classes, device=split.device)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(network.requires_grad_(True).train(), layer)


def _pixels(encoder, split, rows):
    """Whole images as an encoder takes them, (B, C, S, S)."""
    return whole_images(split, rows, encoder.size, encoder.normalization).pixels
