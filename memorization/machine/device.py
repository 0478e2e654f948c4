"""The machine a script runs on: its device, and what a result should say of it."""

import platform
import subprocess
import sys
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import torch

from memorization.errors import WrongUse
from memorization.machine import meeting, processes
from memorization.machine.resources import pin
from memorization.machine.screen import caution


def choose_device(name, threads=None):
    """The torch.device of a script, which joins the other processes of its job.

    name: "auto", "cpu", "cuda" or such as "cuda:1"; threads: of the CPU; None leaves their number
    to torch. From then on float32 is multiplied as such. Raises WrongUse for an absent GPU.
    """
    use_exact_arithmetic()
    if threads:
        torch.set_num_threads(threads)
    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        device = torch.device(name)
    if meeting.world_size() > 1 and device.type == "cuda":
        if device.index is not None:
            both = f"{name!r} is one GPU for {meeting.world_size()} processes"
            raise WrongUse(f"device: {both}; with cuda or auto each has its own")
        device = meeting.own_gpu()
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise WrongUse(
            f"device: {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices"
        )
    meeting.join(device)
    return device


def to_device(tensor, device):
    """The tensor on the device. The host does not wait: a GPU copies from pinned memory later."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = pin(tensor)
    return tensor.to(device, non_blocking=device.type != "cpu")


def to_device_together(groups, device):
    """Lists of tensors on the device, which a GPU takes in one copy. groups: lists on the CPU."""
    if device.type == "cpu":
        return groups
    tensors = [tensor for group in groups for tensor in group]
    contents = [tensor.numpy().tobytes() for tensor in tensors]
    # Every tensor begins at a multiple of eight bytes, as its type may need.
    padded = [content + bytes(8 - len(content) % 8) for content in contents]
    joined = torch.frombuffer(bytearray().join(padded), dtype=torch.uint8)
    sent = to_device(joined, device).split([len(content) for content in padded])
    tensors = iter(
        part.view(tensor.dtype)[: tensor.numel()].view(tensor.shape)
        for part, tensor in zip(sent, tensors)
    )
    return [list(islice(tensors, len(group))) for group in groups]


def uses_bf16(precision, device):
    """Whether networks multiply in bfloat16.

    precision: "bf16", "fp32", or "auto", which is bf16 on GPUs made for it. Older GPUs, before
    compute capability 8 (Ampere), only emulate it.
    """
    if precision == "auto":
        return device.type == "cuda" and is_made_for_bf16(device)
    return precision == "bf16"


def is_made_for_bf16(device):
    """Whether a GPU multiplies in bfloat16 itself."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def warn_of_emulation(setting, precision, device):
    """Warn if a GPU has to multiply in bfloat16 but only emulates it. setting: the key of the
    precision.
    """
    if precision == "bf16" and device.type == "cuda" and not is_made_for_bf16(device):
        name = torch.cuda.get_device_name(device)
        caution(f"{setting}: bf16 is only emulated by {name}, and no faster there than fp32")


def use_exact_arithmetic():
    """Multiply float32 as float32: no TF32 in CUDA's matrix products and convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def describe_machine(device):
    """Versions, device and git commit, a dict of plain types."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    packages = ["torch", "torchvision", "numpy", "scipy"]
    packages += [package for package in ("timm", "transformers") if package in sys.modules]
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "device": gpu or f"cpu ({processor()})",
        "threads": torch.get_num_threads(),
        "processes": processes.count(),
        "commit": _commit(),
    }


def processor():
    """The processor's model, if the system tells it, and the vector instructions that torch uses on
    it, in words.
    """
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


def _commit():
    """The git commit of this code, with + if the files differ from it; None outside a git
    checkout.
    """
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        describe = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
        ended = subprocess.run([*git, *describe], capture_output=True, text=True, check=True)
        return ended.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
