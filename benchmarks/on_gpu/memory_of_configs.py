"""How much of a GPU's memory does a training step of each config take, and how many images a second
does it train?

    python -m benchmarks.on_gpu.memory_of_configs [--device cpu]

On noise in the size of the config's views. On a CPU the memory is counted, see counted_memory.py.
Configs whose steps are alike are measured once.
"""

import os
from pathlib import Path

import torch
import yaml

from benchmarks.contest import chosen_device, save, seconds
from benchmarks.on_gpu.counted_memory import count_bytes
from benchmarks.peers import normalization, random_split
from benchmarks.training import find_method
from memorization.config import read_config
from memorization.data.augmentations import Draw, training_views
from memorization.errors import WrongUse
from memorization.optimizers import make_optimizer
from memorization.training import train_step
from models.encoders import make_encoder

CONFIGS = Path(__file__).parents[2] / "configs"
STEPS = 3
TINY = bool(os.environ.get("TINY"))  # two small configs


def main():
    device = chosen_device(__doc__)
    results = {}
    for alike, config, channels in distinct_configs():
        if TINY and (config.augmentation.size > 32 or len(results) == 2):
            continue
        try:
            results[alike] = measure(config, channels, device)
        except (torch.OutOfMemoryError, ImportError, ValueError) as error:
            results[alike] = {"failed": f"{type(error).__name__}: {error}"[:200]}
        print(f"{alike}: {in_words(results[alike])}", flush=True)
    save("memory_of_configs", results, device)


def in_words(result):
    if "failed" in result:
        return result["failed"]
    memory = f"{result['gigabytes']:.1f} GB"
    if result["is"] == "counted":
        return f"{memory} counted, {result['batch_size']} images a step"
    reserved = f"{result['gigabytes_reserved']:.1f} reserved"
    return f"{memory} measured ({reserved}), {result['images_per_second']:,.0f} images/s"


def distinct_configs():
    """[(names of the configs whose steps are alike, one of them, channels of the images)]."""
    groups = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        if "method" not in yaml.safe_load(path.read_text()):
            continue
        try:
            config, channels = read(path)
        except WrongUse as error:  # of a package that is not installed
            print(f"left out: {error}")
            continue
        parts = config.encoder, config.method, config.augmentation, config.training
        sizes = *map(repr, parts[:3]), config.training.batch_size, channels
        groups.setdefault(sizes, []).append((path.stem, config, channels))
    return [
        (", ".join(name for name, *_ in group), group[0][1], group[0][2])
        for group in groups.values()
    ]


def read(path, *changes):
    """(the config of a training, channels of its images). changes: as on a command line."""
    _, schema = find_method(yaml.safe_load(path.read_text())["method"]["name"])
    config = read_config("", ["--config", str(path), *changes], method=schema)
    return config, 1 if config.data.name == "fashion_mnist" else 3


def measure(config, channels, device):
    """What a step takes, a dict of plain types: on a GPU measured, else counted for one."""
    settings, recipes = config.training, config.augmentation.views
    if settings.privacy:
        raise ValueError("steps with differential privacy are not measured")
    size, patch = config.augmentation.size, config.encoder.patch_size
    module, _ = find_method(config.method.name)
    method = module(
        make_encoder(config.encoder, channels, size), **config.method.arguments(settings)
    )
    if device.type == "cpu":
        counted = count_bytes(method, settings, recipes, channels, patch)
        return {"is": "counted", "batch_size": settings.batch_size, "gigabytes": counted / 1e9}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    split = random_split(settings.batch_size, channels, config.data.size or size, device)
    method.to(device, memory_format=torch.channels_last)
    optimizer, draw = make_optimizer(method, settings), Draw(0, "training", patch=patch)
    indices = torch.arange(len(split))

    def step():
        views = training_views(split, indices, recipes, normalization(channels), draw)
        train_step(method, optimizer, views, settings, share=0.0)

    step()
    taken = min(seconds(step, device) for _ in range(STEPS))
    return {
        "is": "measured",
        "batch_size": len(split),
        "gigabytes": torch.cuda.max_memory_allocated(device) / 1e9,
        "gigabytes_reserved": torch.cuda.max_memory_reserved(device) / 1e9,
        "images_per_second": len(split) / taken,
    }


if __name__ == "__main__":
    main()
