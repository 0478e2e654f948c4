"""How much of a GPU's memory does a training step of each config take, and how many images a second
does it train?

    python -m benchmarks.on_gpu.memory_of_configs [--device cpu]

On noise in the size of the config's views. Configs whose steps are alike are measured once.
"""

import os
from pathlib import Path

import torch
import yaml

from benchmarks.contest import chosen_device, save, seconds
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
TINY = bool(os.environ.get("TINY"))  # a few images of the small configs


def main():
    device = chosen_device(__doc__)
    results = {}
    for alike, config, channels in distinct_configs():
        if TINY and (config.augmentation.size > 32 or len(results) == 3):
            continue
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        try:
            results[alike] = measure(config, channels, device)
        except (torch.OutOfMemoryError, ImportError, ValueError) as error:
            results[alike] = {"failed": f"{type(error).__name__}: {error}"[:200]}
        print(f"{alike}: {in_words(results[alike])}", flush=True)
    save("memory_of_configs", results, device)


def in_words(result):
    if "failed" in result:
        return result["failed"]
    memory = f"{result['gigabytes']:.1f} GB ({result['gigabytes_reserved']:.1f} reserved)"
    return f"{memory}, {result['images_per_second']:,.0f} images/s"


def distinct_configs():
    """[(names of the configs whose steps are alike, one of them, channels of the images)]."""
    groups = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        if "method" not in content:
            continue
        _, schema = find_method(content["method"]["name"])
        try:
            config = read_config("", ["--config", str(path)], method=schema)
        except WrongUse as error:  # of a package that is not installed
            print(f"left out: {error}")
            continue
        channels = 1 if config.data.name == "fashion_mnist" else 3
        parts = config.encoder, config.method, config.augmentation, config.training
        sizes = *map(repr, parts[:3]), config.training.batch_size, channels
        groups.setdefault(sizes, []).append((path.stem, config, channels))
    return [
        (", ".join(name for name, *_ in group), group[0][1], group[0][2])
        for group in groups.values()
    ]


def measure(config, channels, device):
    """What a step takes, a dict of plain types."""
    settings = config.training.model_copy(update={"batch_size": 4} if TINY else {})
    if settings.privacy:
        raise ValueError("steps with differential privacy are not measured")
    size, patch = config.augmentation.size, config.encoder.patch_size
    split = random_split(settings.batch_size, channels, config.data.size or size, device)
    module, _ = find_method(config.method.name)
    encoder = make_encoder(config.encoder, channels, size)
    method = module(encoder, **config.method.arguments(config.training))
    method.to(device, memory_format=torch.channels_last)
    optimizer, draw = make_optimizer(method, settings), Draw(0, "training", patch=patch)
    indices, recipes = torch.arange(len(split)), config.augmentation.views

    def step():
        views = training_views(split, indices, recipes, normalization(channels), draw)
        train_step(method, optimizer, views, settings, share=0.0)

    step()
    taken = min(seconds(step, device) for _ in range(STEPS))
    on_gpu = device.type == "cuda"
    return {
        "batch_size": len(split),
        "gigabytes": torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else 0.0,
        "gigabytes_reserved": torch.cuda.max_memory_reserved(device) / 1e9 if on_gpu else 0.0,
        "images_per_second": len(split) / taken,
    }


if __name__ == "__main__":
    main()
