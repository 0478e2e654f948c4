"""Hashes and checksums, and the first difference of two nested values."""

import hashlib

import torch


def first_difference(given, stored, key=""):
    """The first (key, given value, stored value) in which two nested dicts differ, or None."""
    if isinstance(given, dict) and isinstance(stored, dict):
        pairs = [
            (f"{key}.{name}".lstrip("."), given.get(name), stored.get(name))
            for name in {**given, **stored}
        ]
    elif isinstance(given, list) and isinstance(stored, list) and len(given) == len(stored):
        pairs = [(f"{key}.{i}", *values) for i, values in enumerate(zip(given, stored))]
    else:
        return None if type(given) is type(stored) and given == stored else (key, given, stored)
    for pair_key, one, other in pairs:
        difference = first_difference(one, other, pair_key)
        if difference:
            return difference
    return None


def checksum(value):
    """SHA-256 over a nested value of plain types and tensors, hexadecimal."""
    digest = hashlib.sha256()

    def add(item):
        if isinstance(item, torch.Tensor):
            digest.update(f"{item.dtype} {tuple(item.shape)} ".encode())
            digest.update(item.contiguous().flatten().view(torch.uint8).numpy())
        elif isinstance(item, dict):
            digest.update(f"dict {len(item)} ".encode())
            for key, part in item.items():
                digest.update(f"{key!r}: ".encode())
                add(part)
        elif isinstance(item, list):
            digest.update(f"list {len(item)} ".encode())
            for part in item:
                add(part)
        else:
            digest.update(f"{item!r} ".encode())

    add(value)
    return digest.hexdigest()


def on_cpu(value):
    """The same nested value, with its tensors contiguous on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().contiguous()
    if isinstance(value, dict):
        return {key: on_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [on_cpu(item) for item in value]
    return value
