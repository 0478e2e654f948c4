"""Memorization scores by two encoders of your own: any two torch modules, any uint8 images.

    python -m examples.score_any_encoder

f was trained on the images, g was trained in the same way on others. An image that f memorized has
a positive score: f aligns its views better than g does. Put your networks, images and recipe in
the place of those below, which are random.
"""

import numpy as np
import torch
import torchvision

from memorization import Encoder, Scoring, Split, ViewRecipe, score_images

SIZE = 32
NORMALIZATION = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # mean and std of pixels in [0, 1], as trained


def load_network(seed):
    """A module that maps normalized images (B, 3, S, S) to representations (B, D)."""
    torch.manual_seed(seed)
    network = torchvision.models.resnet18(weights=None)
    network.fc = torch.nn.Identity()
    return network.eval()


def main():
    array = np.random.default_rng(0).integers(0, 256, (64, SIZE, SIZE, 3), dtype=np.uint8)
    images = Split.from_array(array)
    f, g = (Encoder(n, load_network(seed), 3, SIZE, NORMALIZATION) for seed, n in enumerate("fg"))
    recipe = ViewRecipe(size=SIZE, crop_scale=[0.2, 1.0], flip=0.5, jitter=0.8, grayscale=0.2)
    scores = score_images(f, g, images, range(len(images)), [recipe], Scoring(views=4))
    order = np.argsort(-scores.score)
    print("the most and the least memorized images, with standard errors:")
    for index in (*order[:3], *order[-3:]):
        print(f"image {index:>4}: score {scores.score[index]:+.4f} ± {scores.error[index]:.4f}")
    return scores


if __name__ == "__main__":
    main()
