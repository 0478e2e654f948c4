"""Operations on the pixels of whole batches: those of torchvision's functional transforms, each
image with its own parameters.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F

from memorization.data.randomness import uniform
from memorization.machine.device import to_device_together

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # of red, green and blue, as in torchvision
# The operations of colour jitter, in the order of jitter_strength.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
NOWHERE, UNTOUCHED = 4, -1  # instead of the place of hue in the order
_FIRST_NOISE_SLOT = 64


def transform(pixels, parameters, recipe, *last):
    """Apply drawn parameters, which are sent to the device of the pixels in one copy.

    pixels: (B, C, H, W) uint8; parameters: Parameters, on the CPU, perhaps of several recipes;
    recipe: one of them, whose settings count that are not drawn; last: steps to be done after those
    of the recipe, each an operation and the tensors on the CPU that it takes after the pixels.
    Returns what comes out of the last step; if none is given, (B, C, size, size) float32 in [0, 1],
    before normalization.
    """
    operations, tensors = zip(*_steps(parameters, recipe, pixels.shape[1]), *last)
    x = pixels
    for operation, sent in zip(operations, to_device_together(tensors, pixels.device)):
        x = operation(x, *sent)
    return x


def _steps(parameters, recipe, channels):
    """The operations in order, each with the tensors that it takes after the pixels.

    An operation that changes no image is left out.
    """
    steps = []

    def add_for_chosen(operation, chosen, *tensors):
        rows = chosen.nonzero()[:, 0]
        if len(rows):
            tensors = [rows, *(tensor[rows] for tensor in tensors)]
            steps.append((partial(_apply_to_rows, operation), tensors))

    steps.append(crop_step(parameters, recipe.size))
    for turns in (1, 2, 3):
        turn = partial(torch.rot90, k=turns, dims=(2, 3))
        add_for_chosen(turn, parameters.quarter_turns == turns)
    if parameters.jitter.any():
        steps.append(jitter_step(parameters, channels))
    if channels == 3:
        add_for_chosen(lambda x: _gray(x).expand_as(x), parameters.grayscale)
    radius = max(1, recipe.size // 20)  # a kernel of about a tenth of the view
    add_for_chosen(partial(gaussian_blur, radius=radius), parameters.blur, parameters.sigma)
    invert = partial(_invert_from, threshold=recipe.solarize_threshold)
    add_for_chosen(invert, parameters.solarize)
    if recipe.noise:
        steps.append((partial(_add_noise, strength=recipe.noise), [parameters.noise_keys]))
    return steps


def normalize(pixels, mean, std):
    """(B, C, H, W) pixels in [0, 1], less the channels' means, over their standard deviations.

    mean, std: (C,), on the device of the pixels.
    """
    return (pixels - mean[:, None, None]).div_(std[:, None, None])


def crop_step(parameters, size):
    """The step of `resized_crop`: (operation, tensors)."""
    sides = [parameters.left, parameters.top, parameters.width, parameters.height]
    mirrored = torch.stack([parameters.flip, torch.zeros_like(parameters.flip)])
    return partial(resized_crop, size=size), [torch.stack(sides).unflatten(0, (2, 2)), mirrored]


def resized_crop(pixels, spans, mirrored, size):
    """Crop, resize and flip: torchvision's antialiased bilinear resized crop, first along the lines
    of an image and then across them.

    pixels: (B, C, S, S) uint8; spans: (2, 2, B) float64, starts and lengths of the crop, each along
    and across the lines; mirrored: (2, B) bool. Returns (B, C, size, size) float32 in [0, 1].
    """
    columns, rows = zip(*_interpolation(*spans, pixels.shape[2], size, mirrored))
    # Transposed, the lines of x are the columns of the image.
    x = pixels.transpose(2, 3).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    x = weighted_lines(x, *columns).transpose(2, 3)
    return weighted_lines(x, *rows)


def jitter_step(parameters, channels):
    """The step of `color_jitter`: (operation, tensors). Gray images have neither saturation nor
    hue.
    """
    order = parameters.order
    if channels == 1:
        order = order[order < SATURATION].view(-1, 2)
    factors = parameters.factors.gather(1, order)  # (B, places)
    of_gray = torch.where(order == SATURATION, 1 - factors, 0.0)
    of_mean = torch.where(order == CONTRAST, 1 - factors, 0.0)
    coefficients = torch.stack([factors, of_gray, of_mean]).float()[..., None, None, None]
    places = list(range(order.shape[1]))
    place, hue_place = torch.tensor(places)[:, None], places_of_hue(parameters, channels)
    has_hue = (hue_place >= 0) & (hue_place < len(places))
    # The images that are changed at each place before hue, in hue, and at each place after it.
    chosen = torch.cat([hue_place > place, has_hue[None], has_hue & (hue_place < place)])
    place_of_row = [*places, None, *places]
    changes = [(place_of_row[row], images) for row, images in _runs(chosen)]
    return partial(color_jitter, changes=changes), [coefficients, parameters.factors[:, HUE]]


def color_jitter(x, coefficients, shift, changes):
    """Brightness, contrast, saturation and hue, in each image's own order.

    x: (B, C, H, W) in [0, 1], changed in place; coefficients: (3, B, places, 1, 1, 1), of
    `mix_gray`; shift: (B,), of `shift_hue`; changes: (place in the order, or None for hue; slice of
    images) of each. Brightness, contrast and saturation are one operation with other coefficients.
    Neighbouring images are changed together: first what comes before their hue, then the hue of
    all, then what comes after it.
    """
    for place, images in changes:
        if place is None:
            shift_hue(x[images], shift[images])
        else:
            mix_gray(x[images], *coefficients[:, images, place])
    return x


def mix_gray(x, of_pixel, of_gray, of_mean):
    """of_pixel x + of_gray gray(x) + of_mean mean(gray(x)), clamped to [0, 1]: brightness, contrast
    or saturation.

    x: (B, C, H, W) in [0, 1], changed in place; of_pixel, of_gray, of_mean: (B, 1, 1, 1), on its
    device. One channel has no other gray.
    """
    gray = _gray(x)
    offset = of_mean * gray.mean((2, 3), keepdim=True)
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
    corners = torch.arange(0, 6, 2, device=x.device)
    turned = (6 * shift[:, None] - corners + 3) % 6 - 3
    torch.mul(chroma[:, None], turned.float()[:, :, None, None], out=x)
    # 3 chroma less the shorter way to the channel's corner
    x.add_(hue[:, None]).abs_().sub_(3 * chroma[:, None]).abs_()
    return torch.clamp(x.sub_((chroma - lowest)[:, None]), lowest[:, None], highest[:, None], out=x)


def gaussian_blur(x, sigma, radius):
    """Blur with a kernel of 2 radius + 1 pixels and reflected borders. x: (B, C, S, S); sigma:
    (B,), pixels.
    """
    B, S = len(x), x.shape[2]
    distance = torch.arange(-radius, radius + 1, device=x.device)
    weights = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2)  # (B, K)
    weights = (weights / weights.sum(1, keepdim=True)).float()[:, None].expand(B, S, -1)
    places = (torch.arange(S, device=x.device)[:, None] + distance).abs()
    places = (S - 1 - (S - 1 - places).abs()).clamp(min=0).expand(B, S, -1)
    x = weighted_lines(x, places, weights).transpose(2, 3)
    return weighted_lines(x, places, weights).transpose(2, 3)


def _invert_from(x, threshold):
    """Invert the pixels at or above a threshold."""
    return torch.where(x >= threshold, 1 - x, x)


def weighted_lines(x, lines, weights):
    """Make each new line of an image a weighted sum of K of its lines.

    x: (B, C, H, W); lines: (B, T, K) int64, counted from the top; weights: (B, T, K) float32.
    Returns (B, C, T, W).
    """
    B, C, H, W = x.shape
    T, K = lines.shape[1:]
    # The first line of each channel, among the lines of all images.
    first = torch.arange(0, B * C * H, H, device=x.device).view(B, C, 1, 1)
    lines = (first + lines[:, None]).reshape(-1, K)
    weights = weights[:, None].expand(B, C, T, K).reshape(-1, K).contiguous()
    # If x is not contiguous, torch adds in another order, and rounds unlike in other batches.
    x = x.reshape(-1, W).contiguous()
    return F.embedding_bag(lines, x, mode="sum", per_sample_weights=weights).view(B, C, T, W)


def places_of_hue(parameters, channels):
    """The place of hue in each image's order of operations, (B,). NOWHERE for gray images,
    UNTOUCHED without colour jitter.
    """
    place = (parameters.order == HUE).int().argmax(1) if channels == 3 else NOWHERE
    return torch.where(parameters.jitter, place, UNTOUCHED)


def _runs(chosen):
    """Each run of true values in the rows of a table, as (row, slice), row by row. chosen: (rows,
    columns) bool, on the CPU.
    """
    padded = F.pad(chosen, (1, 1))
    # Of each run, where it starts and where it stops.
    edges = (padded[:, 1:] != padded[:, :-1]).nonzero().tolist()
    return [(row, slice(start, stop)) for (row, start), (_, stop) in zip(edges[::2], edges[1::2])]


def _interpolation(start, length, source, target, reverse):
    """How to resample pixels [start, start + length) of a line to `target` pixels with a triangle
    filter.

    start, length: (..., B) float64; reverse: (..., B) bool, mirror the result. The filter is
    widened if it shrinks the line (antialiasing) and never reads outside the crop. Returns the
    pixels of the line that count, (..., B, target, K) int64, and their weights, float32: two
    pixels, and more only if the whole line is longer than the target.
    """
    device = start.device
    start, length, reverse = (values[..., None, None] for values in (start, length, reverse))
    places = torch.arange(target, device=device)[:, None]
    places = torch.where(reverse, target - 1 - places, places)  # (..., B, target, 1)
    scale = length / target
    reach = scale.clamp(min=1)
    centre = start + (places + 0.5) * scale - 0.5  # in pixels, pixel i lying at i
    K = math.ceil(2 * max(1, source / target))
    pixels = (centre - reach).floor() + torch.arange(1, K + 1, device=device)  # (..., target, K)
    weights = (1 - (pixels - centre).abs_().div_(reach)).clamp_(min=0).float()
    weights *= (pixels >= start) & (pixels < start + length)
    return pixels.clamp_(0, source - 1).long(), weights / weights.sum(-1, keepdim=True)


def _gray(x):
    """(B, 1, H, W) luminance of RGB images; a gray image is its own."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.unbind(1)
    gray = GRAY_WEIGHTS[0] * red
    return gray.add_(green, alpha=GRAY_WEIGHTS[1]).add_(blue, alpha=GRAY_WEIGHTS[2])[:, None]


def _add_noise(x, keys, strength):
    """Add normal noise of a standard deviation, drawn by a key an image, (B,)."""
    return (x + strength * _normal_noise(keys, x.shape[1:])).clamp(0, 1)


def _normal_noise(keys, shape):
    """(B, *shape) standard normal numbers, one for every pixel, through the inverse of the normal
    distribution.
    """
    slots = _FIRST_NOISE_SLOT + torch.arange(math.prod(shape), device=keys.device)
    u = uniform(keys, slots) + 2.0**-54  # never exactly 0
    return torch.special.ndtri(u).float().view(-1, *shape)


def _apply_to_rows(operation, x, rows, *parameters):
    """Apply operation(x, *parameters) to the images of these rows only, in place.

    x keeps its layout in memory whichever images are chosen, or sums over it would round
    differently from batch to batch.
    """
    return x.index_copy_(0, rows, operation(x[rows], *parameters))
