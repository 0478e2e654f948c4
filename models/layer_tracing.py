"""The layers of any network, found by a pass of two images through it."""

from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
import torch.nn as nn

from models.layers import Layer, class_name, first_tensor, is_norm

# A map that comes out of these has its channels last, (B, H, W, D); of those whose name ends in 2d,
# never.
CHANNELS_LAST = (nn.Linear, nn.LayerNorm)
CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.GroupNorm)
# The name of the shortcut in a residual block: that of a module beside it.
SHORTCUTS = {"downsample": "conv1", "shortcut": "layer", "proj": "f"}


def trace_layers(network, run):
    """The layers of a network, in the order in which they are computed: what comes out of every
    module that has none inside, of attentions and perceptrons, and of residual blocks.

    run(): a pass of two images through the network, and what it gives. Layers have the names of
    their modules; a module that is called again gives `<name>_1`. What comes out of several modules
    is one layer: a block and the last module in it are named after the block, unless that module
    has others inside. The input of the norm that follows an attention is `<block>.attention_sum`,
    that of the norm before the first attention `embedding`, if no module gives it. What the pass
    gives is the last layer; if it comes out of no module, it is called `tokens`. Left out are the
    insides of an attention, those of a perceptron but for its non-linearities, the shortcuts of
    ResNets, dropout and identities, and what has not a row for each image. A network without
    modules has no layers.
    """
    trace = _Trace(network)
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.inference_mode(False), torch.no_grad(), trace.hooks():
            result = run()
    finally:
        for module, mode in modes.items():
            module.training = mode
    layers = [replace(layer, calls=trace.calls[layer.module]) for layer in trace.layers]
    last = trace.places.get(_key(result))
    if last is not None:
        return layers[: last + 1]  # without pooling that follows
    return [*layers, Layer("tokens", None)] if layers else []


def twice(tensor):
    """The first image of a tensor (B, ...), and the same again, (2, ...), for `trace_layers`; None
    of None.
    """
    return None if tensor is None else torch.cat([tensor[:1], tensor[:1]]).detach()


