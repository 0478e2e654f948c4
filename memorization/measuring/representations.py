"""Representations of many images: who gives them, how they are made, checked and kept."""

import hashlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

from memorization.data.augmentations import GRAY_WEIGHTS, whole_images
from memorization.errors import WrongUse, escape
from memorization.machine import processes, threads
from memorization.machine.device import to_device
from memorization.machine.files import (
    array_in,
    check_writable,
    exists,
    read_bytes,
    refuse_broken,
    write_atomically,
)
from memorization.machine.resources import print_estimate, seconds_of
from memorization.normalization import moderate_scales

ENCODING_BATCH = 512
LONG = 100  # batches from which on one is tried first, to tell what all will take
DIGEST_BYTES = 32  # of SHA-256
OF = b"\nof "  # stands between an array and what it is of
# of a dimension, as a share of its mean: float32 holds less than that no better than by chance
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
    """Representations of some images of a split, seen whole, as Examples on the device; kept in the
    cache, which is safe to delete.

    cache: a folder, or None to keep nothing.
    """
    labels = split.labels[rows].to(device)
    if cache is None:
        return Examples(encode_images(encoder, split, rows, device).to(device), labels)
    what = {
        "source": encoder.identity, "sees": [encoder.channels, encoder.size, encoder.normalization], "split": split.fingerprint,
        "rows": hashlib.sha256(rows.numpy()).hexdigest(),
    }  # fmt: skip
    path = (
        Path(cache)
        / f"{hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]}.npy"
    )
    values = None
    if processes.broadcast(exists(path)):
        with refuse_broken(
            path, "not a whole array of representations", "; delete it, and it will be made again"
        ):
            values = read_representations(path, len(rows), what)
        if processes.broadcast(values is None):
            print(
                f"{escape(path)}: does not tell that it is of this encoder and these images; made again",
                flush=True,
            )
            values = None
    if values is None:
        check_writable(cache)
        values = encode_images(encoder, split, rows, device, kept_in=cache).numpy()
        write_atomically(path, representation_file(values, what))
    return Examples(torch.from_numpy(values).to(device), labels)


def representation_file(values, what):
    """The bytes of a file of the cache: the array as np.save writes it, `what` it is of as JSON, a
    checksum.
    """
    file = io.BytesIO()
    np.save(file, values)
    content = file.getvalue() + OF + json.dumps(what, sort_keys=True).encode()
    return content + hashlib.sha256(content).digest()


def read_representations(path, count, what=None):
    """The representations of `count` images in a file of the cache, (count, D) float32.

    what: of `representation_file`; None accepts any. Returns None if the file is of something else.
    Raises ValueError if the file is broken.
    """
    content = read_bytes(path)
    content, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its checksum does not fit")
    array, _, of = content.rpartition(OF)  # files of earlier versions have no such part
    if what is not None and of != json.dumps(what, sort_keys=True).encode():
        return None
    content = array or content
    values = array_in(content)
    if (
        values.dtype != np.float32
        or values.ndim != 2
        or len(values) != count
        or not np.isfinite(values).all()
    ):
        raise ValueError(f"{values.dtype} of shape {values.shape}")
    return values


def encode_images(encoder, split, rows, device, kept_in=None):
    """Representations of some images of a split, seen whole, (n, D) float32, on the CPU; see
    `encode_views`.
    """
    split = in_channels(split, encoder.channels).to(device)
    return encode_views(
        encoder,
        lambda batch: whole_images(split, batch, encoder.size, encoder.normalization),
        rows,
        device,
        kept_in,
    )


def encode_views(encoder, make_view, rows, device, kept_in=None):
    """Representations of one view of each of some images, (n, D) float32, on the CPU. Raises
    WrongUse where one is not finite.

    make_view: (B,) of the rows -> View, on the device; rows: (n,) int64; kept_in: the folder where
    the caller will keep them, or None.
    """
    # The encoder moves outside of inference mode: weights that are made inside cannot be trained.
    network, batches = encoder.network.to(device), rows.split(ENCODING_BATCH)

    def encode(pixels, visible):
        return network(pixels) if visible is None else network(pixels, visible)

    @torch.inference_mode()
    def represented(batch):
        values = threads.encode_in_parts(encode, [make_view(batch)])[0].float().cpu()
        if not values.isfinite().all():
            raise WrongUse(f"{encoder.name}: its representations are not finite")
        return values

    if len(batches) >= LONG:
        disk = represented(batches[0][:1]).nbytes * len(rows) if kept_in else 0
        seconds = (
            len(batches) / processes.count() * seconds_of(lambda: represented(batches[0]), device)
        )
        print_estimate(
            f"encoding {len(rows)} images by {encoder.name}", seconds, device, disk, kept_in or "."
        )
    return torch.cat(processes.map_parts(represented, batches, f"encoding by {encoder.name}"))


def varying_dimensions(values):
    """Which dimensions of some representations vary by more than rounding, (D,) bool. values: (N,
    D). Raises WrongUse where none does.
    """
    deviation, mean = torch.std_mean(values * moderate_scales(values), dim=0)
    varies = deviation > LEAST_DEVIATION * mean.abs().clamp(min=LEAST_DEVIATION)
    if not varies.any():
        raise WrongUse("all images are represented alike: the encoder has collapsed")
    return varies


def in_channels(split, channels):
    """The split with gray images repeated in three channels, or with colour images turned gray
    (their luminance, as in torchvision).
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
    """The Encoder whose representation is the image as another one takes it, shrunk to at most
    32 x 32 pixels.
    """
    size = min(encoder.size, MOST_PIXELS)
    network = nn.Flatten()
    return replace(
        encoder,
        name="raw pixels", network=network, size=size, patch=None, identity="pixels", record={},
    )  # fmt: skip


def stated_adaptation(encoder, images):
    """What was done to a dataset's images for an encoder, in words."""
    channels, size = images.channels, images.train.size
    colors = {(1, 3): "gray repeated in three channels", (3, 1): "colours turned gray"}.get(
        (channels, encoder.channels)
    )
    resized = None if size == encoder.size else f"resized from {size} to {encoder.size} pixels"
    return ", ".join(done for done in (colors, resized) if done) or "as they are"
