"""Which machine is this, and what bounds everything on it? Versions, the card, the rates of matrix
products and of copies, and what one small operation costs the host.

    python -m benchmarks.on_gpu.rates [--device cpu]
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path
from statistics import median

import torch

from benchmarks.contest import chosen_device, save, seconds
from memorization.machine.device import use_exact_arithmetic

PACKAGES = (
    "torch", "torchvision", "triton", "numpy", "scipy", "pydantic", "matplotlib", "pytest",
)  # fmt: skip
PRODUCT, COPY = {"cpu": 512, "cuda": 8192}, {"cpu": 1 << 22, "cuda": 1 << 31}  # rows; bytes
PINNED = 1 << 28  # bytes
REPEATS = 10
OPERATIONS = 2000


def main():
    device = chosen_device(__doc__)
    use_exact_arithmetic()
    print_machine(device)
    rates = {
        "TFLOP/s, product in bfloat16": product_rate(device, torch.bfloat16),
        "TFLOP/s, product in float32": product_rate(device, torch.float32),
        "TB/s, copy on the device, read and written": copy_rate(device),
    }
    if device.type == "cuda":
        rates |= {
            "GB/s, copy from pinned memory": pinned_rate(device),
            "us of the host, one small operation": small_operation(device),
        }
    for name, rate in rates.items():
        print(f"{rate:10.3g} {name}")
    save("rates", rates, device)


def print_machine(device):
    print("python", platform.python_version(), "on", platform.platform())
    for name in PACKAGES:
        try:
            print(f"  {name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {name} is missing")
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    print("C compiler:", shutil.which("cc") or shutil.which("gcc"), "| Python.h:", header.exists())
    print("cores:", os.cpu_count(), "| threads:", torch.get_num_threads())
    if device.type == "cuda":
        if shutil.which("nvidia-smi"):
            print(subprocess.run(["nvidia-smi"], capture_output=True, text=True).stdout)
        print(torch.cuda.get_device_properties(device))
        print("CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version())


def median_seconds(work, device):
    work()
    return median(seconds(work, device) for _ in range(REPEATS))


def product_rate(device, dtype):
    size = PRODUCT[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, device) / 1e12


def copy_rate(device):
    # of noise: zeros are faster
    source = torch.randint(256, (COPY[device.type],), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source), device) / 1e12


def pinned_rate(device):
    host = torch.randint(256, (PINNED,), dtype=torch.uint8).pin_memory()
    target = torch.empty(PINNED, dtype=torch.uint8, device=device)
    work = median_seconds(lambda: target.copy_(host, non_blocking=True), device)
    return PINNED / work / 1e9


def small_operation(device):
    """The host's microseconds for each of many small operations, until all are called."""
    x = torch.zeros(8, device=device)

    def work():
        for _ in range(OPERATIONS):
            x.add_(1)

    return 1e6 * median_seconds(work, device) / OPERATIONS


if __name__ == "__main__":
    main()
