"""A small classifier of parts of images: what a part tells of its label without any memory of the
image (one-model Deja Vu).
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from memorization.data.randomness import permutation
from memorization.errors import WrongUse
from memorization.machine import processes
from memorization.machine.device import to_device
from memorization.measuring.deja_vu import Inference

BATCH = 64
LEARNING_RATE = 0.001
PATIENCE = 10  # epochs without a lower cross entropy on held-out images, after which training ends


def train_classifier(network, queries, labels, held_out, held_out_labels, epochs, seed, device):
    """Train a network on queries until it is no better on held-out ones, and leave it with the
    weights that were best there.

    network: (B, C, S, S) pixels -> (B, classes) logits; queries, held_out: Queries, whose `rows`
    are used; labels, held_out_labels: theirs, int64; epochs: at most. An epoch takes one of the
    views, the next one the next. Returns {"epoch": the best, "held_out_loss": its loss}. Raises
    WrongUse where it diverges.
    """
    network, held_out_labels = network.to(device), to_device(held_out_labels, device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    best, weights = {"epoch": 0, "held_out_loss": float("inf")}, None
    for epoch in tqdm(
        range(epochs),
        desc="training the reference classifier",
        leave=False,
        disable=processes.hidden_bar(),
    ):
        _train_epoch(network, optimizer, queries, labels, epoch, seed, device)
        probabilities = _probabilities(network, held_out, held_out.rows, view=0)
        loss = F.nll_loss(probabilities.clamp(min=1e-30).log(), held_out_labels).item()
        if loss < best["held_out_loss"]:
            best, weights = (
                {"epoch": epoch + 1, "held_out_loss": loss},
                copy.deepcopy(network.state_dict()),
            )
        elif epoch + 1 - best["epoch"] >= PATIENCE:
            break
    if weights is None:
        raise WrongUse(
            "dejavu.reference: the classifier of crops diverged: its loss on held-out images was never finite"
        )
    network.load_state_dict(weights)
    return best


def _train_epoch(network, optimizer, queries, labels, epoch, seed, device):
    network.train()
    order = permutation(len(queries.rows), seed, "query", epoch=epoch)
    for places in order.split(BATCH):
        if len(places) == 1:  # nothing for batch norm to normalize with
            continue
        pixels = queries.pixels(queries.rows[places], epoch % queries.views)
        loss = F.cross_entropy(network(pixels), to_device(labels[places], device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def infer_by_classifier(network, queries, rows, labels):
    """The Inference of a trained classifier: its softmax, averaged over the views of an image;
    confidence is the largest of it.

    queries: of `make_queries`; rows: (N,) int64, the images asked about; labels: (N,) int64,
    theirs.
    """
    probabilities = torch.stack(
        [_probabilities(network, queries, rows, view) for view in range(queries.views)]
    ).mean(0)
    probabilities = probabilities.double().cpu().numpy()
    return Inference(
        probabilities.argmax(1), probabilities.max(1), probabilities[np.arange(len(rows)), labels]
    )


@torch.inference_mode()
def _probabilities(network, queries, rows, view):
    """(n, classes), of one view of each image."""
    network.eval()
    return torch.cat([network(queries.pixels(batch, view)).softmax(1) for batch in rows.split(512)])
