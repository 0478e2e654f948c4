"""Views as a pure function: whole batches of uint8 images in, normalized float views out, each
sample with parameters of its own.

A view is fully decided by (seed, purpose, split, epoch, view number, sample index): it does not
depend on the batch around it, on what was drawn before, or on the device, except for rounding: a
GPU adds in another order. The operations are those of torchvision's functional
transforms, on pixels in [0, 1].
"""

import math
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F

from memorization.data.randomness import sample_keys, stream, uniform
from memorization.data.recipes import ViewRecipe
from memorization.machine import threads
from memorization.machine.device import to_device

# of pixels that are transformed at a time on a CPU: they fit into its cache, and are worth the cost
# of calling operations
CHUNK_BYTES = 1 << 21
# of views that are made together on a GPU, where a call costs more, and memory less
CHUNK_BYTES_ON_GPU = 1 << 26
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # of red, green and blue, as in torchvision
# the operations of colour jitter, in the order of jitter_strength
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
NOWHERE, UNTOUCHED = 4, -1  # instead of the place of hue in the order

# Which of a sample's numbers decides which parameter.
_CROP_TRIES = 10
_SLOTS = torch.arange(37)
_SCALES, _RATIOS, (_TOP, _LEFT, _FLIP, _ROTATE, _JITTER) = (
    slice(0, 10),
    slice(10, 20),
    range(20, 25),
)
_STRENGTHS, _ORDER, (_GRAYSCALE, _BLUR, _SIGMA, _SOLARIZE) = (
    slice(25, 29),
    slice(29, 33),
    range(33, 37),
)
_FIRST_NOISE_SLOT = 64
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

    def keys(self, split, view, indices):
        """One key an image, (B,) int64. split: the name of one; indices: (B,) int64."""
        return sample_keys(stream(self.seed, self.purpose, split, self.epoch, view), indices)


def augment(images, indices, recipe, normalization, draw, view=0):
    """One view of each image.

    images: a Split, the source of the pixels; indices: (B,) int64, which of its images; recipe: a
    ViewRecipe; normalization: (mean, std) of the channels; draw: a Draw; view: its number. Returns
    a View on the device of the images.
    """
    return _make_views(images, indices, recipe, normalization, draw, [view])[0]


