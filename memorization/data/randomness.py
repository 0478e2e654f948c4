"""Randomness as a function: numbers decided by what they are for, not by what was drawn before.

A counter-based hash in place of a generator: the finaliser of splitmix64 (Steele, Lea and Flood
2014), applied once for every part of the key. It gives the same numbers on every device, in every
order and batch size.
"""

import torch

# What a draw is for. No two purposes ever share a number, so no measurement meets a view that was
# trained on.
PURPOSES = {
    name: number
    for number, name in enumerate(
        [
            "training",
            "scoring",
            "probing",
            "query",
            "order",
            "subsets",
            "fake",
            "removal",
            "halves",
            "pruning",
            "membership",
            "sampling",
            "noise",
        ]
    )
}
SPLITS = {"train": 0, "test": 1}

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = (1 << 64) - 1


def stream(seed, purpose, split="train", epoch=0, view=0):
    """The stream of one (seed, purpose, split, epoch, view): an int64 that, with a sample's index,
    decides its numbers.
    """
    key = 0
    for part in (seed, PURPOSES[purpose], SPLITS[split], epoch, view):
        key = _mix_int((key ^ _mix_int(part + 1)) + _GOLDEN)
    return _to_int64(key)


def sample_keys(stream, indices):
    """One key a sample, (B,) int64. stream: an int from `stream`; indices: (B,) int64.

    Of several streams, a tensor of (V, 1), it returns (V, B).
    """
    return _mix(_mix(indices + 1) ^ stream)


def uniform(keys, slots):
    """Uniform numbers in [0, 1).

    keys: (B,) int64 from sample_keys; slots: (S,) int64, which of a sample's numbers are wanted.
    Returns (B, S) float64.
    """
    words = _mix(keys[:, None] + (slots[None, :] + 1) * _to_int64(_GOLDEN))  # (B, S)
    return _shift_right(words, 11).double().mul_(2.0**-53)


def permutation(n, seed, purpose, split="train", epoch=0):
    """A permutation of range(n), int64, decided by the arguments alone."""
    keys = sample_keys(stream(seed, purpose, split, epoch), torch.arange(n))
    return torch.argsort(keys, stable=True)


def _mix(x):
    """splitmix64's finaliser on int64, which wraps around as uint64 does."""
    x = _shift_right(x, 30).bitwise_xor_(x).mul_(_to_int64(_FIRST))
    x = _shift_right(x, 27).bitwise_xor_(x).mul_(_to_int64(_SECOND))
    return _shift_right(x, 31).bitwise_xor_(x)


def _shift_right(x, bits):
    """Logical shift, a new tensor: int64's own shift would copy the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix_int(x):
    """_mix for one Python integer."""
    x &= _WORD
    x = ((x ^ (x >> 30)) * _FIRST) & _WORD
    x = ((x ^ (x >> 27)) * _SECOND) & _WORD
    return x ^ (x >> 31)


def _to_int64(word):
    """The int64 with the same 64 bits."""
    word &= _WORD
    return word - (1 << 64) if word >> 63 else word
