"""Parts of an image that should not tell its label: what Deja Vu shows an encoder (Meehan et al.
2023).
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch

from memorization.data.augmentations import (
    Draw,
    View,
    augment,
    cropped_images,
    measuring_recipe,
    whole_images,
)
from memorization.errors import WrongUse
from memorization.measuring.boxes import NONE_LEFT, boxes_of, largest_empty_rectangle

# The least side of a rectangle between boxes, as a share of the image's. Less shows too little.
LEAST_SIDE = 0.25


@dataclass(frozen=True, eq=False)
class Queries:
    """Views of some images, whose labels are to be inferred.

    make_view(rows (B,), view number) -> View; views: the number of views of an image. rows: (n,)
    int64, the images; labels: (n,) int64, theirs. dropped: {reason: number of images that cannot be
    shown}. patch: the encoder's, for views with a mask. boxes: {fault: number of bounding boxes}.
    """

    make_view: callable
    views: int
    rows: torch.Tensor
    labels: torch.Tensor
    dropped: dict = field(default_factory=dict)
    patch: int | None = None
    boxes: dict = field(default_factory=dict)

    def pixels(self, rows, view):
        """The pixels of a view, (B, C, S, S); patches that are hidden from the encoder are 0, the
        mean colour.
        """
        pixels, visible = self.make_view(rows, view)
        if visible is None:
            return pixels
        B, _, S, _ = pixels.shape
        across = S // self.patch
        mask = pixels.new_zeros(B, across**2).scatter_(1, visible, 1.0).view(B, 1, across, across)
        return pixels * mask.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)


def make_queries(split, rows, encoder, settings, recipes, seed):
    """The Queries of the kind that `settings.query` names.

    split: of the images; rows: (n,) int64; encoder: an Encoder, for its size, normalization and
    patch; settings: DejaVuSettings; recipes: of the training views; seed: of the pair.

    "training" draws views by the training recipes, masks included. "corner" shows a corner, and
    "boxes" the largest rectangle between bounding boxes, resized to the encoder's input.
    "center_masked" shows the image without its middle, "whole" all of it, as a control. Raises
    WrongUse if boxes are missing or broken, or leave too little.
    """
    size, normalization, patch = encoder.size, encoder.normalization, encoder.patch
    if settings.query == "boxes":
        return _between_boxes(split, rows, size, normalization, settings.boxes)

    def training(rows, view):
        recipe, draw = measuring_recipe(recipes, view), Draw(seed, "query", patch=patch)
        return augment(split, rows, recipe, normalization, draw, view)

    def corner(rows, view):
        rectangle = corner_rectangle(settings.corner, settings.corner_fraction, split.size)
        rectangles = torch.tensor([rectangle], dtype=torch.float64).expand(len(rows), 4)
        return cropped_images(split, rows, rectangles, size, normalization)

    def center_masked(rows, view):
        return View(without_middle(whole(rows, view).pixels, settings.masked_fraction))

    def whole(rows, view):
        return whole_images(split, rows, size, normalization)

    views = settings.views if settings.query == "training" else 1
    kinds = {"training": training, "corner": corner, "center_masked": center_masked, "whole": whole}
    return Queries(kinds[settings.query], views, rows, split.labels[rows], patch=patch)


def corner_rectangle(corner, fraction, size):
    """(top, left, height, width) of a corner of a square of `size` pixels. corner: such as
    "lower_left"; fraction: of each side.
    """
    side = max(1, round(fraction * size))
    vertical, horizontal = corner.split("_")
    return (
        {"upper": 0, "lower": size - side}[vertical],
        {"left": 0, "right": size - side}[horizontal],
        side,
        side,
    )


def without_middle(pixels, fraction):
    """Images with the middle set to 0, the mean colour of normalized pixels. pixels: (B, C, S, S);
    fraction: of each side.
    """
    S = pixels.shape[2]
    side = round(fraction * S)
    start = (S - side) // 2
    pixels = pixels.clone()
    pixels[:, :, start : start + side, start : start + side] = 0
    return pixels


def _between_boxes(split, rows, size, normalization, path):
    """The Queries that show the largest rectangle between bounding boxes."""
    faults = Counter()
    boxes = boxes_of(split, rows, path, faults)
    outside = faults.pop(NONE_LEFT, 0)
    rectangles = {}
    for row, of_image in boxes.items():
        rectangle = largest_empty_rectangle(of_image, split.size)
        if min(rectangle[2:]) >= LEAST_SIDE * split.size:
            rectangles[row] = rectangle
    if not rectangles:
        faulty = "".join(f"; {n_images} {fault}" for fault, n_images in faults.items() if n_images)
        raise WrongUse(
            f"dejavu.boxes: {path} leaves no part of {len(rows)} images free that is a quarter "
            f"of their side: {len(boxes)} have boxes{faulty}"
        )

    def make_view(rows, view):
        sides = np.array([rectangles[row] for row in rows.tolist()])
        return cropped_images(
            split, rows, torch.tensor(sides, dtype=torch.float64), size, normalization
        )

    shown = torch.tensor([row for row in rows.tolist() if row in rectangles], dtype=torch.int64)
    dropped = {"without boxes": len(rows) - len(boxes) - outside}
    if outside:
        dropped[NONE_LEFT] = outside
    dropped["too little between boxes"] = len(boxes) - len(rectangles)
    return Queries(make_view, 1, shown, split.labels[shown], dropped, boxes=dict(faults))
