"""A step of training, scoring or probing never waits for its device.

Tried on torch's meta device, whose tensors have no values to wait for, in float32; and on a GPU, in
bf16.
"""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from conftest import METHODS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from memorization.config import read_config
from memorization.data.augmentations import Draw, training_views
from memorization.data.catalogue import DataSettings
from memorization.data.images import Split, open_images
from memorization.data.prefetching import prefetch
from memorization.data.recipes import ViewRecipe
from memorization.encoder import Encoder
from memorization.machine import device
from memorization.machine.device import to_device
from memorization.measuring.crop_classifier import _train_epoch
from memorization.measuring.deja_vu import DejaVuSettings
from memorization.measuring.fine_tuning import _train_all_weights
from memorization.measuring.linear_classifier import train_layers
from memorization.measuring.probing import ProbeSettings
from memorization.measuring.queries import make_queries
from memorization.measuring.representations import Examples
from memorization.measuring.scores import Scoring, score_batch
from memorization.neighbors import knn_accuracy
from memorization.optimizers import make_optimizer
from memorization.training import train_step
from models.encoders import encoder_settings, make_encoder

EVERYTHING = {
    "size": 16, "crop_scale": [0.2, 1.0], "flip": 0.5, "rotate": [0, 90], "jitter": 0.8,
    "grayscale": 0.5, "blur": 0.5, "solarize": 0.5, "noise": 0.1,
}  # fmt: skip


class NoBlockingCopies(TorchDispatchMode):
    """Fails at a copy from one device to another that the host waits for."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, result = str(operation), operation(*args, **kwargs)
        devices = {
            tensor.device.type for tensor in (*args[:2], result) if isinstance(tensor, torch.Tensor)
        }
        if name.startswith(("aten._to_copy", "aten.copy_")) and len(devices) > 1:
            assert kwargs.get("non_blocking") or args[2:] == (True,), (
                f"the host waits for {name} of {tuple(result.shape)}"
            )
        return result


class NoTensorsOfLists(TorchFunctionMode):
    """Fails if a tensor is made from Python numbers on a device: a blocking copy that dispatch
    does not show.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert (
            function not in (torch.tensor, torch.as_tensor)
            or torch.device(kwargs.get("device") or "cpu").type == "cpu"
        )
        return function(*args, **kwargs)


def prepared_step(method, optimizer, write_config, device, changes=()):
    """() -> a step of a method with every operation that a view may have, on a device."""
    tried = METHODS[method]
    optimized = {"training.optimizer": optimizer, "training.clip_gradient": 1.0}
    views = [copy.deepcopy(EVERYTHING) | only_shape(recipe) for recipe in tried.views]
    views = {"augmentation.views": views}
    path = write_config(tried.changes | views | optimized | dict(changes))
    config = read_config("", ["--config", path], method=tried.schema)
    images = open_images(config.data)
    split = replace(images.train, pixels=images.train.pixels.to(device), device=device)
    encoder = make_encoder(config.encoder, 3, 16)
    network = tried.module(encoder, **config.method.arguments(config.training))
    network.to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(network, config.training)
    indices = torch.arange(config.training.batch_size)

    def step():
        views = training_views(
            split,
            indices,
            config.augmentation.views,
            images.normalization,
            Draw(0, "training", patch=config.encoder.patch_size),
        )
        return train_step(network, optimizer, views, config.training, share=0.5)

    return step


def only_shape(recipe):
    """What decides the shape of a recipe's views."""
    return {key: recipe[key] for key in ("size", "count", "mask_ratio") if key in recipe}


class Copies(TorchDispatchMode):
    """The shapes of tensors that are copied to another device; an operation that takes tensors of
    two devices copies, too.
    """

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        tensors = [tensor for tensor in tree_leaves((args, kwargs, result)) if is_array(tensor)]
        if len({tensor.device for tensor in tensors}) > 1:
            self.shapes.append(tuple(tensors[0].shape))
        return result


def is_array(value):
    return isinstance(value, torch.Tensor) and value.ndim > 0


@pytest.mark.parametrize("mask_ratio, copies", [(0.0, 2), (0.5, 3)])
def test_drawn_parameters_cross_to_the_device_in_few_copies_a_batch(mask_ratio, copies):
    meta, images = torch.device("meta"), open_images(DataSettings(name="fake", size=16))
    split = replace(images.train, pixels=images.train.pixels.to(meta), device=meta)
    recipe = ViewRecipe(**EVERYTHING, count=2, mask_ratio=mask_ratio)
    draw = Draw(0, "training", patch=4)
    with Copies() as crossing:
        training_views(split, torch.arange(32), [recipe], images.normalization, draw)
    # which images; their parameters and where each view goes; and the keys of masks
    assert len(crossing.shapes) == copies, crossing.shapes


