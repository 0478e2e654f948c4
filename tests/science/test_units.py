"""UnitMem and ClassMem: which images and classes fire the units of an encoder."""

import gc
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import CROPS, foreign_encoder, made_up_split

from memorization.data.augmentations import Draw, augment, whole_images
from memorization.data.images import Split
from memorization.data.recipes import ViewRecipe
from memorization.errors import WrongUse
from memorization.machine import threads
from memorization.measuring import unit_statistics
from memorization.measuring.unit_statistics import (
    TOP,
    ClassSums,
    StoredActivations,
    UnitStatistics,
    median_of_rest,
)
from memorization.measuring.unit_tables import SeedUnits
from memorization.measuring.units import (
    UnitLayers,
    Viewing,
    find_unit_layers,
    measure_units,
    selectivity,
)
from models.layers import Layer

WHOLE = [ViewRecipe(size=8)]  # no chance in it
N, CLASSES = 30, 3


class HandMade(nn.Module):
    """An encoder of one layer, whose units are given functions of the pixels. make: (B, C, S, S) ->
    (B, D, h, w).
    """

    def __init__(self, make, activation=None):
        super().__init__()
        self.make, self.activation = make, activation or nn.ReLU()

    def forward(self, pixels, visible=None):
        return self.activation(self.make(pixels)).mean((2, 3))

    pass_once = forward

    def find_layers(self, pixels, visible=None):
        return [Layer("units", self.activation, activates=True)]


def numbered_images():
    """A Split of N images, each of one colour: red is its number, green its class, times ten."""
    numbers = np.arange(N)
    colors = np.stack([numbers, 10 * (numbers % CLASSES), np.full(N, 200)], axis=1)
    pixels = np.broadcast_to(colors[:, None, None], (N, 8, 8, 3)).astype(np.uint8)
    return Split.from_array(pixels, labels=numbers % CLASSES)


def number_and_class(pixels):
    """The number and the class of `numbered_images` that pixels are of, (B, 1, 8, 8) each."""
    red, green = (255 * pixels[:, channel : channel + 1] for channel in (0, 1))
    return red.round(), (green / 10).round()


def hand_made(make, activation=None):
    network = HandMade(make, activation).eval()
    return foreign_encoder(
        "hand-made", 0, network=network, size=8, normalization=((0.0,) * 3, (1.0,) * 3)
    )


def measure(encoder, images, indices=None, recipes=None, **viewing):
    """The UnitMeasurement of all images, or of those of the indices."""
    indices = np.arange(len(images)) if indices is None else indices
    layers = find_unit_layers(encoder, images.device)
    viewing = Viewing(recipes or WHOLE, **{"views": 2, "batch_size": 7} | viewing)
    return measure_units(encoder, layers, images, indices, viewing)


def planted_units(pixels):
    """A unit that fires for image 17 alone, one for class 1 alone, one for all alike, a dead one,
    one that is never above 0, one that is negative but for image 4, one that is above 0 on the
    whole but not for image 9.
    """
    number, label = number_and_class(pixels)
    ones = torch.ones_like(number)
    units = [
        0.7 * (number == 17), 2.5 * (label == 1), 0.3 * ones, 0 * ones, -0.2 * ones,
        torch.where(number == 4, 1.0, -1.0), torch.where(number == 9, -0.1, 0.5),
    ]  # fmt: skip
    return torch.cat([unit.float() for unit in units], dim=1)


def test_planted_units_have_the_unitmem_and_classmem_that_they_were_planted_with():
    measured = measure(hand_made(planted_units, nn.Identity()), numbered_images())
    one_image, one_class, constant, dead, negative, mostly_negative, mostly_positive = range(7)
    assert measured.unitmem[one_image] == 1
    assert measured.top_indices[0, one_image] == 17
    assert measured.classmem[one_image] == 1 and measured.top_class[one_image] == 17 % CLASSES
    assert measured.classmem[one_class] == 1 and measured.top_class[one_class] == 1
    others = 9 * 2.5 / (N - 1)  # nine of the other images are of the class, too
    assert measured.unitmem[one_class] == pytest.approx((2.5 - others) / (2.5 + others))
    assert measured.unitmem[constant] == 0 and measured.constant.nonzero()[0] == [constant]
    assert abs(measured.classmem[constant]) < 1e-12
    assert measured.dead.nonzero()[0] == [dead]
    assert measured.signed.nonzero()[0].tolist() == [negative, mostly_negative]
    for unit in (dead, negative, mostly_negative):
        assert np.isnan(measured.unitmem[unit]) and np.isnan(measured.classmem[unit])
    assert measured.minimum[mostly_positive] == pytest.approx(-0.1)
    rest = (28 * 0.5 - 0.1) / 29
    expected = (0.5 - rest) / (0.5 + rest)
    assert measured.unitmem[mostly_positive] == pytest.approx(expected)
    assert measured.selects.nonzero()[0].tolist() == [one_image, one_class, mostly_positive]


