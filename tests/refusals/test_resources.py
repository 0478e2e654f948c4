import errno
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import CPU

import dejavu
import memorization_scores
import train_simclr
from memorization.data.images import Split
from memorization.data.prefetching import prefetch
from memorization.errors import Caution, WrongUse
from memorization.machine.command import one_line_errors
from memorization.machine.device import is_made_for_bf16, to_device, uses_bf16, warn_of_emulation
from memorization.machine.resources import (
    TRIALS,
    memory_for,
    peak_memory,
    pin,
    print_estimate,
    seconds_of,
    tensor_bytes,
)


def test_the_time_of_work_leaves_out_its_first_time():
    calls = []

    def work():
        calls.append(None)
        time.sleep(0.5 if len(calls) == 1 else 0.01)

    assert 0.01 <= seconds_of(work, CPU) < 0.5 and len(calls) == 1 + TRIALS


def test_an_estimate_is_a_line_and_warns_if_the_disk_is_too_small(tmp_path, capsys):
    print_estimate("a job", 3725, CPU, 5_000_000, tmp_path / "still/to/be/made")
    line = capsys.readouterr().out
    assert line.startswith("  a job: about 1:02:05, ") and line.endswith(
        " of memory, 5.0 MB on the disk\n"
    )
    print_estimate("a job", 5, CPU)
    assert capsys.readouterr().out.endswith(" of memory\n")
    with pytest.warns(Caution, match="1000000000.0 GB will be written"):
        print_estimate("a job", 1, CPU, 10**18, tmp_path)


def test_peak_memory_is_in_bytes_on_linux_and_on_macos(monkeypatch):
    held = torch.ones(20_000_000, dtype=torch.uint8)
    assert held.nbytes < peak_memory() < 2**40
    usage = SimpleNamespace(ru_maxrss=5000)
    monkeypatch.setattr("resource.getrusage", lambda who: usage)
    for system, expected in (("linux", 5000 * 1024), ("darwin", 5000)):
        monkeypatch.setattr(sys, "platform", system)
        assert peak_memory() == expected


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_names_the_setting(error):
    with (
        pytest.raises(WrongUse, match="scores.batch_size: 7 needs more than .* lower it"),
        memory_for("scores.batch_size", 7),
    ):
        raise error


def test_out_of_host_memory_is_known_as_torch_tells_it():
    with (
        pytest.raises(
            WrongUse, match=r"probe.train_images: null \(all\) needs more than memory has left"
        ),
        memory_for("probe.train_images", None),
    ):
        torch.empty(2**60, dtype=torch.uint8)


GPU, HOST = "the GPU's memory has left", "memory has left in the host"


@pytest.mark.parametrize("error, memory", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), GPU),
    (
        torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"),
        GPU,
    ),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), GPU),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), GPU),
    (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), GPU),
    (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"), HOST),
    (RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED"), GPU),
    (RuntimeError("CUDA driver error: out of memory"), GPU),
    (RuntimeError("NCCL error: unhandled cuda error: Cuda failure 2 'out of memory'"), GPU),
    (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        HOST,
    ),
    (RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)"), HOST),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), HOST),
    (MemoryError(), HOST),
])  # fmt: skip
def test_running_out_of_memory_is_known_whoever_says_so(error, memory, capsys):
    with pytest.raises(WrongUse) as refused, memory_for("scores.batch_size", 7):
        raise error
    assert str(refused.value) == f"scores.batch_size: 7 needs more than {memory}; lower it"

    @one_line_errors
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as ending:  # in a place that belongs to no setting
        main([])
    line = capsys.readouterr().err
    assert ending.value.code == 2 and line.count("\n") == 1
    assert line.startswith(f"error: this needs more than {memory};")


@pytest.mark.parametrize("error", [
    RuntimeError("shapes do not fit"),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    OSError(errno.ENOSPC, "No space left on device"),
])  # fmt: skip
def test_another_error_passes(error):
    with pytest.raises(type(error)) as passed, memory_for("scores.batch_size", 7):
        raise error
    assert passed.value is error


def test_another_runtime_error_stays_a_traceback():
    @one_line_errors
    def main(argv):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        main([])


def test_memory_that_cannot_be_pinned_is_the_hosts(monkeypatch):
    def fails(tensor):
        raise torch.AcceleratorError(words)

    monkeypatch.setattr(torch.Tensor, "pin_memory", fails)
    words = "CUDA error: out of memory"
    for send in (pin, lambda tensor: to_device(tensor, torch.device("cuda"))):
        refused = pytest.raises(WrongUse, match="needs more than memory has left in the host")
        with refused, memory_for("training.batch_size", 7):
            send(torch.zeros(2))
    pixels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    split = Split("train", pixels, torch.zeros(3), device=torch.device("cuda"))
    with pytest.raises(WrongUse, match="in the host"), memory_for("training.batch_size", 7):
        list(prefetch(split, [torch.arange(2)]))
    words = "CUDA error: an illegal memory access was encountered"
    with pytest.raises(torch.AcceleratorError):
        pin(torch.zeros(2))


@pytest.mark.parametrize("main, option, setting, advice", [
    (train_simclr.main, "training.epochs", "training.data_device: auto", "take cpu"),
    (memorization_scores.main, "scores.views", "device: cpu", "end what else uses it"),
    (dejavu.main, "dejavu.k", "device: cpu", "end what else uses it"),
])  # fmt: skip
def test_images_that_a_full_gpu_does_not_take_are_told_in_a_line(
    main, option, setting, advice, scored_run, tmp_path, refusal, monkeypatch
):
    def full(*arguments):
        raise torch.AcceleratorError("CUDA error: out of memory")

    monkeypatch.setattr(Split, "to", full)
    run = tmp_path / "run" if main is train_simclr.main else scored_run[1]
    line = refusal(main, ["--config", scored_run[0], "--run", str(run), f"--{option}", "3"])
    assert f"{setting} needs more than {GPU}; {advice}" in line


def test_bytes_of_tensors_are_counted_wherever_they_are():
    assert (
        tensor_bytes(
            {"a": [torch.zeros(3), {"b": torch.zeros(2, dtype=torch.uint8)}], "c": 5, "d": "x"}
        )
        == 14
    )


@pytest.mark.parametrize("capability, made_for_it", [
    ((6, 1), False), ((7, 5), False), ((8, 0), True), ((8, 6), True), ((10, 0), True),
])  # fmt: skip
def test_auto_is_bf16_only_on_a_gpu_that_multiplies_in_it(
    capability, made_for_it, monkeypatch, recwarn
):
    asked = []

    def capability_of(device):
        asked.append(device)
        return capability

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability_of)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some Card")
    gpu = torch.device("cuda", 1)
    assert is_made_for_bf16(gpu) == uses_bf16("auto", gpu) == made_for_it and asked == [gpu, gpu]
    assert uses_bf16("bf16", gpu) and not uses_bf16("fp32", gpu)
    assert uses_bf16("bf16", CPU) and not uses_bf16("auto", CPU)
    for precision, device in (("auto", gpu), ("fp32", gpu), ("bf16", CPU)):
        warn_of_emulation("training.precision", precision, device)
    if made_for_it:
        warn_of_emulation("training.precision", "bf16", gpu)
    assert not recwarn.list
    if not made_for_it:
        with pytest.warns(Caution, match="training.precision: bf16 is only emulated by Some Card"):
            warn_of_emulation("training.precision", "bf16", gpu)
