"""Weights of others are read as torch reads them, and fit a network or are refused."""

from argparse import Namespace

import pytest
import torch
from torch import nn

from memorization.imports.weights import match_weights, select_weights, strip_prefixes
from memorization.imports.weights_file import read_weights_file


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))


@pytest.mark.parametrize("protocol", (2, 4, 5))
@pytest.mark.parametrize("zipped", (True, False))
def test_a_file_of_torch_is_read_as_torch_reads_it(tmp_path, zipped, protocol):
    weight = torch.randn(6, 8)
    content = {
        "model": {"whole": weight, "view": weight[1:5:2, ::3], "parameter": nn.Parameter(weight)},
        "types": [weight.to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.int64)],
        "others": [torch.tensor(3), torch.zeros(0, 4), torch.tensor([True, False])],
        "epoch": 3,
        "args": Namespace(lr=0.1),
    }
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    result = read_weights_file(path)
    assert result["epoch"] == 3 and result["args"].name == "argparse.Namespace"
    for key, value in content["model"].items():
        assert torch.equal(result["model"][key], value)
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
