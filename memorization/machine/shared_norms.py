"""Batch norms that see the whole batch of several processes.

torch's SyncBatchNorm does so on GPUs only. It allows parts of unequal size, for which the host
waits for the GPU in each norm of each step. Here all parts have one size: `training.batch_size`
is a multiple of the number of processes, and the last partial batch of an epoch is dropped.
"""

import sys

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from memorization.machine import processes


def find_own_norm(module):
    """The name of a batch norm of a class of its own, which processes cannot share, or None."""
    for name, norm in _find_norms(module):
        if type(norm) not in _shared_classes():
            return name
    return None


def share_norms(module):
    """The module, with batch norms that see the whole batch of all processes: each becomes a
    SharedBatchNorm in place, with the parameters, buffers and hooks that it has.
    """
    if processes.count() > 1:
        for _, norm in _find_norms(module):
            norm.__class__ = _shared_classes()[type(norm)]
    return module


def _find_norms(module):
    """The batch norms of a module, [(name, norm)]."""
    kind = nn.modules.batchnorm._BatchNorm
    return [(name, part) for name, part in module.named_modules() if isinstance(part, kind)]


def _shared_classes():
    """{class of a batch norm: the one that does the same with the whole batch}."""
    plain = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
    classes = dict.fromkeys(plain, SharedBatchNorm)
    if "timm.layers" in sys.modules:
        classes[sys.modules["timm.layers"].BatchNormAct2d] = SharedBatchNormAct
    return classes


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm (Ioffe and Szegedy 2015) that in training normalizes by the mean and variance of
    the whole batch, of which each process has a part of the same size. In eval mode it is torch's.
    """

    def forward(self, x):
        """x: (B, C, ...), of this process. Returns the same shape, type and memory format."""
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        statistics = share_statistics(x.detach())
        if self.track_running_stats:
            self._track(*statistics, count=processes.count() * x.numel() // x.shape[1])
        return _Normalize.apply(x, self.weight, self.bias, statistics, self.eps)

    @torch.no_grad()
    def _track(self, mean, variance, count):
        """Update the running statistics. count: number of values of a channel in the batch."""
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # the mean over all batches, without a wait for their number
            momentum = self.num_batches_tracked.to(mean.dtype).reciprocal()
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), momentum)

    def _check_input_dim(self, x):
        if x.dim() < 2:
            raise ValueError(f"a batch norm takes (B, C, ...), not {tuple(x.shape)}")


class SharedBatchNormAct(SharedBatchNorm):
    """timm's BatchNormAct2d, a batch norm with the activation after it, for the whole batch."""

    def forward(self, x):
        """x: (B, C, H, W), of this process. Returns the same shape, type and memory format."""
        return self.act(self.drop(super().forward(x)))


@torch.no_grad()
def share_statistics(x):
    """Mean and variance (biased) of each channel over the parts of all processes, (C,) each, in at
    least float32.

    x: (B, C, ...), of this process, as large as those of the others. Means and variances of parts
    are combined as by Chan, Golub and LeVeque (1979, STAN-CS-79-773): large sums, whose small
    difference would be wrong, are not subtracted.
    """
    in_full = torch.promote_types(x.dtype, torch.float32)
    # Given running statistics, whose values do not matter, torch computes in their type.
    unused = torch.empty(2, x.shape[1], dtype=in_full, device=x.device)
    own = torch.batch_norm_update_stats(x, *unused, momentum=0.0)
    parts = unused.new_zeros(processes.count(), 2, x.shape[1])
    torch.stack(own, out=parts[processes.rank()])
    dist.all_reduce(parts)  # the sum: every process has filled one row
    means, variances = parts.unbind(1)
    between, mean = torch.var_mean(means, dim=0, correction=0)
    return mean, variances.mean(0) + between


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias. The gradient is that of a mean and a
    variance computed from the x of all processes (Ioffe and Szegedy 2015, section 3).
    """

    @staticmethod
    def forward(context, x, weight, bias, statistics, eps):
        mean, variance = statistics
        context.save_for_backward(x, weight, mean, variance)
        context.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(context, gradient):
        x, weight, mean, variance = context.saved_tensors
        inverse = (variance + context.eps).rsqrt()
        scale = torch.ones_like(mean) if weight is None else weight
        # sums over this process's part: of gradient * normalized x, and of gradient
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, scale, None, None, mean, inverse, True, context.eps, [False, True, True]
        )
        sums = torch.stack((of_weight, of_bias))  # (2, C)
        dist.all_reduce(sums)
        count = processes.count() * x.numel() // len(mean)
        # scale * (gradient - mean(gradient) - normalized x * mean(gradient * normalized x))
        scale = scale * inverse
        slope, offset = sums * (scale / -count)
        of_x = F.batch_norm(x, mean, variance, slope, offset, eps=context.eps)
        of_x.addcmul_(gradient, scale.view(-1, *[1] * (x.dim() - 2)))
        needs_weight, needs_bias = context.needs_input_grad[1:3]
        of_parameters = of_weight if needs_weight else None, of_bias if needs_bias else None
        return of_x, *of_parameters, None, None
