"""Hashes and checksums, and the first difference of two nested values."""

import hashlib

import torch


def first_difference(first, second, key=""):
    """The first (key, value, other value) in which two nested dicts differ, or None."""
    if isinstance(first, dict) and isinstance(second, dict):
        pairs = [
            (f"{key}.{name}".lstrip("."), first.get(name), second.get(name))
            for name in {**first, **second}
        ]
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = [(f"{key}.{i}", *values) for i, values in enumerate(zip(first, second))]
    else:
        return None if type(first) is type(second) and first == second else (key, first, second)
    for pair_key, value, other in pairs:
        difference = first_difference(value, other, pair_key)
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
