"""Views as a pure function: whole batches of uint8 images in, normalized float views out, each sample with parameters of its own.

A view is fully decided by (seed, purpose, split, epoch, view number, sample index): it does not depend on the batch around it, on what
was drawn before, or on the device. The operations are those of torchvision's functional transforms, on pixels in [0, 1].
"""

import math
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import NamedTuple

import torch

from memorization.config import ViewRecipe
from memorization.randomness import sample_keys, stream, uniform

CHUNK = 64  # images worked on at a time on a CPU, so that they stay in its cache
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # of red, green and blue, as in torchvision
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the operations of colour jitter, in the order of jitter_strength

# Which of a sample's numbers decides what.
_CROP_TRIES = 10
_SLOTS = torch.arange(37)
_SCALES, _RATIOS, (_TOP, _LEFT, _FLIP, _ROTATE, _JITTER) = slice(0, 10), slice(10, 20), range(20, 25)
_STRENGTHS, _ORDER, (_GRAYSCALE, _BLUR, _SIGMA, _SOLARIZE) = slice(25, 29), slice(29, 33), range(33, 37)
_FIRST_NOISE_SLOT = 64
_FIRST_MASK_SLOT = 1 << 32  # beyond the noise of any image


class View(NamedTuple):
    """One view of a batch of images."""

    pixels: torch.Tensor  # (B, C, size, size) float32, normalized
    visible: torch.Tensor | None = None  # (B, K) indices of the patches an encoder may see, or None for all


@dataclass(frozen=True)
class Parameters:
    """What was drawn for one view of B images, each field (B,) or as noted, on the CPU."""

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


def augment(images, indices, recipe, normalization, seed, purpose, epoch=0, view=0, patch=None):
    """One view of each image.

    images: a Split, the source of the pixels; indices: (B,) int64, which of its images; recipe: a ViewRecipe; normalization: (mean, std)
    of the channels; purpose: a name in randomness.PURPOSES; patch: height and width of the encoder's patches, for a recipe with a mask.
    Returns a View on the device of the images.
    """
    indices = torch.as_tensor(indices)
    view_stream = stream(seed, purpose, images.name, epoch, view)
    parameters = draw_parameters(recipe, indices, images.size, view_stream)
    visible = draw_visible(recipe, indices.to(images.device), patch, view_stream) if recipe.mask_ratio else None
    return View(_transformed(images, indices, parameters, recipe, normalization), visible)


def _transformed(images, indices, parameters, recipe, normalization):
    """The pixels of a View, (B, C, size, size), worked out chunk by chunk."""
    chunk = CHUNK if images.device.type == "cpu" else len(indices)
    pixels = [
        normalize(transform(images.gather(indices[start : start + chunk]), parameters[start : start + chunk], recipe), *normalization)
        for start in range(0, len(indices), chunk)
    ]
    return torch.cat(pixels) if len(pixels) > 1 else pixels[0]


def training_views(images, indices, recipes, normalization, seed, epoch, patch=None):
    """All views of one training step, a list: recipe after recipe, each `count` times."""
    numbered = enumerate(recipe for recipe in recipes for _ in range(recipe.count))
    return [augment(images, indices, recipe, normalization, seed, "training", epoch, view, patch) for view, recipe in numbered]


def blank_views(recipes, channels, patch, count):
    """The views of a training step as far as their shapes go: black images, with the first patches visible."""
    numbered = [recipe for recipe in recipes for _ in range(recipe.count)]
    pixels = [torch.zeros(count, channels, recipe.size, recipe.size) for recipe in numbered]
    visible = [torch.arange(count_patches(recipe, patch)[1]).expand(count, -1) if recipe.mask_ratio else None for recipe in numbered]
    return [View(*parts) for parts in zip(pixels, visible)]


def measuring_recipe(recipes, view):
    """The recipe of a measurement's view number `view`: the full-size recipes in turn, so that small crops are left out."""
    size = max(recipe.size for recipe in recipes)
    full_size = [recipe for recipe in recipes if recipe.size == size]
    return full_size[view % len(full_size)]


