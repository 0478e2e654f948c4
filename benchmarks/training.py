"""How many images a second does training take? Against DataLoader workers with the transforms of
torchvision, and of lightly if it is installed.

    python -m benchmarks.training [--device cpu]

Every method is timed, found by its script. SimCLR by torchvision's transforms is timed twice: with
one forward pass for each view, as in this project, and with one for both, as in its authors' code.
Also: the share of a step that data and views take, its floating-point operations as a share of what
matrix products reach, and the operations that take most of its time; on a GPU the share of the time
that it works, which shows whether the host is fast enough to call its operations.
"""

import importlib
import inspect
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import profile
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contest import ROUNDS, Contestant, chosen_device, contest, peer, save, seconds
from benchmarks.peers import (
    WORKERS,
    PilViews,
    normalization,
    random_split,
    simclr_recipe,
    torchvision_transform,
    worker_pipeline,
)
from memorization.data.augmentations import Draw, View, training_views
from memorization.data.prefetching import make_ahead
from memorization.optimizers import make_optimizer
from memorization.settings import TrainingSettings
from memorization.training import train_step
from models.encoders import EncoderSettings, encoder_settings, make_encoder
from models.settings import MethodSettings

RESNET18 = encoder_settings(name="resnet18")
SMALL_DECODER = ("decoder_dim", 192), ("decoder_depth", 4), ("decoder_heads", 3)  # mae_cifar10
OF_DEMO = encoder_settings(name="resnet_small", width=32)


def find_method(name):
    """The module of a method and the schema of its settings, both in models/<name>.py."""
    file = importlib.import_module(f"models.{name}")
    classes = [value for value in vars(file).values() if isinstance(value, type)]
    (schema,) = (
        value
        for value in classes
        if issubclass(value, MethodSettings) and value is not MethodSettings
    )
    return getattr(file, schema.__name__.removesuffix("Settings")), schema


@dataclass(frozen=True)
class Case:
    """What is trained. steps: a round; size: height and width of the images, pixels; mask_ratio: of
    the views; views: their number, by default those that the method takes, or two if it takes any;
    settings: of the method, pairs, if not its defaults.
    """

    method: str
    encoder: EncoderSettings
    batch_size: int = 64
    steps: int = 4
    size: int = 32
    channels: int = 3
    rounds: int = ROUNDS
    mask_ratio: float = 0.0
    views: int | None = None
    settings: tuple = ()

    def __post_init__(self):
        if self.views is None:
            arguments = inspect.getfullargspec(find_method(self.method)[0].forward)
            views = 2 if arguments.varargs else len(arguments.args) - 1
            object.__setattr__(self, "views", views)

    def __str__(self):
        patch = self.encoder.patch_size
        patches = f", patches of {patch}" if patch else ""
        images = f"{self.size} x {self.size}, {self.channels} channels"
        step = f"{self.batch_size} images a step"
        return f"{self.method}, {self.encoder.name}{patches}, {images}, {step}"


# Cases of their own; a method without one is trained with a ResNet-18.
CASES = {
    "cpu": [
        Case("simclr", RESNET18),
        Case("mae", encoder_settings(name="vit_tiny", patch=4), mask_ratio=0.75, views=1),
        Case("simclr", OF_DEMO, steps=32, size=28, channels=1, rounds=9),
    ],
    "cuda": [
        Case("simclr", RESNET18, batch_size=512, steps=20),
        Case("simclr", RESNET18, batch_size=1024, steps=10),
        Case(
            "mae",
            encoder_settings(name="vit_tiny", patch=2),
            batch_size=1024,
            steps=10,
            mask_ratio=0.75,
            views=1,
            settings=SMALL_DECODER,
        ),
    ],
}
SIZES = {"cpu": {}, "cuda": {"batch_size": 512, "steps": 20}}  # of all other cases
HEAVIEST = 6  # operations that are shown
SETTINGS = TrainingSettings(epochs=1, batch_size=64, optimizer="sgd", learning_rate=0.06)


