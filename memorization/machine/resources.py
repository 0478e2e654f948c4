"""What long work takes: time, memory and disk, printed before it starts; and one line if memory
runs out.
"""

import resource
import statistics
import sys
import time
from contextlib import contextmanager
from datetime import timedelta

import torch

from memorization.errors import WrongUse, exhausted_memory
from memorization.machine.files import free_bytes, size_in_words
from memorization.machine.screen import caution, say

TRIALS = 3
CLEARLY = 0.8  # times the seconds of several threads
OTHER_DEVICE = "end what else uses it, or take another device"


def seconds_of(work, device):
    """How long a piece of work takes, the median of a few times after one to warm up. work: () ->
    anything, done on the device.
    """
    seconds = []
    for _ in range(1 + TRIALS):
        start = time.monotonic()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.monotonic() - start)
    return statistics.median(seconds[1:])


def advise_on_threads(work, device, seconds):
    """Say so if the threads of a CPU wait for each other, as they do if other programs keep its
    cores busy: if the work is done sooner by one thread.

    seconds: that the work takes with all threads.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return
    torch.set_num_threads(1)
    try:
        seconds_of_one = seconds_of(work, device)
    finally:
        torch.set_num_threads(threads)
    if seconds_of_one < CLEARLY * seconds:
        both = (
            f"a step takes {seconds:.2g} s with {threads} threads, {seconds_of_one:.2g} s with one"
        )
        say(f"  the cores are busy, and threads wait for each other: {both}; add --threads 1")


def print_estimate(what, seconds, device, disk=0, folder="."):
    """One line: what is about to be done, its time, the memory that a trial of it took, and the
    bytes it writes to the disk.

    Warns if the disk that holds the folder has less room.
    """
    memory = f"{size_in_words(peak_memory())} of memory"
    if device.type == "cuda":
        memory += f", {size_in_words(torch.cuda.max_memory_reserved(device))} of the GPU's"
    on_disk = f", {size_in_words(disk)} on the disk" if disk else ""
    say(f"  {what}: about {timedelta(seconds=round(seconds))}, {memory}{on_disk}")
    free = free_bytes(folder)
    if disk > free:
        sizes = f"{size_in_words(disk)} will be written, but {size_in_words(free)} are free"
        caution(f"{folder}: {sizes}")


def peak_memory():
    """The most memory that this process has held so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def memory_for(setting, value, advice="lower it"):
    """Turn running out of memory, on the device or in the host, into WrongUse.

    setting: its key; value: its value, None for no limit; advice: what to do about it.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        memory = exhausted_memory(error)
        if memory is None:
            raise
        value = "null (all)" if value is None else value
        raise WrongUse(f"{setting}: {value} needs more than {memory}; {advice}") from None


def pin(tensor):
    """The tensor in pinned memory of the host, from which a GPU copies without waiting.

    Raises MemoryError if there is too little of it.
    """
    try:
        return tensor.pin_memory()
    except RuntimeError as error:  # which names CUDA, though it is the host's memory
        if exhausted_memory(error) is None:
            raise
        raise MemoryError("no memory is left to pin") from error


def tensor_bytes(value):
    """Bytes of the tensors in a nested value, such as a state dict."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, (list, tuple)) else 0
