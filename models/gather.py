"""What the processes that train together have made of their parts of a batch, put together."""

import torch
import torch.distributed as dist


def gather(part):
    """The rows of all processes, (processes B, D), in their order; of one process, its own. part:
    (B, D).

    The gradient flows back to the process that each row is from, summed over all: where every
    process computes the same loss from the gathered rows, their mean gradient, which
    DistributedDataParallel takes, is that of one process with the whole batch.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return part
    return _Gathered.apply(part)


class _Gathered(torch.autograd.Function):
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