class Calls(TorchDispatchMode):
    """Counts the operations that the host calls."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("other, most", [({}, 500), ({"blur": 1.0, "solarize": 0.2}, 700)])
@pytest.mark.parametrize("n_images", [8, 512])
def test_the_host_calls_few_operations_for_the_views_of_a_step(n_images, other, most):
    """However many images there are, of two views by one recipe or by two. On a GPU the calls are
    what takes time.
    """
    meta, images = torch.device("meta"), open_images(DataSettings(name="fake", size=16))
    split = replace(images.train, pixels=images.train.pixels.to(meta), device=meta)
    recipe = {key: EVERYTHING[key] for key in ("size", "crop_scale", "flip", "jitter", "grayscale")}
    recipes = [ViewRecipe(**recipe), ViewRecipe(**recipe | other)]
    with Calls() as calls:
        indices, draw = torch.arange(n_images), Draw(0, "training")
        training_views(split, indices, recipes, images.normalization, draw)
    assert calls.count <= most, calls.count


def test_tensors_of_all_types_and_shapes_arrive_in_one_copy_as_they_are(monkeypatch):
    groups = [
        [torch.arange(3), torch.tensor([True, False, True])],
        [],
        [torch.rand(2, 3).T, torch.rand(2, 0), torch.rand(5, dtype=torch.float64)],
        [torch.rand(4, 1, dtype=torch.float64).T[:, 2], torch.rand(4, 3)[1:2, 2]],  # of one element
    ]
    sent = []
    monkeypatch.setattr(device, "to_device", lambda tensor, _: sent.append(tensor) or tensor)
    arrived = device.to_device_together(groups, torch.device("meta"))
    assert len(sent) == 1 and [len(group) for group in arrived] == [2, 0, 3, 2]
    for tensor, received in zip(sum(groups, []), sum(arrived, [])):
        assert received.dtype == tensor.dtype and torch.equal(received, tensor)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_its_device(method, optimizer, write_config, monkeypatch):
    # the meta device knows none
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    step = prepared_step(
        method, optimizer, write_config, torch.device("meta"), {"training.precision": "fp32"}
    )
    with NoBlockingCopies(), NoTensorsOfLists():
        for _ in range(2):  # the first one makes the optimizer's state
            assert step().device.type == "meta"


META = torch.device("meta")


def images_on_meta():
    images = open_images(DataSettings(name="fake", size=16))
    return replace(
        images, train=replace(images.train, pixels=images.train.pixels.to(META), device=META)
    )


def small_encoder():
    return make_encoder(encoder_settings(name="resnet_small", width=8), 3, 16)


@pytest.mark.parametrize("name, mask_ratio, representation", [
    ("resnet_small", 0.0, "pooled"), ("vit_mini", 0.0, "tokens"),
    ("vit_mini", 0.75, "pooled"), ("vit_mini", 0.75, "tokens"),
])  # fmt: skip
def test_a_batch_is_scored_by_one_call_of_each_encoder_that_waits_for_nothing(
    name, mask_ratio, representation, monkeypatch
):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    settings, images, called = encoder_settings(name=name), images_on_meta(), []
    f, g = (make_encoder(settings, 3, 16).eval().to(META) for _ in range(2))
    for encoder in (f, g):
        inner = encoder.layers[-1] if name == "resnet_small" else encoder.blocks
        inner.register_forward_hook(lambda layers, given, result: called.append(len(given[0])))
    pair = [
        Encoder(name, network, 3, 16, images.normalization, settings.patch_size, identity="-")
        for name, network in (("f", f), ("g", g))
    ]
    recipes = [ViewRecipe(**EVERYTHING, mask_ratio=mask_ratio)]
    scoring = Scoring(views=10, representation=representation)
    with NoBlockingCopies(), NoTensorsOfLists():
        losses = score_batch(*pair, images.train, torch.arange(64), recipes, scoring)
    assert called == [640, 640]
    assert all(values.shape == (64,) and values.device == META for values in losses)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_no_step_of_a_probe_waits_for_its_device(optimizer):
    train = Examples(
        torch.empty(80, 8, device=META), torch.empty(80, dtype=torch.int64, device=META)
    )
    settings = ProbeSettings(epochs=2, warmup_epochs=1, optimizer=optimizer)
    with NoBlockingCopies(), NoTensorsOfLists():
        layers = train_layers(train, 4, settings, [(0.1, 0.0), (0.1, 0.1)], seed=0)
    assert [layer.weight.device for layer in layers] == [META, META]


def test_no_step_of_fine_tuning_waits_for_its_device():
    images, encoder = images_on_meta(), small_encoder().to(META)
    source = Encoder("encoder", encoder.eval(), 3, 16, images.normalization, identity="meta")
    settings = ProbeSettings(fine_tune_epochs=1, fine_tune_batch_size=16)
    with NoBlockingCopies(), NoTensorsOfLists():
        _train_all_weights(source, images.train, torch.arange(64), 10, settings, 0)


@pytest.mark.parametrize("query", ["training", "corner", "center_masked"])
def test_no_step_of_the_crop_classifier_waits_for_its_device(query):
    images, encoder = images_on_meta(), small_encoder()
    asked = Encoder("encoder", encoder, 3, 16, images.normalization)
    recipes = [ViewRecipe(**EVERYTHING)]
    queries = make_queries(
        images.train, torch.arange(128), asked, DejaVuSettings(query=query), recipes, 0
    )
    network = torch.nn.Sequential(encoder, torch.nn.Linear(encoder.dim, 10)).to(META)
    optimizer = torch.optim.AdamW(network.parameters())
    with NoBlockingCopies(), NoTensorsOfLists():
        _train_epoch(network, optimizer, queries, 0, 0)


class Operations(TorchDispatchMode):
    """Counts the operations called, for each of which a GPU's host takes some time."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_steps_of_a_large_grid_call_no_more_operations_than_those_of_a_small_one(optimizer):
    train = Examples(torch.rand(80, 8), torch.arange(80) % 4)
    of_steps = []
    for size in (2, 19):
        grid, counts = [(0.1 * rate, 0.0) for rate in range(1, 1 + size)], []
        for epochs in (2, 5):
            settings = ProbeSettings(epochs=epochs, warmup_epochs=1, optimizer=optimizer)
            with Operations() as operations:
                train_layers(train, 4, settings, grid, seed=0)
            counts.append(operations.count)
        of_steps.append(counts[1] - counts[0])
    assert of_steps[0] == of_steps[1]


