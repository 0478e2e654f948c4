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
    # memory is taken and freed, as a network does; from then on freed memory is kept
    torch.empty(BIGGEST_KEPT, dtype=torch.uint8)
    results = []
    for size, channels in CASES:
        count = BATCH * (32 if size < 64 else 8)
        split = random_split(count, channels, size, device)
        passes = passes_over(split, size, channels, kornia)
        contestants = [Contestant(name, work, 2 * count) for name, work in passes.items()]
        question = f"SimCLR views, {size} x {size}, {channels} channels"
        results.append(contest(question, "views", contestants, device))
    save("augmentations", results, device)


def passes_over(split, size, channels, kornia):
    """{contestant: its pass over the split, which makes two views of every image}, ours first."""
    transform = torchvision_transform(channels, size)
    loader = worker_pipeline(split, transform, views=2, batch_size=BATCH)
    passes = {
        "this project": ours(split, size, channels),
        "torchvision, PIL, two workers": lambda: sum(1 for _ in loader),
    }
    if kornia:
        passes["kornia, batches"] = by_kornia(kornia, split, size, channels)
    return passes


def ours(split, size, channels):
    recipe = simclr_recipe(size)
    indices = torch.arange(len(split)).split(BATCH)

    def work():
        for batch in indices:
            training_views(split, batch, [recipe], normalization(channels), Draw(0, "training"))

    return work


def by_kornia(kornia, split, size, channels):
    """The same recipe by kornia, on float batches on the device."""
    operations = [
        kornia.augmentation.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        kornia.augmentation.RandomHorizontalFlip(p=0.5),
    ]
    if channels == 3:
        operations.append(kornia.augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8))
        operations.append(kornia.augmentation.RandomGrayscale(p=0.2))
    augmentation = kornia.augmentation.AugmentationSequential(*operations)

    def work():
        for batch in torch.arange(len(split)).split(BATCH):
            for _ in range(2):
                augmentation(split.gather(batch).float() / 255)

    return work


if __name__ == "__main__":
    main()
