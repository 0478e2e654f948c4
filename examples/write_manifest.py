"""A manifest of a data set that Python reads: its images as PNG files, and a row for each of them.

    python -m examples.write_manifest FOLDER

Put your data set in the place of the made-up one: torchvision's give pairs of a PIL image and a
label. Those of Hugging Face give rows: `((row["image"], row["label"]) for row in
load_dataset(NAME, split="train"))`. The config then has

    data: {name: manifest, manifest: FOLDER/images.csv, root: FOLDER, size: 32}
"""

import csv
import sys
from pathlib import Path

from torchvision.datasets import FakeData


def write_manifest(images, folder):
    """Write images and FOLDER/images.csv. images: pairs of a PIL image and a label."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "images.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])  # also split, subset or group, if they are known
        for number, (image, label) in enumerate(images):
            image.save(folder / f"{number:07d}.png")
            writer.writerow([f"{number:07d}.png", label])


def main(folder):
    images = FakeData(size=100, image_size=(3, 32, 32), num_classes=10)
    write_manifest((images[number] for number in range(len(images))), folder)
    print(f"{len(images)} images are in {folder}, listed in images.csv")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