class NumbersRead(TorchDispatchMode):
    """Counts how often a number of a tensor is read, for which a GPU's host waits."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += "_local_scalar_dense" in str(operation)
        return operation(*args, **(kwargs or {}))


def test_accuracies_of_many_images_are_read_once():
    read = []
    for count in (600, 3000):
        values, labels = torch.rand(count, 8), torch.arange(count) % 7
        with NumbersRead() as numbers:
            knn_accuracy(values, labels, values, labels, 5)
        read.append(numbers.count)
    assert read[0] == read[1]


def test_images_in_memory_are_sent_without_waiting():
    split = Split(
        "train",
        torch.zeros(9, 3, 4, 4, dtype=torch.uint8),
        torch.zeros(9),
        device=torch.device("meta"),
    )
    indices = torch.arange(4)
    with NoBlockingCopies():
        gathered = [
            split.gather(indices),
            *(fetched.gather(indices) for _, fetched in prefetch(split, [indices])),
        ]
    assert [(images.device.type, tuple(images.shape)) for images in gathered] == 2 * [
        ("meta", (4, 3, 4, 4))
    ]


def test_a_gpu_takes_tensors_from_pinned_memory(monkeypatch):
    pinned = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor + 1) or pinned[-1]
    )
    monkeypatch.setattr(
        torch.Tensor, "to", lambda tensor, device, non_blocking: (tensor, device.type, non_blocking)
    )
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


@pytest.mark.gpu
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


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_no_step_of_a_probe_waits_for_a_gpu(optimizer):
    train = Examples(torch.rand(80, 8, device="cuda"), torch.arange(80, device="cuda") % 4)
    settings = ProbeSettings(epochs=2, warmup_epochs=1, optimizer=optimizer)
    train_layers(train, 4, settings, [(0.1, 0.0)], seed=0)  # prepares libraries, which waits
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layers = train_layers(train, 4, settings, [(0.1, 0.0), (0.1, 0.1)], seed=0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(layer.weight.isfinite().all() for layer in layers)
