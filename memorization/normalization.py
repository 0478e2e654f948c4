"""Normalization of vectors, however large or small their values are."""

import numpy as np
import torch
import torch.nn.functional as F

# Vectors whose largest value is smaller are scaled up first: the inverse of a denormal overflows.
SMALL = 2.0**-60
# Bounds of largest values whose spread float32 computes without scaling.
MODERATE = (2.0**-20, 2.0**40)


def normalize(values, dim):
    """l2-normalize tensors along a dimension; vectors of zeros stay zeros.

    Each vector is multiplied by powers of two first, so that its squares neither overflow nor
    vanish. That is exact: for ordinary vectors the result equals F.normalize bit for bit.
    """
    largest = values.abs().amax(dim, keepdim=True)
    values = values * torch.where(largest < SMALL, 2.0**64, 1.0).to(values.dtype)
    largest = torch.where(largest < SMALL, largest * 2.0**64, largest)
    # The quotient is a power of two: division is exact on every device.
    scale = torch.frexp(largest).mantissa / largest
    return F.normalize(values * torch.where(largest > 0, scale, 1.0), dim=dim)


def normalize_rows(values):
    """`normalize` for the rows of an array, (N, D)."""
    values = np.ldexp(values, -np.frexp(np.abs(values).max(axis=1, keepdims=True))[1])
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def moderate_scales(values):
    """Powers of two, often 1: values times them have a spread that float32 can compute.

    values: (N, D), finite. Small dimensions are scaled up only if all are small. Returns (D,), one
    scale for each dimension.
    """
    largest = values.abs().amax(0)
    common = moderate_scale(largest)
    if common > 1:
        return torch.full_like(largest, common)
    return torch.where(largest > MODERATE[1], torch.frexp(largest).mantissa / largest, 1.0)


def moderate_scale(values):
    """Like `moderate_scales`, but one power of two for all values of a tensor, a float."""
    largest = values.abs().max().item()
    if largest == 0 or MODERATE[0] <= largest <= MODERATE[1]:
        return 1.0
    return 2.0 ** max(-126, min(126, -int(np.frexp(largest)[1])))
