import itertools
import math
from dataclasses import replace

import pytest
import torch
from conftest import EVERY_OPERATION, NORMALIZATION, keys_of, largest_correlation, made_up_split
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from memorization.data import augmentations
from memorization.data.augmentations import Draw, augment, draw_parameters, draw_visible
from memorization.data.images import Split
from memorization.data.recipes import ViewRecipe
from memorization.data.transforms import shift_hue, transform

# Images this small are faster on one thread, above all on busy cores: threads wait for each other.
pytestmark = pytest.mark.usefixtures("one_thread")
TRAINING = Draw(0, "training", patch=4)


def draw(recipe, count, size=32):
    """The parameters of one view of `count` images."""
    return draw_parameters(recipe, keys_of(count), size)


def crops_of(p):
    """Top, left, height and width of Parameters, (B, 4)."""
    return torch.stack([p.top, p.left, p.height, p.width], dim=-1)


def transform_by(recipe, pixels):
    return transform(pixels, draw(recipe, len(pixels), pixels.shape[-1]), recipe)


def views_of(images, recipe, for_what=TRAINING, view=0, indices=None):
    """What augment makes of images; of all of them if there are no indices."""
    indices = torch.arange(len(images)) if indices is None else indices
    normalization = NORMALIZATION[images.pixels.shape[1]]
    return augment(images, indices, recipe, normalization, for_what, view)


def copies(count, size):
    """The same image `count` times, (count, 3, size, size)."""
    return made_up_split(2, 3, size).pixels[:1].expand(count, -1, -1, -1)


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
    "solarize": {"solarize": 0.5},  # at 0.5, so that no rounding error of a pixel is made larger
}


def torchvision_view(image, p, recipe):
    """The view of a uint8 image, (C, size, size), by torchvision's operations one by one, but for
    noise. p: its Parameters. In float64, so that only our own rounding is seen: torchvision's is
    2e-5 in float32 if 500 pixels are shrunk to 224.
    """
    x = TF.to_dtype(image, torch.float64, scale=True)
    x = TF.resized_crop(x, *crops_of(p).int().tolist(), [recipe.size] * 2, antialias=True)
    if p.flip:
        x = TF.horizontal_flip(x)
    x = TF.rotate(x, 90.0 * p.quarter_turns.item())
    if p.jitter:
        for operation in p.order.tolist():
            x = JITTER[operation](x, p.factors[operation].item())
    if p.grayscale:
        x = TF.rgb_to_grayscale(x, num_output_channels=len(x))
    if p.blur:
        x = TF.gaussian_blur(x, 2 * max(1, recipe.size // 20) + 1, p.sigma.item())
    if p.solarize:
        x = TF.solarize(x, recipe.solarize_threshold)
    return x


def torchvision_views(pixels, parameters, recipe):
    views = [torchvision_view(image, parameters[i], recipe) for i, image in enumerate(pixels)]
    return torch.stack(views)


def assert_equals_torchvision(recipe, pixels, within=1e-5, **changes):
    """Transforms the pixels, by parameters with some fields changed, and returns them."""
    parameters = replace(draw(recipe, len(pixels), pixels.shape[-1]), **changes)
    views = transform(pixels, parameters, recipe)
    assert (views - torchvision_views(pixels, parameters, recipe)).abs().max() <= within
    return views


# channels, size of the source, size of the view
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 96, 32), (3, 20, 33), (1, 64, 64), (3, 40, 24)]
CROPPED_SHAPES = [(3, 24, 24), (1, 13, 29), (3, 29, 13), (1, 24, 23), (3, 1, 2), (3, 500, 224)]


@pytest.mark.parametrize("channels, source, size", SHAPES)
@pytest.mark.parametrize("name", ONE_OPERATION)
def test_an_operation_equals_torchvisions_and_changes_images(name, channels, source, size):
    """All images or, if it is drawn by chance, some of them."""
    pixels = made_up_split(24, channels, source).pixels
    views = assert_equals_torchvision(ViewRecipe(size=size, **ONE_OPERATION[name]), pixels)
    assert views.shape == (24, channels, size, size) and views.dtype == torch.float32
    changed = (views != transform_by(ViewRecipe(size=size), pixels)).flatten(1).any(1)
    assert changed.any() or (channels == 1 and name in ("saturation", "hue", "grayscale"))
    assert "crop" in name or not changed[:-1].all()  # the last is white


