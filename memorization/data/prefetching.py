"""Images for the next steps, fetched by a thread during a step."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

AHEAD = 2  # batches


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
