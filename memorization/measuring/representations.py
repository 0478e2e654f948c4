"""Representations of many images: encoding, checks, and a cache."""

import hashlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

from memorization.data.augmentations import whole_images
from memorization.data.transforms import GRAY_WEIGHTS
from memorization.errors import WrongUse, escape
from memorization.machine import processes, threads
from memorization.machine.archives import array_in
from memorization.machine.device import to_device
from memorization.machine.files import (
    check_writable,
    exists,
    read_bytes,
    refuse_broken,
    write_atomically,
)
from memorization.machine.resources import print_estimate, seconds_of
from memorization.machine.screen import say
from memorization.normalization import moderate_scales

ENCODING_BATCH = 512
LONG = 100  # batches from which on the time of all is estimated first
DIGEST_BYTES = 32  # of SHA-256
OF = b"\nof "  # stands between an array and its origin
# The least deviation of a dimension, as a share of its mean. float32 rounds by about as much.
LEAST_DEVIATION = 1e-6
MOST_PIXELS = 32  # height and width to which raw pixels are shrunk before they are probed


@dataclass(frozen=True)
class Examples:
    """Representations and labels of some images, on one device."""

    values: torch.Tensor  # (N, D) float32
    labels: torch.Tensor  # (N,) int64

    def __getitem__(self, rows):
        return Examples(self.values[rows], self.labels[rows])


def stored_examples(encoder, split, rows, cache, device):
    """Representations of some images of a split, seen whole, as Examples on the device. They are
    read from the cache, or encoded and written there.

    cache: a folder that is safe to delete, or None to keep nothing.
    """
    labels = split.labels[rows].to(device)
    if cache is None:
        return Examples(encode_images(encoder, split, rows, device).to(device), labels)
    origin = {
        "source": encoder.identity,
        "sees": [encoder.channels, encoder.size, encoder.normalization],
        "split": split.fingerprint,
        "rows": hashlib.sha256(rows.numpy()).hexdigest(),
    }
    digest = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()
    path = Path(cache) / f"{digest[:16]}.npy"
    values = _read_cache(path, len(rows), origin)
    if values is None:
        check_writable(cache)
        values = encode_images(encoder, split, rows, device, kept_in=cache).numpy()
        write_atomically(path, representation_file(values, origin))
    return Examples(torch.from_numpy(values).to(device), labels)


def _read_cache(path, n_images, origin):
    """The representations in a file of the cache, or None if it is missing or of another origin.
    All processes read the file, or none does.
    """
    if not processes.broadcast(exists(path)):
        return None
    advice = "; delete it, and it will be made again"
    with refuse_broken(path, "not a whole array of representations", advice):
        values = read_representations(path, n_images, origin)
    if processes.broadcast(values is None):
        other = "does not tell that it is of this encoder and these images"
        say(f"{escape(path)}: {other}; made again")
        return None
    return values


def representation_file(values, origin):
    """The bytes of a file of the cache: the array as np.save writes it, its origin as JSON, and a
    checksum.
    """
    file = io.BytesIO()
    np.save(file, values)
    content = file.getvalue() + OF + json.dumps(origin, sort_keys=True).encode()
    return content + hashlib.sha256(content).digest()


def read_representations(path, n_images, origin=None):
    """The representations of n_images images in a file of the cache, (n_images, D) float32.

    origin: see `representation_file`; None accepts any. Returns None if the file is of another
    origin. Raises ValueError if the file is broken.
    """
    content = read_bytes(path)
    content, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its checksum does not fit")
    array, _, text = content.rpartition(OF)  # files of earlier versions have no such part
    if origin is not None and text != json.dumps(origin, sort_keys=True).encode():
        return None
    values = array_in(array or content)
    is_whole = values.dtype == np.float32 and values.ndim == 2 and len(values) == n_images
    if not is_whole or not np.isfinite(values).all():
        raise ValueError(f"{values.dtype} of shape {values.shape}")
    return values


def encode_images(encoder, split, rows, device, kept_in=None):
    """Representations of some images of a split, seen whole, (n, D) float32, on the CPU. See
    `encode_views`.
    """
    split = in_channels(split, encoder.channels).to(device)

    def make_view(batch):
        return whole_images(split, batch, encoder.size, encoder.normalization)

    return encode_views(encoder, make_view, rows, device, kept_in)


def encode_views(encoder, make_view, rows, device, kept_in=None):
    """Representations of one view of each image, (n, D) float32, on the CPU. Raises WrongUse if one
    is not finite.

    make_view: maps (B,) of the rows to a View on the device; rows: (n,) int64; kept_in: the folder
    in which the caller will keep the representations, or None.
    """
    # The encoder moves outside of inference mode: weights that are made inside cannot be trained.
    network, batches = encoder.network.to(device), rows.split(ENCODING_BATCH)

    def encode(pixels, visible):
        return network(pixels) if visible is None else network(pixels, visible)

    @torch.inference_mode()
    def encode_batch(batch):
        values = threads.encode_in_parts(encode, [make_view(batch)])[0].float().cpu()
        if not values.isfinite().all():
            raise WrongUse(f"{encoder.name}: its representations are not finite")
        return values

    name = f"encoding by {encoder.name}"
    if len(batches) >= LONG:
        disk = encode_batch(batches[0][:1]).nbytes * len(rows) if kept_in else 0
        seconds = seconds_of(lambda: encode_batch(batches[0]), device)
        seconds *= len(batches) / processes.count()
        what = f"encoding {len(rows)} images by {encoder.name}"
        print_estimate(what, seconds, device, disk, kept_in or ".")
    return torch.cat(processes.map_in_processes(encode_batch, batches, name))


def varying_dimensions(values):
    """Which dimensions of representations (N, D) vary by more than rounding, (D,) bool. Raises
    WrongUse if none does.
    """
    deviation, mean = torch.std_mean(values * moderate_scales(values), dim=0)
    varies = deviation > LEAST_DEVIATION * mean.abs().clamp(min=LEAST_DEVIATION)
    if not varies.any():
        raise WrongUse("all images are represented alike: the encoder has collapsed")
    return varies


def in_channels(split, channels):
    """The split with images of so many channels: gray repeated in three, or colours turned gray
    (luminance, as in torchvision).
    """
    if split.pixels.shape[1] == channels:
        return split
    if channels == 1:
        weights = to_device(torch.tensor(GRAY_WEIGHTS)[:, None, None], split.pixels.device)
        gray = [
            (part * weights).sum(1, keepdim=True).to(torch.uint8)
            for part in split.pixels.split(ENCODING_BATCH)
        ]
        return replace(split, pixels=torch.cat(gray))
    return replace(split, pixels=split.pixels.expand(-1, channels, -1, -1))


def raw_pixels(encoder):
    """The Encoder whose representation is the image itself, as another Encoder takes it, shrunk to
    at most 32 x 32 pixels.
    """
    return replace(
        encoder,
        name="raw pixels",
        network=nn.Flatten(),
        size=min(encoder.size, MOST_PIXELS),
        patch=None,
        identity="pixels",
        record={},
    )


def state_adaptation(encoder, images):
    """What is done to a dataset's images for an encoder, in words."""
    changes, size = [], images.train.size
    if (images.channels, encoder.channels) == (1, 3):
        changes.append("gray repeated in three channels")
    if (images.channels, encoder.channels) == (3, 1):
        changes.append("colours turned gray")
    if size != encoder.size:
        changes.append(f"resized from {size} to {encoder.size} pixels")
    return ", ".join(changes) or "as they are"
