"""How many views a second does a GPU make? Against kornia, if it is installed, on the same GPU.

python -m benchmarks.on_gpu.views [--device cpu]
"""

import os

from benchmarks import augmentations
from benchmarks.contest import Contestant, chosen_device, contest, peer, save
from benchmarks.peers import random_split

CASES = [(32, 3), (28, 1), (96, 3), (224, 3)]  # height and width, channels
ROUNDS, BATCHES = 3, 8
if os.environ.get("TINY"):
    ROUNDS, BATCHES, CASES = 1, 1, CASES[:2]


def main():
    device = chosen_device(__doc__)
    kornia = peer("kornia")
    results = []
    for size, channels in CASES:
        split = random_split(BATCHES * augmentations.BATCH, channels, size, device)
        passes = {"this project": augmentations.ours(split, size, channels)}
        if kornia:
            passes["kornia"] = augmentations.by_kornia(kornia, split, size, channels)
        contestants = [Contestant(name, work, 2 * len(split)) for name, work in passes.items()]
        question = f"SimCLR views, {size} x {size}, {channels} channels"
        results.append(contest(question, "views", contestants, device, ROUNDS))
    save("views", results, device)


if __name__ == "__main__":
    main()
