import itertools
import math
from dataclasses import fields, replace

import pytest
import torch
from conftest import EVERY_OPERATION, NORMALIZATION, made_up_split
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from memorization.data.augmentations import (
    Draw,
    augment,
    blank_views,
    draw_parameters,
    draw_visible,
    measuring_recipe,
    training_views,
    whole_images,
)
from memorization.data.images import Split
from memorization.data.randomness import sample_keys, stream
from memorization.data.recipes import ViewRecipe
from memorization.data.transforms import crop_step, jitter_step, shift_hue, transform

# Images this small are faster on one thread, and on busy cores much faster: threads wait for each
# other.
pytestmark = pytest.mark.usefixtures("one_thread")


def one_color(count, channels, size, value, name="train"):
    return Split(
        name,
        torch.full((count, channels, size, size), value, dtype=torch.uint8),
        torch.zeros(count, dtype=torch.int64),
    )


def draw(recipe, count, size=32, seed=0):
    """The parameters of one view of `count` images."""
    return draw_parameters(recipe, sample_keys(stream(seed, "training"), torch.arange(count)), size)


def apply(step, x):
    """What the operation of a step makes of images."""
    operation, tensors = step
    return operation(x, *tensors)


def jitter(x, parameters):
    return apply(jitter_step(parameters, x.shape[1]), x)


# --- each operation against torchvision -----------------------------------------------------------


JITTER = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


ONE_OPERATION = {
    "crop": {"crop_scale": [0.08, 1.0]},
    "crop of any shape": {"crop_scale": [0.001, 1.0], "crop_ratio": [0.1, 10.0]},
    "flip": {"flip": 0.5},
    "rotation": {"rotate": [0, 90, 180, 270]},
    "brightness": {"jitter": 0.8, "jitter_strength": [0.8, 0, 0, 0]},
    "contrast": {"jitter": 0.8, "jitter_strength": [0, 0.8, 0, 0]},
    "saturation": {"jitter": 0.8, "jitter_strength": [0, 0, 0.8, 0]},
    "hue": {"jitter": 0.8, "jitter_strength": [0, 0, 0, 0.5]},
    "jitter": {"jitter": 0.8, "jitter_strength": [0.4, 0.4, 0.4, 0.1]},
    "strong jitter": {"jitter": 0.8, "jitter_strength": [1.2, 1.2, 1.2, 0.5]},
    "grayscale": {"grayscale": 0.5},
    "blur": {"blur": 0.8},
    # at a threshold of 0.5, where a rounding error in a pixel is not made larger
    "solarize": {"solarize": 0.5},
}


