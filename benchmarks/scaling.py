"""How do time and memory grow with the number of images, views and neighbours? Fitted exponents: 1
is linear, 0 is constant.

python -m benchmarks.scaling [--device cpu]
"""

from functools import partial

import numpy as np
import torch

from benchmarks.contest import chosen_device, save
from benchmarks.memory import measure
from benchmarks.peers import normalization, random_encoder, random_split, simclr_recipe
from memorization.data.augmentations import Draw, training_views
from memorization.measuring.representations import encode_images
from memorization.measuring.scores import Scoring, score_images
from memorization.neighbors import nearest_neighbors
from models.encoders import encoder_settings

SIZE, BATCH, DIMENSIONS = 16, 256, 128
IMAGES = [1_000, 4_000, 16_000, 64_000]
VIEWS = [4, 8, 16, 32]
NEIGHBORS = [10, 40, 160, 640]
ENCODER = encoder_settings(name="resnet_small", width=8)


def main():
    device = chosen_device(__doc__)
    f, g = (random_encoder(ENCODER, SIZE, device) for _ in range(2))
    vectors = torch.randn(max(IMAGES), DIMENSIONS, generator=torch.Generator().manual_seed(0)).to(
        device
    )
    split = random_split(max(IMAGES), 3, SIZE, device)

    def views(n):
        for batch in torch.arange(n).split(BATCH):
            training_views(
                split, batch, [simclr_recipe(SIZE)], normalization(3), Draw(0, "training")
            )

    def scores(n, v=4):
        scoring = Scoring(views=v, batch_size=BATCH)
        score_images(f, g, split, range(n), [simclr_recipe(SIZE)], scoring)

    studies = [
        ("views, by images", IMAGES, views),
        ("scores, by images", IMAGES, scores),
        ("scores of 1,000 images, by views", VIEWS, lambda v: scores(1_000, v)),
        ("encoding, by images", IMAGES, lambda n: encode_images(f, split, torch.arange(n), device)),
        (
            "100 neighbours of as many queries, by vectors",
            IMAGES[:3],
            lambda n: nearest_neighbors(vectors[:n], vectors[:n], 100),
        ),
        (
            "neighbours of 4,000 among 64,000, by k",
            NEIGHBORS,
            lambda k: nearest_neighbors(vectors[:4_000], vectors, k),
        ),
    ]
    results = []
    columns = f"{'seconds':>36} {'exponent':>9} {'memory above the start, MB':>36} {'exponent':>9}"
    print(f"{'':>46} {columns}")
    for name, sizes, work in studies:
        work(sizes[0])
        times, memory = zip(*(measure(partial(work, size), device) for size in sizes))
        slopes = slope(sizes, times), slope(sizes, np.maximum(memory, 1.0))
        cells = []
        for values, exponent in zip((times, memory), slopes):
            numbers = " ".join(f"{value:8.3g}" for value in values)
            cells.append(f"{numbers:>36} {exponent:>9.2f}")
        print(f"{name:>46} {' '.join(cells)}", flush=True)
        row = {"study": name, "sizes": sizes, "seconds": times, "megabytes": memory}
        results.append(row | {"exponent": slopes[0], "exponent_of_memory": slopes[1]})
    save("scaling", results, device)


def slope(sizes, values):
    """The exponent of the power law that fits best."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


if __name__ == "__main__":
    main()