def augment_all(images, indices, recipes, normalization, draw):
    """Views 0, 1, ... of each image, one by each of the recipes: a list of what `augment` returns.

    Small views by the same recipe are made as one batch, which takes fewer calls of operations;
    large ones are made by several threads.
    """
    size = max(recipe.size for recipe in recipes)
    per_pixel = 4 * len(indices) * images.pixels.shape[1]  # bytes of a view, for each of its pixels
    limit = CHUNK_BYTES if images.device.type == "cpu" else CHUNK_BYTES_ON_GPU
    most = max(1, limit // max(1, per_pixel * max(size, images.size) ** 2))
    groups = _group_by_recipe(recipes, most)

    def make(group):
        return _make_views(images, indices, recipes[group[0]], normalization, draw, group)

    # If there are too few groups for all threads, or the views are small, `_make_pixels` divides
    # the batch instead.
    in_threads = len(groups) >= threads.count(images.device) and per_pixel * size**2 >= CHUNK_BYTES
    results = threads.map_parts(make, groups, images.device) if in_threads else map(make, groups)
    views = dict(zip(chain.from_iterable(groups), chain.from_iterable(results)))
    return [views[view] for view in range(len(recipes))]


def _group_by_recipe(recipes, most):
    """The numbers of the views, in lists of at most `most` views by one recipe."""
    groups = []
    for view, recipe in enumerate(recipes):
        for group in groups:
            if recipes[group[0]] == recipe and len(group) < most:
                group.append(view)
                break
        else:
            groups.append([view])
    return groups


def _make_views(images, indices, recipe, normalization, draw, numbers):
    """Views of these numbers by one recipe, a list; see `augment`. Their pixels lie in one tensor,
    one view after the other.
    """
    indices, count = torch.as_tensor(indices), len(numbers)
    keys = torch.cat([draw.keys(images.name, view, indices) for view in numbers])

    def draw_part(part):
        return draw_parameters(recipe, keys[part], images.size)

    pixels = _make_pixels(images, indices.repeat(count), recipe, normalization, draw_part)
    visible = [None] * count
    if recipe.mask_ratio:
        visible = draw_visible(recipe, to_device(keys, images.device), draw.patch).chunk(count)
    return [View(*view) for view in zip(pixels.chunk(count), visible)]


def _make_pixels(images, indices, recipe, normalization, draw_part):
    """The pixels of a View, (B, C, size, size). On a CPU several threads divide a large batch.

    draw_part: a function from a slice of the batch to its Parameters.
    """
    B, C, size = len(indices), images.pixels.shape[1], recipe.size
    views = torch.empty(B, C, size, size, device=images.device)
    parts = min(threads.count(images.device), math.ceil(views.nbytes / CHUNK_BYTES))

    def fill(part):
        _fill(views[part], images, indices[part], draw_part(part), recipe, normalization)

    threads.map_parts(fill, _equal_slices(B, parts), images.device)
    return views


def _fill(views, images, indices, parameters, recipe, normalization):
    """Compute views, (B, C, size, size), chunk by chunk. Images whose hue is shifted at the same
    place in the order of colour jitter are made next to each other.
    """
    B, C, size, _ = views.shape
    order = _places_of_hue(parameters, C).argsort(stable=True) if recipe.jitter else torch.arange(B)
    indices, parameters = indices[order], parameters[order]
    chunk = B
    if views.device.type == "cpu":
        chunk = max(1, CHUNK_BYTES // (4 * C * max(size, images.size) ** 2))
    for rows in _equal_slices(B, math.ceil(B / chunk)):
        pixels = transform(images.gather(indices[rows]), parameters[rows], recipe)
        pixels = normalize(pixels, *normalization)
        views.index_copy_(0, to_device(order[rows], views.device), pixels)


def _equal_slices(count, parts):
    """range(count) in so many slices, or fewer, all but the last of one length."""
    length = math.ceil(count / parts) if count else 1
    return [slice(start, start + length) for start in range(0, count, length)]


def training_views(images, indices, recipes, normalization, draw):
    """All views of one training step, a list: recipe after recipe, each `count` times."""
    return augment_all(images, indices, _repeat(recipes), normalization, draw)


def blank_views(recipes, channels, patch, count):
    """Black images in the shapes of the views of a training step, the first patches visible."""
    views = []
    for recipe in _repeat(recipes):
        visible = None
        if recipe.mask_ratio:
            visible = torch.arange(count_patches(recipe, patch)[1]).expand(count, -1)
        views.append(View(torch.zeros(count, channels, recipe.size, recipe.size), visible))
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
    keys = Draw(0, "query").keys(images.name, 0, indices)
    top, left, height, width = rectangles.unbind(1)
    crops = replace(
        draw_parameters(recipe, keys, images.size), top=top, left=left, height=height, width=width
    )
    return View(_make_pixels(images, indices, recipe, normalization, crops.__getitem__))


def draw_parameters(recipe, keys, source_size):
    """The Parameters of the view of each key.

    keys: (B,) int64, from randomness.sample_keys; source_size: height and width of the images. The
    distributions are those of torchvision's RandomResizedCrop, ColorJitter and so on: area and log
    ratio of a crop uniform, ten tries, else the largest centred crop.
    """
    u = uniform(keys, _SLOTS)  # (B, slots)
    top, left, height, width = _draw_crop(recipe, u, source_size)
    strength = torch.tensor(recipe.jitter_strength, dtype=torch.float64)
    low, high = (1 - strength).clamp(min=0), 1 + strength
    low[HUE], high[HUE] = -strength[HUE], strength[HUE]
    sigma_low, sigma_high = recipe.blur_sigma
    return Parameters(
        top=top,
        left=left,
        height=height,
        width=width,
        flip=u[:, _FLIP] < recipe.flip,
        quarter_turns=(torch.tensor(recipe.rotate) // 90)[
            (u[:, _ROTATE] * len(recipe.rotate)).long()
        ],
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


def transform(pixels, parameters, recipe):
    """Apply drawn parameters. pixels: (B, C, H, W) uint8. Returns (B, C, size, size) float32 in [0,
    1], before normalization.
    """
    x = resized_crop(pixels, parameters, recipe.size)
    for turns in (1, 2, 3):
        x = _where(parameters.quarter_turns == turns, partial(torch.rot90, k=turns, dims=(2, 3)), x)
    if recipe.jitter:
        x = color_jitter(x, parameters)
    if recipe.grayscale and x.shape[1] == 3:
        x = _where(parameters.grayscale, lambda chosen: _gray(chosen).expand_as(chosen), x)
    if recipe.blur:
        radius = max(1, recipe.size // 20)  # a kernel of about a tenth of the view
        x = _where(parameters.blur, partial(gaussian_blur, radius=radius), x, parameters.sigma)
    if recipe.solarize:
        x = _where(
            parameters.solarize,
            lambda chosen: torch.where(chosen >= recipe.solarize_threshold, 1 - chosen, chosen),
            x,
        )
    if recipe.noise:
        x = (
            x + recipe.noise * _normal(to_device(parameters.noise_keys, x.device), x.shape[1:])
        ).clamp(0, 1)
    return x


def normalize(pixels, mean, std):
    """(B, C, H, W) pixels in [0, 1], less the channels' means, over their standard deviations."""
    mean, std = (
        to_device(torch.tensor(values), pixels.device).view(-1, 1, 1) for values in (mean, std)
    )
    return (pixels - mean).div_(std)


def resized_crop(pixels, parameters, size):
    """Crop, resize and flip: torchvision's antialiased bilinear resized crop, first along the lines
    of an image and then across them.

    pixels: (B, C, S, S) uint8. Returns (B, C, size, size) float32 in [0, 1].
    """
    starts = torch.stack([parameters.left, parameters.top])
    lengths = torch.stack([parameters.width, parameters.height])
    mirrored = torch.stack([parameters.flip, torch.zeros_like(parameters.flip)])
    columns, rows = zip(
        *_interpolation(starts, lengths, pixels.shape[2], size, mirrored, pixels.device)
    )
    # lines are columns now
    x = pixels.transpose(2, 3).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    x = weighted_lines(x, *columns).transpose(2, 3)
    return weighted_lines(x, *rows)


def color_jitter(x, parameters):
    """Brightness, contrast, saturation and hue, in each image's own order. x: (B, C, H, W) in [0,
    1], changed in place.

    Neighbouring images that have hue at the same place of their order are changed together: the
    other three are one operation with other coefficients. Gray images have neither saturation nor
    hue.
    """
    order = (
        parameters.order
        if x.shape[1] == 3
        else parameters.order[parameters.order < SATURATION].view(-1, 2)
    )
    factors = parameters.factors.gather(1, order)  # (B, places)
    of_gray = torch.where(order == SATURATION, 1 - factors, 0.0)
    of_mean = torch.where(order == CONTRAST, 1 - factors, 0.0)
    # (3, B, places)
    coefficients = to_device(torch.stack([factors, of_gray, of_mean]).float(), x.device)
    places_of_hue = _places_of_hue(parameters, x.shape[1])
    for place in range(order.shape[1]):
        for is_hue, run in _runs(torch.where(parameters.jitter, places_of_hue == place, UNTOUCHED)):
            if is_hue == UNTOUCHED:
                continue
            elif is_hue:
                shift_hue(x[run], parameters.factors[run, HUE])
            else:
                mix_gray(x[run], *coefficients[:, run, place])
    return x


def mix_gray(x, of_pixel, of_gray, of_mean):
    """of_pixel x + of_gray gray(x) + of_mean mean(gray(x)), clamped to [0, 1]: brightness, contrast
    or saturation.

    x: (B, C, H, W) in [0, 1], changed in place; of_pixel, of_gray, of_mean: (B,), on its device.
    One channel has no other gray.
    """
    of_pixel, of_gray, of_mean = (
        coefficient.view(-1, 1, 1, 1) for coefficient in (of_pixel, of_gray, of_mean)
    )
    gray = _gray(x)
    offset = of_mean * gray.flatten(2).mean(2)[:, :, None, None]
    if x.shape[1] == 3:
        offset = gray.mul_(of_gray).add_(offset)
    return x.mul_(of_pixel).add_(offset).clamp_(0, 1)


def shift_hue(x, shift):
    """Turn the hue of RGB images, as through HSV. x: (B, 3, H, W) in [0, 1], changed in place;
    shift: (B,) in turns, -0.5 to 0.5.

    Hue goes around a hexagon whose corners are red, yellow, green, cyan, blue and magenta. Here its
    six sides are each as long as the pixel's chroma, so that nothing is divided by it. A channel is
    highest up to one side away from its own corner, lowest from two on.
    """
    red, green, blue = x.unbind(1)
    highest, lowest = torch.maximum(red, green), torch.minimum(red, green)
    torch.maximum(highest, blue, out=highest)
    torch.minimum(lowest, blue, out=lowest)
    chroma = highest - lowest
    # The way from red, at most three sides, negative towards blue: |g - b| if red is highest, 3
    # chroma - |g - b| if it is lowest.
    hue = (green + blue).sub_(red).add_(highest).sub_(lowest, alpha=2).copysign_(green - blue)
    # (B, 3), seen from each channel's corner, -3 to 3
    turned = (6 * shift[:, None] - torch.tensor([0, 2, 4]) + 3) % 6 - 3
    torch.mul(chroma[:, None], to_device(turned.float(), x.device)[:, :, None, None], out=x)
    # 3 chroma less the shorter way to the channel's corner
    x.add_(hue[:, None]).abs_().sub_(3 * chroma[:, None]).abs_()
    return torch.clamp(x.sub_((chroma - lowest)[:, None]), lowest[:, None], highest[:, None], out=x)


def gaussian_blur(x, sigma, radius):
    """Blur with a kernel of 2 radius + 1 pixels and reflected borders. x: (B, C, S, S); sigma:
    (B,), pixels.
    """
    B, S = len(x), x.shape[2]
    distance = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2)  # (B, K)
    weights = to_device((weights / weights.sum(1, keepdim=True)).float(), x.device)[:, None].expand(
        B, S, -1
    )
    places = (torch.arange(S)[:, None] + distance).abs()
    places = to_device((S - 1 - (S - 1 - places).abs()).clamp(min=0), x.device).expand(B, S, -1)
    x = weighted_lines(x, places, weights).transpose(2, 3)
    return weighted_lines(x, places, weights).transpose(2, 3)


def weighted_lines(x, lines, weights):
    """Make each new line of an image a weighted sum of K of its lines.

    x: (B, C, H, W); lines: (B, T, K) int64, counted from the top; weights: (B, T, K) float32.
    Returns (B, C, T, W).
    """
    B, C, H, W = x.shape
    T, K = lines.shape[1:]
    # of each channel, among the lines of all images
    first = H * torch.arange(B * C, device=x.device).view(B, C, 1, 1)
    lines, weights = (
        (first + lines[:, None]).reshape(-1, K),
        weights[:, None].expand(B, C, T, K).reshape(-1, K),
    )
    # If x is not contiguous, torch adds in another order, and rounds unlike in other batches.
    x, weights = x.reshape(-1, W).contiguous(), weights.contiguous()
    return F.embedding_bag(lines, x, mode="sum", per_sample_weights=weights).view(B, C, T, W)


def _places_of_hue(parameters, channels):
    """(B,) where in an image's order of operations hue comes; NOWHERE in the order of gray images;
    UNTOUCHED without colour jitter.
    """
    place = (parameters.order == HUE).int().argmax(1) if channels == 3 else NOWHERE
    return torch.where(parameters.jitter, place, UNTOUCHED)


def _runs(values):
    """Each run of equal values in a row, as (value, slice). values: (B,), on the CPU."""
    values, counts = torch.unique_consecutive(values, return_counts=True)
    stop = counts.cumsum(0)
    return [
        (value, slice(*ends))
        for value, *ends in zip(values.tolist(), (stop - counts).tolist(), stop.tolist())
    ]


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
    found = fits.any(1)
    # The largest centred crop within the bounds of the ratio; for a square image that is one side
    # or the whole.
    nearest = min(max(1.0, recipe.crop_ratio[0]), recipe.crop_ratio[1])
    width = torch.where(found, width.gather(1, first)[:, 0], float(round(size * min(1.0, nearest))))
    height = torch.where(
        found, height.gather(1, first)[:, 0], float(round(size / max(1.0, nearest)))
    )
    top = torch.where(
        found, (u[:, _TOP] * (size - height + 1)).floor(), ((size - height) / 2).floor()
    )
    left = torch.where(
        found, (u[:, _LEFT] * (size - width + 1)).floor(), ((size - width) / 2).floor()
    )
    return top, left, height, width


def _interpolation(start, length, source, target, reverse, device):
    """How to resample pixels [start, start + length) of a line to `target` pixels with a triangle
    filter.

    start, length: (..., B) float64; reverse: (..., B) bool, mirror the result. The filter is
    widened if it shrinks the line (antialiasing) and never reads outside the crop. Returns the
    pixels of the line that count, (..., B, target, K) int64, and their weights, float32: two
    pixels, and more only if the whole line is longer than the target.
    """
    # (..., B, 1, 1)
    start, length, reverse = (
        to_device(values, device)[..., None, None] for values in (start, length, reverse)
    )
    places = torch.arange(target, device=device)[:, None]
    places = torch.where(reverse, target - 1 - places, places)  # (..., B, target, 1)
    scale = length / target
    reach = scale.clamp(min=1)
    centre = start + (places + 0.5) * scale - 0.5  # in pixels, pixel i lying at i
    K = math.ceil(2 * max(1, source / target))
    # (..., B, target, K), all within reach
    pixels = (centre - reach).floor() + torch.arange(1, K + 1, device=device)
    weights = (1 - (pixels - centre).abs_().div_(reach)).clamp_(min=0).float()
    weights *= (pixels >= start) & (pixels < start + length)
    return pixels.clamp_(0, source - 1).long(), weights / weights.sum(-1, keepdim=True)


def _gray(x):
    """(B, 1, H, W) luminance of RGB images; a gray image is its own."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.unbind(1)
    return (
        (GRAY_WEIGHTS[0] * red)
        .add_(green, alpha=GRAY_WEIGHTS[1])
        .add_(blue, alpha=GRAY_WEIGHTS[2])[:, None]
    )


def _normal(keys, shape):
    """(B, *shape) standard normal numbers, one for every pixel, through the inverse of the normal
    distribution.
    """
    slots = _FIRST_NOISE_SLOT + torch.arange(math.prod(shape), device=keys.device)
    u = uniform(keys, slots) + 2.0**-54  # never exactly 0
    return torch.special.ndtri(u).float().view(-1, *shape)


def _where(chosen, operation, x, *parameters):
    """operation(x, *parameters) on the chosen images only. chosen: (B,) bool, on the CPU as the
    parameters, so that a GPU is not asked.

    x keeps its layout in memory whichever images are chosen, or sums over it would round
    differently from batch to batch.
    """
    if chosen.any():
        rows = chosen.nonzero()[:, 0]
        on_device = to_device(rows, x.device)
        # x belongs to this view alone
        x.index_copy_(
            0, on_device, operation(x[on_device], *(parameter[rows] for parameter in parameters))
        )
    return x
