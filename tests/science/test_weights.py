"""Weights of others are read as torch reads them, and fit a network or are refused."""

from argparse import Namespace

import pytest
import torch
from torch import nn

from memorization.imports.weights import (
    match_weights,
    place_of_weights,
    select_weights,
    strip_prefixes,
    weights_in_words,
)
from memorization.imports.weights_file import read_weights_file


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))


@pytest.mark.parametrize("protocol", (2, 4, 5))
@pytest.mark.parametrize("zipped", (True, False))
def test_a_file_of_torch_is_read_as_torch_reads_it(tmp_path, zipped, protocol):
    weight = torch.randn(6, 8)
    marked, parameter = torch.randn(3), nn.Parameter(torch.randn(3))
    marked.note = parameter.note = "an attribute, as timm and others set"
    content = {
        "model": {"whole": weight, "view": weight[1:5:2, ::3], "parameter": nn.Parameter(weight)},
        "marked": {"tensor": marked, "parameter": parameter},
        "types": [weight.to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.int64)],
        "others": [torch.tensor(3), torch.zeros(0, 4), torch.tensor([True, False])],
        "epoch": 3,
        "args": Namespace(lr=0.1),
    }
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    result = read_weights_file(path)
    assert result["epoch"] == 3 and result["args"].name == "argparse.Namespace"
    for name in ("model", "marked"):
        for key, value in content[name].items():
            assert torch.equal(result[name][key], value)
    for key in ("types", "others"):
        for tensor, value in zip(result[key], content[key], strict=True):
            assert torch.equal(tensor, value) and tensor.dtype == value.dtype


def test_matched_weights_give_the_outputs_of_their_source(tmp_path):
    source, own = network(), network()
    images = torch.randn(5, 3, 8, 8)
    source(images), own(images)
    path = tmp_path / "weights.ckpt"
    named = {f"module.backbone.{key}": value for key, value in source.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": {**named, "module.head.weight": torch.ones(2)}}, path)
    weights = select_weights(read_weights_file(path), None)
    weights = strip_prefixes(weights, ["module.", "backbone."])
    own.load_state_dict(match_weights(weights, own, ["head."]), strict=True)
    assert torch.equal(own.eval()(images), source.eval()(images))


def test_a_prefix_is_taken_away_as_a_whole_and_eats_no_letters():
    keys = ["backbone.bn1.weight", "backbone.conv1.weight", "bn1.bias", "backbone.backbone.x"]
    stripped = strip_prefixes(dict.fromkeys(keys, 0), ["backbone."])
    assert list(stripped) == ["bn1.weight", "conv1.weight", "bn1.bias", "backbone.x"]
    # str.lstrip would make of the first key:
    assert "backbone.bn1.weight".lstrip("backbone.") == "1.weight"  # noqa: B005


@pytest.mark.parametrize("zipped", (True, False))
def test_a_module_that_was_saved_as_a_whole_is_not_made(tmp_path, zipped):
    path = tmp_path / "weights.pth"
    torch.save({"epoch": 3, "net": network()}, path, _use_new_zipfile_serialization=zipped)
    assert read_weights_file(path)["net"].name == "torch.nn.modules.container.Sequential"


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64))
def test_weights_are_cast_to_the_networks_type_and_are_copies(dtype):
    network = nn.Linear(3, 2)
    weights = {key: value.to(dtype) for key, value in nn.Linear(3, 2).state_dict().items()}
    state = match_weights(weights, network, [])
    assert torch.equal(state["weight"], weights["weight"].float())
    assert state["weight"].dtype == torch.float32
    own = match_weights(network.state_dict(), network, [])
    assert own["weight"].data_ptr() != network.weight.data_ptr()


def test_the_screen_tells_of_weights_in_other_types():
    weights = {"weight": torch.ones(1000, 2).half(), "bias": torch.ones(2).double()}
    words = "weights at 'model.x': 2 tensors, 2,002 numbers of float16, float64, cast to float32"
    assert weights_in_words(weights, "model.x") == words
    weights = nn.Linear(2, 1).state_dict()
    words = "weights at the top level, '': 2 tensors, 3 numbers of float32"
    assert weights_in_words(weights, "") == words


def test_weights_of_old_files_that_count_no_batches_fit():
    batch_norm, trained = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    trained(torch.randn(4, 2, 3, 3))
    weights = trained.state_dict()
    assert match_weights(weights, batch_norm, [])["num_batches_tracked"] == 1
    cast = {key: value.half() for key, value in weights.items()}
    assert match_weights(cast, batch_norm, [])["num_batches_tracked"].dtype == torch.int64
    del weights["num_batches_tracked"]
    state = match_weights(weights, batch_norm, [])
    batch_norm.load_state_dict(state, strict=True)
    images = torch.randn(4, 2, 3, 3)
    assert torch.equal(batch_norm.eval()(images), trained.eval()(images))


def test_the_place_of_the_weights_is_known_even_if_it_is_the_only_one():
    weights = nn.Linear(3, 2).state_dict()
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}}
    assert place_of_weights({"model": weights, "optimizer": optimizer}, None) == "model"
    assert place_of_weights({"a": {"b.c": [0, weights]}}, "a.b.c.1") == "a.b.c.1"
    assert place_of_weights(weights, None) == ""
    assert select_weights({"": 1, "a": {"b.c": [0, weights]}}, "a.b.c.1").keys() == weights.keys()
    assert select_weights({"model": weights, "ema": weights}, "ema").keys() == weights.keys()
    mixed = {"epoch": 3, **weights, "ema": dict(weights)}
    assert select_weights(mixed, "").keys() == weights.keys()  # entries of other types are left out
