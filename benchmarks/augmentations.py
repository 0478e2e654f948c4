"""How many views a second? SimCLR's recipe from uint8 pixels, against torchvision on PIL images in
two workers, and kornia.

python -m benchmarks.augmentations [--device cpu]
"""

import torch

from benchmarks.contest import Contestant, chosen_device, contest, peer, save
from benchmarks.peers import (
    normalization,
    random_split,
    simclr_recipe,
    torchvision_transform,
    worker_pipeline,
)
from memorization.data.augmentations import Draw, training_views

BATCH = 256
CASES = [(32, 3), (96, 3), (28, 1), (96, 1)]  # height and width, channels
# bytes; blocks up to 32 MiB make glibc keep such memory when they are freed
BIGGEST_KEPT = 31 * 2**20


def main():
    device = chosen_device(__doc__)
    kornia = peer("kornia")
    # made and freed, as a network's activations are, after which freed memory is kept
    torch.empty(BIGGEST_KEPT, dtype=torch.uint8)
    results = []
    for size, channels in CASES:
        count = BATCH * (32 if size < 64 else 8)
        split = random_split(count, channels, size, device)
        contestants = [Contestant("this project", ours(split, size, channels), 2 * count)]
        loader = worker_pipeline(
            split, torchvision_transform(channels, size), views=2, batch_size=BATCH
        )
        contestants.append(
            Contestant(
                "torchvision, PIL, two workers",
                lambda loader=loader: sum(1 for _ in loader),
                2 * count,
            )
        )
        if kornia:
            contestants.append(
                Contestant("kornia, batches", by_kornia(kornia, split, size, channels), 2 * count)
            )
        results.append(
            contest(
                f"SimCLR views, {size} x {size}, {channels} channels", "views", contestants, device
            )
        )
    save("augmentations", results, device)


def ours(split, size, channels):
    """One pass over the split: two views of every image."""
    recipe = simclr_recipe(size)
    indices = torch.arange(len(split)).split(BATCH)

    def work():
        for batch in indices:
            training_views(split, batch, [recipe], normalization(channels), Draw(0, "training"))

    return work


def by_kornia(kornia, split, size, channels):
    """The same recipe by kornia, on float batches that are on the device already."""
    augmentation = kornia.augmentation.AugmentationSequential(
        kornia.augmentation.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        kornia.augmentation.RandomHorizontalFlip(p=0.5),
        *(
            [
                kornia.augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
                kornia.augmentation.RandomGrayscale(p=0.2),
            ]
            if channels == 3
            else []
        ),
    )

    def work():
        for batch in torch.arange(len(split)).split(BATCH):
            for _ in range(2):
                augmentation(split.gather(batch).float() / 255)

    return work


if __name__ == "__main__":
    main()
