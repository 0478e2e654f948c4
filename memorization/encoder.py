"""Encoder: a network to measure, and the images that it takes. Pair: f and g."""

from dataclasses import dataclass, field

import torch
import torch.nn as nn

from memorization.fingerprints import checksum, on_cpu


@dataclass(frozen=True, eq=False)
class Encoder:
    """A network to measure, and the images that it takes.

    name: in messages and tables. network: a module in eval mode, `network(pixels, visible=None)`
    maps normalized pixels (B, C, S, S) to (B, D). channels: C; size: S, pixels; normalization:
    (mean, std), C floats each, of pixels in [0, 1]. patch: height and width of the patches that can
    be hidden from it, or None. identity: hexadecimal, equal only for networks that represent
    alike; by default the hash of the weights. record: what its encoder.pt says of its training, a
    dict of plain types; empty for a network that this project did not train.
    """

    name: str
    network: nn.Module
    channels: int
    size: int
    normalization: tuple
    patch: int | None = None
    identity: str | None = None
    record: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.identity is None:
            object.__setattr__(self, "identity", self.weights_fingerprint)

    def to(self, device):
        """The same Encoder. Its network is moved to the device, in channels_last."""
        self.network.to(device, memory_format=torch.channels_last)
        return self

    @property
    def place(self):
        """Where in its run the Encoder lies, such as "seed_0/candidate"; its name if it is of no
        run.
        """
        return place_of(self.record["seed"], self.record["role"]) if self.record else self.name

    @property
    def weights_fingerprint(self):
        """SHA-256 of the weights alone, hexadecimal."""
        return checksum(on_cpu(self.network.state_dict()))


@dataclass(frozen=True, eq=False)
class Pair:
    """The candidate encoder f and the independent encoder g of one seed, at the same epoch."""

    f: Encoder
    g: Encoder
    seed: int

    def __iter__(self):
        return iter((self.f, self.g))

    @property
    def epoch(self):
        """After how many epochs both were kept; None if others trained them."""
        return self.f.record["epoch"]

    @property
    def fingerprints(self):
        """{"seed_0/candidate": a hash of f's weights, "seed_0/independent": of g's}."""
        return {encoder.place: encoder.weights_fingerprint for encoder in self}


def place_of(seed, role):
    """Where in a run folder an encoder lies, such as "seed_0/candidate"."""
    return f"seed_{seed}/{role}"
