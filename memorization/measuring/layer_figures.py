"""Pictures of memorization by layer."""

import numpy as np

from memorization.figures import COLORS, LEGEND, NAMES, POOL, drawable, picture, subplots
from memorization.measuring.layer_summary import FREE_OF_OFFSET, find_blocks

MOST_NAMED = 80  # layers with a name below the axis; of more, every second or so
LONGEST = 36  # characters of a layer's name
EXTREMES = {
    "most": ("#D55E00", "most memorized tenth"),
    "least": ("#E69F00", "least memorized tenth"),
}
DRAWN = ("candidate", "most", "least", "external", "shared", "independent")
PARTS = {"perceptron": ("^", "perceptrons"), "attention": ("s", "attentions")}


@picture
def draw_layers(summary, path):
    """LayerMem of each subset over the layers, with bands of 95 % intervals over images; dots of a
    transformer's attentions and perceptrons. summary: a LayersSummary.
    """
    figure, axes = subplots(figsize=(_width(len(summary.layers)), 5), layout="constrained")
    places, names = range(len(summary.layers)), _names_of(summary)
    shown = [name for name in DRAWN if name in summary.subsets]
    for order, name in zip(range(len(shown), 0, -1), shown):  # the first lies on top
        values = summary.subsets[name]
        if name in EXTREMES:
            color, label = EXTREMES[name]
            style = {"linewidth": 0.8, "linestyle": "--"}
        else:
            color, label, style = COLORS[name], names[name], {"linewidth": 1.8}
            axes.fill_between(
                places, values["low"], values["high"], color=color, alpha=0.2, linewidth=0
            )
        label = f"{label}: n = {values['n']}"
        axes.plot(places, values["layermem"], color=color, label=label, zorder=2 + order, **style)
    layermem = np.array(summary.subsets["candidate"]["layermem"])
    blocks = find_blocks(summary.layers, summary.depths)
    for part, (marker, label) in PARTS.items() if blocks else ():
        at = [block[part] for block in blocks]
        style = {"color": COLORS["candidate"], "linestyle": "none", "markersize": 5, "zorder": 9}
        axes.plot(at, layermem[at], marker=marker, markeredgecolor="black", label=label, **style)
    axes.axhline(0, color="black", linewidth=0.8)
    title = "Where the encoder memorizes: LayerMem by layer (bands: 95 % intervals over images)"
    axes.set(title=title, ylabel=r"mean of $(L_g - L_f)\,/\,(L_g + L_f)$")
    _name_layers(axes, summary.layers)
    axes.legend(**LEGEND)
    return figure


@picture
def draw_heatmap(table, path):
    """The ratio of each candidate at each layer, the images sorted by the last layer. table: a
    LayerTable.
    """
    ratios = table.ratios[table.members["candidate"]]
    ratios = ratios[np.argsort(-ratios[:, -1], kind="stable")]
    figure, axes = subplots(figsize=(_width(len(table.names)), 6), layout="constrained")
    most = np.quantile(np.abs(ratios), 0.99) or 1.0
    style = {"cmap": "PuOr_r", "vmin": -most, "vmax": most, "aspect": "auto"}
    shown = axes.imshow(ratios, interpolation="nearest", **style)
    label = r"$(L_g - L_f)\,/\,(L_g + L_f)$, mean over seeds"
    figure.colorbar(shown, ax=axes, label=label, extend="both")
    axes.set(title="How much each candidate is memorized, layer by layer")
    axes.set_ylabel("candidates, sorted by the last layer")
    _name_layers(axes, table.names)
    return figure


@picture
def draw_layers_over_training(summaries, path):
    """LayerMem of candidates less that of external images over the layers, a line for each
    checkpoint. summaries: LayersSummaries in order of their epochs.
    """
    from matplotlib import colormaps

    layers = summaries[-1].layers
    figure, axes = subplots(figsize=(_width(len(layers)), 5), layout="constrained")
    colors = colormaps["viridis_r"](np.linspace(0.1, 1, len(summaries)))
    for summary, color in zip(summaries, colors):
        free, epoch = summary.free_of_the_offset, summary.checkpoint.epoch
        style = {"color": color, "marker": "o", "markersize": 3, "linewidth": 1.5}
        axes.plot(range(len(layers)), free["value"], label=f"epoch {epoch}", **style)
    low, high = free["low"], free["high"]
    axes.fill_between(range(len(layers)), low, high, color=colors[-1], alpha=0.2, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.8)
    title = "Where memorization grows in training (band: 95 % interval over images)"
    axes.set(title=title, ylabel=f"LayerMem: {FREE_OF_OFFSET}")
    _name_layers(axes, layers)
    axes.legend(ncols=1 + len(summaries) // 12, **LEGEND)
    return figure


def _names_of(summary):
    """{subset: its name in a picture}. A crossover's candidates are its pool."""
    return NAMES if "independent" in summary.subsets else NAMES | {"candidate": POOL}


def _width(n_layers):
    """The width of a picture with so many layers, in inches."""
    return min(16, max(7.5, 2.5 + 0.17 * n_layers))


def _name_layers(axes, names):
    """Write the names of the layers below the axis."""
    step = -(-len(names) // MOST_NAMED)
    shown = [drawable(name, LONGEST) for name in names[::step]]
    axes.set_xticks(range(0, len(names), step), shown, rotation=90, fontsize=7, parse_math=False)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xlabel("layer, from input to output")