@pytest.mark.parametrize("channels, source, size", CROPPED_SHAPES)
def test_a_crop_equals_torchvisions_within_the_rounding_of_float32(channels, source, size):
    recipe = ViewRecipe(size=size, crop_scale=[0.05, 1.0], crop_ratio=[0.5, 2.0], flip=0.5)
    assert_equals_torchvision(recipe, made_up_split(20, channels, source).pixels, within=5e-7)


def test_every_crop_of_a_small_image_is_resized_as_by_torchvision_flipped_or_not():
    spans = [(start, stop - start) for start, stop in itertools.combinations(range(7), 2)]
    crops = torch.tensor([rows + columns for rows, columns in itertools.product(spans, spans)])
    changes = dict(zip(("top", "height", "left", "width"), crops.double().T))  # 441 of each
    changes["flip"] = torch.arange(441) % 3 == 0
    for size in (4, 6, 9):
        assert_equals_torchvision(ViewRecipe(size=size), copies(441, 6), **changes)


def test_color_jitter_applies_its_operations_in_every_order_that_an_image_may_draw():
    orders = torch.tensor(list(itertools.permutations(range(4))))
    recipe = ViewRecipe(size=8, jitter=1.0, jitter_strength=[0.8, 0.8, 0.8, 0.3])
    factors = torch.tensor([[1.6, 0.4, 1.7, 0.2]], dtype=torch.float64).expand(24, -1)
    views = assert_equals_torchvision(recipe, copies(24, 8), order=orders, factors=factors)
    assert len(views.flatten(1).unique(dim=0)) >= 12  # so the order matters


def test_hue_turns_by_thirds_from_red_to_green_to_blue_and_leaves_grays_alone():
    red, green, blue = torch.eye(3).view(3, 3, 1, 1)
    gray = torch.full((3, 1, 1), 0.3)
    before, after = [red, green, blue, gray], [green, blue, red, gray]
    for third, one, other in ((1, before, after), (-1, after, before), (0, before, before)):
        shift = torch.full((4,), third / 3, dtype=torch.float64)
        assert torch.allclose(shift_hue(torch.stack(one), shift), torch.stack(other), atol=1e-6)


@pytest.mark.parametrize("shift", [-0.5, -0.4, -1 / 6, 0.0, 0.05, 1 / 3, 0.5])
def test_hue_turns_as_torchvisions_for_all_colours_of_seven_steps_a_channel(shift):
    colors = torch.cartesian_prod(*[torch.arange(7) / 6] * 3).T.reshape(1, 3, 7, 49)
    expected = TF.adjust_hue(colors[0].double(), shift)  # rounds to float32 on the way
    shifted = shift_hue(colors, torch.tensor([shift], dtype=torch.float64))
    assert (shifted - expected).abs().max() <= 2e-6


@pytest.mark.parametrize("size, kernel_size", [(8, 3), (32, 3), (64, 7), (96, 9)])
def test_blur_has_a_kernel_of_a_tenth_of_the_view_and_each_images_own_sigma(size, kernel_size):
    pixels = made_up_split(8, 3, size).pixels
    recipe = ViewRecipe(size=size, blur=1.0)
    p = draw(recipe, 8, size)
    for view, image, sigma in zip(transform(pixels, p, recipe), pixels, p.sigma.tolist()):
        expected = TF.gaussian_blur(image.double() / 255, kernel_size, sigma)
        assert (view - expected).abs().max() <= 1e-5


def test_solarizing_inverts_pixels_at_the_threshold_and_above_and_no_others():
    pixels = torch.tensor([0, 50, 51, 52, 255], dtype=torch.uint8).expand(1, 1, 5, 5)
    recipe = ViewRecipe(size=5, solarize=1.0, solarize_threshold=51 / 255)
    view = transform_by(recipe, pixels)
    assert (255 * view[0, 0, 0]).round().tolist() == [0, 50, 204, 203, 0]
    assert torch.equal(view, TF.solarize(pixels / 255, 51 / 255))