def torchvision_view(pixels, parameters, i, recipe):
    """View i of uint8 images, (C, size, size), by torchvision's operations one after the other; all
    of them but noise.

    In float64, so that only our own rounding is seen: in float32 torchvision's is 2e-5 where 500
    pixels are shrunk to 224.
    """
    x = TF.to_dtype(pixels[i], torch.float64, scale=True)
    top, left, height, width = (
        int(values[i])
        for values in (parameters.top, parameters.left, parameters.height, parameters.width)
    )
    x = TF.resized_crop(x, top, left, height, width, [recipe.size, recipe.size], antialias=True)
    if parameters.flip[i]:
        x = TF.horizontal_flip(x)
    x = TF.rotate(x, 90.0 * parameters.quarter_turns[i].item())
    if parameters.jitter[i]:
        for operation in parameters.order[i].tolist():
            x = JITTER[operation](x, parameters.factors[i, operation].item())
    if parameters.grayscale[i]:
        x = TF.rgb_to_grayscale(x, num_output_channels=len(x))
    if parameters.blur[i]:
        x = TF.gaussian_blur(x, 2 * max(1, recipe.size // 20) + 1, parameters.sigma[i].item())
    if parameters.solarize[i]:
        x = TF.solarize(x, recipe.solarize_threshold)
    return x


def torchvision_views(pixels, parameters, recipe):
    return torch.stack(
        [torchvision_view(pixels, parameters, i, recipe) for i in range(len(pixels))]
    )


@pytest.mark.parametrize(
    "channels, source, size", [(3, 32, 32), (1, 28, 28), (3, 96, 32), (3, 20, 33), (1, 64, 64)]
)
@pytest.mark.parametrize("operation", ONE_OPERATION)
def test_an_operation_equals_torchvisions(operation, channels, source, size):
    images = made_up_split(24, channels, source)
    recipe = ViewRecipe(size=size, **ONE_OPERATION[operation])
    parameters = draw(recipe, 24, source)
    views = transform(images.pixels, parameters, recipe)
    assert views.shape == (24, channels, size, size) and views.dtype == torch.float32
    assert (views - torchvision_views(images.pixels, parameters, recipe)).abs().max() <= 1e-5


@pytest.mark.parametrize("operation", ONE_OPERATION)
def test_an_operation_changes_images_and_where_it_is_drawn_by_chance_not_all_of_them(operation):
    images = made_up_split(24, 3, 32).pixels[:23]
    recipe = ViewRecipe(size=32, **ONE_OPERATION[operation])
    changed = (transform(images, draw(recipe, 23), recipe) != images / 255).flatten(1).any(1)
    assert changed.any()
    assert "crop" in operation or not changed.all()


def test_every_crop_of_a_small_image_is_resized_as_by_torchvision_flipped_or_not():
    spans = [(start, stop - start) for start, stop in itertools.combinations(range(7), 2)]
    # (441, 4)
    crops = torch.tensor(
        [(*rows, *columns) for rows in spans for columns in spans], dtype=torch.float64
    )
    top, height, left, width = crops.unbind(1)
    flip = torch.arange(len(crops)) % 3 == 0
    parameters = replace(
        draw(ViewRecipe(size=6), len(crops), 6),
        top=top,
        left=left,
        height=height,
        width=width,
        flip=flip,
    )
    pixels = made_up_split(2, 3, 6).pixels[:1].expand(len(crops), -1, -1, -1)
    for size in (4, 6, 9):
        recipe = ViewRecipe(size=size)
        expected = torchvision_views(pixels, parameters, recipe)
        assert (transform(pixels, parameters, recipe) - expected).abs().max() <= 1e-5


def test_large_images_are_shrunk_as_by_torchvision():
    pixels = made_up_split(4, 3, 500).pixels
    recipe = ViewRecipe(size=224, crop_scale=[0.2, 1.0])
    parameters = draw(recipe, 4, 500)
    assert (
        transform(pixels, parameters, recipe) - torchvision_views(pixels, parameters, recipe)
    ).abs().max() <= 1e-5


def dense_filter(start, length, source, target, mirrored):
    """The matrix (target, source) of a triangle filter over pixels [start, start + length),
    float64, weight by weight.
    """
    matrix = torch.zeros(target, source, dtype=torch.float64)
    for place, pixel in itertools.product(range(target), range(int(start), int(start + length))):
        scale = length / target
        matrix[place, pixel] = max(
            0.0, 1 - abs(pixel + 0.5 - start - (place + 0.5) * scale) / max(scale, 1.0)
        )
    matrix /= matrix.sum(1, keepdim=True)
    return matrix.flip(0) if mirrored else matrix


@pytest.mark.parametrize(
    "channels, source, size", [(3, 24, 24), (1, 13, 29), (3, 29, 13), (1, 24, 23), (3, 1, 2)]
)
def test_a_crop_made_of_the_few_lines_that_count_equals_the_product_with_its_whole_filter_matrix(
    channels, source, size
):
    pixels = made_up_split(20, channels, source).pixels
    recipe = ViewRecipe(size=size, crop_scale=[0.05, 1.0], crop_ratio=[0.5, 2.0], flip=0.5)
    p = draw(recipe, 20, source)
    rows = torch.stack(
        [
            dense_filter(p.top[i].item(), p.height[i].item(), source, size, mirrored=False)
            for i in range(20)
        ]
    )
    columns = torch.stack(
        [
            dense_filter(p.left[i].item(), p.width[i].item(), source, size, mirrored=p.flip[i])
            for i in range(20)
        ]
    )
    expected = rows[:, None] @ (pixels.double() / 255) @ columns[:, None].transpose(2, 3)
    assert (apply(crop_step(p, size), pixels) - expected).abs().max() <= 5e-7


def test_color_jitter_applies_its_operations_in_every_order_that_an_image_may_draw():
    orders = torch.tensor(list(itertools.permutations(range(4))))
    recipe = ViewRecipe(size=8, jitter=1.0, jitter_strength=[0.8, 0.8, 0.8, 0.3])
    factors = torch.tensor([[1.6, 0.4, 1.7, 0.2]], dtype=torch.float64).expand(24, -1)
    parameters = replace(draw(recipe, 24, 8), order=orders, factors=factors)
    pixels = made_up_split(4, 3, 8).pixels[:1].expand(24, -1, -1, -1)  # the same image 24 times
    views = transform(pixels, parameters, recipe)
    assert (views - torchvision_views(pixels, parameters, recipe)).abs().max() <= 1e-5
    assert len(views.flatten(1).unique(dim=0)) >= 12  # so the order matters


@pytest.mark.parametrize("channels", [1, 3])
def test_color_jitter_gives_neighbours_with_hue_at_one_place_or_at_many_what_each_image_alone_gets(
    channels,
):
    x = made_up_split(60, channels, 9).pixels / 255
    parameters = draw(ViewRecipe(size=9, jitter=0.8, jitter_strength=[0.6, 0.6, 0.6, 0.4]), 60)
    alone = torch.cat([jitter(x[i : i + 1].clone(), parameters[i : i + 1]) for i in range(60)])
    place = torch.where(parameters.jitter, (parameters.order == 3).int().argmax(1), -1)
    assert set(place.tolist()) == {-1, 0, 1, 2, 3}
    for order in (torch.arange(60), place.argsort(), place.argsort(descending=True)):
        assert torch.equal(jitter(x[order], parameters[order]), alone[order])
    assert torch.equal(alone[~parameters.jitter], x[~parameters.jitter])


def test_hue_turns_by_thirds_from_red_to_green_to_blue_and_leaves_grays_alone():
    red, green, blue = torch.eye(3).view(3, 3, 1, 1)
    gray = torch.full((3, 1, 1), 0.3)
    for third, turned in (
        (1, [green, blue, red, gray]),
        (-1, [blue, red, green, gray]),
        (0, [red, green, blue, gray]),
    ):
        shift = torch.full((4,), third / 3, dtype=torch.float64)
        assert torch.allclose(
            shift_hue(torch.stack([red, green, blue, gray]), shift), torch.stack(turned), atol=1e-6
        )


@pytest.mark.parametrize("shift", [-0.5, -0.4, -1 / 6, 0.0, 0.05, 1 / 3, 0.5])
def test_hue_turns_as_torchvisions_for_all_colours_of_seven_steps_a_channel(shift):
    colors = torch.cartesian_prod(*[torch.arange(7) / 6] * 3).T.reshape(1, 3, 7, 49)
    expected = TF.adjust_hue(colors[0].double(), shift)
    assert (
        shift_hue(colors, torch.tensor([shift], dtype=torch.float64)) - expected
    ).abs().max() <= 2e-6  # torchvision rounds to float32 on the way


@pytest.mark.parametrize("size, kernel_size", [(8, 3), (32, 3), (64, 7), (96, 9)])
def test_blur_has_a_kernel_of_a_tenth_of_the_view_and_each_images_own_sigma(size, kernel_size):
    pixels = made_up_split(8, 3, size).pixels
    recipe = ViewRecipe(size=size, blur=1.0)
    parameters = draw(recipe, 8, size)
    views = transform(pixels, parameters, recipe)
    for view, image, sigma in zip(views, pixels, parameters.sigma.tolist()):
        assert (
            view - TF.gaussian_blur(image.double() / 255, kernel_size, sigma)
        ).abs().max() <= 1e-5


def test_solarizing_inverts_pixels_at_the_threshold_and_above_and_no_others():
    pixels = torch.tensor([0, 50, 51, 52, 255], dtype=torch.uint8).expand(1, 1, 5, 5)
    recipe = ViewRecipe(size=5, solarize=1.0, solarize_threshold=51 / 255)
    view = transform(pixels, draw(recipe, 1, 5), recipe)
    assert (255 * view[0, 0, 0]).round().tolist() == [0, 50, 204, 203, 0]
    assert torch.equal(view, TF.solarize(pixels / 255, 51 / 255))


def test_a_flip_mirrors_left_and_right():
    recipe = ViewRecipe(size=2, flip=1.0)
    pixels = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    assert (255 * transform(pixels, draw(recipe, 1, 2), recipe)).round().tolist() == [
        [[[2, 1], [4, 3]]]
    ]


@pytest.mark.parametrize(
    "angle, turned",
    [
        (0, [[1, 2], [3, 4]]),
        (90, [[2, 4], [1, 3]]),
        (180, [[4, 3], [2, 1]]),
        (270, [[3, 1], [4, 2]]),
    ],
)
def test_rotation_turns_counter_clockwise(angle, turned):
    recipe = ViewRecipe(size=2, rotate=[angle])
    pixels = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    assert (255 * transform(pixels, draw(recipe, 1, 2), recipe)).round().tolist() == [[turned]]


def test_gray_images_keep_their_values_when_colours_are_changed():
    pixels = made_up_split(24, 1, 8).pixels
    recipe = ViewRecipe(size=8, jitter=1.0, jitter_strength=[0, 0, 0.8, 0.5], grayscale=1.0)
    assert torch.equal(transform(pixels, draw(recipe, 24, 8), recipe), pixels / 255)


def test_noise_is_normal_with_the_given_standard_deviation_and_independent_for_every_pixel():
    recipe = ViewRecipe(size=16, noise=0.1)
    images = one_color(64, 3, 16, value=128)
    # (64, 768)
    noise = (transform(images.pixels, draw(recipe, 64, 16), recipe) - 128 / 255).double().flatten(1)
    assert abs(noise.mean()) < 4 * 0.1 / math.sqrt(noise.numel())
    assert noise.std().item() == pytest.approx(0.1, rel=4 / math.sqrt(2 * noise.numel()))
    assert stats.kstest(noise.flatten() / 0.1, "norm").pvalue > 0.01
    # a float32 near 0.5 has some 10^7 values to fall on
    assert len(noise.unique()) > 0.99 * noise.numel()
    between_images, between_pixels = (
        torch.corrcoef(noise) - torch.eye(64),
        torch.corrcoef(noise.T) - torch.eye(768),
    )
    assert between_images.abs().max() < 5 / math.sqrt(
        768
    ) and between_pixels.abs().max() < 6 / math.sqrt(64)


@pytest.mark.parametrize("value", [0, 255])
def test_noise_leaves_pixels_between_0_and_1(value):
    recipe = ViewRecipe(size=16, noise=0.3)
    views = transform(one_color(16, 1, 16, value).pixels, draw(recipe, 16, 16), recipe)
    assert views.min() >= 0 and views.max() <= 1
    # half of the noise led outside
    assert (views == value / 255).float().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    "channels, source, size", [(3, 32, 32), (1, 28, 28), (3, 40, 24), (3, 20, 33)]
)
def test_a_view_with_everything_switched_on_equals_a_slow_loop_over_torchvisions_operations(
    channels, source, size
):
    images = made_up_split(48, channels, source, name="test")
    recipe = ViewRecipe(size=size, **EVERY_OPERATION)
    indices = torch.arange(48).flip(0)
    mean, std = NORMALIZATION[channels]
    parameters = draw_parameters(
        recipe, sample_keys(stream(3, "scoring", "test", epoch=2, view=1), indices), source
    )
    of_noise = ViewRecipe(size=size, noise=0.05)
    gray = one_color(48, channels, source, value=128).pixels
    still = draw_parameters(
        of_noise, sample_keys(stream(3, "scoring", "test", epoch=2, view=1), indices), source
    )
    noise = transform(gray, still, of_noise) - 128 / 255  # what the same keys add to gray images
    expected = torchvision_views(images.pixels[indices], parameters, recipe)
    expected = torch.stack([TF.normalize(x, mean, std) for x in (expected + noise).clamp(0, 1)])
    view = augment(images, indices, recipe, (mean, std), Draw(3, "scoring", epoch=2), view=1)
    assert view.visible is None
    assert (view.pixels - expected).abs().max() <= 1e-5 / min(std)  # 1e-5 before normalization


def test_pixels_are_normalized_by_the_mean_and_standard_deviation_of_their_channel():
    images = made_up_split(4, 3, 8)
    view = augment(
        images, torch.arange(4), ViewRecipe(size=8), NORMALIZATION[3], Draw(0, "training")
    )
    expected = torch.stack(
        [TF.normalize(image, *NORMALIZATION[3]) for image in images.pixels / 255]
    )
    assert (view.pixels - expected).abs().max() <= 1e-5


# --- distributions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scale, ratio",
    [([0.08, 1.0], [3 / 4, 4 / 3]), ([0.2, 0.6], [1.0, 3.0]), ([0.6, 1.0], [0.2, 5.0])],
)
def test_crops_are_distributed_as_torchvisions(scale, ratio):
    """The last bounds ask for many crops that do not fit, so that further tries and the central
    crop count too.
    """
    size, image = 64, torch.empty(3, 64, 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torch.tensor(
            [v2.RandomResizedCrop.get_params(image, scale, ratio) for _ in range(4000)],
            dtype=torch.float64,
        )
    ours = draw(ViewRecipe(size=8, crop_scale=scale, crop_ratio=ratio), 4000, size)
    ours = torch.stack([ours.top, ours.left, ours.height, ours.width], dim=1)
    for quantity in (
        lambda top, left, height, width: height * width / size**2,
        lambda top, left, height, width: (width / height).log(),
        lambda top, left, height, width: top,
        lambda top, left, height, width: left,
        lambda top, left, height, width: top + height - left - width,
    ):
        assert stats.ks_2samp(quantity(*ours.unbind(1)), quantity(*theirs.unbind(1))).pvalue > 0.01


@pytest.mark.parametrize(
    "scale, ratio",
    [([0.08, 1.0], [3 / 4, 4 / 3]), ([0.001, 1.0], [0.05, 20.0]), ([0.9, 1.0], [2.0, 3.0])],
)
@pytest.mark.parametrize("size", [2, 5, 32])
def test_crops_are_whole_pixels_inside_the_image(size, scale, ratio):
    drawn = draw(ViewRecipe(size=8, crop_scale=scale, crop_ratio=ratio), 2000, size)
    for start, length in ((drawn.top, drawn.height), (drawn.left, drawn.width)):
        assert torch.equal(start, start.round()) and torch.equal(length, length.round())
        assert start.min() >= 0 and length.min() >= 1 and (start + length).max() <= size


def test_crops_lie_everywhere_with_equal_chance():
    # 4 x 4 of 8 x 8 pixels
    drawn = draw(ViewRecipe(size=8, crop_scale=[0.25, 0.25], crop_ratio=[1.0, 1.0]), 5000, size=8)
    assert (drawn.height == 4).all() and (drawn.width == 4).all()
    counts = torch.bincount((5 * drawn.top + drawn.left).long(), minlength=25)
    assert len(counts) == 25 and stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("ratio", [[2.0, 3.0], [1 / 3, 1 / 2], [4.0, 4.0], [1 / 4, 4.0]])
@pytest.mark.parametrize("size", [32, 33])
def test_where_no_crop_fits_it_is_torchvisions_central_crop(size, ratio):
    """All of the area at another ratio than 1 never fits. At a ratio of nearly 1 it does, and is
    the whole image like the central crop.
    """
    drawn = draw(ViewRecipe(size=8, crop_scale=[1.0, 1.0], crop_ratio=ratio), 50, size)
    ours = torch.stack([drawn.top, drawn.left, drawn.height, drawn.width], dim=1)
    theirs = v2.RandomResizedCrop.get_params(torch.empty(3, size, size), [1.0, 1.0], ratio)
    assert (ours == torch.tensor(theirs)).all()


def test_without_a_crop_the_whole_image_is_taken():
    drawn = draw(ViewRecipe(size=8), 10, size=20)
    assert (
        (drawn.top == 0).all()
        and (drawn.left == 0).all()
        and (drawn.height == 20).all()
        and (drawn.width == 20).all()
    )


def test_each_operation_is_drawn_with_its_probability_whatever_else_is_drawn():
    chances = {"flip": 0.5, "jitter": 0.8, "grayscale": 0.2, "blur": 0.3, "solarize": 0.1}
    drawn = draw(ViewRecipe(size=8, **chances), 20_000)
    counts, expected = [], []
    for combination in itertools.product([True, False], repeat=5):
        agrees = [getattr(drawn, name) == chosen for name, chosen in zip(chances, combination)]
        counts.append(torch.stack(agrees).all(0).sum().item())
        expected.append(
            20_000
            * math.prod(
                chance if chosen else 1 - chance
                for chance, chosen in zip(chances.values(), combination)
            )
        )
    assert stats.chisquare(counts, expected).pvalue > 0.01


@pytest.mark.parametrize("name", ["flip", "jitter", "grayscale", "blur", "solarize"])
def test_a_probability_of_0_is_never_and_of_1_always(name):
    assert not getattr(draw(ViewRecipe(size=8, **{name: 0.0}), 5000), name).any()
    assert getattr(draw(ViewRecipe(size=8, **{name: 1.0}), 5000), name).all()


def test_jitter_factors_are_uniform_about_1_never_negative_and_hue_shifts_about_0():
    factors = draw(
        ViewRecipe(size=8, jitter=1.0, jitter_strength=[0.4, 1.5, 0.2, 0.1]), 5000
    ).factors
    for factor, (low, high) in zip(factors.T, [(0.6, 1.4), (0.0, 2.5), (0.8, 1.2), (-0.1, 0.1)]):
        assert low <= factor.min() and factor.max() <= high
        assert stats.kstest(factor, "uniform", args=(low, high - low)).pvalue > 0.01


def test_all_24_orders_of_color_jitter_have_equal_chance():
    orders = [tuple(order) for order in draw(ViewRecipe(size=8, jitter=1.0), 4800).order.tolist()]
    counts = [orders.count(order) for order in itertools.permutations(range(4))]
    assert sum(counts) == 4800 and stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("angles", [[0, 90, 180, 270], [0, 180], [90, 270, 180]])
def test_rotation_draws_its_angles_and_no_others_with_equal_chance(angles):
    turns = draw(ViewRecipe(size=8, rotate=angles), 4000).quarter_turns
    counts = [(turns == angle // 90).sum().item() for angle in angles]
    assert sum(counts) == 4000 and stats.chisquare(counts).pvalue > 0.01


def test_the_sigma_of_blur_is_uniform_within_its_bounds():
    sigma = draw(ViewRecipe(size=8, blur=1.0, blur_sigma=[0.5, 1.5]), 5000).sigma
    assert 0.5 <= sigma.min() and sigma.max() <= 1.5
    assert stats.kstest(sigma, "uniform", args=(0.5, 1.0)).pvalue > 0.01


def test_what_is_drawn_for_one_operation_tells_nothing_about_another():
    count, size = 20_000, 64
    # small enough to fit at the first try
    drawn = draw(ViewRecipe(size=8, **EVERY_OPERATION | {"crop_scale": [0.1, 0.4]}), count, size)
    columns = {
        "area": drawn.height * drawn.width,
        "ratio": (drawn.width / drawn.height).log(),
        "row": (drawn.top + 0.5) / (size - drawn.height + 1),
        "column": (drawn.left + 0.5) / (size - drawn.width + 1),
        "first of jitter": drawn.order[:, 0],
        "sigma": drawn.sigma,
        **{
            name: getattr(drawn, name)
            for name in ("flip", "quarter_turns", "jitter", "grayscale", "blur", "solarize")
        },
        **dict(zip(("brightness", "contrast", "saturation", "hue"), drawn.factors.T)),
    }
    correlations = torch.corrcoef(
        torch.stack([column.double() for column in columns.values()])
    ) - torch.eye(len(columns))
    assert correlations.abs().max() < 4.5 / math.sqrt(count)


def test_switching_an_operation_on_leaves_what_is_drawn_for_the_others_as_it_was():
    few = draw(ViewRecipe(size=8, crop_scale=[0.2, 1.0], flip=0.5), 100)
    all_on = draw(ViewRecipe(size=8, **EVERY_OPERATION), 100)
    for name in ("top", "left", "height", "width", "flip", "factors", "order", "noise_keys"):
        assert torch.equal(getattr(few, name), getattr(all_on, name)), name


# --- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, patch, ratio, K", [
    (28, 4, 0.75, 12), (32, 2, 0.75, 64), (32, 4, 0.9, 6), (8, 4, 0.9, 1), (8, 4, 0.99, 1),
    (4, 4, 0.6, 1), (32, 4, 0.001, 64),
])  # fmt: skip
def test_a_mask_leaves_all_but_the_rounded_share_of_the_patches_and_at_least_one(
    size, patch, ratio, K
):
    recipe = ViewRecipe(size=size, mask_ratio=ratio)
    view = augment(
        made_up_split(70, 1, size),
        torch.arange(70),
        recipe,
        NORMALIZATION[1],
        Draw(0, "training", patch=patch),
    )
    assert view.visible.shape == (70, K) and view.visible.dtype == torch.int64
    assert (
        (view.visible.diff(dim=1) > 0).all()
        and 0 <= view.visible.min()
        and view.visible.max() < (size // patch) ** 2
    )
    blank = blank_views([recipe, recipe.model_copy(update={"count": 2})], 1, patch, count=5)
    assert [(tuple(view.pixels.shape), tuple(view.visible.shape)) for view in blank] == 3 * [
        ((5, 1, size, size), (5, K))
    ]


def test_without_a_mask_everything_is_visible():
    images = made_up_split(4, 1, 8)
    assert (
        augment(
            images,
            torch.arange(4),
            ViewRecipe(size=8),
            NORMALIZATION[1],
            Draw(0, "training", patch=4),
        ).visible
        is None
    )
    assert blank_views([ViewRecipe(size=8)], 1, 4, count=2)[0].visible is None


def test_every_choice_of_patches_has_equal_chance_and_tells_nothing_about_crop_or_noise():
    recipe = ViewRecipe(size=6, mask_ratio=0.5, crop_scale=[0.2, 0.6], flip=0.5, noise=0.1)
    seen = draw_visible(
        ViewRecipe(size=4, mask_ratio=0.5),
        sample_keys(stream(0, "training"), torch.arange(6000)),
        2,
    )
    counts = [
        (seen == torch.tensor(pair)).all(1).sum().item()
        for pair in itertools.combinations(range(4), 2)
    ]
    assert sum(counts) == 6000 and stats.chisquare(counts).pvalue > 0.01
    drawn, seen = (
        draw(recipe, 20_000, size=6),
        draw_visible(recipe, sample_keys(stream(0, "training"), torch.arange(20_000)), 2),
    )
    is_visible = torch.zeros(20_000, 9, dtype=torch.float64).scatter_(1, seen, 1.0)
    of_crop = torch.stack(
        [drawn.top, drawn.left, drawn.height, drawn.width, drawn.flip.double()], dim=1
    )
    noise = transform(one_color(20_000, 1, 6, value=128).pixels, drawn, recipe).flatten(1).double()
    correlations = torch.corrcoef(torch.cat([is_visible, of_crop, noise], dim=1).T)[:9, 9:]
    assert correlations.abs().max() < 5 / math.sqrt(20_000)


def test_a_mask_depends_on_its_own_sample_and_on_what_it_is_for_alone():
    images, recipe = made_up_split(131, 1, 28), ViewRecipe(size=28, mask_ratio=0.75)

    def masks(indices, seed=0, purpose="training", epoch=1, view=0, split="train"):
        views = augment(
            replace(images, name=split),
            indices,
            recipe,
            NORMALIZATION[1],
            Draw(seed, purpose, epoch, patch=4),
            view,
        )
        return views.visible

    whole = masks(torch.arange(131))
    assert torch.equal(masks(torch.arange(131).flip(0)), whole.flip(0))
    assert torch.equal(torch.cat([masks(part) for part in torch.arange(131).split(7)]), whole)
    others = [{"seed": 1}, {"purpose": "scoring"}, {"epoch": 2}, {"view": 1}, {"split": "test"}]
    drawn = torch.cat([whole, *(masks(torch.arange(131), **other) for other in others)])
    assert len(drawn.unique(dim=0)) == len(drawn)


def test_a_mask_changes_nothing_else_of_a_view():
    images = made_up_split(20, 3, 16)
    views = [
        augment(
            images,
            torch.arange(20),
            ViewRecipe(size=16, **EVERY_OPERATION, mask_ratio=ratio),
            NORMALIZATION[3],
            Draw(0, "training", patch=4),
        )
        for ratio in (0.0, 0.5)
    ]
    assert torch.equal(views[0].pixels, views[1].pixels)


# --- what shares its parameters, and what never does ----------------------------------------------


CONTEXTS = list(
    itertools.product([0, 1], ["training", "scoring", "probing"], ["train", "test"], [0, 1], [0, 1])
)


def test_no_two_samples_seeds_purposes_splits_epochs_or_views_share_a_parameter():
    """Train image 5 and test image 5 do not, scoring and training do not, two views do not."""
    recipe = ViewRecipe(size=8, **EVERY_OPERATION)
    drawn = [
        draw_parameters(recipe, sample_keys(stream(*context), torch.arange(100)), 32)
        for context in CONTEXTS
    ]
    for name in ("noise_keys", "sigma", "factors"):
        # (4800,) or (4800, 4)
        values = torch.cat([getattr(parameters, name) for parameters in drawn])
        for column in values.view(len(values), -1).T:
            assert len(column.unique()) == len(column) == 4800, name


@pytest.mark.parametrize(
    "recipe",
    [ViewRecipe(size=8, noise=0.1), ViewRecipe(size=16, **EVERY_OPERATION)],
    ids=["noise", "everything"],
)
def test_views_of_the_same_pixels_differ_by_sample_seed_purpose_split_epoch_and_view(recipe):
    source = made_up_split(2, 3, 16).pixels[:1].expand(20, -1, -1, -1)  # the same image 20 times
    views = []
    for seed, purpose, split, epoch, view in CONTEXTS:
        images = Split(split, source, torch.zeros(20, dtype=torch.int64))
        views.append(
            augment(
                images, torch.arange(20), recipe, NORMALIZATION[3], Draw(seed, purpose, epoch), view
            ).pixels
        )
    views = torch.cat(views).flatten(1)  # (48 * 20, pixels)
    assert len(views.unique(dim=0)) == len(views) == 960


def test_the_same_arguments_share_all_parameters_whatever_was_drawn_before():
    images, recipe = made_up_split(20, 3, 16), ViewRecipe(size=16, **EVERY_OPERATION)

    def once():
        parameters = draw_parameters(
            recipe, sample_keys(stream(0, "scoring", "test", epoch=2, view=3), torch.arange(20)), 16
        )
        return parameters, augment(
            images,
            torch.arange(20),
            recipe,
            NORMALIZATION[3],
            Draw(0, "scoring", epoch=2),
            view=3,
        )

    parameters, view = once()
    torch.rand(1)
    state = torch.get_rng_state()
    parameters_again, view_again = once()
    # nor is anything drawn from the global generator
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(getattr(parameters, field.name), getattr(parameters_again, field.name))
        for field in fields(parameters)
    )
    assert torch.equal(view.pixels, view_again.pixels)


# --- the views of training, measuring and probing -------------------------------------------------


def test_training_draws_each_recipe_as_often_as_its_count_says_and_numbers_the_views():
    images, indices = made_up_split(6, 3, 16), torch.tensor([3, 0, 5])
    large = ViewRecipe(count=2, size=16, crop_scale=[0.4, 1.0], noise=0.05)
    small = ViewRecipe(count=3, size=8, crop_scale=[0.05, 0.4], flip=0.5)
    views = training_views(
        images, indices, [large, small], NORMALIZATION[3], Draw(1, "training", epoch=4)
    )
    assert [tuple(view.pixels.shape) for view in views] == [(3, 3, 16, 16)] * 2 + [(3, 3, 8, 8)] * 3
    for number, (recipe, view) in enumerate(zip([large, large, small, small, small], views)):
        expected = augment(
            images,
            indices,
            recipe,
            NORMALIZATION[3],
            Draw(1, "training", epoch=4),
            view=number,
        )
        assert torch.equal(view.pixels, expected.pixels)


def test_measuring_takes_the_full_size_recipes_in_turn_and_leaves_small_crops_out():
    one, small, other = (
        ViewRecipe(count=1, size=16),
        ViewRecipe(count=6, size=8),
        ViewRecipe(count=1, size=16, solarize=0.2),
    )
    assert [measuring_recipe([one, small, other], view) for view in range(5)] == [
        one,
        other,
        one,
        other,
        one,
    ]
    assert [measuring_recipe([small, one], view) for view in range(3)] == [one, one, one]


@pytest.mark.parametrize("channels", [1, 3])
def test_whole_images_of_the_same_size_are_the_source_normalized(channels):
    images, indices = made_up_split(70, channels, 28, name="test"), torch.arange(70).flip(0)
    whole = whole_images(images, indices, 28, NORMALIZATION[channels])
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in NORMALIZATION[channels])
    assert torch.equal(whole.pixels, (images.pixels[indices] / 255 - mean) / std)


@pytest.mark.parametrize("size", [20, 32, 40])
def test_whole_images_of_another_size_are_resized_as_by_torchvision(size):
    images = made_up_split(8, 3, 32)
    whole = whole_images(images, torch.arange(8), size, ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    assert (
        whole.pixels - TF.resize(images.pixels / 255, [size, size], antialias=True)
    ).abs().max() <= 1e-5
