"""How much memory a piece of work takes, beside how long."""

import re
from pathlib import Path

import torch

from benchmarks.contest import seconds


def measured(work, device):
    """(seconds, megabytes above those in use before, at most) of one piece of work: () -> anything."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        taken = seconds(work, device)
        return taken, (torch.cuda.max_memory_allocated(device) - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = status("VmRSS")
    taken = seconds(work, device)
    return taken, (status("VmHWM") - before) / 1e3


def status(name):
    """A line of /proc/self/status, in kilobytes."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])