MIRRORED, AS_IT_WAS = [[2, 1], [4, 3]], [[1, 2], [3, 4]]
TURNS = {90: [[2, 4], [1, 3]], 180: [[4, 3], [2, 1]], 270: [[3, 1], [4, 2]], 0: AS_IT_WAS}
MOVES = [({"flip": 1.0}, MIRRORED), *(({"rotate": [angle]}, TURNS[angle]) for angle in TURNS)]


@pytest.mark.parametrize("settings, moved", MOVES)
def test_a_flip_mirrors_left_and_right_and_rotation_turns_counter_clockwise(settings, moved):
    pixels = torch.tensor([[AS_IT_WAS]], dtype=torch.uint8)
    view = transform_by(ViewRecipe(size=2, **settings), pixels)
    assert (255 * view).round().tolist() == [[moved]]


def test_gray_images_keep_their_values_when_colours_are_changed():
    pixels = made_up_split(24, 1, 8).pixels
    recipe = ViewRecipe(size=8, jitter=1.0, jitter_strength=[0, 0, 0.8, 0.5], grayscale=1.0)
    assert torch.equal(transform_by(recipe, pixels), pixels / 255)


def one_color(count, channels, size, value=128):
    return torch.full((count, channels, size, size), value, dtype=torch.uint8)


def test_noise_is_normal_with_the_given_standard_deviation_and_independent_for_every_pixel():
    noise = transform_by(ViewRecipe(size=16, noise=0.1), one_color(64, 3, 16)) - 128 / 255
    noise = noise.double().flatten(1)  # (64, 768)
    assert abs(noise.mean()) < 4 * 0.1 / math.sqrt(noise.numel())
    assert noise.std().item() == pytest.approx(0.1, rel=4 / math.sqrt(2 * noise.numel()))
    assert stats.kstest(noise.flatten() / 0.1, "norm").pvalue > 0.01
    assert len(noise.unique()) > 0.99 * noise.numel()  # near 0.5 a float32 has some 10^7 values
    assert largest_correlation(noise) < 5 / math.sqrt(768)
    assert largest_correlation(noise.T) < 6 / math.sqrt(64)


@pytest.mark.parametrize("value", [0, 255])
def test_noise_leaves_pixels_between_0_and_1(value):
    views = transform_by(ViewRecipe(size=16, noise=0.3), one_color(16, 1, 16, value))
    assert views.min() >= 0 and views.max() <= 1
    # half of the noise led outside
    assert (views == value / 255).float().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("channels, source, size", SHAPES)
def test_all_operations_together_equal_a_slow_loop_over_torchvisions(channels, source, size):
    images, indices = made_up_split(48, channels, source, name="test"), torch.arange(48).flip(0)
    recipe, of_noise = ViewRecipe(size=size, **EVERY_OPERATION), ViewRecipe(size=size, noise=0.05)
    keys = keys_of(48, 3, "scoring", "test", 2, 1).flip(0)
    parameters, still = (draw_parameters(each, keys, source) for each in (recipe, of_noise))
    # what the same keys add to gray images
    noise = transform(one_color(48, channels, source), still, of_noise) - 128 / 255
    expected = torchvision_views(images.pixels[indices], parameters, recipe) + noise
    mean, std = NORMALIZATION[channels]
    expected = TF.normalize(expected.clamp(0, 1), mean, std)
    view = views_of(images, recipe, Draw(3, "scoring", epoch=2), view=1, indices=indices)
    assert view.visible is None
    assert (view.pixels - expected).abs().max() <= 1e-5 / min(std)  # 1e-5 before normalization


# --- distributions --------------------------------------------------------------------------------

# of the area and of the ratio of crops
BOUNDS = [([0.08, 1.0], [3 / 4, 4 / 3]), ([0.2, 0.6], [1.0, 3.0]), ([0.6, 1.0], [0.2, 5.0])]
BOUNDS += [([0.001, 1.0], [0.05, 20.0]), ([0.9, 1.0], [2.0, 3.0])]


def measures_of(top, left, height, width):
    return height * width, (width / height).log(), top, left, top + height - left - width


