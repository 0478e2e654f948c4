"""EncoderMI-V: a small network that tells members from others by the similarities of their views,
trained on one encoder and used on another (Liu et al. 2021, CCS, arXiv 2108.11023).
"""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from memorization.data.randomness import permutation
from memorization.machine import processes, threads

HIDDEN = 32  # units of each of the two hidden layers
EPOCHS, BATCH_SIZE, LEAST_STEPS = 20, 256, 100
LEARNING_RATE, WEIGHT_DECAY = 0.001, 0.01
CPU = torch.device("cpu")  # the vectors are small, and the numbers the same on every machine


def judge_by_networks(tasks, name):
    """The signals of networks: [signal(judged)] of tasks (vectors, is_member, judged, seed).

    vectors: (n, P), features of the images that a network is trained on; is_member: (n,)
    bool; judged: (m, P), those of images it is used on; seed: of its initial weights. A signal is
    (m,) float64, the logit of membership. The networks are divided among processes and their
    threads; each is trained single-threaded, so that no number depends on how many there are. name:
    of the work, at its bar.
    """
    n_processes = processes.count()
    shares = [tasks[i::n_processes] for i in range(n_processes)]

    def judge(task):
        vectors, is_member, judged, seed = task
        return train_network(vectors, is_member, seed)(judged)

    def judge_share(share):
        return threads.map_in_threads(judge, share, CPU)

    signals = processes.map_in_processes(judge_share, shares, name)
    return [signals[i % n_processes][i // n_processes] for i in range(len(tasks))]


def train_network(vectors, is_member, seed):
    """Train a network of two hidden layers to tell members from others; members weigh as much as
    others, however many there are of each. Returns a function from (m, P) to logits (m,) float64.

    vectors: (n, P); is_member: (n,) bool, of both kinds; seed: of the initial weights and
    the order.
    """
    vectors = vectors.astype(np.float64)
    mean, deviation = vectors.mean(0), vectors.std(0)
    deviation = np.where(deviation > 1e-9, deviation, 1.0)

    def standardize(values):
        return torch.from_numpy((values - mean) / deviation)

    network = _make_network(vectors.shape[1], seed)
    n, inputs = len(vectors), standardize(vectors)
    targets = torch.from_numpy(is_member.astype(np.float64))
    shares = torch.where(targets > 0, targets.mean(), 1 - targets.mean())
    weights = 0.5 / shares
    steps_per_epoch = -(-n // BATCH_SIZE)
    epochs = max(EPOCHS, LEAST_STEPS // steps_per_epoch)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    with torch.enable_grad():
        for epoch in range(epochs):
            for rows in permutation(n, seed, "membership", epoch=epoch).split(BATCH_SIZE):
                losses = F.binary_cross_entropy_with_logits(
                    network(inputs[rows])[:, 0], targets[rows], reduction="none"
                )
                loss = (losses * weights[rows]).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            decay.step()

    @torch.inference_mode()
    def signal(judged):
        return network(standardize(judged))[:, 0].numpy()

    return signal


def _make_network(features, seed):
    """An untrained network in float64. Its weights come from a generator of its own, as several
    threads make networks at once.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for inputs, outputs in ((features, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)):
        layer = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.normal_(0.0, inputs**-0.5, generator=generator)
            layer.bias.zero_()
        layers += [layer, nn.GELU()]
    return nn.Sequential(*layers[:-1])
