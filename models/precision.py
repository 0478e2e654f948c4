"""Precision: in which losses are computed."""

import torch


def in_full_precision(x):
    """A tensor of half precision in float32; others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
