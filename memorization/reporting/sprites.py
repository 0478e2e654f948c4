"""Sprites: many small pictures in a sheet, and the sheets as texts that a page can hold."""

import base64
import io

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from memorization.data.augmentations import augment_all, measuring_recipe, whole_images

COLUMNS = 16  # tiles beside each other in a sheet
TILES = 256  # at most in a sheet
SIZES = (64, 48, 32)  # pixels, to which larger pictures are shrunk
SAMPLE = 64  # pictures by which the size of all is estimated
NOT_NORMALIZED = 0.0, 1.0  # mean and std of channels in [0, 1]
HIDDEN = 128  # gray value of hidden patches
PREFIX = "data:image/webp;base64,"


class Sprites:
    """Sheets of pictures, as many as a number of bytes allows.

    sheets: their texts, `data:` addresses; shapes: of each, a dict of size (pixels of a tile, which
    is square), columns and count. most_bytes: of all texts together.
    """

    def __init__(self, most_bytes):
        self.most_bytes, self.sheets, self.shapes = most_bytes, [], []

    @property
    def bytes_left(self):
        return self.most_bytes - sum(map(len, self.sheets))

    def add(self, pixels):
        """The places of pictures, lists [sheet, tile], of those that still fit: the first ones.

        pixels: (n, S, S, C) uint8.
        """
        places = []
        for start in range(0, len(pixels), TILES):
            part = pixels[start : start + TILES]
            text = sheet_text(part)
            while len(part) and len(text) > self.bytes_left:
                part = part[: len(part) // 2]
                text = sheet_text(part) if len(part) else ""
            if not len(part):
                break
            shape = {"size": int(part.shape[1]), "columns": COLUMNS, "count": len(part)}
            places += [[len(self.sheets), tile] for tile in range(len(part))]
            self.sheets.append(text)
            self.shapes.append(shape)
            if len(part) < min(TILES, len(pixels) - start):
                break
        return places


def sheet_text(pixels):
    """A sheet of pictures as the text of a `data:` address, without loss. pixels: (n, S, S, C)
    uint8, 1 <= n.
    """
    n_pictures, size, _, channels = pixels.shape
    rows = -(-n_pictures // COLUMNS)
    tiles = np.zeros((rows * COLUMNS, size, size, 3), dtype=np.uint8)
    tiles[:n_pictures] = pixels[..., :3] if channels > 3 else pixels
    sheet = tiles.reshape(rows, COLUMNS, size, size, 3).transpose(0, 2, 1, 3, 4)
    content = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(sheet.reshape(rows * size, COLUMNS * size, 3)))
    picture.save(content, "WEBP", lossless=True, method=2, quality=50)
    return PREFIX + base64.b64encode(content.getvalue()).decode()


def fitting_size(split, indices, most_bytes):
    """The largest height and width of pictures, in pixels, with which all images fit into a number
    of bytes; the smallest of SIZES if they do not. split: a Split; indices: (n,) int64.
    """
    sizes = [size for size in SIZES if size < split.size]
    if split.size <= SIZES[0]:
        sizes = [split.size, *sizes]
    sample = indices[:: max(1, len(indices) // SAMPLE)]
    for size in sizes:
        if (
            len(sheet_text(shrink_images(split, sample, size))) * len(indices) / len(sample)
            <= most_bytes
        ):
            return size
    return sizes[-1]


def shrink_images(split, indices, size):
    """The images of a Split as pictures of a size, (n, size, size, C) uint8. indices: (n,)."""
    indices = torch.as_tensor(indices)
    if size == split.size:
        return split.gather(indices).permute(0, 2, 3, 1).cpu().numpy()
    view = whole_images(split, indices, size, _no_normalization(split))
    return _as_bytes(view.pixels)


def views_of(split, indices, recipes, count, draw):
    """The first views of images as they were scored, (n, count, S, S, C) uint8; patches that were
    hidden are gray.

    recipes: of the scored views; draw: the Draw of scoring, with a patch if views are masked.
    """
    recipes = [measuring_recipe(recipes, view) for view in range(count)]
    views = augment_all(split, torch.as_tensor(indices), recipes, _no_normalization(split), draw)
    pictures = []
    for view in views:
        pixels = _as_bytes(view.pixels)
        if view.visible is not None:
            pixels = np.where(_is_visible(view, draw.patch), pixels, np.uint8(HIDDEN))
        pictures.append(pixels)
    return np.stack(pictures, axis=1)


def shrink_pictures(pictures, most=SIZES[0]):
    """Pictures (n, S, S, C) uint8 with at most so many pixels a side."""
    if pictures.shape[1] <= most:
        return pictures
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return _as_bytes(interpolate(pixels, (most, most), mode="bilinear", antialias=True))


def _no_normalization(split):
    """Mean and std that leave pixels in [0, 1]."""
    return tuple((value,) * split.pixels.shape[1] for value in NOT_NORMALIZED)


def _as_bytes(pixels):
    """(n, C, S, S) floats in [0, 1] -> (n, S, S, C) uint8."""
    pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def _is_visible(view, patch):
    """Whether each pixel of a masked View is of a visible patch, (n, S, S, 1) bool."""
    n_images, size = len(view.pixels), view.pixels.shape[2]
    side = size // patch
    is_visible = torch.zeros(n_images, side * side, dtype=torch.bool)
    is_visible.scatter_(1, view.visible.cpu(), True)
    grid = is_visible.view(n_images, side, side)
    pixels = grid.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    return pixels.numpy()[..., None]