def whole_images(images, indices, size, normalization):
    """The images as they are, resized to `size`, as a View."""
    return augment(images, indices, ViewRecipe(size=size), normalization, seed=0, purpose="probing")


def cropped_images(images, indices, rectangles, size, normalization):
    """A given rectangle of each image, resized to `size`, as a View.

    rectangles: (B, 4) float64, top, left, height and width in pixels of the images, which they do not leave.
    """
    recipe = ViewRecipe(size=size)
    whole = draw_parameters(recipe, indices, images.size, stream(0, "query", images.name))
    top, left, height, width = rectangles.unbind(1)
    cropped = replace(whole, top=top, left=left, height=height, width=width)
    return View(_transformed(images, indices, cropped, recipe, normalization))


def draw_parameters(recipe, indices, source_size, view_stream):
    """The Parameters of one view.

    indices: (B,) int64; source_size: height and width of the images; view_stream: from randomness.stream. The distributions are those of
    torchvision's RandomResizedCrop, ColorJitter and so on: area and log ratio of a crop uniform, ten tries, else the largest centred crop.
    """
    keys = sample_keys(view_stream, indices)
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
        quarter_turns=(torch.tensor(recipe.rotate) // 90)[(u[:, _ROTATE] * len(recipe.rotate)).long()],
        jitter=u[:, _JITTER] < recipe.jitter,
        factors=low + (high - low) * u[:, _STRENGTHS],
        order=u[:, _ORDER].argsort(dim=1),
        grayscale=u[:, _GRAYSCALE] < recipe.grayscale,
        blur=u[:, _BLUR] < recipe.blur,
        sigma=sigma_low + (sigma_high - sigma_low) * u[:, _SIGMA],
        solarize=u[:, _SOLARIZE] < recipe.solarize,
        noise_keys=keys,
    )


def draw_visible(recipe, indices, patch, view_stream):
    """The patches that an encoder may see in one view, (B, K) int64, numbered row by row and in ascending order.

    Every choice of patches has equal chance. indices: (B,) int64, on the device of the result; patch: height and width of a patch;
    view_stream: from randomness.stream.
    """
    T, K = count_patches(recipe, patch)
    u = uniform(sample_keys(view_stream, indices), _FIRST_MASK_SLOT + torch.arange(T, device=indices.device))  # (B, T)
    return u.argsort(dim=1, stable=True)[:, :K].sort(dim=1).values


