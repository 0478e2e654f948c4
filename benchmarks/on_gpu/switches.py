"""What do torch's switches make of training? Eager steps, cuDNN's algorithms chosen by timing them,
one pass for both views, fused optimizers, torch.compile, and CUDA graphs.

    python -m benchmarks.on_gpu.switches [--device cpu]

On a CPU, where this program is only tried, nothing is compiled.
"""

import os
import sys
import traceback
from functools import partial

import torch

from benchmarks.contest import Contestant, chosen_device, contest, save
from benchmarks.on_gpu.cases import cases_on_gpu
from benchmarks.peers import random_split
from benchmarks.training import SETTINGS, OurTraining, make_method
from memorization.optimizers import make_optimizer

ROUNDS, STEPS = (1, 2) if os.environ.get("TINY") else (3, 10)
SWITCHES = {
    "this project": {},
    "cuDNN timed": {"timed": True},
    "fused optimizer": {"fused": True},
    "one pass": {"one_pass": True},  # of simclr alone
    "compiled, cuDNN timed": {"mode": "default", "timed": True},
    "CUDA graphs, cuDNN timed": {"mode": "reduce-overhead", "timed": True},
}


class Switched(OurTraining):
    """Our training with some switches thrown.

    timed: cuDNN chooses its algorithms by timing them; fused: torch's fused optimizer; one_pass:
    both views in one pass; mode: of torch.compile.
    """

    def __init__(self, case, split, device, timed=False, fused=False, one_pass=False, mode=None):
        super().__init__(case, split, device)
        self.timed = timed
        self.batches = STEPS * self.batches
        if one_pass:
            self.method = make_method(case, one_pass=True)
            self.method.to(device, memory_format=torch.channels_last)
            self.forward = self.method
            self.optimizer = make_optimizer(self.method, SETTINGS)
        if fused:
            for group in self.optimizer.param_groups:
                group.update(fused=True, foreach=False)
        if mode and device.type == "cuda":
            self.forward = torch.compile(self.method, mode=mode)

    def epoch(self):
        torch.backends.cudnn.benchmark = self.timed
        try:
            super().epoch()
        finally:
            torch.backends.cudnn.benchmark = False


def main():
    device = chosen_device(__doc__)
    results = []
    for case in cases_on_gpu(device):
        results.append(compare(case, device))
        save("switches", results, device)


def compare(case, device):
    """A contest of the switches on a Case."""
    split = random_split(case.batch_size, case.channels, case.size, device)
    contestants = [
        try_out(name, partial(Switched, case, split, device, **thrown))
        for name, thrown in SWITCHES.items()
        if "one_pass" not in thrown or case.method == "simclr"
    ]
    return contest(str(case), "images", filter(None, contestants), device, ROUNDS)


def try_out(name, make):
    """A Contestant after one epoch, or None if it fails, which is printed."""
    try:
        training = make()
        training.epoch()
    except Exception:
        print(f"{name} fails:")
        traceback.print_exc(limit=-3, file=sys.stdout)
        return None
    return Contestant(name, training.epoch, STEPS * len(training.split))


if __name__ == "__main__":
    main()
