"""How many images a second are measured at every layer? Against scoring the tokens alone, and
against keeping what comes out of all layers for every view.

python -m benchmarks.layers [--device cpu]
"""

from functools import partial

import torch

from benchmarks.contest import Contestant, chosen_device, contest, save
from benchmarks.peers import random_encoder, random_split, simclr_recipe
from memorization.alignment import mean_over_pairs, view_distances
from memorization.data.augmentations import Draw, augment_all, measuring_recipe
from memorization.encoder import Pair
from memorization.machine.device import use_exact_arithmetic
from memorization.measuring.layers import LayerSettings, align_layers, watch_pair
from memorization.measuring.scores import Scoring, score_images
from memorization.normalization import normalize
from models.encoders import encoder_settings

SIZE, VIEWS = 32, 10
OURS, THEIRS = {"cpu": 64, "cuda": 256}, 8  # images a call
ENCODERS = [
    encoder_settings(name="resnet_small"),
    encoder_settings(name="resnet18"),
    encoder_settings(name="vit_tiny", patch=4),
]
RECIPES = [simclr_recipe(SIZE)]


def main():
    device = chosen_device(__doc__)
    use_exact_arithmetic()
    count = OURS[device.type]
    images, results = random_split(count, 3, SIZE, device), []
    scoring = Scoring(VIEWS, "tokens", batch_size=count)
    for settings in ENCODERS:
        pair = Pair(*(random_encoder(settings, SIZE, device) for _ in range(2)), seed=0)
        watched = watch_pair(pair, LayerSettings(), images, RECIPES, scoring)
        contestants = [
            Contestant(
                f"all {len(watched[0].layers)} layers in one pass",
                partial(align_layers, watched, images, range(count), RECIPES, scoring),
                count,
            ),
            Contestant(
                "the tokens alone",
                partial(score_images, *pair, images, range(count), RECIPES, scoring),
                count,
            ),
            Contestant("all layers kept", partial(align_kept_layers, pair, images), THEIRS),
        ]
        question = f"alignment at every layer, {settings.name}, {VIEWS} views"
        results.append(contest(question, "images", contestants, device))
    save("layers", results, device)


@torch.inference_mode()
def align_kept_layers(pair, images):
    """The alignment losses of some images at every layer, of f and of g: {name: (B,)} each."""
    recipes = [measuring_recipe(RECIPES, view) for view in range(VIEWS)]
    both = []
    for encoder in pair:
        draw = Draw(0, "scoring", patch=encoder.patch)
        views = augment_all(images, torch.arange(THEIRS), recipes, encoder.normalization, draw)
        outputs = [encoder.network.layers(*view) for view in views]
        layers = {
            name: torch.stack([output[name].flatten(1) for output in outputs], dim=1)
            for name in outputs[0]
        }
        both.append({
            name: mean_over_pairs(view_distances(normalize(values, dim=2)))
            for name, values in layers.items()
        })  # fmt: skip
    return both


if __name__ == "__main__":
    main()