@pytest.mark.parametrize("scale, ratio", BOUNDS[:3])
def test_crops_are_distributed_as_torchvisions(scale, ratio):
    """By the last bounds many do not fit, so that further tries and the central crop count too."""
    image, get_params = torch.empty(3, 64, 64), v2.RandomResizedCrop.get_params
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torch.tensor([get_params(image, scale, ratio) for _ in range(4000)]).double()
    ours = crops_of(draw(ViewRecipe(size=8, crop_scale=scale, crop_ratio=ratio), 4000, 64))
    for of_ours, of_theirs in zip(measures_of(*ours.T), measures_of(*theirs.T)):
        assert stats.ks_2samp(of_ours, of_theirs).pvalue > 0.01


@pytest.mark.parametrize("scale, ratio", BOUNDS)
@pytest.mark.parametrize("size", [2, 5, 32])
def test_crops_are_whole_pixels_inside_the_image(size, scale, ratio):
    crops = crops_of(draw(ViewRecipe(size=8, crop_scale=scale, crop_ratio=ratio), 2000, size))
    starts, lengths = crops[:, :2], crops[:, 2:]
    assert torch.equal(crops, crops.round())
    assert starts.min() >= 0 and lengths.min() >= 1 and (starts + lengths).max() <= size


@pytest.mark.parametrize("ratio", [[2.0, 3.0], [1 / 3, 1 / 2], [4.0, 4.0], [1 / 4, 4.0]])
@pytest.mark.parametrize("size", [32, 33])
def test_if_no_crop_fits_the_crop_is_torchvisions_central_one(size, ratio):
    """All of the area fits only at a ratio near 1, as the whole image, like the central crop."""
    ours = crops_of(draw(ViewRecipe(size=8, crop_scale=[1.0, 1.0], crop_ratio=ratio), 50, size))
    theirs = v2.RandomResizedCrop.get_params(torch.empty(3, size, size), [1.0, 1.0], ratio)
    assert (ours == torch.tensor(theirs)).all()


def test_without_a_crop_the_whole_image_is_taken():
    assert crops_of(draw(ViewRecipe(size=8), 10, size=20)).tolist() == 10 * [[0, 0, 20, 20]]


CHANCES = {"flip": 0.5, "jitter": 0.8, "grayscale": 0.2, "blur": 0.3, "solarize": 0.1}


def test_each_operation_is_drawn_with_its_probability_whatever_else_is_drawn():
    drawn = draw(ViewRecipe(size=8, **CHANCES), 20_000)
    chosen = torch.stack([getattr(drawn, name) for name in CHANCES], dim=1)  # (20_000, 5)
    outcomes, counts = chosen.unique(dim=0, return_counts=True)
    chances = torch.tensor(list(CHANCES.values()), dtype=torch.float64)
    expected = 20_000 * torch.where(outcomes, chances, 1 - chances).prod(1)
    assert len(counts) == 32 and stats.chisquare(counts, expected).pvalue > 0.01


@pytest.mark.parametrize("name", CHANCES)
def test_a_probability_of_0_is_never_and_of_1_always(name):
    assert not getattr(draw(ViewRecipe(size=8, **{name: 0.0}), 5000), name).any()
    assert getattr(draw(ViewRecipe(size=8, **{name: 1.0}), 5000), name).all()


QUARTER = {"crop_scale": [0.25, 0.25], "crop_ratio": [1.0, 1.0]}
ORDERS = [list(order) for order in itertools.permutations(range(4))]
PAIRS = [list(pair) for pair in itertools.combinations(range(4), 2)]
HALF = ViewRecipe(size=4, mask_ratio=0.5)
# settings, what they decide, and all that may come of it
EQUALLY_LIKELY = {
    "crop": (QUARTER, crops_of, [[top, left, 4, 4] for top in range(5) for left in range(5)]),
    "order of jitter": ({"jitter": 1.0}, lambda p: p.order, ORDERS),
    "four angles": ({"rotate": [0, 90, 180, 270]}, lambda p: p.quarter_turns, [0, 1, 2, 3]),
    "two angles": ({"rotate": [0, 180]}, lambda p: p.quarter_turns, [0, 2]),
    "three angles": ({"rotate": [90, 270, 180]}, lambda p: p.quarter_turns, [1, 2, 3]),
    "mask": ({}, lambda p: draw_visible(HALF, p.noise_keys, 2), PAIRS),
}


