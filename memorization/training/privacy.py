"""Private training: which images are in the batch of a step, its noise, and what it guarantees."""

import functools
import warnings

import torch

from memorization.data.randomness import sample_keys, stream, uniform
from models.private_loss import import_opacus

# Renyi orders beside those of Opacus, for guarantees that are far below 1.
LARGE_ORDERS = [128, 256, 512, 1024]


def draw_positions(n, batch_size, seed, epoch, step):
    """The positions in a training list of n images that are in the batch of a step, ascending,
    (B,) int64: each with probability batch_size / n, whatever the others do (Poisson sampling).

    The arguments alone decide, and not the images: a position is in the same batches of f and of g.
    epoch, step: of the training, and within the epoch, from 0.
    """
    keys = sample_keys(stream(seed, "sampling", epoch=epoch, view=step), torch.arange(n))
    return (uniform(keys, torch.zeros(1, dtype=torch.int64))[:, 0] < batch_size / n).nonzero()[:, 0]


def noise_seed(seed, epoch, step):
    """The seed of the generator of a step's noise, an int64. epoch, step: as above."""
    return stream(seed, "noise", epoch=epoch, view=step)


def privacy_spent(settings, share, steps):
    """The epsilon of (epsilon, delta)-differential privacy after so many steps, a float: that of
    the sampled Gaussian mechanism (Mironov et al. 2019, arXiv 1908.10530), by Opacus' RDP
    accountant.

    settings: PrivacySettings; share: of the training set that is in a batch on average. Two
    training sets are neighbours if one has an image more than the other.
    """
    if steps == 0:
        return 0.0
    orders, per_step = _divergences(settings.noise_multiplier, share)
    analysis = import_opacus().accountants.analysis.rdp
    with warnings.catch_warnings():
        # at the end of the orders the bound holds too, but a closer one may exist
        warnings.filterwarnings("ignore", "Optimal order")
        epsilon, _ = analysis.get_privacy_spent(
            orders=orders, rdp=steps * per_step, delta=settings.delta
        )
    return max(0.0, float(epsilon))


def state_guarantee(task, steps):
    """What is guaranteed after so many steps, in words. task: a Task with privacy."""
    epsilon, delta = task.privacy_spent(steps)["epsilon"], task.settings.privacy.delta
    return f"epsilon {epsilon:.4g} at delta {delta:g} after {steps} steps"


@functools.cache
def _divergences(noise_multiplier, share):
    """Renyi orders, and the divergence of one step at each, an array. Those of steps add up."""
    opacus = import_opacus()
    orders = [*opacus.accountants.RDPAccountant.DEFAULT_ALPHAS, *LARGE_ORDERS]
    rdp = opacus.accountants.analysis.rdp.compute_rdp(
        q=share, noise_multiplier=noise_multiplier, steps=1, orders=orders
    )
    return orders, rdp
