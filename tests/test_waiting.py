"""A training step never waits for its device.

Tried on torch's meta device, whose tensors have no values to wait for, in float32; and on a GPU, in bf16.
"""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from conftest import METHODS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from memorization.augmentations import training_views
from memorization.config import read_config
from memorization.data import Split, open_images
from memorization.machine import to_device
from memorization.optimizers import make_optimizer
from memorization.prefetching import prefetched
from memorization.training import train_step
from models.byol import BYOL
from models.encoders import make_encoder
from models.mae import MAE
from models.simclr import SimCLR

CLASSES = {"simclr": SimCLR, "byol": BYOL, "mae": MAE}
EVERYTHING = {
    "size": 16, "crop_scale": [0.2, 1.0], "flip": 0.5, "rotate": [0, 90], "jitter": 0.8, "grayscale": 0.5, "blur": 0.5, "solarize": 0.5,
    "noise": 0.1,
}  # fmt: skip


class NoBlockingCopies(TorchDispatchMode):
    """Fails at a copy from one device to another that the host waits for."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, result = str(operation), operation(*args, **kwargs)
        devices = {tensor.device.type for tensor in (*args[:2], result) if isinstance(tensor, torch.Tensor)}
        if name.startswith(("aten._to_copy", "aten.copy_")) and len(devices) > 1:
            assert kwargs.get("non_blocking") or args[2:] == (True,), f"the host waits for {name} of {tuple(result.shape)}"
        return result


class NoTensorsOfLists(TorchFunctionMode):
    """Fails where a tensor is made from Python numbers on a device: a blocking copy that dispatch does not show."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert function not in (torch.tensor, torch.as_tensor) or torch.device(kwargs.get("device") or "cpu").type == "cpu"
        return function(*args, **kwargs)


def prepared_step(method, optimizer, write_config, device, changes=()):
    """() -> a step of a method with every operation that a view may have, on a device."""
    settings = METHODS[method][2] | {"training.optimizer": optimizer, "training.clip_gradient": 1.0} | dict(changes)
    settings["augmentation.views"] = [EVERYTHING | ({"mask_ratio": 0.75} if method == "mae" else {"count": 2})]
    config = read_config("", ["--config", write_config(settings)], method=METHODS[method][1])
    images = open_images(config.data)
    split = replace(images.train, pixels=images.train.pixels.to(device), device=device)
    network = CLASSES[method](make_encoder(config.encoder, 3, 16), **config.method.arguments())
    network.to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(network, config.training)
    indices = torch.arange(config.training.batch_size)

    def step():
        views = training_views(split, indices, config.augmentation.views, images.normalization, seed=0, epoch=0, patch=config.encoder.patch)
        return train_step(network, optimizer, views, config.training, progress=0.5)

    return step


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_its_device(method, optimizer, write_config, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # the meta device knows none
    step = prepared_step(method, optimizer, write_config, torch.device("meta"), {"training.precision": "fp32"})
    with NoBlockingCopies(), NoTensorsOfLists():
        for _ in range(2):  # the first one makes the optimizer's state
            assert step().device.type == "meta"


def test_images_in_memory_are_sent_without_waiting():
    split = Split("train", torch.zeros(9, 3, 4, 4, dtype=torch.uint8), torch.zeros(9), device=torch.device("meta"))
    indices = torch.arange(4)
    with NoBlockingCopies():
        gathered = [split.gather(indices), *(fetched.gather(indices) for _, fetched in prefetched(split, [indices]))]
    assert [(images.device.type, tuple(images.shape)) for images in gathered] == 2 * [("meta", (4, 3, 4, 4))]


def test_a_gpu_takes_tensors_from_pinned_memory(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor + 1) or pinned[-1])
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, non_blocking: (tensor, device.type, non_blocking))
    tensor = torch.zeros(2)
    assert to_device(tensor, torch.device("cpu")) == (tensor, "cpu", False) and pinned == []
    sent, *how = to_device(tensor, torch.device("cuda"))
    assert sent is pinned[0] and how == ["cuda", True]


def test_what_would_be_waited_for_is_seen():
    meta = torch.device("meta")
    with NoBlockingCopies():
        to_device(torch.ones(2), meta)
        with pytest.raises(AssertionError, match="waits"):
            torch.ones(2).to(meta)
    with NoTensorsOfLists(), pytest.raises(AssertionError):
        torch.tensor([1.0], device=meta)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(2, device=meta).sum().item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_a_gpu(method, optimizer, write_config):
    step = prepared_step(method, optimizer, write_config, torch.device("cuda"))
    step()  # prepares libraries, which waits
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
