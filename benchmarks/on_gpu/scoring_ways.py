"""In which layout and precision are scores fastest on a GPU, and does torch.compile help?

python -m benchmarks.on_gpu.scoring_ways [--device cpu]
"""

import os
from dataclasses import replace
from functools import partial

import torch

from benchmarks.contest import Contestant, chosen_device, contest, save
from benchmarks.on_gpu.cases import TINY_ENCODERS, is_tiny
from benchmarks.peers import random_encoder, random_split, simclr_recipe
from memorization.encoder import Encoder
from memorization.machine.device import use_exact_arithmetic
from memorization.measuring.scores import Scoring, score_images
from models.encoders import encoder_settings

SIZE, VIEWS = 32, 10
ROUNDS, IMAGES = (1, 8) if os.environ.get("TINY") else (3, 1024)
BATCH = 256
ENCODERS = [encoder_settings(name="resnet18"), encoder_settings(name="vit_tiny", patch=2)]


class Contiguous(Encoder):
    """An Encoder in torch's default layout."""

    def to(self, device):
        self.network.to(device, memory_format=torch.contiguous_format)
        return self


def main():
    device = chosen_device(__doc__)
    images = random_split(IMAGES, 3, SIZE, device)
    results = []
    for settings in ENCODERS:
        if is_tiny(device):
            settings = TINY_ENCODERS[settings.name]
        f, g = (random_encoder(settings, SIZE, device) for _ in range(2))
        ways = {
            "float32, channels_last": partial(score, f, g, images),
            "float32, default layout": partial(score, contiguous(f), contiguous(g), images),
            "float32 as TF32": partial(score, f, g, images, tf32=True),
            "float32, cuDNN timed": partial(score, f, g, images, timed=True),
            "bfloat16": partial(score, f, g, images, "bf16"),
            "bfloat16, cuDNN timed": partial(score, f, g, images, "bf16", timed=True),
        }
        if device.type == "cuda":
            compiled = [replace(each, network=torch.compile(each.network)) for each in (f, g)]
            ways["bfloat16, compiled"] = partial(score, *compiled, images, "bf16")
        contestants = [Contestant(name, work, IMAGES) for name, work in ways.items()]
        question = f"memorization scores, {settings.name}, {VIEWS} views"
        results.append(contest(question, "images", contestants, device, ROUNDS))
        save("scoring_ways", results, device)


def contiguous(encoder):
    fields = ("name", "network", "channels", "size", "normalization", "patch", "identity")
    return Contiguous(*(getattr(encoder, field) for field in fields))


def score(f, g, images, precision="fp32", tf32=False, timed=False):
    """Score all images, with switches that are thrown back. tf32: float32 is multiplied as TF32;
    timed: cuDNN chooses its algorithms by timing them.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = timed
    try:
        scoring = Scoring(views=VIEWS, precision=precision, batch_size=BATCH)
        score_images(f, g, images, range(len(images)), [simclr_recipe(SIZE)], scoring)
    finally:
        use_exact_arithmetic()
        torch.backends.cudnn.benchmark = False


if __name__ == "__main__":
    main()
