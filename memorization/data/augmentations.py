"""Views as a pure function: batches of uint8 images in, normalized float views out. Every sample
has its own parameters.

A view is fully decided by (seed, purpose, split, epoch, view number, sample index): it does not
depend on the batch around it, on earlier views, or on the device, except for rounding: a GPU adds
in another order.
"""

import math
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import chain, groupby
from typing import NamedTuple

import torch

from memorization.data.randomness import sample_keys, stream, uniform
from memorization.data.recipes import ViewRecipe
from memorization.data.transforms import normalize, places_of_hue, transform
from memorization.machine import threads
from memorization.machine.device import to_device

# Pixels that a CPU transforms at a time: they fit into its cache, and outweigh the cost of calling
# operations. On a GPU a call costs more, and memory less.
CHUNK_BYTES = 1 << 21
CHUNK_BYTES_ON_GPU = 1 << 26
# Which of a sample's numbers decides which parameter. Of scales and ratios there are ten tries.
_SLOTS = torch.arange(37)
_SCALES, _RATIOS = slice(0, 10), slice(10, 20)
_TOP, _LEFT, _FLIP, _ROTATE, _JITTER = range(20, 25)
_STRENGTHS, _ORDER = slice(25, 29), slice(29, 33)
_GRAYSCALE, _BLUR, _SIGMA, _SOLARIZE = range(33, 37)
_FIRST_MASK_SLOT = 1 << 32  # beyond the noise of any image


class View(NamedTuple):
    """One view of a batch of images."""

    pixels: torch.Tensor  # (B, C, size, size) float32, normalized
    # (B, K) indices of the patches an encoder may see, or None for all
    visible: torch.Tensor | None = None