@pytest.mark.parametrize("drawn", EQUALLY_LIKELY)
def test_all_crops_orders_of_jitter_angles_and_masks_have_equal_chance(drawn):
    settings, part_of, expected = EQUALLY_LIKELY[drawn]
    parameters = draw(ViewRecipe(size=8, **settings), 6000, size=8)
    outcomes, counts = part_of(parameters).unique(dim=0, return_counts=True)
    assert outcomes.tolist() == expected and stats.chisquare(counts).pvalue > 0.01


RANGES = [(0.6, 1.4), (0.0, 2.5), (0.8, 1.2), (-0.1, 0.1), (0.5, 1.5)]


@pytest.mark.parametrize("parameter", range(5), ids=[f.__name__ for f in JITTER] + ["sigma"])
def test_jitter_factors_and_the_sigma_of_blur_are_uniform_within_their_bounds(parameter):
    """Factors about 1 and never negative, hue shifts about 0."""
    jitter = {"jitter": 1.0, "jitter_strength": [0.4, 1.5, 0.2, 0.1]}
    drawn = draw(ViewRecipe(size=8, blur=1.0, blur_sigma=[0.5, 1.5], **jitter), 5000)
    numbers, (low, high) = [*drawn.factors.T, drawn.sigma][parameter], RANGES[parameter]
    assert low <= numbers.min() and numbers.max() <= high
    assert numbers.max() - numbers.min() > 0.998 * (high - low)
    assert stats.kstest(numbers, "uniform", args=(low, high - low)).pvalue > 0.01


