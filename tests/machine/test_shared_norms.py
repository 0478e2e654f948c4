"""Batch norms of several processes, each with its part of a batch, do what one norm does with all
of it.
"""

import subprocess
import sys

import pytest
import torch
import torch.nn as nn
from normalize_in_parts import CASES, COUNTS, run_case
from torch.utils._python_dispatch import TorchDispatchMode

from memorization.machine import processes
from memorization.machine.shared_norms import find_own_norm, share_norms

# The largest difference of several processes from one, as a share of the largest number: 1e-12 in
# float64. "float32, far from 0" has a mean of 300 and a deviation of .1; a variance of E[x^2] -
# E[x]^2 would put its output off by .3.
TOLERANCES = {"float32": 1e-5, "float32, far from 0": 0.001, "autocast": 0.01, "bf16": 0.01}


@pytest.fixture(scope="module")
def results_of(tmp_path_factory):
    """{number of processes: what each has written, a list}, of tests/normalize_in_parts.py."""
    folder = tmp_path_factory.mktemp("norms")
    command = [sys.executable, "tests/normalize_in_parts.py", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return {n: [torch.load(folder / f"{n}/{rank}.pt") for rank in range(n)] for n in COUNTS}


@pytest.mark.parametrize("n_processes", COUNTS)
@pytest.mark.parametrize("name", CASES)
def test_norms_of_several_processes_are_those_of_one_with_the_whole_batch(
    name, n_processes, results_of
):
    alone = run_case(CASES[name], n_processes)
    parts = [results[name] for results in results_of[n_processes]]
    tolerance = TOLERANCES.get(name.removesuffix(", channels last"), 1e-12)
    assert set(parts[0]) == set(alone)
    for what, expected in alone.items():
        of_each = [part[what] for part in parts]
        if isinstance(expected, list):  # the rows of a batch, in each step
            for step, whole in enumerate(expected):
                rows = [steps[step] for steps in of_each]
                check_rows(rows, whole, tolerance, (what, step))
        elif what == "output in eval mode":
            check_rows(of_each, expected, tolerance, what)
        else:  # a parameter, its gradient or a buffer, equal to the last bit in all processes
            assert all(torch.equal(value, of_each[0]) for value in of_each), what
            check(of_each[0], expected, tolerance, what)


def check_rows(rows, whole, tolerance, what):
    if whole is None:
        assert rows == [None] * len(rows), what
        return
    last = whole.dim() == 4 and whole.is_contiguous(memory_format=torch.channels_last)
    for part in rows:
        assert not last or part.is_contiguous(memory_format=torch.channels_last), what
    check(torch.cat(rows), whole, tolerance, what)


def check(result, expected, tolerance, what):
    """Assert that a result is what one process gives, up to a share of its largest number."""
    assert result.dtype == expected.dtype and result.shape == expected.shape, what
    difference = (result.double() - expected.double()).abs().max()
    assert difference <= tolerance * expected.abs().max(), (what, difference)


@pytest.fixture
def two_processes(monkeypatch):
    """As in the first of two processes, whose numbers the second one adds nothing to. Returns the
    list of what they have summed.
    """
    monkeypatch.setattr(processes, "count", lambda: 2)
    sums = []
    monkeypatch.setattr(torch.distributed, "all_reduce", sums.append)
    return sums


def test_a_norm_that_is_shared_keeps_its_name_its_weights_and_its_hooks(two_processes):
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, momentum=0.3))
    state, parameters = network.state_dict(), list(network.parameters())
    seen = []
    network[1].register_forward_hook(lambda *_: seen.append("hook"))
    assert share_norms(network) is network and type(network[1]).__name__ == "SharedBatchNorm"
    assert list(network.state_dict()) == list(state) and network[1].momentum == 0.3
    assert all(one is two for one, two in zip(network.parameters(), parameters, strict=True))
    network(torch.randn(3, 1, 2, 2))
    assert seen == ["hook"] and len(two_processes) == 1


def test_one_process_keeps_the_norms_of_torch():
    network = share_norms(nn.Sequential(nn.BatchNorm2d(2)))
    assert type(network[0]) is nn.BatchNorm2d


def test_a_norm_in_eval_mode_talks_to_no_other_process(two_processes):
    norm, x = nn.BatchNorm1d(2), torch.randn(6, 2)
    expected = norm.eval()(x)
    assert torch.equal(share_norms(norm)(x), expected) and not two_processes


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_shared_norm_sums_once_forward_and_once_backward_and_waits_for_no_number(
    momentum, two_processes
):
    norm = share_norms(nn.BatchNorm2d(2, momentum=momentum))
    x = torch.randn(6, 2, 3, 3, requires_grad=True)
    with _Operations() as operations:
        output = norm(x)
        assert len(two_processes) == 1
        output.square().sum().backward()
        assert len(two_processes) == 2
    # The host of a GPU waits for numbers that Python reads, and for shapes that depend on numbers.
    assert not operations.names & {"_local_scalar_dense", "nonzero", "masked_select", "unique"}
    assert "native_batch_norm_backward" in operations.names


class _Operations(TorchDispatchMode):
    """The names of the operations that torch computes."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(3,), (3, 2, 2)])
def test_a_shared_norm_refuses_what_has_no_channels_or_other_ones(shape, two_processes):
    with pytest.raises((ValueError, RuntimeError)):
        share_norms(nn.BatchNorm2d(4))(torch.randn(shape))


def test_a_norm_with_a_forward_pass_of_its_own_is_found_by_name():
    class Own(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    assert find_own_norm(nn.Sequential(nn.BatchNorm2d(3), Own(3))) == "1"
    assert find_own_norm(nn.Sequential(nn.BatchNorm2d(3), nn.SyncBatchNorm(3))) is None


@torch.no_grad()
def test_norms_of_timm_keep_their_activation(two_processes):
    layers = pytest.importorskip("timm.layers")
    norm, x = layers.BatchNormAct2d(3, act_layer=nn.SiLU), torch.randn(8, 3, 4, 4)
    # The second process has a part with mean and variance of 0.
    mean, second_moment = x.mean((0, 2, 3)) / 2, x.square().mean((0, 2, 3)) / 2
    deviation = (second_moment - mean.square() + norm.eps).sqrt()
    expected = (x - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    assert find_own_norm(norm) is None
    assert torch.allclose(share_norms(norm)(x), expected * expected.sigmoid(), atol=1e-5)
