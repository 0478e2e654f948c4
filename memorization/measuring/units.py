"""Units: which single images and classes fire the channels of an encoder.

    mu_u(x)    = mean over the views of an image x of the activation of unit u: of a channel, the
                 mean over its map; of a transformer's unit, the mean over all tokens
    UnitMem(u) = (mu_max - mu_rest) / (mu_max + mu_rest)

mu_max is the largest mu_u(x) of N images, mu_rest the mean (or median) of the others. UnitMem is 1
if one image alone fires the unit, 0 if all do alike. ClassMem is the same of the means over the
images of every class, which are seen whole (Localizing Memorization in SSL Vision Encoders,
NeurIPS 2024, arXiv 2409.19069). UnitMem has no reference model, and a maximum grows with N: it
means something beside that of an untrained encoder, and of as many images that f never saw.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from memorization.alignment import widen_half
from memorization.data.augmentations import Draw, augment_all, measuring_recipe, whole_images
from memorization.data.subsets import ROLES
from memorization.errors import WrongUse
from memorization.fields import MOST_VIEWS, Distinct
from memorization.machine import processes, threads
from memorization.measuring.unit_statistics import (
    ClassSums,
    StoredActivations,
    UnitStatistics,
    median_of_rest,
    merge_processes,
)
from memorization.results import MeasurementSettings
from models.layers import choose_layers, watching

FEWEST = 10  # images: the maximum of fewer says nothing
CONSTANT = 1e-6  # share of its maximum by which a unit varies that counts as constant
SHOWN_NAMES = 12  # layers that a message names


class UnitSettings(MeasurementSettings):
    """How units are measured."""

    images: int = Field(
        1000,
        ge=FEWEST,
        le=10**6,
        description="so many candidates that f was trained on, the first by hash, and as many "
        "external images; fewer if there are fewer",
    )
    views: int = Field(
        10, ge=1, le=MOST_VIEWS, description="views of an image, over which activations are means"
    )
    center: Literal["mean", "median"] = Field(
        "mean", description="what the largest activation is compared with, of the other images"
    )
    names: Annotated[list[str], Field(min_length=1), Distinct] | None = Field(
        None, description="layers to measure; null: those that come out of a non-linearity"
    )
    prune: bool = Field(
        False,
        description="probe again with the units of the highest, random and the lowest UnitMem set "
        "to 0",
    )
    prune_share: float = Field(
        0.1, gt=0, lt=1, description="prune: share of the units of every layer"
    )
    prune_draws: int = Field(5, ge=1, le=1000, description="prune: draws of random units")
    batch_size: int = Field(
        64,
        ge=1,
        le=10**6,
        description="images worked on together; numbers do not depend on it, but for rounding",
    )

    SCRIPT = "unit_memorization.py"
    PLAIN = {"center": "mean", "prune": False}
    # views are those of scores; scores are compared, and a pruned encoder is probed
    BUILT_ON = DETERMINED_BY = ("scores", "probe")

    @property
    def roles(self):
        """The roles of the encoders that are needed."""
        return ROLES[:1]

    def determining(self):
        """The names of the settings that determine the numbers of a result."""
        names = ["center", "prune", "images", "views", "names"]
        return names + (["prune_share", "prune_draws"] if self.prune else [])

    def viewing(self, recipes, seed):
        """The Viewing by these settings. recipes: of the views; seed: of the views."""
        return Viewing(recipes, self.views, seed, self.center, self.batch_size)


@dataclass(frozen=True)
class Viewing:
    """How the activations of units are measured: see UnitSettings. recipes: a list of ViewRecipe,
    taken in turn; seed: of the views.
    """

    recipes: list
    views: int = 10
    seed: int = 0
    center: str = "mean"
    batch_size: int = 64

    def views_of(self, encoder, images, indices):
        """The views of a batch of images, a list of View; they are those of scores."""
        recipes = [measuring_recipe(self.recipes, view) for view in range(self.views)]
        draw = Draw(self.seed, "scoring", patch=encoder.patch)
        return augment_all(images, indices, recipes, encoder.normalization, draw)


@dataclass(frozen=True)
class UnitLayers:
    """The measured layers of an encoder. layers: Layers of its network; sizes: units of each, D."""

    layers: list
    sizes: list

    @property
    def names(self):
        return [layer.name for layer in self.layers]

    @property
    def count(self):
        """How many units there are, U."""
        return sum(self.sizes)

    @property
    def columns(self):
        """(names of the layers, numbers within them) of all units, two (U,) arrays."""
        return (
            np.repeat(np.array(self.names, dtype=object), self.sizes),
            np.concatenate([np.arange(size) for size in self.sizes]),
        )

    def split(self, values):
        """{name of a layer: its part of values, (..., D)}. values: (..., U)."""
        parts = np.split(values, np.cumsum(self.sizes)[:-1], axis=-1)
        return dict(zip(self.names, parts))

    def place_of(self, unit):
        """A unit in words. unit: its number among all, of U."""
        names, numbers = self.columns
        return f"unit {numbers[unit]} of layer {names[unit]}"


@dataclass(frozen=True, eq=False)
class UnitMeasurement:
    """The U units of an encoder, layer after layer, over N images; each array (U,) or as noted.

    NaN stands for a UnitMem or ClassMem that is not defined.
    """

    unitmem: np.ndarray  # (mu_max - mu_rest) / (mu_max + mu_rest), in [0, 1]
    classmem: np.ndarray  # the same over classes
    top_class: np.ndarray  # int64, the class with the highest mean, -1 if there are no two classes
    dead: np.ndarray  # bool, 0 for every image
    signed: np.ndarray  # bool, no UnitMem: see `selectivity`
    constant: np.ndarray  # bool, not 0, and the same for every image: UnitMem 0
    mean: np.ndarray  # over the images
    std: np.ndarray  # over the images, n - 1
    minimum: np.ndarray
    top_values: np.ndarray  # (TOP, U), the largest mu_u(x), in descending order
    top_indices: np.ndarray  # (TOP, U) int64, the images that they are of

    @property
    def maximum(self):
        return self.top_values[0]

    @property
    def selects(self):
        """Which units have one image that fires them most, (U,) bool: those that have a UnitMem and
        are not constant.
        """
        return ~np.isnan(self.unitmem) & ~self.constant


def find_unit_layers(encoder, device, names=None):
    """The UnitLayers of an Encoder, which is moved to the device: those that come out of a
    non-linearity, or those with the names.

    Raises WrongUse if it has no such layers.
    """
    network = encoder.to(device).network
    blank = torch.zeros(2, encoder.channels, encoder.size, encoder.size, device=device)
    find = getattr(network, "find_layers", None)
    layers = find(blank) if find else []
    if not layers:
        raise WrongUse(f"units: {encoder.name}: its network has no layers that can be measured")
    if names is None:
        chosen = [layer for layer in layers if layer.activates]
        if not chosen:
            known = [layer.name for layer in layers]
            few = ", ".join(known[:SHOWN_NAMES]) + (", ..." if len(known) > SHOWN_NAMES else "")
            missing = f"{encoder.name} has no non-linearity that is known"
            raise WrongUse(f"units.names: null: {missing}; name some of its layers: {few}")
    else:
        try:
            chosen = choose_layers(layers, names, "units.names")
        except ValueError as error:
            raise WrongUse(str(error)) from None
    sizes = {}

    def note_size(layer, output):
        sizes[layer] = output.shape[2]

    with torch.inference_mode(), watching(network, chosen) as watch:
        watch(blank, None, note_size)
    return UnitLayers(chosen, [sizes[layer] for layer in chosen])


def measure_units(encoder, unit_layers, images, indices, viewing):
    """The UnitMeasurement of an encoder over some images.

    unit_layers: of its network; images: a Split; the encoder is moved to its device. indices: (N,)
    int64, which of the images, N >= 2; viewing: a Viewing. Memory does not grow with N. Raises
    WrongUse if the encoder takes other images, or if an activation is not finite.
    """
    _check_channels(encoder, images)
    encoder, n_units = encoder.to(images.device), unit_layers.count
    labels = images.labels.numpy()
    statistics = UnitStatistics(n_units)
    classes = ClassSums(int(labels[indices].max()) + 1, n_units)
    stored = StoredActivations(n_units) if viewing.center == "median" else None

    with watching(encoder.network, unit_layers.layers) as watch:

        @torch.inference_mode()
        def measure(batch):
            def activations_of(views):
                activations = mean_activations(watch, unit_layers.layers, views).cpu().numpy()
                _check_finite(activations, encoder, unit_layers)
                return activations

            activations = activations_of(viewing.views_of(encoder, images, batch))
            statistics.add(activations, batch.numpy())
            if stored is not None:
                stored.add(activations)
            whole = whole_images(images, batch, encoder.size, encoder.normalization)
            classes.add(activations_of([whole]), labels[batch.numpy()])

        batches = torch.as_tensor(indices).split(viewing.batch_size)
        processes.map_in_processes(measure, batches, f"units of {encoder.name}")
    statistics = merge_processes(statistics, "units")
    rest = statistics.mean_of_rest if stored is None else stored.median_of_rest(statistics.n)
    return _summarize(statistics, rest, merge_processes(classes, "classes"), viewing.center)


def mean_activations(watch, layers, views):
    """The mean activation of every unit over the views and the positions of each image, (B, U)
    float32 on the device.

    watch: of `watching` these layers; views: a list of View of the same images, of one size.
    """
    B, _, height, width = views[0].pixels.shape
    device = views[0].pixels.device
    # Views whose masks show other numbers of patches go through the network by themselves.
    groups = {}
    for view in views:
        n_visible = None if view.visible is None else view.visible.shape[1]
        groups.setdefault(n_visible, []).append(view)

    def encode(part):
        sums = {}

        def add_means(layer, output):
            # (V B, T, D) -> (V B, D) -> (V, B, D)
            means = widen_half(output).mean(1).float().unflatten(0, (-1, len(range(B)[part])))
            sums[layer] = sums.get(layer, 0) + means.sum(0)

        for group in groups.values():
            pixels = torch.cat([view.pixels[part] for view in group])
            visible = None
            if group[0].visible is not None:
                visible = torch.cat([view.visible[part] for view in group])
            watch(pixels, visible, add_means)
        return torch.cat([sums[layer] for layer in layers], dim=1) / len(views)

    parts = threads.divide_images(B, len(views), height * width, device)
    return torch.cat(threads.map_in_threads(encode, parts, device))


def selectivity(maximum, rest, minimum):
    """(maximum - rest) / (maximum + rest) of units, (U,), and which of them are dead and which
    signed, bool.

    maximum, rest, minimum: (U,) float64, of what is compared, images or classes; rest: the mean or
    median of all but the maximum. Dead units are 0 everywhere. Signed units are negative
    somewhere, and their maximum or rest is not positive. Both have NaN, as the quotient means
    nothing.
    """
    dead = (maximum == 0) & (minimum == 0)
    signed = ~dead & ((maximum <= 0) | ((rest <= 0) & (minimum < 0)))
    values = np.full(len(maximum), np.nan)
    is_defined = ~dead & ~signed
    of_max, of_rest = maximum[is_defined], rest[is_defined]
    values[is_defined] = (of_max - of_rest) / (of_max + of_rest)
    return values, dead, signed


def _summarize(statistics, rest, classes, center):
    """The UnitMeasurement of merged UnitStatistics and ClassSums. rest: (U,), of UnitMem."""
    maximum, minimum = statistics.highest, statistics.lowest
    unitmem, dead, signed = selectivity(maximum, rest, minimum)
    constant = ~dead & ~signed & (maximum - minimum <= CONSTANT * maximum)
    unitmem[constant] = 0.0
    classmem, top_class = np.full(len(maximum), np.nan), np.full(len(maximum), -1)
    if len(classes.labels) > 1:
        classmem, top_class = _class_selectivity(classes, center)
    return UnitMeasurement(
        unitmem=unitmem,
        classmem=classmem,
        top_class=top_class,
        dead=dead,
        signed=signed,
        constant=constant,
        mean=statistics.mean,
        std=statistics.std,
        minimum=minimum,
        top_values=statistics.top_values,
        top_indices=statistics.top_indices,
    )


def _class_selectivity(classes, center):
    """(ClassMem, label of the class with the highest mean) of every unit, two (U,) arrays."""
    means = classes.means  # (C, U)
    highest, lowest = means.max(0), means.min(0)
    rest = (means.sum(0) - highest) / (len(means) - 1)
    if center == "median":
        rest = median_of_rest(means)
    return selectivity(highest, rest, lowest)[0], classes.labels[means.argmax(0)]


def _check_channels(encoder, images):
    channels = images.pixels.shape[1]
    if encoder.channels != channels:
        both = f"{encoder.channels} channels, but the images have {channels}"
        raise WrongUse(f"{encoder.name}: takes images of {both}")


def _check_finite(activations, encoder, unit_layers):
    """Raise WrongUse if an activation is NaN or infinite. activations: (B, U)."""
    broken = np.flatnonzero(~np.isfinite(activations).all(0))
    if len(broken):
        raise WrongUse(f"{encoder.name}: {unit_layers.place_of(broken[0])} is not finite")
