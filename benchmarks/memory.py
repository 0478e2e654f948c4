"""How much memory a piece of work takes, and how long."""

import re
from pathlib import Path

import torch

from benchmarks.contest import seconds


def measure(work, device):
    """The seconds that a piece of work takes, and its peak of memory above that in use before, in
    megabytes. work: takes nothing.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        taken = seconds(work, device)
        return taken, (torch.cuda.max_memory_allocated(device) - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status("VmRSS")
    taken = seconds(work, device)
    return taken, (status("VmHWM") - before) / 1e3


def status(name):
    """A number in /proc/self/status, in kilobytes."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])