def test_what_is_drawn_for_one_operation_tells_nothing_about_another():
    count, size = 20_000, 64
    # small enough to fit at the first try
    drawn = draw(ViewRecipe(size=8, **EVERY_OPERATION | {"crop_scale": [0.1, 0.4]}), count, size)
    row = (drawn.top + 0.5) / (size - drawn.height + 1)
    column = (drawn.left + 0.5) / (size - drawn.width + 1)
    area, ratio = drawn.height * drawn.width, (drawn.width / drawn.height).log()
    others = [getattr(drawn, name) for name in ("quarter_turns", "sigma", *CHANCES)]
    variables = [area, ratio, row, column, drawn.order[:, 0], *others, *drawn.factors.T]
    variables = torch.stack([variable.double() for variable in variables])
    assert largest_correlation(variables) < 4.5 / math.sqrt(count)


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
def test_a_mask_hides_its_rounded_share_and_leaves_one_patch_at_least(size, patch, ratio, K):
    recipe, twice = (ViewRecipe(size=size, mask_ratio=ratio, count=count) for count in (1, 2))
    visible = views_of(made_up_split(70, 1, size), recipe, replace(TRAINING, patch=patch)).visible
    assert visible.shape == (70, K) and visible.dtype == torch.int64
    assert (visible.diff(dim=1) > 0).all()
    assert 0 <= visible.min() and visible.max() < (size // patch) ** 2
    blank = augmentations.blank_views([recipe, twice], 1, patch, n_images=5)
    assert [view.pixels.shape for view in blank] == 3 * [(5, 1, size, size)]
    assert [view.visible.shape for view in blank] == 3 * [(5, K)]


def test_without_a_mask_everything_is_visible():
    recipe = ViewRecipe(size=8)
    assert views_of(made_up_split(4, 1, 8), recipe).visible is None
    assert augmentations.blank_views([recipe], 1, 4, n_images=2)[0].visible is None


def test_a_mask_tells_nothing_about_crop_or_noise():
    recipe = ViewRecipe(size=6, mask_ratio=0.5, crop_scale=[0.2, 0.6], flip=0.5, noise=0.1)
    seen = draw_visible(recipe, keys_of(20_000), 2)
    is_visible = torch.zeros(20_000, 9, dtype=torch.float64).scatter_(1, seen, 1.0)
    drawn = draw(recipe, 20_000, size=6)
    noise = transform(one_color(20_000, 1, 6), drawn, recipe).flatten(1).double()
    others = [crops_of(drawn), drawn.flip[:, None].double(), noise]
    correlations = torch.corrcoef(torch.cat([is_visible, *others], dim=1).T)[:9, 9:]
    assert correlations.abs().max() < 5 / math.sqrt(20_000)


def test_a_mask_changes_nothing_else_of_a_view():
    recipes = [ViewRecipe(size=16, **EVERY_OPERATION, mask_ratio=ratio) for ratio in (0.0, 0.5)]
    without, masked = (views_of(made_up_split(20, 3, 16), recipe) for recipe in recipes)
    assert torch.equal(without.pixels, masked.pixels)


# --- what shares its parameters, and what never does ----------------------------------------------

PURPOSES = ["training", "scoring", "probing"]
CONTEXTS = list(itertools.product([0, 1], PURPOSES, ["train", "test"], [0, 1], [0, 1]))


def test_no_two_samples_seeds_purposes_splits_epochs_or_views_share_a_parameter():
    keys = torch.cat([keys_of(100, *context) for context in CONTEXTS])
    drawn = draw_parameters(ViewRecipe(size=8, **EVERY_OPERATION), keys, 32)
    for column in (drawn.noise_keys, drawn.sigma, *drawn.factors.T):
        assert len(column.unique()) == len(column) == 4800


DISTINCT = [(20, {"size": 8, "noise": 0.1}), (20, {"size": 16, **EVERY_OPERATION})]
DISTINCT += [(131, {"size": 28, "mask_ratio": 0.75})]


@pytest.mark.parametrize("count, settings", DISTINCT)
def test_views_and_masks_differ_by_sample_seed_purpose_split_epoch_and_view(count, settings):
    drawn = []
    for seed, purpose, split, epoch, number in CONTEXTS:
        images = Split(split, copies(count, 16), torch.zeros(count, dtype=torch.int64))
        view = views_of(images, ViewRecipe(**settings), Draw(seed, purpose, epoch, 4), number)
        drawn.append(view.pixels.flatten(1) if view.visible is None else view.visible)
    drawn = torch.cat(drawn)  # (48 * count, pixels or visible patches)
    assert len(drawn.unique(dim=0)) == len(drawn) == 48 * count


# --- the views of training, measuring and probing -------------------------------------------------


def test_training_draws_each_recipe_as_often_as_its_count_says_and_numbers_the_views():
    images, indices = made_up_split(6, 3, 16), torch.tensor([3, 0, 5])
    large = ViewRecipe(count=2, size=16, crop_scale=[0.4, 1.0], noise=0.05)
    small = ViewRecipe(count=3, size=8, crop_scale=[0.05, 0.4], flip=0.5)
    step = Draw(1, "training", epoch=4)
    views = augmentations.training_views(images, indices, [large, small], NORMALIZATION[3], step)
    assert [view.pixels.shape for view in views] == [(3, 3, 16, 16)] * 2 + [(3, 3, 8, 8)] * 3
    for number, recipe in enumerate([large, large, small, small, small]):
        expected = views_of(images, recipe, step, number, indices)
        assert torch.equal(views[number].pixels, expected.pixels)


def test_measuring_takes_the_full_size_recipes_in_turn_and_leaves_small_crops_out():
    one, small = ViewRecipe(count=1, size=16), ViewRecipe(count=6, size=8)
    other = ViewRecipe(count=1, size=16, solarize=0.2)
    taken = [augmentations.measuring_recipe([one, small, other], view) for view in range(5)]
    assert taken == [one, other, one, other, one]
    taken = [augmentations.measuring_recipe([small, one], view) for view in range(3)]
    assert taken == [one, one, one]


WHOLE = [(1, 28, 28), (3, 28, 28), (3, 8, 8), (3, 32, 20), (3, 32, 32), (3, 32, 40)]


@pytest.mark.parametrize("channels, source, size", WHOLE)
def test_whole_images_are_resized_as_by_torchvision_and_normalized(channels, source, size):
    images, indices = made_up_split(70, channels, source, name="test"), torch.arange(70).flip(0)
    expected = TF.resize(images.pixels[indices] / 255, [size, size], antialias=True)
    expected = TF.normalize(expected, *NORMALIZATION[channels])
    whole = augmentations.whole_images(images, indices, size, NORMALIZATION[channels])
    not_cropped = views_of(images, ViewRecipe(size=size), indices=indices)
    for view in (whole, not_cropped):
        assert (view.pixels - expected).abs().max() <= (0 if source == size else 1e-5)
