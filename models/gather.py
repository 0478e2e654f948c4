"""Gather or average what the processes that train together have of a batch."""

import torch
import torch.distributed as dist


def gather(part):
    """The rows of all processes in their order, (processes B, D). part: (B, D), of this process.

    Each process gets the gradient of its own rows, summed over the losses of all processes. If
    every process computes the same loss from the gathered rows, the mean of their gradients, which
    DistributedDataParallel takes, equals the gradient of one process with the whole batch.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return part
    return _Gather.apply(part)


def own_places(part):
    """The places of this process's rows among the gathered ones, (B,) int64. part: (B, D)."""
    places = torch.arange(len(part), device=part.device)
    return places + dist.get_rank() * len(part) if dist.is_initialized() else places


@torch.no_grad()
def mean_over_processes(part):
    """The mean of the tensors that the processes have, one each, without gradient."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return part
    total = part.clone()
    dist.all_reduce(total)  # the sum
    return total / dist.get_world_size()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context, part):
        parts = [
            torch.empty_like(part, memory_format=torch.contiguous_format)
            for _ in range(dist.get_world_size())
        ]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)  # the sum
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]
