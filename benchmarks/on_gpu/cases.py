"""What is trained on a GPU: the sizes of the papers, and tiny ones to try the benchmarks with."""

import os
from dataclasses import replace

from benchmarks import training
from benchmarks.training import RESNET18, Case
from models.encoders import encoder_settings

CASES = [*training.CASES["cuda"], Case("byol", RESNET18, batch_size=512)]
TINY_ENCODERS = {
    "resnet18": encoder_settings(name="resnet_small", width=8),
    "vit_tiny": encoder_settings(name="vit_mini", width=32, depth=1, patch=8),
}


def is_tiny(device):
    """Whether the benchmarks are only tried: on a CPU, or if the variable TINY is set."""
    return device.type == "cpu" or bool(os.environ.get("TINY"))


def cases_on_gpu(device):
    """The cases, or tiny ones, of which those that only differed in batch size are one."""
    if not is_tiny(device):
        return CASES
    tiny = [replace(case, encoder=TINY_ENCODERS[case.encoder.name], batch_size=8) for case in CASES]
    return list({str(case): case for case in tiny}.values())
