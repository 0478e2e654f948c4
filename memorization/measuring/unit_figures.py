"""The pictures of units."""

import math

import numpy as np
import torch

from memorization.figures import (
    COLORS,
    GRAY,
    LEGEND,
    drawable,
    drawable_end,
    picture,
    subplots,
)

UNIT_COLORS = {
    "f": COLORS["candidate"],
    "external": COLORS["external"],
    "g": COLORS["independent"],
    "untrained": "black",
}
LABELS = {
    "f": "f, images that it was trained on",
    "external": "f, external images",
    "g": "g, images of f",
    "untrained": "untrained, images of f",
}
OUTLINED = ("external", "untrained")  # in histograms, beside f
PANEL_COLUMNS = 5  # of histograms
BINS = np.linspace(0, 1, 26)
GALLERY_ROWS = 12
LONGEST = 22  # characters of a layer's name


@picture
def draw_histograms(seeds, path):
    """UnitMem of the units of all seeds, a panel a layer: of f, and the outlines of f on external
    images and of an untrained encoder. seeds: the SeedUnits of each.
    """
    names = seeds[0].layers.names
    columns = min(PANEL_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    size = max(5.5, 2.2 * columns), 1.5 * rows + 1.3
    options = {"squeeze": False, "sharex": True, "layout": "constrained"}
    figure, all_axes = subplots(rows, columns, figsize=size, **options)
    panels = list(all_axes.flat)
    of = {name: _unitmem_of_layers(seeds, name) for name in ("f", *OUTLINED)}
    for axes, layer in zip(panels, names):
        _draw_panel(axes, {name: values[layer] for name, values in of.items()})
        axes.set_title(drawable_end(layer, LONGEST), fontsize=8, parse_math=False)
    for axes in panels[len(names) :]:
        axes.axis("off")
    for place in range(len(names) - columns, len(names)):  # the lowest panel of each column
        panels[place].tick_params(labelbottom=True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), **LEGEND)
    figure.supxlabel(f"UnitMem over {len(seeds[0].indices)} images", fontsize=9)
    figure.supylabel("share of units", fontsize=9)
    return figure


def _unitmem_of_layers(seeds, name):
    """{layer: UnitMem of the units of all seeds that have one}."""
    parts = [units.layers.split(units.of[name].unitmem) for units in seeds]
    together = {layer: np.concatenate([part[layer] for part in parts]) for layer in parts[0]}
    return {layer: values[~np.isnan(values)] for layer, values in together.items()}


def _draw_panel(axes, of):
    """Histograms of one layer. of: {one of MEASURED: its UnitMem}."""
    for name, values in of.items():
        options = {"bins": BINS, "weights": np.full(len(values), 1 / max(1, len(values)))}
        options |= {"color": UNIT_COLORS[name], "label": LABELS[name]}
        if name == "f":
            axes.hist(values, histtype="stepfilled", alpha=0.35, **options)
        else:
            style = "-" if name == "external" else "--"
            axes.hist(values, histtype="step", linewidth=1.2, linestyle=style, **options)
        if len(values):
            axes.axvline(values.mean(), color=UNIT_COLORS[name], linewidth=0.8, linestyle=":")
    if not len(of["f"]):
        axes.text(0.5, 0.5, "no unit has a UnitMem", ha="center", fontsize=7, color=GRAY)
    axes.set(xlim=(0, 1))
    axes.tick_params(labelsize=7)