def test_images_are_counted_that_fire_a_unit_more_than_all_others_do():
    """Not those of dead, signed and constant units, of which the first image would have all."""
    encoder, images = hand_made(planted_units, nn.Identity()), numbered_images()
    chosen = np.arange(1, N, 2)
    layers = find_unit_layers(encoder, images.device)
    units = SeedUnits(0, chosen, chosen, {"f": measure(encoder, images, chosen)}, layers)
    # 1 is the first of class 1, and of those that are alike beside 9
    expected = {1: 2, 17: 1}
    assert units.top_counts.tolist() == [expected.get(index, 0) for index in chosen.tolist()]


def test_a_unit_that_varies_by_rounding_alone_is_constant():
    def almost_equal(pixels):
        number, _ = number_and_class(pixels)
        return torch.where(number % 2 == 0, 0.3, np.nextafter(np.float32(0.3), np.float32(1)))

    measured = measure(hand_made(almost_equal), numbered_images())
    assert measured.maximum > measured.minimum
    assert measured.constant.all() and measured.unitmem.tolist() == [0]
    assert not measured.selects.any()


def test_behind_a_relu_no_unit_is_signed_and_negative_ones_are_dead():
    measured = measure(hand_made(planted_units), numbered_images())
    assert not measured.signed.any() and (measured.minimum >= 0).all()
    assert measured.dead.nonzero()[0].tolist() == [3, 4]


def random_units(seed=0):
    """An encoder of a random convolution with 12 units, over images of 16 pixels."""
    torch.manual_seed(seed)
    encoder = hand_made(nn.Conv2d(3, 12, 5, bias=False))
    return foreign_encoder("random", 0, network=encoder.network, size=16)


def slow_activations(encoder, images, views, seed, recipes=CROPS):
    """(N, U) activations, image by image, view by view and position by position."""
    rows = []
    for index in range(len(images)):
        of_views = []
        for view in range(views):
            recipe, draw = recipes[view % len(recipes)], Draw(seed, "scoring")
            batch = torch.tensor([index])
            pixels = augment(images, batch, recipe, encoder.normalization, draw, view).pixels
            with torch.no_grad():
                output = encoder.network.activation(encoder.network.make(pixels))[0]  # (D, h, w)
            of_views.append(output.flatten(1).double().numpy().mean(1))
        rows.append(np.mean(of_views, axis=0))
    return np.stack(rows)


@pytest.mark.parametrize("center", ["mean", "median"])
def test_unitmem_is_the_slow_formula(center):
    images, encoder = made_up_split(11, 3, 16), random_units()
    measured = measure(encoder, images, recipes=CROPS, views=3, seed=5, center=center)
    activations = slow_activations(encoder, images, 3, seed=5)
    middle = {"mean": np.mean, "median": np.median}[center]
    for unit, values in enumerate(activations.T):
        others = [value for image, value in enumerate(values) if image != values.argmax()]
        rest = middle(others)
        assert measured.unitmem[unit] == pytest.approx(
            (values.max() - rest) / (values.max() + rest), abs=1e-6
        )
        order = np.argsort(-values)[:TOP]
        assert measured.top_indices[:, unit].tolist() == order.tolist()
        assert measured.top_values[:, unit] == pytest.approx(values[order], abs=1e-6)
        assert measured.mean[unit] == pytest.approx(values.mean(), abs=1e-6)
        assert measured.std[unit] == pytest.approx(values.std(ddof=1), abs=1e-6)
        assert measured.minimum[unit] == pytest.approx(values.min(), abs=1e-6)


@pytest.mark.parametrize("center", ["mean", "median"])
def test_classmem_is_the_slow_formula_on_whole_images(center):
    images, encoder = made_up_split(24, 3, 16), random_units()
    images.labels[:] = torch.arange(24) % 4
    images.labels[5] = -1  # without a label
    measured = measure(encoder, images, recipes=CROPS, center=center)
    whole = whole_images(images, torch.arange(24), 16, encoder.normalization).pixels
    with torch.no_grad():
        activations = encoder.network(whole).double().numpy()
    labels = images.labels.numpy()
    middle = {"mean": np.mean, "median": np.median}[center]
    for unit, values in enumerate(activations.T):
        of_classes = [np.mean(values[labels == label]) for label in range(4)]
        top = int(np.argmax(of_classes))
        rest = middle([mean for label, mean in enumerate(of_classes) if label != top])
        expected = (of_classes[top] - rest) / (of_classes[top] + rest)
        assert measured.classmem[unit] == pytest.approx(expected, abs=1e-6)
        assert measured.top_class[unit] == top


