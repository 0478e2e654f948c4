"""Where does the time of a training step go? Images a second, the time of the host beside that of
the device, and the longest kernels.

    python -m benchmarks.on_gpu.profile_steps [--device cpu]

If the host takes as long as the whole step, calling operations is what binds.
"""

import collections
import os
import time

import torch
from torch.autograd import DeviceType
from torch.profiler import profile

from benchmarks.contest import chosen_device, save, seconds, wait_for
from benchmarks.on_gpu.cases import cases_on_gpu
from benchmarks.peers import random_split
from benchmarks.training import OurTraining

STEPS = 2 if os.environ.get("TINY") else 20
LONGEST, SHOWN = 16, 90  # kernels; characters of their names
RANGES = ("ProfilerStep", "Optimizer.")  # shown among the kernels that they hold


def main():
    device = chosen_device(__doc__)
    results = {}
    for case in cases_on_gpu(device):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        split = random_split(case.batch_size, case.channels, case.size, device)
        results[str(case)] = measure(case, OurTraining(case, split, device), device)
    save("profile_steps", results, device)


def measure(case, training, device):
    """What bounds the steps of a Case, a dict of plain types."""
    (batch,) = training.batches
    training.batches = STEPS * [batch]
    training.epoch()
    whole = seconds(training.epoch, device) / STEPS
    views = training.views(batch)
    host = {
        "views": host_seconds(lambda: training.views(batch), device),
        "network": host_seconds(lambda: training.step(views), device),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    host["views by one thread"] = host_seconds(lambda: training.views(batch), device)
    torch.set_num_threads(threads)
    print(f"\n{case}: {1e3 * whole:.2f} ms a step, {case.batch_size / whole:,.0f} images/s")
    calls = ", ".join(f"{name} {1e3 * each:.2f} ms" for name, each in host.items())
    print(f"  the host calls the operations of a step in: {calls}")
    if device.type == "cuda":
        print(f"  memory: {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB at most")
    with profile() as profiler:
        training.epoch()
        wait_for(device)
    kernels = [event for event in profiler.events() if is_kernel(event, device)]
    busy = busy_seconds(kernels) / STEPS
    each = f"{len(kernels) / STEPS:.0f} kernels, {1e3 * busy:.2f} ms of work, {busy / whole:.0%}"
    print(f"  the device in a step: {each} of the time without profiler")
    print_longest(kernels)
    return {
        "seconds_a_step": whole,
        "images_per_second": case.batch_size / whole,
        "host_seconds": host,
        "busy_seconds": busy,
        "kernels": len(kernels) / STEPS,
    }


def host_seconds(work, device):
    """Until the host has called all operations, of an idle device."""
    times = []
    for _ in range(max(3, STEPS // 2)):
        wait_for(device)
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def is_kernel(event, device):
    """On a CPU, operations stand for kernels."""
    if device.type == "cpu":
        return event.cpu_parent is None
    return event.device_type == DeviceType.CUDA and not event.name.startswith(RANGES)


def busy_seconds(kernels):
    """How long at least one kernel was at work."""
    busy, until = 0.0, float("-inf")
    for start, end in sorted((each.time_range.start, each.time_range.end) for each in kernels):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / 1e6


def print_longest(kernels):
    taken, calls = collections.Counter(), collections.Counter()
    for event in kernels:
        taken[event.name] += event.time_range.end - event.time_range.start
        calls[event.name] += 1
    total = sum(taken.values())
    print(f"  {'us a step':>10} {'calls':>6} {'share':>6}  kernel")
    for name, time_taken in taken.most_common(LONGEST):
        row = f"{time_taken / STEPS:>10.0f} {calls[name] / STEPS:>6.1f} {time_taken / total:>6.1%}"
        print(f"  {row}  {name[:SHOWN]}")


if __name__ == "__main__":
    main()
