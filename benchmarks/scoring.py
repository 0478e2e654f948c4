"""How many images are scored a second? Against the loop of the published code: one image at a time,
every view a forward pass of its own.

python -m benchmarks.scoring [--device cpu]

With vision transformers the loop is timed twice: with the blocks of this project, and with torch's
layers, whose weights they have.
"""

import copy
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.transforms.functional import to_pil_image, to_tensor

from benchmarks.contest import Contestant, chosen_device, contest, save
from benchmarks.peers import normalization, random_split, scoring_config, torchvision_transform
from memorization.machine.device import use_exact_arithmetic
from memorization_scores import score_batch
from models.encoders import encoder_settings, make_encoder

SIZE, VIEWS = 32, 10
OURS, THEIRS = {"cpu": 64, "cuda": 256}, 8  # images a call
ENCODERS = [
    encoder_settings(name="resnet18"),
    encoder_settings(name="vit_tiny", patch=4),
    encoder_settings(name="vit_tiny", patch=2),
]


def main():
    device = chosen_device(__doc__)
    use_exact_arithmetic()
    count = OURS[device.type]
    split = random_split(count, 3, SIZE, device)
    results = []
    for settings in ENCODERS:
        f, g = (
            make_encoder(settings, 3, SIZE).eval().to(device, memory_format=torch.channels_last)
            for _ in range(2)
        )
        contestants = [
            Contestant("this project", partial(scored, f, g, settings, split, "fp32"), count),
            Contestant(
                "this project in bf16", partial(scored, f, g, settings, split, "bf16"), count
            ),
            Contestant(
                "one image and one view at a time",
                partial(scored_one_by_one, f, g, split, device),
                THEIRS,
            ),
        ]
        if settings.sees_patches:
            theirs = [by_torch_layers(encoder) for encoder in (f, g)]
            contestants.append(
                Contestant(
                    "by torch's layers, one at a time",
                    partial(scored_one_by_one, *theirs, split, device),
                    THEIRS,
                )
            )
        name = (
            settings.name
            if not settings.sees_patches
            else f"{settings.name}, patches of {settings.patch}"
        )
        results.append(
            contest(f"memorization scores, {name}, {VIEWS} views", "images", contestants, device)
        )
    save("scoring", results, device)


def scored(f, g, settings, split, precision):
    config = scoring_config(settings, SIZE, views=VIEWS, precision=precision)
    return score_batch(f, g, split, torch.arange(len(split)), normalization(3), 0, config)


@torch.no_grad()
def scored_one_by_one(f, g, split, device):
    """As published: each view is compared with the original, which is encoded again every time."""
    transform = torchvision_transform(3, SIZE)
    scores = []
    for i in range(THEIRS):
        image = to_pil_image(split.pixels[i].cpu())
        losses = {f: 0.0, g: 0.0}
        for _ in range(VIEWS):
            view, original = transform(image)[None].to(device), to_tensor(image)[None].to(device)
            for encoder in losses:
                losses[encoder] += (
                    F.pairwise_distance(encoder(view), encoder(original)).item() / VIEWS
                )
        scores.append(losses[g] - losses[f])
    return scores


def by_torch_layers(encoder):
    """A copy of a vision transformer that calls the forward pass of torch's layers."""
    encoder = copy.deepcopy(encoder)
    for block in encoder.blocks:
        block.forward = partial(nn.TransformerEncoderLayer.forward, block)
    return encoder


if __name__ == "__main__":
    main()