@pytest.mark.parametrize("labels", [[-1] * 12, [3] * 12, [2] * 6 + [-1] * 6])
def test_without_two_classes_there_is_no_classmem(labels):
    images = made_up_split(12, 3, 16)
    images.labels[:] = torch.tensor(labels)
    measured = measure(random_units(), images)
    assert np.isnan(measured.classmem).all() and (measured.top_class == -1).all()
    assert not np.isnan(measured.unitmem).any()


def test_a_transformers_unit_is_the_mean_over_all_tokens_of_each_view(monkeypatch):
    """Also if the masks of two recipes show other numbers of patches."""

    class Tokens(HandMade):
        patch = 4

        def pass_once(self, pixels, visible=None):
            n_tokens = 5 if visible is None else 1 + visible.shape[1]
            tokens = pixels[:, 0, 0, :n_tokens, None] * torch.arange(1.0, 4)  # (B, T, 3)
            return self.activation(tokens)

    network = Tokens(None).eval()
    encoder = foreign_encoder("tokens", 0, network=network, size=16, patch=4)
    recipes = [ViewRecipe(size=16), ViewRecipe(size=16, mask_ratio=0.5)]
    images = made_up_split(12, 3, 16)
    measured = measure(encoder, images, recipes=recipes, views=2)
    pixels = whole_images(images, torch.arange(12), 16, encoder.normalization).pixels[:, 0, 0]
    tokens = (pixels[:, :, None] * torch.arange(1.0, 4)).relu()
    expected = (tokens[:, :5].mean(1) + tokens[:, :9].mean(1)) / 2
    assert measured.mean == pytest.approx(expected.double().mean(0).numpy(), abs=1e-6)
    assert measured.maximum == pytest.approx(expected.amax(0).numpy(), abs=1e-6)


# --- what changes nothing -------------------------------------------------------------------------


def assert_alike(one, other):
    """Two UnitMeasurements are equal but for rounding."""
    for name, values in vars(one).items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, getattr(other, name), atol=1e-6, rtol=0)
        else:
            np.testing.assert_array_equal(values, getattr(other, name))


@pytest.mark.parametrize("center", ["mean", "median"])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batch_size_changes_nothing(center, batch_size):
    images, encoder = made_up_split(23, 3, 16), random_units()
    images.labels[:] = torch.arange(23) % 3
    of_seven = measure(encoder, images, recipes=CROPS, center=center)
    other = measure(encoder, images, recipes=CROPS, center=center, batch_size=batch_size)
    assert_alike(of_seven, other)


def test_the_number_of_threads_changes_nothing():
    images, encoder = made_up_split(23, 3, 16), random_units()
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(measure(encoder, images, recipes=CROPS))
    finally:
        torch.set_num_threads(before)
    assert_alike(results[0], results[1])
    assert_alike(results[0], results[2])


@pytest.mark.parametrize("count", [2, 5, 20])
def test_statistics_of_several_processes_merge_to_those_of_one(count):
    """Of 20 some have no image."""
    chance = np.random.default_rng(0)
    activations = chance.integers(0, 5, (17, 6)).astype(np.float32)  # many are equal
    labels, indices = chance.integers(-1, 3, 17), chance.permutation(100)[:17]
    whole, sums = UnitStatistics(6), ClassSums(3, 6)
    whole.add(activations, indices)
    sums.add(activations, labels)
    merged, merged_sums = UnitStatistics(6), ClassSums(3, 6)
    for rank in range(count):
        part, part_sums = UnitStatistics(6), ClassSums(3, 6)
        for row in range(rank, 17, count):
            part.add(activations[row : row + 1], indices[row : row + 1])
            part_sums.add(activations[row : row + 1], labels[row : row + 1])
        merged.merge(part)
        merged_sums.merge(part_sums)
    for name in ("n", "total", "squares", "lowest", "top_values", "top_indices"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
    np.testing.assert_array_equal(merged_sums.means, sums.means)


def test_of_equal_activations_the_image_with_the_lowest_index_comes_first():
    statistics = UnitStatistics(2)
    statistics.add(np.array([[1, 3], [1, 3], [0, 3]], np.float32), np.array([9, 4, 7]))
    statistics.add(np.array([[1, 3], [2, 3], [0, 3]], np.float32), np.array([2, 5, 1]))
    assert statistics.top_indices.T.tolist() == [[5, 2, 4, 9, 1], [1, 2, 4, 5, 7]]
    assert statistics.top_values.T.tolist() == [[2, 1, 1, 1, 0], [3, 3, 3, 3, 3]]


def test_medians_are_read_a_few_units_at_a_time(monkeypatch):
    monkeypatch.setattr(unit_statistics, "MEDIANS_TOGETHER", 25)
    values = np.random.default_rng(0).random((12, 7), dtype=np.float32)
    stored, read = StoredActivations(7), []
    for row in values:
        stored.add(row[None])
    monkeypatch.setattr(stored, "_read", lambda units: read.append(units) or values[:, units])
    stored.median_of_rest(12)
    assert read == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)]
    monkeypatch.undo()
    assert stored.median_of_rest(12).tolist() == median_of_rest(values).tolist()


