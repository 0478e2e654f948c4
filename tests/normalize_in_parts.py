"""Train batch norms in two and in three processes, each with its part of a batch: what
test_shared_norms.py starts.

    python tests/normalize_in_parts.py FOLDER

Writes FOLDER/2/0.pt, FOLDER/2/1.pt, FOLDER/3/0.pt, ...: of each process of two and of three what
`run_case` returns for every case.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402
import torch._dynamo  # noqa: E402, F401 - DistributedDataParallel imports it
import torch.distributed as dist  # noqa: E402
import torch.nn as nn  # noqa: E402

from memorization.machine import processes  # noqa: E402
from memorization.machine.shared_norms import share_norms  # noqa: E402

COUNTS = 2, 3
STEPS = 3


@dataclass(frozen=True)
class Case:
    """make() -> the network; shape: of an image; images: in a batch of all processes, None for one
    a process; the others: of the batch, too.
    """

    make: Callable
    shape: tuple
    images: int | None = 12
    dtype: torch.dtype = torch.float64
    mean: float = 3.0
    deviation: float = 2.0
    channels_last: bool = False
    autocast: bool = False


def _of_size(norm, **options):
    return lambda: norm(5, **options)


def _frozen():
    norm = nn.BatchNorm2d(5)
    norm.weight.requires_grad_(False)
    return norm


def _without_input_gradient():
    """The norm has weights, but nothing before it."""
    return nn.Sequential(_Detach(), nn.BatchNorm2d(5))


def _network():
    return nn.Sequential(
        nn.Conv2d(5, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 6, 2, bias=False), nn.BatchNorm2d(6, affine=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(6, 7, bias=False), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 4),
    )  # fmt: skip


def _convolution():
    return nn.Sequential(nn.Conv2d(5, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))


class _Detach(nn.Module):
    def forward(self, x):
        return x.detach()


class _Mean(nn.Module):
    """Gives back a gradient of stride 0."""

    def forward(self, x):
        return x.mean((2, 3))


CASES = {
    "2d": Case(_of_size(nn.BatchNorm2d), (5, 4, 3)),
    "2d, channels last": Case(_of_size(nn.BatchNorm2d), (5, 4, 3), channels_last=True),
    "1d": Case(_of_size(nn.BatchNorm1d), (5,)),
    "1d, of sequences": Case(_of_size(nn.BatchNorm1d), (5, 4)),
    "1d, one image a process": Case(_of_size(nn.BatchNorm1d, eps=0.5), (5,), images=None),
    "3d": Case(_of_size(nn.BatchNorm3d), (5, 4, 3, 2)),
    "eps": Case(_of_size(nn.BatchNorm2d, eps=0.5, momentum=0.7), (5, 4, 3)),
    "momentum None": Case(_of_size(nn.BatchNorm2d, momentum=None), (5, 4, 3)),
    "affine False": Case(_of_size(nn.BatchNorm2d, affine=False), (5, 4, 3)),
    "no running statistics": Case(_of_size(nn.BatchNorm2d, track_running_stats=False), (5, 4, 3)),
    "frozen weight": Case(_frozen, (5, 4, 3)),
    "input without gradient": Case(_without_input_gradient, (5, 4, 3)),
    "gradient of stride 0": Case(lambda: nn.Sequential(nn.BatchNorm2d(5), _Mean()), (5, 4, 3)),
    "network": Case(_network, (5, 4, 4)),
    "network, channels last": Case(_network, (5, 4, 4), channels_last=True),
    "float32, far from 0": Case(
        _of_size(nn.BatchNorm2d), (5, 8, 8), dtype=torch.float32, mean=300.0, deviation=0.1
    ),
    "float32": Case(_network, (5, 4, 4), dtype=torch.float32),
    "bf16": Case(_of_size(nn.BatchNorm2d), (5, 8, 8), dtype=torch.bfloat16),
    "bf16, channels last": Case(
        _of_size(nn.BatchNorm2d), (5, 8, 8), dtype=torch.bfloat16, channels_last=True
    ),
    "autocast": Case(_convolution, (5, 8, 8), dtype=torch.float32, autocast=True),
}


def run_case(case, n_processes):
    """Train a case's network for some steps with the part of each batch that this process has of
    those of n_processes, or with all of it if this is the only one; then evaluate it.

    Returns {what: tensor, or list of those of the steps}.
    """
    torch.manual_seed(0)
    network = case.make()
    network.to(torch.float32 if case.dtype == torch.bfloat16 else case.dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.rand_like(parameter))
    network = share_norms(network)
    has_weights = any(parameter.requires_grad for parameter in network.parameters())
    forward = processes.share_gradients(network) if has_weights else network
    outputs, gradients = [], []
    for _ in range(STEPS):
        x = draw_part(case, case.images or n_processes).requires_grad_()
        network.zero_grad()
        with torch.autocast("cpu", enabled=case.autocast):
            output = forward(x)
        factors = torch.randn(processes.count() * len(output), *output.shape[1:])
        (output.square() * processes.shard(factors)).sum().backward()
        outputs.append(output.detach())
        gradients.append(x.grad)
    results = {"output": outputs, "input gradient": gradients, **network.state_dict()}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:  # of several processes the mean of theirs
            results[f"gradient of {name}"] = parameter.grad * processes.count()
    if list(network.buffers()):  # without them a norm takes those of its own part in eval mode
        results["output in eval mode"] = network.eval()(x).detach()
    return results


def draw_part(case, n_images):
    """This process's part of a random batch whose mean rises from image to image."""
    slope = torch.linspace(-2, 2, n_images).view(-1, *[1] * len(case.shape))
    batch = case.mean + case.deviation * (torch.randn(n_images, *case.shape) + slope)
    part = processes.shard(batch.to(case.dtype))
    return part.to(memory_format=torch.channels_last) if case.channels_last else part


def run_process(rank, n_processes, folder):
    """Run all cases as one of several processes, and write the results."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", n_processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=n_processes)
    results = {name: run_case(case, n_processes) for name, case in CASES.items()}
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


def main(folder):
    """Start the processes. They are forked, so that torch is imported once."""
    for n_processes in COUNTS:
        files = Path(folder, str(n_processes))
        files.mkdir()
        started = []
        for rank in range(n_processes):
            pid = os.fork()
            if pid == 0:
                run_process(rank, n_processes, files)
                os._exit(0)
            started.append(pid)
        if any([os.waitpid(pid, 0)[1] for pid in started]):
            sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