def main():
    device = chosen_device(__doc__)
    lightly = peer("lightly.transforms")
    rate = product_rate(device)
    print(f"matrix products: {rate / 1e9:,.0f} GFLOP/s")
    results = []
    for case in all_cases(device.type):
        split = random_split(case.steps * case.batch_size, case.channels, case.size, device)
        ours = OurTraining(case, split, device)
        epochs = epochs_of(case, ours, lightly)
        contestants = [Contestant(name, epoch, len(split)) for name, epoch in epochs.items()]
        speeds = contest(str(case), "images", contestants, device, case.rounds)
        limits = ours.limits(rate)
        print_limits(limits)
        results.append(speeds | limits)
    save("training", results, device)


def all_cases(device):
    """The cases of a type of device, with one at least of every method."""
    cases = list(CASES[device])
    scripts = sorted(Path(__file__).parents[1].glob("train_*.py"))
    for name in (path.stem.removeprefix("train_") for path in scripts):
        if name not in {case.method for case in cases}:
            cases.append(Case(name, RESNET18, **SIZES[device]))
    return cases


def epochs_of(case, ours, lightly):
    """{contestant: what trains it for one epoch}, ours first. lightly: its transforms, or None."""
    split, device = ours.split, ours.device
    epochs = {"this project": ours.epoch}
    # on a CPU compiling takes minutes, and a ResNet-18 becomes no faster
    if device.type == "cuda" and has_compiler():
        epochs["this project, compiled"] = OurTraining(case, split, device, compiled=True).epoch
    transform = torchvision_transform(case.channels, case.size)
    loader = worker_pipeline(split, transform, case.views, case.batch_size)
    epochs["torchvision, two workers"] = TheirTraining(case, loader, device).epoch
    if case.method == "simclr":
        one_pass = TheirTraining(case, loader, device, one_pass=True)
        epochs["torchvision, both views in one pass"] = one_pass.epoch
    if lightly and case.method == "simclr" and case.channels == 3:
        loader = lightly_pipeline(lightly, case, split)
        epochs["lightly's transform, two workers"] = TheirTraining(case, loader, device).epoch
    return epochs


def lightly_pipeline(lightly, case, split):
    """A DataLoader of whole batches of both views of each image, by lightly's transform."""
    transform = lightly.SimCLRTransform(input_size=case.size, gaussian_blur=0.0)
    return DataLoader(
        PilViews(split, lambda image: torch.stack(transform(image)), 1),
        case.batch_size,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        drop_last=True,
    )


def has_compiler():
    """Whether torch.compile finds the C compiler that it needs for a GPU. Prints if it does not."""
    if shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"):
        return True
    print("(there is no C compiler, and the compiled contestant is skipped)")
    return False


def print_limits(limits):
    """What bounds a step, of `OurTraining.limits`."""
    reached = f"{limits['share_of_product_rate']:.0%} of the rate of matrix products"
    print(f"  data and views: {limits['share_of_views']:.1%} of a step; {reached}")
    print("  " + ", ".join(f"{name} {share:.1%}" for name, share in limits["heaviest"].items()))
    if "share_of_work" in limits:
        print(f"  the GPU works {limits['share_of_work']:.0%} of the time")


def make_method(case, **settings):
    """The method of a case with an encoder. settings: of the method, if not its defaults."""
    method, schema = find_method(case.method)
    encoder = make_encoder(case.encoder, case.channels, case.size)
    settings = dict(case.settings) | settings
    return method(encoder, **schema(name=case.method, **settings).arguments(SETTINGS))


