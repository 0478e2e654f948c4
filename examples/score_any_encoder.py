"""Memorization scores of a folder of images by two encoders of your own, any two torch modules.

    python -m examples.score_any_encoder FOLDER

f was trained on the images, g was trained in the same way on others. An image that f memorized has
a positive score: f aligns its views better than g does. Put your networks, normalization and recipe
in the place of those below: the networks are random.
"""

import sys

import torch
import torchvision

from memorization import Encoder, Scoring, Split, ViewRecipe, score_images

SIZE = 32
NORMALIZATION = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # mean and std of pixels in [0, 1], as trained


def load_network(seed):
    """A module that maps normalized images (B, 3, S, S) to representations (B, D)."""
    torch.manual_seed(seed)
    return torchvision.models.resnet18(num_classes=64).eval()


def main(folder):
    images = Split.from_folder(folder, SIZE)
    f, g = (Encoder(n, load_network(seed), 3, SIZE, NORMALIZATION) for seed, n in enumerate("fg"))
    recipe = ViewRecipe(size=SIZE, crop_scale=[0.2, 1.0], flip=0.5, jitter=0.8, grayscale=0.2)
    scores = score_images(f, g, images, range(len(images)), [recipe], Scoring(views=10))
    for index in (-scores.score).argsort():
        score, error = scores.score[index], scores.error[index]
        print(f"{score:+.4f} ± {error:.4f}  {images.files[index]}")
    return scores


if __name__ == "__main__":
    main(sys.argv[1])
