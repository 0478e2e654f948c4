"""The units of every seed: which images they are measured on, their table and its files."""

import io
from dataclasses import dataclass

import numpy as np

from memorization.checkpoint import untrained_encoder
from memorization.data.subsets import first_by_hash
from memorization.errors import WrongUse
from memorization.machine.screen import say
from memorization.measuring.score_tables import csv_of
from memorization.measuring.units import (
    FEWEST,
    UnitLayers,
    find_unit_layers,
    measure_units,
)

# Of every seed: f on images that it was trained on; f on external images; g, and f before its
# training, on the images of f.
MEASURED = ("f", "external", "g", "untrained")
COLUMNS = [
    "layer", "unit", "unitmem", "classmem", "top_index", "top_label", "dead", "seed", "signed",
    "mean", "maximum", "std", "unitmem_external", "top_class",
]  # fmt: skip
# Of units.npz, for each of MEASURED.
ARRAYS = (
    "unitmem", "classmem", "top_class", "dead", "signed", "constant", "mean", "std", "minimum",
    "top_values", "top_indices",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class SeedUnits:
    """The units of one seed.

    indices: (N,) int64, the images that f was trained on; external: (N,) int64, of the test set;
    of: {one of MEASURED: UnitMeasurement}, without g if there is none; layers: the UnitLayers of f.
    """

    seed: int
    indices: np.ndarray
    external: np.ndarray
    of: dict
    layers: UnitLayers

    @property
    def top_counts(self):
        """How many units of f an image fires more than all others do, (N,) int64."""
        f = self.of["f"]
        return np.bincount(
            np.searchsorted(self.indices, f.top_indices[0, f.selects]), minlength=len(self.indices)
        )


def choose_images(subsets, seeds, images):
    """The images to measure: ({seed: (N,) candidates that f was trained on}, (N,) external ones),
    int64, in ascending order.

    images: of the settings. N is less if there are fewer candidates or external images: a maximum
    grows with their number, so that it is the same for both. Raises WrongUse if N is below FEWEST.
    """
    of_f = {}
    for seed in seeds:
        in_f = subsets.signs("candidate", subsets.candidate, seed) > 0
        of_f[seed] = subsets.candidate[in_f]
    counts = {"candidates that f was trained on": min(map(len, of_f.values()))}
    counts["external images"] = len(subsets.external)
    fewest = min(counts, key=counts.get)
    n_images = min(images, counts[fewest])
    if n_images < FEWEST:
        few = f"there are {n_images} {fewest}"
        raise WrongUse(f"units.images: {few}, and the maximum of fewer than {FEWEST} says nothing")
    if n_images < images and fewest == "external images":
        say(f"units: {n_images} candidates alone, as there are {n_images} external images")
    chosen = {seed: first_by_hash(of_f[seed], n_images, "train") for seed in seeds}
    external = first_by_hash(subsets.external, n_images, "test")
    return {seed: np.sort(indices) for seed, indices in chosen.items()}, np.sort(external)


def measure_seed(f, g, images, chosen, viewing, names):
    """The SeedUnits of a seed. f, g: Encoders, g None if there is none; images: Images on the
    device; chosen: the indices of candidates and of external images, two (N,) int64; viewing: a
    Viewing; names: of layers, None for those after a non-linearity.
    """
    indices, external = chosen
    untrained = untrained_encoder(f, viewing.seed)
    measured = {
        "f": (f, images.train, indices),
        "external": (f, images.test, external),
        "g": (g, images.train, indices),
        "untrained": (untrained, images.train, indices),
    }
    of, layers_of_f = {}, None
    for name, (encoder, split, rows) in measured.items():
        if encoder is not None:
            layers = find_unit_layers(encoder, split.device, names)
            layers_of_f = layers_of_f or layers
            of[name] = measure_units(encoder, layers, split, rows, viewing)
    return SeedUnits(viewing.seed, indices, external, of, layers_of_f)


def files_of(seeds, split):
    """{name: bytes} of units.csv and units.npz. seeds: the SeedUnits of each; split: the training
    images.
    """
    tables = [table_of(units, split) for units in seeds]
    table = {name: np.concatenate([part[name] for part in tables]) for name in tables[0]}
    columns = COLUMNS + [name for name in ("top_file",) if name in table]
    arrays = io.BytesIO()
    np.savez(arrays, **arrays_of(seeds))
    return {"units.csv": csv_of(table, columns), "units.npz": arrays.getvalue()}


def table_of(units, split):
    """The rows of units.csv of one seed: {column: (U,) array}. What is not defined is "". units:
    SeedUnits; split: the training images.
    """
    f, external = units.of["f"], units.of["external"]
    layer, unit = units.layers.columns
    top, has_top = f.top_indices[0], ~f.dead & ~f.constant
    labels = split.labels.numpy()[top]
    table = {
        "layer": layer,
        "unit": unit,
        "unitmem": _blank(f.unitmem, ~np.isnan(f.unitmem)),
        "classmem": _blank(f.classmem, ~np.isnan(f.classmem)),
        "top_index": _blank(top, has_top),
        "top_label": _blank(labels, has_top & (labels >= 0)),
        "dead": f.dead.astype(int),
        "seed": np.full(len(unit), units.seed),
        "signed": f.signed.astype(int),
        "mean": f.mean,
        "maximum": f.maximum,
        "std": f.std,
        "unitmem_external": _blank(external.unitmem, ~np.isnan(external.unitmem)),
        "top_class": _blank(f.top_class, f.top_class >= 0),
    }
    if split.names is not None:
        names = np.array([split.names[index] for index in top], dtype=object)
        table["top_file"] = _blank(names, has_top)
    return table


def arrays_of(seeds):
    """{name: array} of units.npz: layer and unit (U,), seed (S,), index and index_external (S, N),
    and for each of MEASURED the arrays of UnitMeasurement, (S, U) or (S, TOP, U), such as
    unitmem_f.
    """
    layer, unit = seeds[0].layers.columns
    arrays = {
        "layer": layer.astype(str),
        "unit": unit,
        "seed": np.array([units.seed for units in seeds]),
        "index": np.stack([units.indices for units in seeds]),
        "index_external": np.stack([units.external for units in seeds]),
    }
    for measured in seeds[0].of:
        for name in ARRAYS:
            of_seeds = [getattr(units.of[measured], name) for units in seeds]
            arrays[f"{name}_{measured}"] = np.stack(of_seeds)
    return arrays


def _blank(values, is_there):
    """Values as objects, with "" for those that are not there. Both: (U,)."""
    values = values.astype(object)
    values[~is_there] = ""
    return values
