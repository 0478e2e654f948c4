"""Pictures of planted images and their scores."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.demands import COLUMNS, values_of
from benchmarks.plants import REPEATED
from memorization.figures import COLORS, picture

KINDS = (
    "S_E", "ordinary", "wrong label", *REPEATED, "in S_S", "twin in S_I", "twin in S_S",
    "twin in S_E", "copy in S_E", "waves", "unseen waves", "waves in S_S", "noise",
    "unseen noise", "noise in S_S",
)  # fmt: skip
NOBODYS = ("S_E", "copy in S_E", "unseen waves", "unseen noise")
BOTHS = ("in S_S", "twin in S_I", "twin in S_S", "waves in S_S", "noise in S_S")
METHODS = {"simclr": "SimCLR", "mae": "MAE"}


@picture
def draw_kinds(tables, path):
    """The scores of every kind of image, a point each, with those between which 95 % of S_E lie."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    for axes, (column, words) in zip(figure.subplots(1, 2, sharey=True), COLUMNS.items()):
        external = 1000 * np.concatenate([values_of(table, column, ("S_E",)) for table in tables])
        axes.axvspan(*np.quantile(external, [0.025, 0.975]), color="#eeeeee")
        axes.axvline(0, color="#999999", linewidth=0.8)
        for height, kind in enumerate(KINDS):
            values = np.concatenate([values_of(table, column, (kind,)) for table in tables])
            shifts = np.random.default_rng(0).uniform(-0.3, 0.3, size=len(values))
            color = COLORS["candidate"]
            if kind in NOBODYS:
                color = COLORS["external"]
            elif kind in BOTHS:
                color = COLORS["independent"]
            axes.plot(1000 * values, height + shifts, ".", color=color, markersize=3, alpha=0.4)
            if len(values):
                axes.plot(2 * [1000 * np.median(values)], [height - 0.4, height + 0.4], "k")
        axes.set(title=f"{words} score x 1000", yticks=range(len(KINDS)), yticklabels=KINDS)
        axes.set_ylim(len(KINDS) - 0.4, -0.6)
    figure.suptitle("in one half (orange), in both (blue), in none (green); 95 % of S_E (gray)")
    return figure


@picture
def draw_power(cells, path):
    """AUC of repeated images against ordinary ones, by the number of seeds; and of waves, which
    have no local score. cells: of `measure_crossovers`.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    colors = matplotlib.colormaps["viridis"](np.linspace(0.85, 0, len(REPEATED)))
    styles = dict(zip(COLUMNS, ("-", "--")))
    for axes, (method, name) in zip(figure.subplots(1, 2, sharey=True), METHODS.items()):
        for column, style in styles.items():
            own = [c for c in cells if (c["method"], c["column"]) == (method, column)]
            seeds = [str(cell["seeds"]) for cell in own]
            for kind, color in zip(REPEATED, colors):
                aucs = [cell["auc"][kind]["mean"] for cell in own]
                label = f"{kind}, {COLUMNS[column]}"
                axes.plot(seeds, aucs, style, color=color, marker="o", label=label)
        own = [c for c in cells if (c["method"], c["column"]) == (method, "score")]
        aucs = [cell["auc"]["waves, against unseen waves"]["mean"] for cell in own]
        seeds, label = [str(cell["seeds"]) for cell in own], "waves, against unseen, raw"
        axes.plot(seeds, aucs, color=COLORS["candidate"], marker="s", label=label)
        axes.axhline(0.5, color="#999999", linewidth=0.8)
        axes.set(title=name, xlabel="seeds of the crossover")
    figure.axes[0].set_ylabel("AUC")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, handlelength=3.5)
    return figure