@dataclass(frozen=True)
class Parameters:
    """The drawn parameters of one view of B images, each field (B,) or as noted, on the CPU."""

    top: torch.Tensor  # the crop, in pixels of the source image
    left: torch.Tensor
    height: torch.Tensor
    width: torch.Tensor
    flip: torch.Tensor  # bool
    quarter_turns: torch.Tensor  # counter-clockwise
    jitter: torch.Tensor  # bool
    factors: torch.Tensor  # (B, 4) brightness, contrast and saturation factors, hue shift in turns
    order: torch.Tensor  # (B, 4) which operation of colour jitter comes first, second, ...
    grayscale: torch.Tensor  # bool
    blur: torch.Tensor  # bool
    sigma: torch.Tensor
    solarize: torch.Tensor  # bool
    noise_keys: torch.Tensor  # keys from which the noise of every pixel is drawn

    def __getitem__(self, rows):
        return Parameters(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class Draw:
    """What a view is drawn for; with a split, a view number and an index it decides the view.

    purpose: a name in randomness.PURPOSES. patch: height and width of the encoder's patches, for
    recipes with a mask.
    """

    seed: int
    purpose: str
    epoch: int = 0
    patch: int | None = None

    def keys(self, split, views, indices):
        """One key for each image of each view, (V B,) int64, view by view. split: the name of one;
        views: V numbers; indices: (B,) int64.
        """
        streams = [stream(self.seed, self.purpose, split, self.epoch, view) for view in views]
        return sample_keys(torch.tensor(streams)[:, None], indices).flatten()


def augment(images, indices, recipe, normalization, draw, view=0):
    """One view of each image.

    images: a Split, the source of the pixels; indices: (B,) int64, which of its images; recipe: a
    ViewRecipe; normalization: (mean, std) of the channels; draw: a Draw; view: its number. Returns
    a View on the device of the images.
    """
    return _make_views(images, indices, [recipe], normalization, draw, [view])[0]


def augment_all(images, indices, recipes, normalization, draw):
    """Views 0, 1, ... of each image, one by each of the recipes: a list of what `augment` returns.

    Small views of one size are made as one batch, which takes fewer calls of operations; large ones
    are made by several threads.
    """
    size = max(recipe.size for recipe in recipes)
    per_pixel = 4 * len(indices) * images.pixels.shape[1]  # bytes of a view, for each of its pixels
    limit = CHUNK_BYTES if images.device.type == "cpu" else CHUNK_BYTES_ON_GPU
    most = max(1, limit // max(1, per_pixel * max(size, images.size) ** 2))
    groups = _group_views(recipes, most)

    def make(group):
        of_group = [recipes[view] for view in group]
        return _make_views(images, indices, of_group, normalization, draw, group)

    # If there are too few groups for all threads, or the views are small, `_make_pixels` divides
    # the batch instead.
    in_threads = len(groups) >= threads.count(images.device) and per_pixel * size**2 >= CHUNK_BYTES
    results = (
        threads.map_in_threads(make, groups, images.device) if in_threads else map(make, groups)
    )
    views = dict(zip(chain.from_iterable(groups), chain.from_iterable(results)))
    return [views[view] for view in range(len(recipes))]


def _group_views(recipes, most):
    """The numbers of the views, in lists of at most `most` views that can be made together, those
    by one recipe next to each other.
    """
    groups = []
    for view in sorted(range(len(recipes)), key=lambda view: recipes.index(recipes[view])):
        for group in groups:
            alike = _fixed_settings(recipes[group[0]]) == _fixed_settings(recipes[view])
            if alike and len(group) < most:
                group.append(view)
                break
        else:
            groups.append([view])
    return groups


def _fixed_settings(recipe):
    """The settings by which images are changed, not drawn for each. Views by recipes that share
    them can be made together.
    """
    return recipe.size, recipe.solarize_threshold, recipe.noise, recipe.mask_ratio


def _make_views(images, indices, recipes, normalization, draw, numbers):
    """Views of these numbers by recipes that share their fixed settings, a list; see `augment`.
    Their pixels lie in one tensor, one view after the other.
    """
    indices, n_views, recipe = torch.as_tensor(indices), len(numbers), recipes[0]
    keys = draw.keys(images.name, numbers, indices)

    def draw_part(part):
        return _draw_slice(recipes, keys, part, images.size)

    pixels = _make_pixels(images, indices.repeat(n_views), recipe, normalization, draw_part)
    visible = [None] * n_views
    if recipe.mask_ratio:
        visible = draw_visible(recipe, to_device(keys, images.device), draw.patch).chunk(n_views)
    return [View(*view) for view in zip(pixels.chunk(n_views), visible)]


def _draw_slice(recipes, keys, part, source_size):
    """The Parameters of some of the images of several views.

    recipes: of the V views; keys: (V B,) int64, view by view; part: a slice of them, not empty;
    source_size: see `draw_parameters`.
    """
    B, start, drawn = len(keys) // len(recipes), 0, []
    for recipe, views in groupby(recipes):
        stop = start + B * len(list(views))
        rows = slice(max(start, part.start), min(stop, part.stop))
        if rows.start < rows.stop:
            drawn.append(draw_parameters(recipe, keys[rows], source_size))
        start = stop
    if len(drawn) == 1:
        return drawn[0]
    names = [field.name for field in fields(Parameters)]
    return Parameters(*(torch.cat([getattr(each, name) for each in drawn]) for name in names))


def _make_pixels(images, indices, recipe, normalization, draw_part):
    """The pixels of a View, (B, C, size, size). On a CPU several threads divide a large batch.

    draw_part: a function from a slice of the batch to its Parameters.
    """
    B, C, size = len(indices), images.pixels.shape[1], recipe.size
    views = torch.empty(B, C, size, size, device=images.device)
    parts = min(threads.count(images.device), math.ceil(views.nbytes / CHUNK_BYTES))

    def fill(part):
        _fill(views[part], images, indices[part], draw_part(part), recipe, normalization)

    threads.map_in_threads(fill, _equal_slices(B, parts), images.device)
    return views


def _fill(views, images, indices, parameters, recipe, normalization):
    """Compute views, (B, C, size, size), chunk by chunk. Images whose hue is shifted at the same
    place in the order of colour jitter are made next to each other.
    """
    B, C, size, _ = views.shape
    order = places_of_hue(parameters, C).argsort(stable=True)
    mean, std = map(torch.tensor, normalization)
    chunk = B
    if views.device.type == "cpu":
        chunk = max(1, CHUNK_BYTES // (4 * C * max(size, images.size) ** 2))
    for part in _equal_slices(B, math.ceil(B / chunk)):
        rows = order[part]
        put = partial(_put_normalized, views), [rows, mean, std]
        transform(images.gather(indices[rows]), parameters[rows], recipe, put)


def _put_normalized(views, pixels, rows, mean, std):
    """Normalize pixels into these rows of the views."""
    views.index_copy_(0, rows, normalize(pixels, mean, std))


def _equal_slices(n_rows, parts):
    """range(n_rows) in so many slices, or fewer, all but the last of one length."""
    length = math.ceil(n_rows / parts) if n_rows else 1
    return [slice(start, start + length) for start in range(0, n_rows, length)]


def training_views(images, indices, recipes, normalization, draw):
    """All views of one training step, a list: recipe after recipe, each `count` times."""
    return augment_all(images, indices, _repeat(recipes), normalization, draw)


def blank_views(recipes, channels, patch, n_images):
    """Black images in the shapes of the views of a training step, the first patches visible."""
    views = []
    for recipe in _repeat(recipes):
        visible = None
        if recipe.mask_ratio:
            visible = torch.arange(count_patches(recipe, patch)[1]).expand(n_images, -1)
        views.append(View(torch.zeros(n_images, channels, recipe.size, recipe.size), visible))
    return views


def _repeat(recipes):
    """The recipe of each view of a training step, a list."""
    return [recipe for recipe in recipes for _ in range(recipe.count)]


def measuring_recipe(recipes, view):
    """The recipe of a measurement's view number `view`: the full-size recipes in turn, without the
    small crops.
    """
    size = max(recipe.size for recipe in recipes)
    full_size = [recipe for recipe in recipes if recipe.size == size]
    return full_size[view % len(full_size)]


def whole_images(images, indices, size, normalization):
    """The images as they are, resized to `size`, as a View."""
    return augment(images, indices, ViewRecipe(size=size), normalization, Draw(0, "probing"))


def cropped_images(images, indices, rectangles, size, normalization):
    """A given rectangle of each image, resized to `size`, as a View.

    rectangles: (B, 4) float64, top, left, height and width in pixels of the images; they lie within
    the images.
    """
    recipe = ViewRecipe(size=size)
    keys = Draw(0, "query").keys(images.name, [0], indices)
    sides = dict(zip(("top", "left", "height", "width"), rectangles.unbind(1)))
    crops = replace(draw_parameters(recipe, keys, images.size), **sides)
    return View(_make_pixels(images, indices, recipe, normalization, crops.__getitem__))


def draw_parameters(recipe, keys, source_size):
    """The Parameters of the view of each key.

    keys: (B,) int64, from randomness.sample_keys; source_size: height and width of the images. The
    distributions are those of torchvision's RandomResizedCrop, ColorJitter and so on: area and log
    ratio of a crop uniform, ten tries, else the largest centred crop.
    """
    u = uniform(keys, _SLOTS)  # (B, slots)
    top, left, height, width = _draw_crop(recipe, u, source_size)
    *strengths, hue = recipe.jitter_strength
    low = torch.tensor([*(max(0.0, 1 - s) for s in strengths), -hue], dtype=torch.float64)
    high = torch.tensor([*(1 + s for s in strengths), hue], dtype=torch.float64)
    sigma_low, sigma_high = recipe.blur_sigma
    turns = torch.tensor([angle // 90 for angle in recipe.rotate])
    return Parameters(
        top=top,
        left=left,
        height=height,
        width=width,
        flip=u[:, _FLIP] < recipe.flip,
        quarter_turns=turns[(u[:, _ROTATE] * len(turns)).long()],
        jitter=u[:, _JITTER] < recipe.jitter,
        factors=low + (high - low) * u[:, _STRENGTHS],
        order=u[:, _ORDER].argsort(dim=1),
        grayscale=u[:, _GRAYSCALE] < recipe.grayscale,
        blur=u[:, _BLUR] < recipe.blur,
        sigma=sigma_low + (sigma_high - sigma_low) * u[:, _SIGMA],
        solarize=u[:, _SOLARIZE] < recipe.solarize,
        noise_keys=keys,
    )


def draw_visible(recipe, keys, patch):
    """The patches that an encoder may see in the view of each key, (B, K) int64, numbered row by
    row and in ascending order.

    Every choice of patches has equal chance. keys: (B,) int64, from randomness.sample_keys, on the
    device of the result; patch: height and width of a patch.
    """
    T, K = count_patches(recipe, patch)
    u = uniform(keys, _FIRST_MASK_SLOT + torch.arange(T, device=keys.device))  # (B, T)
    return u.argsort(dim=1, stable=True)[:, :K].sort(dim=1).values


def count_patches(recipe, patch):
    """(T, K): how many patches a view has, and how many of them are visible: all but round(T
    mask_ratio), and at least one.
    """
    T = (recipe.size // patch) ** 2
    return T, max(1, T - round(T * recipe.mask_ratio))


def _draw_crop(recipe, u, size):
    """top, left, height and width of a random resized crop of a square image, (B,) each, from
    uniform numbers.
    """
    if recipe.crop_scale is None:
        whole = torch.full((len(u),), float(size), dtype=torch.float64)
        return torch.zeros_like(whole), torch.zeros_like(whole), whole, whole
    low, high = recipe.crop_scale
    area = size * size * (low + (high - low) * u[:, _SCALES])  # (B, tries)
    low, high = (math.log(bound) for bound in recipe.crop_ratio)
    ratio = torch.exp(low + (high - low) * u[:, _RATIOS])
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (width >= 1) & (width <= size) & (height >= 1) & (height <= size)
    first = fits.int().argmax(1, keepdim=True)
    any_fits = fits.any(1)
    # Else the largest centred crop within the bounds of the ratio, whose longer side is that of the
    # image.
    nearest = min(max(1.0, recipe.crop_ratio[0]), recipe.crop_ratio[1])
    largest_width, largest_height = round(size * min(1.0, nearest)), round(size / max(1.0, nearest))
    width = torch.where(any_fits, width.gather(1, first)[:, 0], float(largest_width))
    height = torch.where(any_fits, height.gather(1, first)[:, 0], float(largest_height))
    top = (u[:, _TOP] * (size - height + 1)).floor()
    left = (u[:, _LEFT] * (size - width + 1)).floor()
    top = torch.where(any_fits, top, ((size - height) / 2).floor())
    left = torch.where(any_fits, left, ((size - width) / 2).floor())
    return top, left, height, width
