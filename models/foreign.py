"""Encoders whose networks come from other libraries, or from the user's own code."""

import difflib
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn as nn
from pydantic import Field
from torch.func import functional_call
from torchvision.ops import StochasticDepth

from models.layer_tracing import trace_layers, twice
from models.layers import outputs_of_layers
from models.settings import BaseEncoderSettings

INSTALL = "pip install -r requirements-optional.txt"
MOST_BYTES = 2**20  # of a file of code or settings


@dataclass(frozen=True)
class Reading:
    """How the network of a library is read.

    pool: (network, pixels) -> (B, D), the library's own pooling. tokens: (network, pixels) -> (B,
    T, D), raises ValueError if the network has none; None if no network of the library has some.
    before: number of tokens in front of those of the patches; None if it is not known. has_class:
    whether the first token is a class token. names_in_files: network -> {name of a weight in the
    library's files: its name in the network's state dict}, if they differ.
    """

    pool: Callable
    tokens: Callable | None = None
    before: int | None = None
    has_class: bool = False
    names_in_files: Callable | None = None


class ForeignSettings(BaseEncoderSettings):
    """Settings of an encoder whose network `build` makes."""

    output: Literal["pooled", "class", "mean", "tokens"] = Field(
        "pooled",
        description="the representation: as the library pools, the class token, the mean of the "
        "patches (of the positions of the last feature map), or all tokens flattened",
    )

    @property
    def title(self):
        """The setting that names the network, and its value, such as "encoder.model: resnet18"."""
        raise NotImplementedError

    @property
    def label(self):
        return f"{self.name} {self.title.partition(': ')[2]}"

    def build(self, channels, size):
        """A network without classifier, and its Reading.

        Raises ValueError, naming the setting, if there is no such network.
        """
        raise NotImplementedError

    def make(self, channels, size):
        """See BaseEncoderSettings. Weights are drawn as the library draws them."""
        network, reading = self.build(channels, size)
        remove_chance(network)
        _check_patches(network, size, self.title)
        kind = TokenEncoder if _has_tokens(network, reading, channels, size) else ForeignEncoder
        return kind(network, reading, self, (channels, size))


class ForeignEncoder(nn.Module):
    """The network of another library as an encoder.

    network: without its classifier; its weights have the library's names. reading: its Reading.
    settings: ForeignSettings. images: (channels, size) of the images that it takes.

    Weights that do not reach the representation are not trained. Raises ValueError, naming the
    setting, if the network does not take such images or has no such output.
    """

    def __init__(self, network, reading, settings, images):
        super().__init__()
        self.network, self.reading = network, reading
        self.title, self.output = settings.title, settings.output
        channels, self.size = images
        self._check_output()
        represent = partial(_represent, reading=reading, output=self.output)
        with refuse_images(self.title, channels, self.size):
            shape, used = _try_out(network, represent, channels, self.size)
        if len(shape) != 2 or shape[0] != 2:
            other = f"gives shape {tuple(shape)} for two images, not one vector for each"
            raise ValueError(f"{self.title}: {other}")
        self.dim = shape[1]
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name in used)

    def forward(self, pixels, visible=None):
        """pixels: (B, C, H, W), normalized. Returns (B, D)."""
        represent = partial(_represent, reading=self.reading, output=self.output)
        return self._apply_to(represent, pixels, visible)

    def layers(self, pixels, visible=None):
        """{name: (B, T, D)}, named after the library's modules; see models/__init__.py."""
        return outputs_of_layers(self, pixels, visible)

    def find_layers(self, pixels, visible=None):
        """See models/__init__.py."""
        return trace_layers(self.network, lambda: self.pass_once(twice(pixels), visible))

    def pass_once(self, pixels, visible=None):
        """See models/__init__.py."""
        return self(pixels, visible)

    def pool(self, output):
        """(B, T, D) of a layer -> (B, D): the class token or the mean of the patches, if that is
        the output, else the mean of all positions. A layer before the class token is put in front
        has a square of positions: their mean.
        """
        has_patches_alone = math.isqrt(output.shape[1]) ** 2 == output.shape[1]
        if self.output not in ("class", "mean") or has_patches_alone:
            return output.mean(1)
        return output[:, 0] if self.output == "class" else output[:, self.reading.before :].mean(1)

    def _check_output(self):
        """Raise ValueError if the network cannot have the output that the settings ask for."""
        if self.output == "pooled":
            return
        if not isinstance(self, TokenEncoder):
            raise ValueError(f"encoder.output: {self.output}: {self._name} has no tokens")
        if self.output != "tokens" and self.reading.before is None:
            unknown = f"it is not known which tokens of {self._name} are those of patches"
            raise ValueError(f"encoder.output: {self.output}: {unknown}; take pooled or tokens")
        if self.output == "class" and not self.reading.has_class:
            raise ValueError(f"encoder.output: class: {self._name} has no class token")

    @property
    def names_in_files(self):
        """{name of a weight in the library's files: its name in `network.state_dict()`}, of those
        that differ.
        """
        names = self.reading.names_in_files
        return {} if names is None else names(self.network)

    @property
    def _name(self):
        return self.title.partition(": ")[2]

    def _apply_to(self, function, pixels, visible):
        """function(network, pixels). Raises ValueError for a mask, and for another size that the
        network does not take.
        """
        if visible is not None:
            raise ValueError(f"{self.title}: sees whole images and takes no mask")
        if pixels.shape[2:] == (self.size, self.size):
            return function(self.network, pixels)
        _check_patches(self.network, pixels.shape[2], self.title)
        try:
            return function(self.network, pixels)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            height, width = pixels.shape[2:]
            only = f"takes images of {self.size} pixels, not of {height} x {width}"
            raise ValueError(f"{self.title}: {only}") from error


