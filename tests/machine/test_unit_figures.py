"""The pictures of units: of few and of many layers, and whatever the layers are called."""

import warnings

import numpy as np
import pytest
from conftest import fake_images
from matplotlib.figure import Figure
from test_figures import HOSTILE_NAMES

from memorization.measuring.unit_figures import (
    draw_histograms,
    draw_unit_gallery,
    draw_unit_scatter,
    most_selective,
)
from memorization.measuring.unit_statistics import TOP
from memorization.measuring.unit_tables import SeedUnits
from memorization.measuring.units import UnitLayers, UnitMeasurement
from models.layers import Layer


def made_up(n_units, seed=0):
    """A UnitMeasurement of random numbers over the images 0 to 39."""
    chance = np.random.default_rng(seed)
    of_units = {name: chance.random(n_units) for name in ("unitmem", "classmem", "mean", "std")}
    flags = {name: np.zeros(n_units, dtype=bool) for name in ("dead", "signed", "constant")}
    return UnitMeasurement(
        **of_units,
        **flags,
        minimum=np.zeros(n_units),
        top_class=np.zeros(n_units, dtype=np.int64),
        top_values=-np.sort(-chance.random((TOP, n_units)), axis=0),
        top_indices=chance.integers(0, 40, (TOP, n_units)),
    )


def seed_units(names, size=6, seed=0):
    """SeedUnits of layers of these names, `size` units each."""
    layers = UnitLayers([Layer(name, None) for name in names], [size] * len(names))
    names = ("f", "external", "g", "untrained")
    of = {name: made_up(layers.count, number) for number, name in enumerate(names)}
    return SeedUnits(seed, np.arange(40), np.arange(40), of, layers)


def draw_all(seeds, folder):
    draw_histograms(seeds, folder / "units.png")
    draw_unit_scatter(seeds, folder / "scatter.png")
    draw_unit_gallery(seeds[0], fake_images(), folder / "gallery.png")


@pytest.mark.parametrize("n_layers", [1, 2, 5, 20, 60])
def test_pictures_of_few_and_of_many_layers_are_drawn(n_layers, tmp_path, monkeypatch):
    sizes = []

    def watched_save(figure, *_, **__):
        sizes.append(figure.get_size_inches())

    monkeypatch.setattr(Figure, "savefig", watched_save)
    names = [f"layer{number}.0.relu" for number in range(n_layers)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_all([seed_units(names, seed=seed) for seed in (0, 1)], tmp_path)
    assert len(sizes) == 3 and all(max(size) < 25 for size in sizes)


def test_whatever_layers_are_called_they_are_drawn(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_all([seed_units(HOSTILE_NAMES)], tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_layers_without_a_unit_that_has_a_unitmem_are_drawn_empty(tmp_path):
    units = seed_units(["conv1", "relu"])
    units.of["f"].unitmem[:] = np.nan
    assert most_selective(units, 12) == []
    units.of["external"].classmem[:] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_all([units], tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("n_layers, most, per_layer", [(3, 12, 4), (5, 12, 2), (20, 12, 1)])
def test_the_most_selective_units_are_spread_over_the_layers(n_layers, most, per_layer):
    units = seed_units([f"layer{number}" for number in range(n_layers)])
    f = units.of["f"]
    f.constant[0], f.unitmem[0] = True, 0  # fires for all images alike
    f.unitmem[1] = np.nan
    chosen = most_selective(units, most)
    layers = [unit // 6 for unit in chosen]
    assert layers == sorted(layers) and layers[0] == 0 and layers[-1] == n_layers - 1
    assert len(chosen) == per_layer * min(n_layers, most)
    for layer in set(layers):
        of_layer = np.where(f.selects, f.unitmem, -1)[6 * layer : 6 * layer + 6]
        best = (6 * layer + np.argsort(-of_layer)[:per_layer]).tolist()
        assert [unit for unit in chosen if unit // 6 == layer] == best
