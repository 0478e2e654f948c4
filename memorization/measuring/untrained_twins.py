"""Untrained twins: do the representations of an encoder differ from those of its architecture with
fresh weights?
"""

import math

import numpy as np
import torch

from memorization.checkpoint import untrained_encoder
from memorization.data.randomness import permutation
from memorization.machine.screen import caution, say
from memorization.measuring.representations import encode_images
from memorization.neighbors import knn_accuracy
from memorization.normalization import normalize

TWINS = 5
MOST_IMAGES = 512
NEIGHBORS, FEWEST = 20, 100  # that vote, and among how many images at least
# Standard deviations of the twins from their mean; with five of them, one of a hundred untrained
# encoders lies farther (Student's t).
FAR = 5.0
ROUNDING = 1e-4  # relative; a difference beyond it counts if all twins are alike


def measure_representations(encoder, split, rows, device):
    """{name: value} of an encoder's l2-normalized representations of whole images.

    spread: sqrt(D) times the mean over dimensions of their standard deviation, about 1 if they
    point everywhere. effective rank: see `effective_rank`. kNN accuracy: of one half of the
    labelled images by the other half; missing if there are too few.
    """
    values = normalize(encode_images(encoder, split, rows, device), dim=1)
    spread = values.std(0).mean() * math.sqrt(values.shape[1])
    measured = {"spread": spread.item(), "effective rank": effective_rank(values)}
    labels = split.labels[rows]
    known = labels >= 0
    # at random, as images may come class by class
    order = permutation(int(known.sum()), 0, "probing", split.name)
    values, labels = values[known][order], labels[known][order]
    half = len(labels) // 2
    if half >= FEWEST and (labels != labels[:1]).any():
        bank, queries = (values[:half], labels[:half]), (values[half:], labels[half:])
        measured["kNN accuracy"] = knn_accuracy(*queries, *bank, NEIGHBORS)
    return measured


def effective_rank(values):
    """exp of the entropy of the singular values, as shares, of centred rows (N, D): from 1 to D
    (Roy and Vetterli 2007). 0 if all rows are equal.
    """
    singular = torch.linalg.svdvals((values - values.mean(0)).double())
    shares = singular[singular > 0] / singular.sum()
    return math.exp(-(shares * shares.log()).sum().item()) if len(shares) else 0.0


def measure_twins(encoder, split, rows, device):
    """What `measure_representations` gives of TWINS untrained encoders like this one, a list."""
    twins = (untrained_encoder(encoder, seed) for seed in range(TWINS))
    return [measure_representations(twin, split, rows, device) for twin in twins]


def compare_with_twins(name, measured, twins):
    """Print what an encoder's representations are like beside those of its untrained twins, and
    warn if they differ in nothing.

    name: of the encoder; measured: of `measure_representations`; twins: of `measure_twins`.
    """
    differences = []
    for key, value in measured.items():
        values = np.array([twin[key] for twin in twins])
        mean, deviation = values.mean(), values.std(ddof=1)
        differences.append(abs(value - mean) > max(FAR * deviation, ROUNDING * abs(mean)))
        say(f"{name:>20}  {key:>14} {value:8.3f}   untrained {mean:8.3f} ± {deviation:.3f}")
    if not any(differences):
        doubt = "its representations differ in nothing from those of untrained encoders"
        caution(f"{name}: {doubt}: look whether these are the trained weights (at, strip)")