class TokenEncoder(ForeignEncoder):
    """A ForeignEncoder that has tokens."""

    def tokens(self, pixels, visible=None):
        """pixels: (B, C, H, W), normalized. Returns (B, T, D), as the library orders them."""
        return self._apply_to(self.reading.tokens, pixels, visible)

    def pass_once(self, pixels, visible=None):
        """See models/__init__.py."""
        return self.tokens(pixels, visible)


def _represent(network, pixels, reading, output):
    """(B, D). output: a setting, see ForeignSettings."""
    if output == "pooled":
        return reading.pool(network, pixels)
    tokens = reading.tokens(network, pixels)  # (B, T, D)
    if output == "class":
        return tokens[:, 0]
    return tokens.flatten(1) if output == "tokens" else tokens[:, reading.before :].mean(1)


def _has_tokens(network, reading, channels, size):
    if reading.tokens is None:
        return False
    try:
        shape, _ = _try_out(network, reading.tokens, channels, size)
    except Exception:  # if it takes no such images, its representation says why
        return False
    return len(shape) == 3


def _try_out(network, function, channels, size):
    """What function(network, pixels) gives for two blank images: its shape, and the names of the
    weights that it depends on.

    It is done on the device meta, without computing; or on the CPU, if the network does not work
    there.
    """
    try:
        return _try_out_on("meta", network, function, channels, size)
    except Exception:
        if any(weight.device.type == "meta" for weight in network.parameters()):
            raise
        return _try_out_on("cpu", network, function, channels, size)


def _try_out_on(device, network, function, channels, size):
    was_training, applied = network.training, _Applied(network.eval(), function)
    state = {**dict(applied.named_parameters()), **dict(applied.named_buffers())}
    if device == "meta":
        state = {
            name: torch.empty_like(weight, device="meta", requires_grad=weight.requires_grad)
            for name, weight in state.items()
        }
    trained = {name: weight for name, weight in state.items() if weight.requires_grad}
    pixels = torch.zeros(2, channels, size, size, device=device)
    try:
        with torch.enable_grad():
            output = functional_call(applied, state, (pixels,))
            if not isinstance(output, torch.Tensor):
                raise TypeError(f"it gives no tensor, but {type(output).__name__}")
            if not output.requires_grad:
                return output.shape, set()
            gradients = torch.autograd.grad(output.sum(), trained.values(), allow_unused=True)
    finally:
        network.train(was_training)
    reached = [name for name, gradient in zip(trained, gradients) if gradient is not None]
    return output.shape, {name.removeprefix("network.") for name in reached}


class _Applied(nn.Module):
    """A function of a network and pixels as a module."""

    def __init__(self, network, function):
        super().__init__()
        self.network, self.function = network, function

    def forward(self, pixels):
        return self.function(self.network, pixels)


def remove_chance(network):
    """Set all rates of dropout and of stochastic depth to 0: encoders have no chance inside."""
    for module in network.modules():
        if isinstance(module, (nn.modules.dropout._DropoutNd, StochasticDepth)):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and type(value) is float:
                setattr(module, name, 0.0)


def _check_patches(network, size, title):
    """Raise ValueError if a network cuts images into patches that do not divide their size: it
    would not see the pixels that are left over.
    """
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    first = next(convolutions, None)
    if first is None or first.kernel_size != first.stride or first.padding not in (0, (0, 0)):
        return
    patch = first.stride[0]
    if size % patch:
        raise ValueError(f"{title}: its patches of {patch} pixels do not divide {size} pixels")


@contextmanager
def refuse_images(title, channels, size):
    """Turn what the code of others raises into a ValueError that names the setting: it does not
    take such images.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        images = f"images of {size} x {size} pixels and {channels} channels"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{title}: does not take {images} ({reason})") from error


def make_on_any_device(make):
    """make(), on the CPU if it does not work on the default device, meta.

    Encoders are made on meta to learn the shapes of their weights.
    """
    try:
        return make()
    except NotImplementedError:
        with torch.device("cpu"):
            return make()


def state_nearest(name, known):
    """What to say of an unknown name: the known names that are nearest."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"{len(known)} are known"


def read_file(path):
    """The bytes of a file. Raises ValueError if it is missing, no file, or too large."""
    try:
        if not Path(path).is_file():
            raise ValueError("there is no such file")
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if len(content) > MOST_BYTES:
        raise ValueError(f"has more than {MOST_BYTES} bytes")
    return content
