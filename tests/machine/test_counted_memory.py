"""The memory of a training step on a GPU, counted without one."""

import json
import re

import pytest
import torch
import torch.nn.functional as F

from benchmarks.on_gpu.counted_memory import (
    AliveBytes,
    as_on_gpu,
    count_bytes,
    count_bytes_of_steps,
)
from benchmarks.on_gpu.memory_of_configs import CONFIGS, distinct_configs, measure, read
from benchmarks.peers import simclr_recipe
from benchmarks.training import CASES, SETTINGS, Case, make_method
from models.encoders import encoder_settings

LINE = re.compile(
    r"^  batch_size: (\d+) +# ([\d.]+) GB of a GPU's memory, counted; ([\d.]+) GB with (\d+), ",
    re.MULTILINE,
)
FOR_CPUS = ("demo", "import_")


def bytes_of_case(case, count=count_bytes, **settings):
    recipe = simclr_recipe(case.size, case.views)
    recipe = recipe.model_copy(update={"mask_ratio": case.mask_ratio})
    settings = SETTINGS.model_copy(update={"batch_size": case.batch_size} | settings)
    method, patch = make_method(case), case.encoder.patch_size
    return count(method, settings, [recipe], case.channels, patch)


def test_bytes_count_as_long_as_they_are_alive():
    with AliveBytes() as alive:
        first = torch.zeros(1024)
        assert alive.now == 4096
        half = first[:512]  # of the same memory
        second = first.double()  # 8192
        del first, second
        assert alive.now == 4096
        del half
        assert (alive.now, alive.most) == (0, 4096 + 8192)
        torch.zeros(1)
        assert alive.most == 4096 + 8192


@pytest.mark.parametrize(
    "case",
    [
        Case("byol", encoder_settings(name="resnet_small", width=8), batch_size=8),
        Case(
            "mae",
            encoder_settings(name="vit_mini", width=32, depth=2, patch=8),
            batch_size=8,
            mask_ratio=0.75,
            views=1,
        ),
    ],
    ids=lambda case: case.method,
)
def test_tensors_without_contents_take_what_others_would(case):
    with_contents = bytes_of_case(case, count_bytes_of_steps, precision="bf16")
    assert bytes_of_case(case) == pytest.approx(with_contents, rel=0.02)


def test_layer_norms_keep_float32_under_autocast_as_on_a_gpu():
    x = torch.randn(2, 8, dtype=torch.bfloat16)
    with as_on_gpu(), torch.autocast("cpu", torch.bfloat16):
        assert F.layer_norm(x, (8,)).dtype == torch.float32
    with as_on_gpu():
        assert F.layer_norm(x, (8,)).dtype == torch.bfloat16


def test_the_count_is_close_to_what_an_h200_took():
    assert bytes_of_case(CASES["cuda"][0]) / 1e9 == pytest.approx(2.7, rel=0.1)


def memory_lines():
    """{name of a config for a GPU: (batch size, GB, GB with half of it, half of it)}, as it
    says.
    """
    lines = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        if not any(word in path.stem for word in FOR_CPUS):
            found = LINE.findall(path.read_text())
            assert len(found) == 1, path
            lines[path.stem] = tuple(json.loads(figure) for figure in found[0])
    return lines


def test_each_config_for_a_gpu_says_what_memory_it_takes():
    lines = memory_lines()
    for alike, config, _ in distinct_configs():
        lines_of_alike = {lines[name] for name in alike.split(", ") if name in lines}
        assert len(lines_of_alike) <= 1, alike
        for batch_size, gigabytes, fewer_gigabytes, smaller in lines_of_alike:
            assert (batch_size, smaller) == (config.training.batch_size, batch_size // 2)
            assert 0.45 < fewer_gigabytes / gigabytes < 0.7  # parameters stay


@pytest.mark.parametrize(
    "name, is_half",
    [
        ("simclr_cifar10", False),
        ("simclr_imagenet_resnet18", False),
        ("mae_cifar10", False),
        ("barlowtwins_fashion_mnist", True),
    ],
)
def test_what_a_config_says_of_its_memory_agrees_with_the_count(name, is_half):
    batch_size, gigabytes, fewer_gigabytes, smaller = memory_lines()[name]
    if is_half:
        batch_size, gigabytes = smaller, fewer_gigabytes
    changes = "--training.batch_size", str(batch_size)
    config, channels = read(CONFIGS / f"{name}.yaml", *changes)
    counted = measure(config, channels, torch.device("cpu"))
    assert (counted["is"], counted["batch_size"]) == ("counted", batch_size)
    assert counted["gigabytes"] == pytest.approx(gigabytes, rel=0.1)
