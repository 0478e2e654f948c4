"""Parts of an image that should not tell its label: what Deja Vu asks an encoder with (Meehan et
al. 2023).
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

# of a rectangle between boxes, as a share of the side of the image; smaller ones show too little
LEAST_SIDE = 0.25


@dataclass(frozen=True)
class Queries:
    """How one view after the other is made of the images that are asked about.

    make_view(indices (B,), view number) -> View; views: how many there are; rows: (n,) int64, the
    images that can be asked about; dropped: {reason: how many others}; patch: of the encoder, for
    views with a mask; boxes: {what was wrong with bounding boxes: with how many}.
    """

    make_view: callable
    views: int
    rows: torch.Tensor
    dropped: dict
    patch: int | None
    boxes: dict = field(default_factory=dict)

    def pixels(self, indices, view):
        """The pixels of a view, (B, C, S, S), with 0, the mean colour, where an encoder sees
        nothing.
        """
        pixels, visible = self.make_view(indices, view)
        if visible is None:
            return pixels
        B, _, S, _ = pixels.shape
        across = S // self.patch
        seen = pixels.new_zeros(B, across**2).scatter_(1, visible, 1.0).view(B, 1, across, across)
        return pixels * seen.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)


def make_queries(split, rows, encoder, settings, recipes, seed):
    """The Queries of the kind that `settings.query` names.

    split: of the images; rows: (n,) int64, those that are asked about; encoder: the
    Encoder that is asked, or another that takes the same images; settings: the `dejavu:` section;
    recipes: of the training views; seed: of the pair. "training" draws views by the training recipes, masks included; "corner"
    shows a corner and "boxes" the largest rectangle between bounding boxes, both resized to the
    encoder's input; "center_masked" the image without its middle; "whole" all of it, a control.
    Raises WrongUse where boxes are missing or broken, or leave too little.
    """
    size, normalization, patch = encoder.size, encoder.normalization, encoder.patch
    if settings.query == "training":

        def drawn(indices, view):
            recipe, draw = measuring_recipe(recipes, view), Draw(seed, "query", patch=patch)
            return augment(split, indices, recipe, normalization, draw, view)

        return Queries(drawn, settings.views, rows, {}, patch)
    if settings.query == "boxes":
        return _between_boxes(split, rows, size, normalization, settings.boxes, patch)

    def seen(indices, view):
        if settings.query == "corner":
            rectangle = corner_rectangle(settings.corner, settings.corner_fraction, split.size)
            return cropped_images(
                split,
                indices,
                torch.tensor([rectangle], dtype=torch.float64).expand(len(indices), 4),
                size,
                normalization,
            )
        whole = whole_images(split, indices, size, normalization)
        return (
            View(without_middle(whole.pixels, settings.masked_fraction))
            if settings.query == "center_masked"
            else whole
        )

    return Queries(seen, 1, rows, {}, patch)


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


def _between_boxes(split, rows, size, normalization, source, patch):
    """The Queries that show the largest rectangle between bounding boxes."""
    counts = Counter()
    boxes = boxes_of(split, rows, source, counts)
    none_left = counts.pop(NONE_LEFT, 0)
    rectangles = {
        index: largest_empty_rectangle(found, split.size) for index, found in boxes.items()
    }
    large = {
        index: sides
        for index, sides in rectangles.items()
        if min(sides[2:]) >= LEAST_SIDE * split.size
    }
    if not large:
        bad = "".join(f"; {count} {what}" for what, count in counts.items() if count)
        raise WrongUse(
            f"dejavu.boxes: {source} leaves no part of {len(rows)} images free that is a quarter "
            f"of their side: {len(boxes)} have boxes{bad}"
        )

    def seen(indices, view):
        chosen = torch.tensor(
            np.array([large[index] for index in indices.tolist()]), dtype=torch.float64
        )
        return cropped_images(split, indices, chosen, size, normalization)

    kept = torch.tensor([index for index in rows.tolist() if index in large], dtype=torch.int64)
    dropped = {
        "without boxes": len(rows) - len(boxes) - none_left,
        **({NONE_LEFT: none_left} if none_left else {}),
        "too little between boxes": len(boxes) - len(large),
    }
    return Queries(seen, 1, kept, dropped, patch, dict(counts))