class OurTraining:
    """The training loop's own steps: views made from uint8 pixels, channels_last, bf16 on a GPU."""

    def __init__(self, case, split, device, compiled=False):
        self.split, self.device, self.channels = split, device, case.channels
        self.patch = case.encoder.patch_size
        recipe = simclr_recipe(case.size, case.views)
        self.recipes = [recipe.model_copy(update={"mask_ratio": case.mask_ratio})]
        self.method = make_method(case).to(device, memory_format=torch.channels_last)
        self.forward = torch.compile(self.method) if compiled else self.method
        self.optimizer = make_optimizer(self.method, SETTINGS)
        self.batches = torch.arange(len(split)).split(case.batch_size)

    def views(self, batch):
        draw = Draw(0, "training", patch=self.patch)
        return training_views(self.split, batch, self.recipes, normalization(self.channels), draw)

    def step(self, views):
        train_step(self.method, self.optimizer, views, SETTINGS, share=0.0, forward=self.forward)

    def epoch(self):
        for views in make_ahead(map(self.views, self.batches), self.device):
            self.step(views)

    def limits(self, rate):
        """What bounds a step, a dict: the share of its views, its floating-point operations a
        second as a share of a rate, the shares of its heaviest operations, and on a GPU the share
        of the time that it works.
        """
        views = self.views(self.batches[0])
        of_views = self.median_seconds(lambda: self.views(self.batches[0]), 5)
        of_step = self.median_seconds(lambda: self.step(views), 5)
        with FlopCounterMode(display=False) as counter:
            self.step(views)
        # of a step with its views, which may overlap on a GPU
        whole = self.median_seconds(self.epoch, 3) / len(self.batches)
        operations = self.profile_step()
        work = sum(operations.values())
        heaviest = sorted(operations, key=operations.get, reverse=True)[:HEAVIEST]
        limits = {
            "share_of_views": of_views / (of_views + of_step),
            "share_of_product_rate": counter.get_total_flops() / whole / rate,
            "heaviest": {name: operations[name] / work for name in heaviest},
        }
        return limits | ({"share_of_work": work / whole} if self.device.type == "cuda" else {})

    def median_seconds(self, work, times):
        return statistics.median(seconds(work, self.device) for _ in range(times))

    def profile_step(self):
        """{operation: seconds that the device works on it} in a step and its views."""
        with profile() as profiler:
            self.step(self.views(self.batches[0]))
        # in microseconds
        times = f"self_{'cpu' if self.device.type == 'cpu' else 'device'}_time_total"
        return {
            event.key.removeprefix("aten::"): getattr(event, times) / 1e6
            for event in profiler.key_averages()
            # of calls of operations; their kernels count as theirs
            if event.device_type == DeviceType.CPU
        }


class TheirTraining:
    """The same method on views from a DataLoader, in torch's default layout, with torch's default
    optimizer. settings: of the method.
    """

    def __init__(self, case, loader, device, **settings):
        self.loader, self.device, self.mask_ratio = loader, device, case.mask_ratio
        self.patches = (case.size // case.encoder.patch_size) ** 2 if case.mask_ratio else None
        self.method = make_method(case, **settings).to(device)
        self.optimizer = torch.optim.SGD(
            self.method.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4
        )

    def epoch(self):
        for views in self.loader:
            if views[0].ndim == 5:  # lightly gives both views of an image at once
                views = views[0].unbind(1)
            views = [View(view.to(self.device), self.visible(len(view))) for view in views]
            on_gpu = self.device.type == "cuda"
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=on_gpu):
                loss = self.method(*views)
            self.optimizer.zero_grad()
            loss.backward()
            if hasattr(self.method, "before_step"):
                self.method.before_step(0.0, self.optimizer)
            self.optimizer.step()
            if hasattr(self.method, "after_step"):
                self.method.after_step(0.0)

    def visible(self, images):
        """Patches drawn for each image, as many as a mask leaves, or None for all."""
        if self.patches is None:
            return None
        order = torch.rand(images, self.patches, device=self.device).argsort(1)
        return order[:, : round(self.patches * (1 - self.mask_ratio))]


def product_rate(device):
    """Floating-point operations a second of a large matrix product, in the precision of training,
    when it is fastest.
    """
    size, dtype = (2048, torch.float32) if device.type == "cpu" else (8192, torch.bfloat16)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(20))


if __name__ == "__main__":
    main()
