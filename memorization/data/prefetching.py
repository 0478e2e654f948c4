"""What the next steps need, made by a thread during a step."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

from memorization.machine.threads import use_one_thread_in

AHEAD = 2  # batches


def make_ahead(items, device):
    """The items of an iterator. For a GPU a thread makes the next one meanwhile: the host takes
    longer to call a step's operations than the GPU to do them. What the thread computes on the host
    is small, and faster on one thread of the CPU.
    """
    if device.type != "cuda":
        yield from items
        return

    def use_device():
        if device.index is not None:  # a thread begins with the first GPU
            torch.cuda.set_device(device)

    items, end = iter(items), object()
    with ThreadPoolExecutor(1, "making_ahead", initializer=use_device) as thread:
        use_one_thread_in(thread)
        waiting = thread.submit(next, items, end)
        while (item := waiting.result()) is not end:
            waiting = thread.submit(next, items, end)
            yield item


def prefetch(split, batches):
    """Yield (indices, a Split from which their images are gathered fast) for each batch of indices,
    (B,) int64.

    split: of the images. If it is far (see `Split.is_far`), a thread fetches the next batches, into
    pinned memory for a GPU.
    """
    if not split.is_far:
        yield from ((indices, split) for indices in batches)
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetching") as thread:
        waiting = deque(thread.submit(split.fetch, indices) for indices in batches[:AHEAD])
        for i, indices in enumerate(batches):
            fetched = waiting.popleft().result()
            waiting.extend(
                thread.submit(split.fetch, later) for later in batches[i + AHEAD : i + AHEAD + 1]
            )
            yield (
                indices,
                replace(fetched, pixels=fetched.pixels.to(split.device, non_blocking=True)),
            )
