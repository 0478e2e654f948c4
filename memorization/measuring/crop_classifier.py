"""A small classifier of parts of images: what a part tells of its label without any memory of the
image (one-model Deja Vu).
"""

import copy

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from memorization.data.randomness import permutation
from memorization.errors import WrongUse
from memorization.machine import processes
from memorization.machine.device import to_device
from memorization.measuring.deja_vu import Inference
from models.encoders import encoder_settings, make_encoder

BATCH = 64
LEARNING_RATE = 0.001
PATIENCE = 10  # epochs without a lower cross entropy on held-out images, after which training ends


def make_classifier(encoder, classes, seed):
    """An untrained classifier of the images that an Encoder takes: (B, C, S, S) -> (B, classes)."""
    torch.manual_seed(seed)
    backbone = make_encoder(encoder_settings(name="resnet_small"), encoder.channels, encoder.size)
    return nn.Sequential(backbone, nn.Linear(backbone.dim, classes))


def train_classifier(network, queries, held_out, epochs, seed, device):
    """Train a network on queries until held-out queries gain no more; it ends with the weights that
    were best there.

    network: (B, C, S, S) pixels -> (B, classes) logits; queries, held_out: Queries; epochs: at
    most. Every epoch takes one view of each image, the next epoch the next view. Returns {"epoch":
    the best, "held_out_loss": its loss}. Raises WrongUse if the loss is never finite.
    """
    network, held_out_labels = network.to(device), to_device(held_out.labels, device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    best, weights = {"epoch": 0, "held_out_loss": float("inf")}, None
    bar = {"desc": "training the reference classifier", "disable": processes.hidden_bar()}
    for epoch in tqdm(range(epochs), leave=False, **bar):
        _train_epoch(network, optimizer, queries, epoch, seed)
        probabilities = _probabilities(network, held_out, view=0)
        loss = F.nll_loss(probabilities.clamp(min=1e-30).log(), held_out_labels).item()
        if loss < best["held_out_loss"]:
            best = {"epoch": epoch + 1, "held_out_loss": loss}
            weights = copy.deepcopy(network.state_dict())
        elif epoch + 1 - best["epoch"] >= PATIENCE:
            break
    if weights is None:
        never = "its loss on held-out images was never finite"
        raise WrongUse(f"dejavu.reference: the classifier of crops diverged: {never}")
    network.load_state_dict(weights)
    return best


def _train_epoch(network, optimizer, queries, epoch, seed):
    network.train()
    order = permutation(len(queries.rows), seed, "query", epoch=epoch)
    for places in order.split(BATCH):
        if len(places) == 1:  # batch norm cannot normalize a single image
            continue
        pixels = queries.pixels(queries.rows[places], epoch % queries.views)
        labels = to_device(queries.labels[places], pixels.device)
        loss = F.cross_entropy(network(pixels), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def infer_by_classifier(network, queries):
    """The Inference of a trained classifier: its softmax, averaged over the views of an image. The
    largest probability is the confidence.
    """
    views = [_probabilities(network, queries, view) for view in range(queries.views)]
    probabilities = torch.stack(views).mean(0).double().cpu().numpy()
    label_share = probabilities[np.arange(len(probabilities)), queries.labels.numpy()]
    return Inference(probabilities.argmax(1), probabilities.max(1), label_share)


@torch.inference_mode()
def _probabilities(network, queries, view):
    """(n, classes), of one view of each image."""
    network.eval()
    batches = queries.rows.split(512)
    return torch.cat([network(queries.pixels(rows, view)).softmax(1) for rows in batches])
