"""How much of a GPU's memory a training step takes, counted without a GPU.

The step is done on tensors that have sizes but no contents (torch's FakeTensorMode), in the layout
and precision of a GPU. Every tensor counts while it is alive. Not counted: workspaces of cuDNN, the
temporary tensors of making views, images kept on the GPU, and CUDA itself.
"""

import copy
import sys
import weakref
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from memorization.data.augmentations import blank_views
from memorization.optimizers import make_optimizer
from memorization.training import train_step
from models import vit

BLOCK = 512  # bytes; a GPU's allocator gives whole blocks


def count_bytes(method, settings, recipes, channels, patch=None):
    """The most bytes alive at once in a training step on a GPU, an int.

    method: on the CPU; settings: TrainingSettings; recipes: of the views; channels: of the images;
    patch: height and width of the encoder's patches.
    """
    if settings.precision == "auto":
        settings = settings.model_copy(update={"precision": "bf16"})
    method = method.to(memory_format=torch.channels_last)
    without_contents = FakeTensorMode()
    with FakeCopyMode(without_contents):
        method = copy.deepcopy(method)
    with without_contents:
        return count_bytes_of_steps(method, settings, recipes, channels, patch)


def count_bytes_of_steps(method, settings, recipes, channels, patch):
    """As `count_bytes`, of whatever tensors the method has, in its layout and precision."""
    with as_on_gpu(), AliveBytes() as alive:
        alive.add([*method.parameters(), *method.buffers()])
        optimizer = make_optimizer(method, settings)
        views, of_next_step = (
            blank_views(recipes, channels, patch, settings.batch_size) for _ in range(2)
        )
        for _ in range(2):  # the first makes the optimizer's state
            train_step(method, optimizer, views, settings, share=0.0)
        del of_next_step  # made during the step, on a GPU
    return alive.most


class AliveBytes(TorchDispatchMode):
    """Counts the bytes of what operations make, while it is alive. most: at once, so far."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        self.add(each for each in tree_leaves(results) if isinstance(each, torch.Tensor))
        return results

    def add(self, tensors):
        """Count the storages of tensors, each once."""
        for storage in (tensor.untyped_storage() for tensor in tensors):
            if storage not in self.known:
                size = -(-storage.nbytes() // BLOCK) * BLOCK
                self.known[storage] = size
                weakref.finalize(storage, self._remove, size)
                self.now += size
        self.most = max(self.most, self.now)

    def _remove(self, size):
        self.now -= size


@contextmanager
def as_on_gpu():
    """Meanwhile networks make the tensors on a CPU that they make on a GPU."""
    with mock.patch.object(vit, "IMAGES_IN_CACHE", sys.maxsize), LayerNormInFloat32():
        yield


class LayerNormInFloat32(TorchFunctionMode):
    """Under autocast layer norms take float32, as on a GPU. On a CPU they would take bfloat16."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.layer_norm and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return function(*args, **(kwargs or {}))
