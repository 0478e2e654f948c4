"""Does training wait for 20,000 images of 224 pixels that lie in a map on the disk? The share of a
step that data and views take.

    python -m benchmarks.big_data [--device cpu]

Also: the memory of the process, without the pages of the map, after half of the steps and after the
last step.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from benchmarks.contest import chosen_device, save, wait_for
from benchmarks.memory import status
from benchmarks.peers import normalization, simclr_recipe
from memorization.data.augmentations import Draw, training_views
from memorization.data.images import Split
from memorization.data.prefetching import prefetch
from memorization.data.prepared_maps import open_map
from memorization.optimizers import make_optimizer
from memorization.settings import TrainingSettings
from memorization.training import train_step
from models.encoders import encoder_settings, make_encoder
from models.simclr import SimCLR, SimCLRSettings

IMAGES, SIZE = 20_000, 224
ON_CPU, ON_GPU = (16, 12), (256, 70)  # images a step, and steps
SETTINGS = TrainingSettings(epochs=1, batch_size=64, optimizer="sgd", learning_rate=0.06)


def main():
    device = chosen_device(__doc__)
    batch_size, steps = ON_CPU if device.type == "cpu" else ON_GPU
    with tempfile.TemporaryDirectory() as folder:
        split = map_of_noise(Path(folder) / "map.npy").to(device, "cpu")
        order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))
        seconds, memory = train(split, order.split(batch_size)[:steps], device)
    medians = {part: statistics.median(times[2:]) for part, times in seconds.items()}
    of_step = sum(medians.values())
    names = {"waiting": "waiting for images", "views": "views", "network": "the network"}
    shares = {names[part]: median / of_step for part, median in medians.items()}
    images = f"{IMAGES:,} images of {SIZE} pixels in a map"
    print(f"SimCLR, ResNet-18, {images}, {batch_size} a step, {steps} steps, medians:")
    stated = ", ".join(f"{name} {share:.2%}" for name, share in shares.items())
    print(f"  {batch_size / of_step:.3g} images/s; {stated}")
    half, last = memory[steps // 2], memory[-1]
    after = f"{half:,.0f} MB after half of the steps, {last:,.0f} MB after the last"
    print(f"  memory without the map: {after}")
    save("big_data", [{"seconds": seconds, "shares": shares, "megabytes": memory}], device)


def train(split, batches, device):
    """Train on batches of indices. Returns {part of a step: its seconds in each step}, and the
    memory of the process after each step, in megabytes.
    """
    encoder = make_encoder(encoder_settings(name="resnet18", stem="standard"), 3, SIZE)
    method = SimCLR(encoder, **SimCLRSettings(name="simclr").arguments())
    method.to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(method, SETTINGS)
    recipes, draw = [simclr_recipe(SIZE)], Draw(0, "training")
    seconds, memory = {"waiting": [], "views": [], "network": []}, []
    clock = Clock(device)
    for indices, fetched in prefetch(split, batches):
        seconds["waiting"].append(clock.lap())
        views = training_views(fetched, indices, recipes, normalization(3), draw)
        seconds["views"].append(clock.lap())
        train_step(method, optimizer, views, SETTINGS, share=0.0)
        seconds["network"].append(clock.lap())
        memory.append(status("RssAnon") / 1e3)
    return seconds, memory


class Clock:
    """Measures the time between calls of `lap`, each once the device has done its work."""

    def __init__(self, device):
        self.device = device
        self.before = time.perf_counter()

    def lap(self):
        wait_for(self.device)
        now = time.perf_counter()
        seconds, self.before = now - self.before, now
        return seconds


def map_of_noise(path):
    """A Split over a map of random pixels on the disk, as a prepared folder of images is."""
    chance = np.random.default_rng(0)
    pixels = open_memmap(path, "w+", np.uint8, (IMAGES, 3, SIZE, SIZE))
    for start in range(0, IMAGES, 500):
        pixels[start : start + 500] = chance.integers(0, 256, (500, 3, SIZE, SIZE), dtype=np.uint8)
    pixels.flush()
    return Split("train", open_map(path), torch.arange(IMAGES) % 10, row_of=torch.arange(IMAGES))


if __name__ == "__main__":
    main()