@picture
def draw_unit_scatter(seeds, path):
    """UnitMem against ClassMem, a point a unit of all seeds, coloured by the depth of its layer: of
    f, and beside it of an untrained encoder. seeds: the SeedUnits of each, with ClassMem.
    """
    figure, panels = subplots(1, 2, figsize=(10, 5), sharey=True, layout="constrained")
    n_layers = len(seeds[0].layers.names)
    depth = np.repeat(np.arange(n_layers), seeds[0].layers.sizes)
    for axes, name in zip(panels, ("f", "untrained")):
        both = [(units.of[name].classmem, units.of[name].unitmem) for units in seeds]
        classmem, unitmem = (np.concatenate(values) for values in zip(*both))
        is_known = ~np.isnan(classmem) & ~np.isnan(unitmem)
        colors = np.tile(depth, len(seeds))[is_known]
        n_points = is_known.sum()
        options = {"s": 10 if n_points < 3000 else 3, "linewidths": 0, "alpha": 0.6}
        options |= {"cmap": "viridis", "vmin": 0, "vmax": max(1, n_layers - 1), "rasterized": True}
        drawn = axes.scatter(classmem[is_known], unitmem[is_known], c=colors, **options)
        axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
        above = (unitmem > classmem)[is_known].mean() if n_points else float("nan")
        axes.set_title(f"{LABELS[name]}\n{above:.0%} of {n_points} units above", fontsize=9)
        axes.set(xlabel="ClassMem", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    panels[0].set_ylabel("UnitMem")
    bar = figure.colorbar(drawn, ax=panels, shrink=0.8)
    bar.set_label("layer, from the input to the output")
    places = np.unique(np.linspace(0, n_layers - 1, min(n_layers, 8)).round().astype(int))
    names = [drawable_end(seeds[0].layers.names[place], LONGEST) for place in places]
    bar.set_ticks(places, labels=names, parse_math=False, fontsize=7)
    return figure


@picture
def draw_unit_gallery(units, images, path):
    """The units of f with the highest UnitMem, spread over its layers, a row each: the images that
    fire it most, with the activation of each. units: SeedUnits; images: the Images.
    """
    f, (layer, number) = units.of["f"], units.layers.columns
    rows = most_selective(units, GALLERY_ROWS)
    columns = len(f.top_values)
    size = 1.25 * columns + 1.8, 1.5 * max(1, len(rows)) + 0.6
    options = {"squeeze": False, "layout": "constrained"}
    figure, all_axes = subplots(max(1, len(rows)), columns, figsize=size, **options)
    if not rows:
        for axes in all_axes.flat:
            axes.axis("off")
        figure.supxlabel("no unit has a UnitMem", color=GRAY)
    for axes_row, unit in zip(all_axes, rows):
        name = drawable_end(layer[unit], LONGEST)
        classmem = "" if np.isnan(f.classmem[unit]) else f"\nClassMem {f.classmem[unit]:.2f}"
        text = f"{name}\nunit {number[unit]}\nUnitMem {f.unitmem[unit]:.2f}{classmem}"
        place = {"ha": "right", "va": "center", "fontsize": 8, "parse_math": False}
        axes_row[0].text(-0.15, 0.5, text, transform=axes_row[0].transAxes, **place)
        for axes, index, value in zip(axes_row, f.top_indices[:, unit], f.top_values[:, unit]):
            if value > 0:
                _draw_image(axes, images, index, value)
            else:
                axes.axis("off")  # no more images fire it
    title = f"Units with the highest UnitMem of every layer (f of seed {units.seed})"
    figure.suptitle(
        f"{title}\nand the images that fire them most, with the activation", fontsize=10
    )
    return figure


def most_selective(units, most):
    """The units of f with the highest UnitMem, at most so many, spread evenly over the layers, from
    the input to the output; numbers among all units. units: SeedUnits.
    """
    f, starts = units.of["f"], np.cumsum([0, *units.layers.sizes])
    of_layers = {}
    for place, values in enumerate(units.layers.split(np.where(f.selects, f.unitmem, -1)).values()):
        ranked = np.argsort(-values, kind="stable")
        of_layers[place] = starts[place] + ranked[values[ranked] >= 0]
    places = [place for place, ranked in of_layers.items() if len(ranked)]
    if not places:
        return []
    chosen = np.unique(np.linspace(0, len(places) - 1, min(len(places), most)).round().astype(int))
    of_each = max(1, most // len(chosen))
    return [unit for place in chosen for unit in of_layers[places[place]][:of_each].tolist()]


def _draw_image(axes, images, index, value):
    """An image of the training set, with an activation, its class, and its file or index."""
    pixels = images.train.gather(torch.tensor([index]))[0].cpu().numpy()
    axes.imshow(pixels.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
    label = images.train.labels[index]
    lines = [f"{value:.3g}"]
    if images.classes:
        lines.append(drawable(images.classes[label] if label >= 0 else "no label"))
    names = images.train.names
    lines.append(f"index {index}" if names is None else drawable_end(names[index]))
    axes.set_title("\n".join(lines), fontsize=7, parse_math=False)
    axes.set(xticks=[], yticks=[])