class _Trace:
    """What comes out of the modules of a network in one pass.

    layers: the Layers so far. places: {key of a tensor: number of its layer; None if it is left
    out}. calls: {module: how often it was called}.
    """

    def __init__(self, network):
        self.layers, self.places = [], {}
        self._names = {module: name for name, module in network.named_modules() if name}
        self._modules = {name: module for module, name in self._names.items()}
        self.calls = dict.fromkeys(self._names, 0)
        self._tensors = []  # a tensor's key is its own as long as the tensor is there
        self._are_last = {}  # {key of a tensor: whether its channels are last}
        self._is_latest_last = False
        self._has_attention = False  # called so far
        self._attended = {}  # {block: whether the next norm in it takes the sum after attention}
        self._given = {}  # {module: the key of what it was last given}

    @contextmanager
    def hooks(self):
        """Meanwhile a pass is traced."""
        with ExitStack() as stack:
            for module in self._names:
                before = module.register_forward_pre_hook(self._before, with_kwargs=True)
                after = module.register_forward_hook(self._after)
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    def _before(self, module, arguments, named):
        tensor = first_tensor((*arguments, *named.values()))
        if tensor is None:
            return
        self._given[module] = _key(tensor)
        if not is_norm(module) or not _has_rows(tensor):
            return
        block = self._block_of(module)
        if self._attended.pop(block, False):
            self._add_input(f"{self._names[block]}.attention_sum", module, tensor)
        elif not self._has_attention and block is not None and self._attends(block):
            self._add_input("embedding", module, tensor)

    def _add_input(self, name, module, tensor):
        """Add what a module is given as a layer, unless it comes out of one."""
        if _key(tensor) not in self.places:
            is_last = self._is_last(module, tensor)
            self._add(Layer(name, module, of_input=True, channels_last=is_last), tensor, is_last)

    def _after(self, module, arguments, output):
        call, name = self.calls[module], self._names[module]
        self.calls[module] += 1
        name += f"_{call}" if call else ""
        tensor = first_tensor(output)
        if self._is_attention(module):
            self._note_attention(module, tensor)
        if type(module) is nn.Sequential or tensor is None or not _has_rows(tensor):
            return
        if _passes_through(module):
            return
        place = self.places.get(_key(tensor))
        if place is None:
            is_last = self._is_last(module, tensor)
            layer = Layer(name, module, call, channels_last=is_last, activates=activates(module))
            self._add(layer if self._is_layer(module) else None, tensor, is_last)
            return
        inner = self.layers[place]
        if inner.name.startswith(f"{name}.") and not list(inner.module.children()):
            self.layers[place] = replace(inner, name=name, module=module, call=call)

    def _note_attention(self, module, tensor):
        """Note that the next norm in the block of an attention takes the sum with its output.

        An attention to parts of images is put together again first. If no norm came before it, the
        next one takes that, not the sum.
        """
        self._has_attention = True
        block = self._block_of(module)
        if block is not None:
            norms = [part for part in block.children() if is_norm(part)]
            has_norm_before = any(self.calls[norm] for norm in norms)
            self._attended[block] = has_norm_before or (tensor is not None and _has_rows(tensor))

    def _block_of(self, module):
        """The module that a module is a part of; None if that is the network."""
        return self._modules.get(self._names[module].rpartition(".")[0])

    def _add(self, layer, tensor, is_last):
        key = _key(tensor)
        self._tensors.append(tensor)
        self.places[key] = None if layer is None else len(self.layers)
        self._is_latest_last = self._are_last.setdefault(key, is_last)
        if layer is not None:
            self.layers.append(replace(layer, channels_last=self._are_last[key]))

    def _is_layer(self, module):
        """Whether what comes out of a module is a layer."""
        parts = self._names[module].split(".")
        outer = [self._modules[".".join(parts[:n])] for n in range(1, len(parts))]
        for block, part in zip(outer, parts[1:]):
            if self._is_attention(block) or hasattr(block, SHORTCUTS.get(part, "")):
                return False
        return activates(module) or not any(_is_perceptron(block) for block in outer)

    def _attends(self, block):
        return any(self._is_attention(part) for part in block.children() if part in self._names)

    def _is_attention(self, module):
        is_called_so = self._names[module].rpartition(".")[2] == "attn"
        return is_called_so or "attention" in class_name(module)

    def _is_last(self, module, tensor):
        """Whether a map that a module takes or gives has its channels last. Images are square; if
        there are as many channels as rows, it is as the module says, else as in what it was given,
        else as in what was computed before.
        """
        first, second, third = tensor.shape[1:] if tensor.ndim == 4 else (0, 0, 0)
        if (first == second) != (second == third):
            return first == second
        says_first = getattr(module, "data_format", None) == "channels_first"  # transformers
        if says_first or isinstance(module, CHANNELS_FIRST) or class_name(module).endswith("2d"):
            return False
        if isinstance(module, CHANNELS_LAST):
            return True
        return self._are_last.get(self._given.get(module), self._is_latest_last)


def _key(tensor):
    """Equal for tensors that hold the same numbers in the same memory, also in another shape."""
    return tensor.data_ptr(), tensor._version, tensor.numel()


def activates(module):
    """Whether a module is a non-linearity of torch, timm or transformers."""
    file = type(module).__module__
    return "activation" in file and not isinstance(module, nn.MultiheadAttention)


def _passes_through(module):
    """Whether a module gives what it takes, but for chance in training."""
    return "drop" in class_name(module) or class_name(module) in ("identity", "stochasticdepth")


def _is_perceptron(module):
    return "mlp" in class_name(module)


def _has_rows(tensor):
    """Whether a tensor has a row for each of the two images of a trace."""
    return tensor.is_floating_point() and 2 <= tensor.ndim <= 4 and len(tensor) == 2
