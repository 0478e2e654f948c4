"""What the processes that train together have made of their parts of a batch, put together."""

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather


def gather(part):
    """The rows of all processes, (processes B, D), in their order; of one process, its own. part: (B, D).

    The gradient flows back to the process that each row is from, summed over all: where every process computes the same loss from the
    gathered rows, their mean gradient, which DistributedDataParallel takes, is that of one process with the whole batch.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return part
    return torch.cat(all_gather(part.contiguous()))
