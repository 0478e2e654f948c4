"""Momentum networks: slow copies that follow the networks being trained."""

import copy

from torch.optim.swa_utils import get_ema_multi_avg_fn

from models.schedules import half_cosine


def slow_copy(network):
    """A copy of a network that is not trained by gradients."""
    return copy.deepcopy(network).requires_grad_(False)


def follow(slow, online, momentum):
    """Move slow networks towards the online ones, in place: each parameter becomes
    momentum x slow + (1 - momentum) x online. Buffers stay; a batch norm keeps its own statistics.

    slow, online: lists of modules, pair by pair of the same structure.
    """

    def parameters(networks):
        return [parameter for network in networks for parameter in network.parameters()]

    get_ema_multi_avg_fn(momentum)(parameters(slow), parameters(online), None)


def momentum_at(progress, base):
    """The momentum of a step: half a cosine from base to 1 (BYOL, arXiv 2006.07733, section 3.1).

    progress: share of the training before this step, in [0, 1].
    """
    return half_cosine(progress, base, 1)
