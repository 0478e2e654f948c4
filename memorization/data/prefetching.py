"""Images for the next steps, fetched by a thread while a step is under way."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

AHEAD = 2  # batches


def prefetch(split, batches):
    """For each batch of indices (B,) int64, each once: (indices, a Split from which their images
    are gathered at once).

    split: of the images. Where it is far (see `Split.is_far`), the next batches are fetched
    meanwhile, into pinned memory for a GPU.
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
