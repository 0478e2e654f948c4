"""Several processes at one job, once they have met (meeting.py): each works on its part, and the
first one alone writes.

Outside of torchrun there is one process, which is the first, and nothing here does anything.
"""

import functools
import os
import re
import time
import warnings
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

# A process waits so long for the others: the first may have a data set to decode.
PATIENCE = timedelta(hours=12)
# Seconds that the other processes wait before they print an error, if they have not met.
SILENCE = 2
# Seconds that the first process waits for the others at most before it ends, if one has failed.
FAREWELL = 5
# Words in torch's errors if another process is gone.
LOST = re.compile("gloo|NCCL|TCPStore", re.IGNORECASE)

meeting_point = None  # the store in which the processes met


class OtherFailed(Exception):
    """Another process has failed, and prints why."""


def count():
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first():
    """Whether this is the process that writes."""
    return rank() == 0


def is_heard():
    """Whether this process prints and warns. Before the processes meet, the environment alone tells
    which one is the first.
    """
    if dist.is_initialized() or "WORLD_SIZE" not in os.environ:
        return is_first()
    return os.environ.get("RANK", "0") == "0"


def on_first_process(function):
    """Decorate a function that writes or prints: in processes beside the first it does nothing, and
    returns None.
    """

    @functools.wraps(function)
    def run(*arguments, **options):
        return function(*arguments, **options) if is_first() else None

    return run


def leave():
    """Leave the other processes, once all work is done."""
    if dist.is_initialized():
        wait_for_all()
        dist.destroy_process_group()


def exit_together(main):
    """Decorate a main that raises SystemExit if it fails: several processes then end together.

    The first one, which may hold the store, stays until the others have read it, FAREWELL seconds
    at most. Python is not shut down, for torch's threads may still hold tensors and would abort it
    (exit code -6).
    """

    @functools.wraps(main)
    def run(argv=None):
        try:
            return main(argv)
        except SystemExit as end:
            if count() > 1 and meeting_point is not None:
                wait_for_farewells(meeting_point, count(), is_first())
                os._exit(end.code)
            raise

    return run


def wait_for_farewells(store, n_processes, first):
    """Say in a store that this process ends. If it is the first one, wait until all have said so,
    FAREWELL seconds at most.
    """
    with suppress(dist.DistError):  # the process of the store is gone
        n_ended, start = store.add("ended", 1), time.monotonic()
        while first and n_ended < n_processes and time.monotonic() - start < FAREWELL:
            time.sleep(0.05)
            n_ended = store.add("ended", 0)


def claim_report():
    """Whether this process prints why all of them end: the first one that asks does."""
    if meeting_point is not None:
        try:
            return meeting_point.add("reported", 1) == 1
        except dist.DistError:  # the process of the store is gone, and may have printed nothing
            return True
    # The processes have not met. The first one of a host prints what they all see, then torchrun
    # ends the others.
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(SILENCE)
    return True


def is_lost(error):
    """Whether an error says that another process is gone."""
    return (
        count() > 1
        and isinstance(error, RuntimeError)
        and (isinstance(error, dist.DistError) or bool(LOST.search(str(error))))
    )


def hidden_bar():
    """tqdm's `disable`: bars are for a terminal, and for the first process."""
    return None if is_first() else True


@contextmanager
def first_before_others():
    """Let the first process run the body before the others, for example to write a file that they
    then read.

    The others raise OtherFailed if the first one fails.
    """
    if not is_first() and not broadcast(None):
        raise OtherFailed
    try:
        yield
    except Exception:
        if is_first():
            with suppress(RuntimeError):  # the others may be gone
                broadcast(False)
        raise
    if is_first():
        broadcast(True)


def wait_for_all():
    """Go on once all processes are here."""
    maxima(0)  # unlike NCCL's barrier, it fails at once if a process is gone


def map_in_processes(work, parts, name):
    """[work(part) for part in parts], divided among the processes. name: of the work, at its bar.

    What work returns is pickled: plain types, arrays, and tensors on the CPU.
    """
    own_parts = tqdm(parts[rank() :: count()], desc=name, leave=False, disable=hidden_bar())
    own = [work(part) for part in own_parts]
    if count() == 1:
        return own
    shares = [None] * count()
    dist.all_gather_object(shares, own)
    return [shares[i % count()][i // count()] for i in range(len(parts))]


def broadcast(value):
    """The value of the first process, in all processes."""
    if count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def maxima(*numbers):
    """The largest value of each of these ints among the processes, a list."""
    if count() == 1:
        return list(numbers)
    numbers = torch.tensor(numbers)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return numbers.tolist()


# --- training together ----------------------------------------------------------------------------


def shard(batch):
    """This process's part of a batch, whose length is a multiple of the number of processes."""
    return batch.chunk(count())[rank()]


@torch.no_grad()
def mean(value):
    """The mean of a tensor over the processes, on its device."""
    if count() > 1:
        dist.all_reduce(value)
        value /= count()
    return value


@torch.no_grad()
def gather_rows(values):
    """The rows (n, D) of all processes in their order, (count n, D)."""
    if count() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(count())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def share_gradients(module):
    """A module to call in place of this one: its gradients are means over the processes, and its
    weights become those of the first one.
    """
    if count() == 1:
        return module
    with warnings.catch_warnings():
        # torch 2.14 warns that broadcast_buffers gets another name, which torch 2.11 does not know
        warnings.simplefilter("ignore", FutureWarning)
        # Buffers are alike everywhere already: norms see the whole batch.
        return DistributedDataParallel(
            module, gradient_as_bucket_view=True, broadcast_buffers=False
        )