@pytest.mark.parametrize("values, expected", [
    ([3, 1, 2, 9], 2), ([3, 1, 9], 2), ([5, 5, 1], 3), ([0, 1], 0), ([4, 4, 4, 4], 4),
])  # fmt: skip
def test_the_median_of_the_rest_leaves_one_maximum_out(values, expected):
    assert median_of_rest(np.array(values, np.float32)[:, None]).tolist() == [expected]


@pytest.mark.parametrize("center", ["mean", "median"])
def test_memory_does_not_grow_with_the_number_of_images(center, monkeypatch):
    """Of 4,000 units, 90 more images would be 1.4 MB in float32."""
    units = 4000
    encoder = hand_made(lambda pixels: pixels[:, :1, :1, :1].expand(-1, units, 1, 1))
    kept, peaks, add = {}, {}, UnitStatistics.add
    monkeypatch.setattr(unit_statistics, "MEDIANS_TOGETHER", 2**16)

    def watched_add(statistics, activations, indices):
        add(statistics, activations, indices)
        if statistics.n == count:  # tracemalloc knows arrays, but no tensors
            tensors = [part for part in gc.get_objects() if type(part) is torch.Tensor]
            of_units = sum(part.nbytes for part in tensors if units in part.shape)
            kept[count] = tracemalloc.get_traced_memory()[0] + of_units

    monkeypatch.setattr(UnitStatistics, "add", watched_add)
    for count in (30, 30, 120):  # the first time more is imported
        images = made_up_split(count, 3, 8)
        tracemalloc.start()
        measure(encoder, images, batch_size=10, views=1, center=center)
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert kept[120] < kept[30] + 300_000
    assert peaks[120] < peaks[30] + 300_000


# --- formulas and refusals ------------------------------------------------------------------------


@pytest.mark.parametrize("maximum, rest, minimum, expected", [
    (3, 1, 0, 0.5), (1, 0, 0, 1.0), (2, 2, 2, 0.0), (1, 0.5, -0.1, 1 / 3),
])  # fmt: skip
def test_selectivity_of_units_that_have_one(maximum, rest, minimum, expected):
    values, dead, signed = selectivity(*(np.array([float(x)]) for x in (maximum, rest, minimum)))
    assert values == pytest.approx([expected]) and not dead and not signed


@pytest.mark.parametrize("maximum, rest, minimum, is_dead", [
    (0, 0, 0, True), (0, -1, -2, False), (-1, -1, -1, False), (3, -1, -2, False),
    (1, 0, -1, False), (1, -1, -1, False),
])  # fmt: skip
def test_dead_and_signed_units_have_none_and_nothing_is_divided_by_zero(
    maximum, rest, minimum, is_dead
):
    with np.errstate(all="raise"):
        values, dead, signed = selectivity(
            *(np.array([float(x)]) for x in (maximum, rest, minimum))
        )
    assert np.isnan(values) and dead == is_dead and signed == (not is_dead)


def test_a_unit_that_is_not_finite_is_named():
    def overflow(pixels):
        number, _ = number_and_class(pixels)
        return torch.cat([number, torch.where(number == 25, torch.inf, number)], dim=1)

    with pytest.raises(WrongUse, match="hand-made: unit 1 of layer units is not finite"):
        measure(hand_made(overflow), numbered_images())


def test_images_of_other_channels_are_refused():
    encoder = foreign_encoder("gray", 0, network=random_units().network, channels=1)
    layers = UnitLayers(encoder.network.find_layers(None), [12])
    with pytest.raises(WrongUse, match="gray: takes images of 1 channels, but the images have 3"):
        measure_units(encoder, layers, made_up_split(12, 3, 16), np.arange(12), Viewing(WHOLE))


@pytest.mark.parametrize("size, views, number", [(14, 10, 1), (32, 10, 2), (224, 10, 3), (8, 3, 2)])
def test_a_thread_encodes_all_views_of_a_few_images_at_a_time(size, views, number, monkeypatch):
    monkeypatch.setattr(threads, "count", lambda device: number)
    parts = threads.divide_images(20, views, size**2, torch.device("cpu"))
    assert [index for part in parts for index in range(20)[part]] == list(range(20))
    for part in parts:
        images = len(range(20)[part])
        assert images == 1 or images * views * size**2 <= threads.PIXELS_OF_ALL_VIEWS
    assert len(parts) >= number
