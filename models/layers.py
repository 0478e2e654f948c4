"""The layers of an encoder: what comes out of its modules, seen by hooks. The forward pass stays as
it is.
"""

import difflib
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn as nn


@dataclass(frozen=True, eq=False)
class Layer:
    """A place in a network where something comes out.

    name: as people know it, such as "layer1.0.conv1". module: a module of the network; None for
    what the whole pass gives. call: which of its calls in a pass, of `calls`. of_input: whether it
    is what goes into the module. activates: whether it is what comes out of a non-linearity.
    channels_last: whether a map is (B, H, W, D), not (B, D, H, W).
    """

    name: str
    module: nn.Module | None
    call: int = 0
    calls: int = 1
    of_input: bool = False
    activates: bool = False
    channels_last: bool = False


def outputs_of_layers(network, pixels, visible=None):
    """{name: (B, T, D)} of all layers of a network in one pass, from its input to its output.

    network: an encoder with `find_layers` and `pass_once`. A layer without positions has T = 1.
    """
    outputs = {}

    def keep(layer, output):
        outputs[layer.name] = output.clone()  # the next layer may overwrite it

    with watching(network, network.find_layers(pixels, visible)) as watch:
        watch(pixels, visible, keep)
    return outputs


def choose_layers(layers, names, key):
    """Those of the layers that have the names, in the order of the network.

    key: of the setting that gives the names. Raises ValueError, naming it, for a name that no layer
    has.
    """
    known = [layer.name for layer in layers]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0)
            hint = f"did you mean {' or '.join(near)}?" if near else "it has none"
            raise ValueError(f"{key}: {name}: the encoder has no such layer; {hint}")
    return [layer for layer in layers if layer.name in names]


@contextmanager
def watching(network, layers):
    """Gives watch(pixels, visible, visit): one pass through a network, in one piece.

    visit(layer, output) is called for each of the layers as soon as it is computed. Its output, (B,
    T, D), is valid during the call alone, as the next layer may overwrite it. Several threads may
    watch at once.
    """
    of_thread = threading.local()

    def use(layer, output):
        visit = getattr(of_thread, "visit", None)
        if visit is not None:
            visit(layer, _as_tokens(output, layer.channels_last))

    def watch(pixels, visible, visit):
        of_thread.visit = visit
        try:
            result = network.pass_once(pixels, visible)
        finally:
            of_thread.visit = None
        for layer in layers:
            if layer.module is None:
                visit(layer, _as_tokens(result))

    with _hooks(layers, use):
        yield watch


@contextmanager
def editing(layers, edit):
    """Meanwhile edit(layer, output) stands in the place of what comes out of each layer, in every
    pass. Both are (B, T, D). Raises ValueError for a layer that comes out of no module: of a
    residual sum, the next sum would take what the norm was not given.
    """
    for layer in layers:
        if layer.module is None or (layer.of_input and is_norm(layer.module)):
            raise ValueError(f"{layer.name}: no module gives it, so it cannot be changed")

    def use(layer, output):
        edited = edit(layer, _as_tokens(output, layer.channels_last))
        return _as_map(edited, output, layer.channels_last)

    with _hooks(layers, use):
        yield


def _as_tokens(output, channels_last=False):
    """What a module gives, (B, D), (B, T, D) or a map with its channels first or last, as (B, T,
    D), row by row.
    """
    if output.ndim == 4:
        return output.flatten(1, 2) if channels_last else output.flatten(2).transpose(1, 2)
    return output if output.ndim == 3 else output[:, None]


def _as_map(tokens, output, channels_last):
    """Tokens (B, T, D) in the shape of the output that they come from; undoes `_as_tokens`."""
    if output.ndim == 4 and not channels_last:
        tokens = tokens.transpose(1, 2)
    return tokens.reshape(output.shape)


@contextmanager
def _hooks(layers, use):
    """Call use(layer, output) for each of the layers in every pass. A tensor that it returns takes
    the place of the output.
    """
    places = {}
    for layer in layers:
        if layer.module is not None:
            places.setdefault((layer.module, layer.of_input), []).append(layer)
    with ExitStack() as stack:
        for (module, of_input), of_module in places.items():
            hook = _hook(of_module, of_input, use)
            if of_input:
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            else:
                handle = module.register_forward_hook(hook)
            stack.callback(handle.remove)
        yield


def _hook(layers, of_input, use):
    """A forward hook of the module of some layers, which differ in the call; with `of_input`, a
    hook of what goes in.
    """
    of_thread, by_call = threading.local(), {layer.call: layer for layer in layers}

    def use_next(output):
        call = getattr(of_thread, "call", 0)
        of_thread.call = (call + 1) % layers[0].calls
        return use(by_call[call], output) if call in by_call else None

    def on_input(module, arguments, named):
        new = use_next(first_tensor((*arguments, *named.values())))
        if new is None:
            return None
        if arguments:
            return (new, *arguments[1:]), named
        return arguments, {**named, next(iter(named)): new}

    def on_output(module, arguments, output):
        new = use_next(first_tensor(output))
        if new is None or isinstance(output, torch.Tensor):
            return new
        return type(output)((new, *output[1:]))

    return on_input if of_input else on_output


def first_tensor(values):
    """The tensor that a module takes or gives: the first, if there are several; None if there is
    none.
    """
    if isinstance(values, torch.Tensor):
        return values
    first = next(iter(values), None) if isinstance(values, (tuple, list)) else None
    return first if isinstance(first, torch.Tensor) else None


def is_norm(module):
    """Whether a module normalizes what it is given."""
    return "norm" in class_name(module)


def class_name(module):
    """The name of a module's class in small letters: libraries name the same alike."""
    return type(module).__name__.lower()
