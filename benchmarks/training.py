"""How many images a second does training take? Against DataLoader workers with the transforms of torchvision, and of lightly if there.

    python -m benchmarks.training [--device cpu]

Also: the share of a step that goes into data and views, and its floating-point operations as a share of what matrix products reach here.
"""

import statistics
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contest import Contestant, chosen_device, contest, peer, save, seconds
from benchmarks.peers import WORKERS, PilViews, normalization, random_split, simclr_recipe, torchvision_transform, worker_pipeline
from memorization.augmentations import View, training_views
from memorization.config import EncoderSettings, TrainingSettings
from memorization.optimizers import make_optimizer
from memorization.training import train_step
from models.byol import BYOL, BYOLSettings
from models.encoders import make_encoder
from models.mae import MAE, MAESettings
from models.simclr import SimCLR, SimCLRSettings

RESNET18, VIT = EncoderSettings(name="resnet18"), EncoderSettings(name="vit_tiny", patch=4)


@dataclass(frozen=True)
class Case:
    """What is trained, on images of so many pixels and channels, by so many steps a round of so many images on a CPU or on a GPU."""

    method: str
    encoder: EncoderSettings
    size: int = 32
    channels: int = 3
    steps: int = 4
    on_cpu: int = 64
    on_gpu: int = 512


CASES = [
    Case("simclr", RESNET18),
    Case("byol", RESNET18),
    Case("mae", VIT, on_gpu=1024),
    Case("simclr", EncoderSettings(name="resnet_small", width=32), size=28, channels=1, steps=32),  # the demo's
]
METHODS = {
    "simclr": lambda encoder: SimCLR(encoder, **SimCLRSettings(name="simclr").arguments()),
    "byol": lambda encoder: BYOL(encoder, **BYOLSettings(name="byol").arguments()),
    "mae": lambda encoder: MAE(encoder, **MAESettings(name="mae").arguments()),
}
SETTINGS = TrainingSettings(epochs=1, batch_size=64, optimizer="sgd", learning_rate=0.06)
MASK_RATIO = 0.75


def main():
    device = chosen_device(__doc__)
    lightly = peer("lightly.transforms")
    rate = product_rate(device)
    print(f"matrix products: {rate / 1e9:,.0f} GFLOP/s")
    results = []
    for case in CASES:
        batch_size = case.on_cpu if device.type == "cpu" else case.on_gpu
        split = random_split(case.steps * batch_size, case.channels, case.size, device)
        ours = OurTraining(case, batch_size, split, device)
        contestants = [Contestant("this project", ours.epoch, len(split))]
        if device.type == "cuda":  # on a CPU compiling takes minutes, and a ResNet-18 is no faster
            contestants.append(Contestant("this project, compiled", OurTraining(case, batch_size, split, device, True).epoch, len(split)))
        loader = worker_pipeline(split, torchvision_transform(case.channels, case.size), 1 if case.method == "mae" else 2, batch_size)
        contestants.append(Contestant("torchvision, two workers", TheirTraining(case, loader, device).epoch, len(split)))
        if lightly and case.method == "simclr" and case.channels == 3:
            transform = lightly.SimCLRTransform(input_size=case.size, gaussian_blur=0.0)
            loader = DataLoader(
                PilViews(split, lambda image, transform=transform: torch.stack(transform(image)), 1), batch_size, shuffle=True,
                num_workers=WORKERS, persistent_workers=True, drop_last=True,
            )  # fmt: skip
            contestants.append(Contestant("lightly's transform, two workers", TheirTraining(case, loader, device).epoch, len(split)))
        question = f"{case.method}, {case.encoder.name}, {case.size} x {case.size}, {case.channels} channels, {batch_size} images a step"
        results.append(contest(question, "images", contestants, device, rounds=3) | ours.limits(rate))
        views, reached = results[-1]["share_of_views"], results[-1]["share_of_product_rate"]
        print(f"  data and views: {views:.1%} of a step; {reached:.0%} of the rate of matrix products")
    save("training", results, device)


class OurTraining:
    """The training loop's own steps: views made from uint8 pixels, channels_last, bf16 on a GPU."""

    def __init__(self, case, batch_size, split, device, compiled=False):
        self.split, self.device, self.channels = split, device, case.channels
        self.patch = case.encoder.patch if case.encoder.sees_patches else None
        recipe = simclr_recipe(case.size)
        self.recipes = [recipe if case.method != "mae" else recipe.model_copy(update={"count": 1, "mask_ratio": MASK_RATIO})]
        encoder = make_encoder(case.encoder, case.channels, case.size)
        self.method = METHODS[case.method](encoder).to(device, memory_format=torch.channels_last)
        self.forward = torch.compile(self.method) if compiled else self.method
        self.optimizer = make_optimizer(self.method, SETTINGS)
        self.batches = torch.arange(len(split)).split(batch_size)

    def views(self, batch):
        return training_views(self.split, batch, self.recipes, normalization(self.channels), seed=0, epoch=0, patch=self.patch)

    def step(self, views):
        train_step(self.method, self.optimizer, views, SETTINGS, progress=0.0, forward=self.forward)

    def epoch(self):
        for batch in self.batches:
            self.step(self.views(batch))

    def limits(self, rate):
        """The share of a step that its views take, and its operations a second as a share of a rate; medians over steps."""
        views = self.views(self.batches[0])
        of_views = statistics.median(seconds(lambda: self.views(self.batches[0]), self.device) for _ in range(5))
        of_step = statistics.median(seconds(lambda: self.step(views), self.device) for _ in range(5))
        with FlopCounterMode(display=False) as counter:
            self.step(views)
        whole = of_views + of_step
        return {"share_of_views": of_views / whole, "share_of_product_rate": counter.get_total_flops() / whole / rate}


class TheirTraining:
    """The same method on views from a DataLoader, in torch's default layout, with torch's default optimizer."""

    def __init__(self, case, loader, device):
        self.loader, self.device = loader, device
        self.patches = (case.size // case.encoder.patch) ** 2 if case.method == "mae" else None
        self.method = METHODS[case.method](make_encoder(case.encoder, case.channels, case.size)).to(device)
        self.optimizer = torch.optim.SGD(self.method.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)

    def epoch(self):
        for views in self.loader:
            if views[0].ndim == 5:  # lightly gives both views of an image at once
                views = views[0].unbind(1)
            views = [View(view.to(self.device), self.visible(len(view))) for view in views]
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
                loss = self.method(*views)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if hasattr(self.method, "after_step"):
                self.method.after_step(0.0)

    def visible(self, images):
        """Patches drawn for each image, as many as a mask leaves, or None for all."""
        if self.patches is None:
            return None
        return torch.rand(images, self.patches, device=self.device).argsort(1)[:, : round(self.patches * (1 - MASK_RATIO))]


def product_rate(device):
    """Floating-point operations a second of a large matrix product, in the precision of training."""
    size, dtype = (2048, torch.float32) if device.type == "cpu" else (8192, torch.bfloat16)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * size**3 / statistics.median(seconds(lambda: a @ b, device) for _ in range(10))


if __name__ == "__main__":
    main()