def count_patches(recipe, patch):
    """(T, K): how many patches a view has, and how many of them are visible: all but round(T mask_ratio), and at least one."""
    T = (recipe.size // patch) ** 2
    return T, max(1, T - round(T * recipe.mask_ratio))


def transform(pixels, parameters, recipe):
    """Apply drawn parameters. pixels: (B, C, H, W) uint8. Returns (B, C, size, size) float32 in [0, 1], before normalization."""
    x = resized_crop(pixels, parameters, recipe.size)
    for turns in (1, 2, 3):
        x = _where(parameters.quarter_turns == turns, partial(torch.rot90, k=turns, dims=(2, 3)), x)
    if recipe.jitter:
        x = color_jitter(x, parameters)
    if recipe.grayscale and x.shape[1] == 3:
        x = torch.where(_per_image(parameters.grayscale, x.device), _gray(x), x)
    if recipe.blur:
        radius = max(1, recipe.size // 20)  # a kernel of about a tenth of the view
        x = _where(parameters.blur, partial(gaussian_blur, radius=radius), x, parameters.sigma)
    if recipe.solarize:
        inverted = torch.where(x >= recipe.solarize_threshold, 1 - x, x)
        x = torch.where(_per_image(parameters.solarize, x.device), inverted, x)
    if recipe.noise:
        x = (x + recipe.noise * _normal(parameters.noise_keys.to(x.device), x.shape[1:])).clamp(0, 1)
    return x


def normalize(pixels, mean, std):
    """(B, C, H, W) pixels in [0, 1], less the channels' means, over their standard deviations."""
    mean, std = (torch.tensor(values, device=pixels.device).view(-1, 1, 1) for values in (mean, std))
    return (pixels - mean) / std


def resized_crop(pixels, parameters, size):
    """Crop, resize and flip as two matrix products an image, W_y @ image @ W_x^T: torchvision's antialiased bilinear resized crop.

    pixels: (B, C, H, W) uint8. Returns (B, C, size, size) float32 in [0, 1].
    """
    B, C, H, W = pixels.shape
    upright = torch.zeros_like(parameters.flip)
    rows = _interpolation(parameters.top, parameters.height, H, size, upright, pixels.device)  # (B, size, H)
    columns = _interpolation(parameters.left, parameters.width, W, size, parameters.flip, pixels.device)  # (B, size, W)
    # Rows outermost, so that each product is one matrix an image, all channels at once.
    x = pixels.permute(0, 2, 1, 3).to(torch.float32, memory_format=torch.contiguous_format).div_(255)  # (B, H, C, W)
    x = torch.bmm(rows, x.view(B, H, C * W)).view(B, size * C, W)
    x = torch.bmm(x, columns.transpose(1, 2))  # (B, size C, size)
    return x.view(B, size, C, size).permute(0, 2, 1, 3)


def color_jitter(x, parameters):
    """Brightness, contrast, saturation and hue, in each image's own order. x: (B, C, H, W) in [0, 1]; gray images know no colour.

    The first three are one affine map, a x + b gray(x) + c mean(gray(x)), with other coefficients; each ends in a clamp to [0, 1].
    """
    colored = x.shape[1] == 3
    for place in range(4):
        operation = torch.where(parameters.jitter, parameters.order[:, place], -1)  # (B,), -1 where the image is left alone
        factor = parameters.factors.gather(1, parameters.order[:, place, None])[:, 0]
        affine = (operation == BRIGHTNESS) | (operation == CONTRAST) | ((operation == SATURATION) & colored)
        of_pixel = torch.where(affine, factor, 1.0)
        of_gray = torch.where((operation == SATURATION) & colored, 1 - factor, 0.0)
        of_mean = torch.where(operation == CONTRAST, 1 - factor, 0.0)
        a, b, c = (_per_image(coefficient.float(), x.device) for coefficient in (of_pixel, of_gray, of_mean))
        gray = _gray(x)
        # Row by row: several threads would share the sum over one large image, and round it unlike that of an image in a batch.
        mean = gray.mean(3, keepdim=True).mean(2, keepdim=True)
        x = (a * x + b * gray + c * mean).clamp_(0, 1)
        if colored:
            x = _where(operation == HUE, shift_hue, x, factor)
    return x


def shift_hue(x, shift):
    """Turn the hue of RGB images. x: (B, 3, H, W) in [0, 1]; shift: (B,) in turns, -0.5 to 0.5. Through HSV, as torchvision does it."""
    red, green, blue = x.unbind(1)
    value = x.amax(1)
    chroma = value - x.amin(1)
    divisor = torch.where(chroma == 0, 1.0, chroma)
    sixths = torch.where(
        value == red, (green - blue) / divisor, torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    )
    sixths = sixths + 6 * shift.float().to(x.device)[:, None, None]
    k = torch.stack([(sixths + offset) % 6 for offset in (5, 3, 1)], dim=1)  # (B, 3, H, W), how far each channel's peak is
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def gaussian_blur(x, sigma, radius):
    """Blur with a kernel of 2 radius + 1 pixels and reflected borders. x: (B, C, S, S); sigma: (B,), pixels."""
    B, C, S, _ = x.shape
    i, j = torch.arange(S)[:, None], torch.arange(S)[None, :]
    # Pixel j counts at its own distance from i, and at that of its mirror images beyond either border.
    distances = [(j - i, j >= 0), (-j - i, j > 0), (2 * (S - 1) - j - i, j < S - 1)]
    weights = sum(_gaussian(distance, sigma) * (real & (distance.abs() <= radius)) for distance, real in distances)  # (B, S, S)
    total = _gaussian(torch.arange(-radius, radius + 1), sigma).sum(-1)
    weights = (weights / total[:, None, None]).float().to(x.device)
    x = torch.bmm(weights, x.permute(0, 2, 1, 3).reshape(B, S, C * S)).view(B, S * C, S)
    return torch.bmm(x, weights.transpose(1, 2)).view(B, S, C, S).permute(0, 2, 1, 3)


def _draw_crop(recipe, u, size):
    """top, left, height and width of a random resized crop of a square image, (B,) each, from uniform numbers."""
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
    # The largest centred crop within the bounds of the ratio; for a square image that is one side or the whole.
    nearest = min(max(1.0, recipe.crop_ratio[0]), recipe.crop_ratio[1])
    width = torch.where(found, width.gather(1, first)[:, 0], float(round(size * min(1.0, nearest))))
    height = torch.where(found, height.gather(1, first)[:, 0], float(round(size / max(1.0, nearest))))
    top = torch.where(found, (u[:, _TOP] * (size - height + 1)).floor(), ((size - height) / 2).floor())
    left = torch.where(found, (u[:, _LEFT] * (size - width + 1)).floor(), ((size - width) / 2).floor())
    return top, left, height, width


def _interpolation(start, length, source, target, reverse, device):
    """Matrices (B, target, source) that resample pixels [start, start + length) of a line to `target` pixels with a triangle filter.

    start, length: (B,) float64; reverse: (B,) bool, mirror the result. The filter is widened where it shrinks the line (antialiasing) and
    never reads outside the crop.
    """
    start, length, reverse = (values.to(device)[:, None] for values in (start, length, reverse))  # (B, 1)
    places = torch.arange(target, device=device)
    places = torch.where(reverse, target - 1 - places, places)  # (B, target)
    scale = length / target
    centre = start + (places + 0.5) * scale  # in float64; from here on float32 holds it as a whole and a fraction, with nothing lost
    whole = centre.floor()
    fraction = (centre - whole - 0.5).float()[:, :, None]
    pixels = torch.arange(source, device=device, dtype=torch.float32)
    distance = (pixels - whole.float()[:, :, None] - fraction).abs_()  # (B, target, source)
    weights = (1 - distance / scale.clamp(min=1).float()[:, :, None]).clamp_(min=0)
    weights *= ((pixels >= start) & (pixels < start + length))[:, None, :]
    return weights / weights.sum(-1, keepdim=True)


def _gray(x):
    """(B, 1, H, W) luminance of RGB images; a gray image is its own."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.unbind(1)
    return (GRAY_WEIGHTS[0] * red + GRAY_WEIGHTS[1] * green + GRAY_WEIGHTS[2] * blue)[:, None]


def _gaussian(distance, sigma):
    """exp(-d^2 / (2 sigma^2)) for every sigma: (B, *distance.shape), float64."""
    return torch.exp(-0.5 * (distance / sigma.view(-1, *[1] * distance.dim())) ** 2)


def _normal(keys, shape):
    """(B, *shape) standard normal numbers, one for every pixel, through the inverse of the normal distribution."""
    slots = _FIRST_NOISE_SLOT + torch.arange(math.prod(shape), device=keys.device)
    u = uniform(keys, slots) + 2.0**-54  # never exactly 0
    return torch.special.ndtri(u).float().view(-1, *shape)


def _per_image(values, device):
    """(B,) values, ready to be combined with (B, C, H, W)."""
    return values.to(device)[:, None, None, None]


def _where(chosen, operation, x, *parameters):
    """operation(x, *parameters) on the chosen images only. chosen: (B,) bool, on the CPU as the parameters, so that a GPU is not asked.

    x keeps its layout in memory whichever images are chosen, or sums over it would round differently from batch to batch.
    """
    if chosen.any():
        rows = chosen.nonzero()[:, 0]
        on_device = rows.to(x.device)
        x.index_copy_(0, on_device, operation(x[on_device], *(parameter[rows] for parameter in parameters)))  # x belongs to this view alone
    return x
