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
from benchmarks.peers import random_encoder, random_split, simclr_recipe, torchvision_transform
from memorization.machine.device import use_exact_arithmetic
from memorization.measuring.scores import Scoring, score_images
from models.encoders import encoder_settings

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
    images = random_split(count, 3, SIZE, device)
    results = []
    for settings in ENCODERS:
        f, g = (random_encoder(settings, SIZE, device) for _ in range(2))
        networks, ours = (f.network, g.network), partial(score, f, g, images)
        one_by_one = partial(score_one_by_one, *networks, images, device)
        contestants = [
            Contestant("this project", partial(ours, "fp32"), count),
            Contestant("this project in bf16", partial(ours, "bf16"), count),
            Contestant("one image and one view at a time", one_by_one, THEIRS),
        ]
        name = settings.name
        if f.patch:
            name += f", patches of {f.patch}"
            theirs = [by_torch_layers(network) for network in networks]
            work = partial(score_one_by_one, *theirs, images, device)
            contestants.append(Contestant("by torch's layers, one at a time", work, THEIRS))
        question = f"memorization scores, {name}, {VIEWS} views"
        results.append(contest(question, "images", contestants, device))
    save("scoring", results, device)


def score(f, g, images, precision):
    scoring = Scoring(views=VIEWS, precision=precision, batch_size=len(images))
    return score_images(f, g, images, range(len(images)), [simclr_recipe(SIZE)], scoring)


@torch.no_grad()
def score_one_by_one(f, g, images, device):
    """As published: each view is compared with the original, which is encoded again every time."""
    transform = torchvision_transform(3, SIZE)
    scores = []
    for i in range(THEIRS):
        image = to_pil_image(images.pixels[i].cpu())
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
