"""The pictures of a comparison of runs."""

import numpy as np
import torch

from memorization.figures import COLORS, GRAY, LEGEND, POINTS, drawable, picture, subplots
from memorization.measuring.comparison import bands_of

# Okabe and Ito's colours, and brown; of more runs, the line's style differs.
RUN_COLORS = [
    "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8B5A2B",
]  # fmt: skip
STYLES = ["-", "--", ":", "-."]
MARKS = "osD^vPX<"
PANELS = {"tau": "Kendall's tau", "overlap": "first tenth in common"}
SUBSETS = {"": "candidates", "external_": "$S_E$, not memorized"}
SHOWN = 6  # images of a band
DARK = 0.55  # share of the scale, below which letters are white
LONGEST = 22  # characters of a run's name


@picture
def draw_heatmap(summary, path):
    """How well rankings agree, every run against every run: of halves of the seeds, the ceilings on
    the diagonal; of candidates above, and of S_E below. summary: a ComparisonSummary.
    """
    names = [run["run"] for run in summary.runs]
    side = max(3.5, 1.5 + 0.55 * len(names))
    size = 2 * side, 2 * side + 1.2
    figure, panels = subplots(2, 2, figsize=size, layout="constrained")
    for column, (key, words) in enumerate(PANELS.items()):
        tables = [_table(summary, names, f"{prefix}halves_{key}") for prefix in SUBSETS]
        chance = summary.chance[key]
        known = np.concatenate([table[~np.isnan(table)] for table in tables])
        highest = max(chance + 0.1, known.max()) if len(known) else 1.0
        for axes, table, subset in zip(panels[:, column], tables, SUBSETS.values()):
            image = _draw_table(axes, table, names, (chance, highest))
            axes.set_title(f"{words}\n{subset}", fontsize=10)
        bar = figure.colorbar(image, ax=panels[:, column], location="bottom", shrink=0.8)
        bar.set_label(f"{words} ({chance:.2f} by chance)")
    figure.suptitle(_title(summary), fontsize=11, parse_math=False)
    return figure


def _title(summary):
    size = summary.seeds_of_a_half
    if size is None:
        return f"Rankings by {summary.column}: one seed of a run against another seed of another"
    seeds, others = f"means over {size} seeds", f"those over {size} other seeds"
    if size == 1:
        seeds, others = "one seed", "another seed"
    first = f"Rankings by {summary.column}: {seeds} of a run against {others} of another run"
    return f"{first}\nframed: the ceiling, two halves of the same run"


def _table(summary, names, key):
    """(R, R) values of a column of comparison.csv, NaN where there is none."""
    table = np.full((len(names), len(names)), np.nan)
    for row in summary.agreement:
        a, b = names.index(row["run_a"]), names.index(row["run_b"])
        table[a, b] = table[b, a] = np.nan if row[key] is None else row[key]
    return table


def _draw_table(axes, table, names, limits):
    """A table of numbers as an image with the numbers in it. limits: of the colours."""
    from matplotlib.patches import Rectangle

    low, high = limits
    axes.set_facecolor("#DDDDDD")  # of cells without a number
    image = axes.imshow(table, cmap="cividis", vmin=low, vmax=high)
    for (row, column), value in np.ndenumerate(table):
        is_dark = value < low + DARK * (high - low)
        color = "black" if np.isnan(value) or not is_dark else "white"
        text = "–" if np.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
        if row == column:
            frame = {"fill": False, "edgecolor": COLORS["candidate"], "linewidth": 2}
            axes.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, **frame))
    labels = [drawable(name, LONGEST) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(names)), labels, parse_math=False)
    axes.tick_params(labelsize=8)
    return image


@picture
def draw_thresholds(rows, column, path):
    """Share of candidates above a threshold, a line a run, each with a mark at the 95th percentile
    of S_E. rows: of thresholds.csv; column: the score.
    """
    figure, axes = subplots(figsize=(8, 5))
    for number, name in enumerate(dict.fromkeys(row["run"] for row in rows)):
        of_run = [row for row in rows if row["run"] == name]
        grid = [row for row in of_run if not row["mark"]]
        (mark,) = (row for row in of_run if row["mark"])
        color, style, marker = _style(number)
        above = 100 * mark["candidates_above"]
        label = f"{drawable(name, LONGEST)}: {above:.0f} %".replace("$", r"\$")
        percent = [100 * row["candidates_above"] for row in grid]
        line = {"color": color, "linestyle": style}
        axes.plot([row["threshold"] for row in grid], percent, **line)
        point = {"marker": marker, "markersize": 7, "markeredgecolor": "white"}
        axes.plot([mark["threshold"]], [above], label=label, **line, **point)
    axes.axhline(5, color=GRAY, linewidth=0.8, label="5 %: $S_E$ above its own mark")
    axes.set(
        title="Candidates above a threshold; mark: the 95th percentile of $S_E$",
        xlabel=f"threshold of {column} / (max - min of the run)",
        ylabel="candidates above it, %",
        ylim=(0, 102),
    )
    axes.legend(**LEGEND)
    return figure


def _style(number):
    """(colour, style of a line, marker) of a run."""
    color = RUN_COLORS[number % len(RUN_COLORS)]
    style = STYLES[number // len(RUN_COLORS) % len(STYLES)]
    return color, style, MARKS[number % len(MARKS)]


@picture
def draw_strips(strips, images, column, path):
    """Images by bands of their scores, a line of them a run.

    strips: {run: (indices of the ranked candidates, their scores)}, (N,) each; images: the Images
    that the indices are of; column: the score.
    """
    of_runs = {name: (index, bands_of(scores, SHOWN)) for name, (index, scores) in strips.items()}
    bands = list(next(iter(of_runs.values()))[1])
    n_images = len(next(iter(of_runs.values()))[1][bands[0]])
    size = 0.45 * n_images * len(bands) + 1.5, 0.5 * len(strips) + 0.7
    figure, panels = subplots(
        len(strips), len(bands), figsize=size, squeeze=False, layout="constrained"
    )
    figure.get_layout_engine().set(h_pad=0.02, w_pad=0.06, hspace=0, wspace=0)
    for line, (name, (index, places)) in zip(panels, of_runs.items()):
        for axes, band in zip(line, bands):
            axes.imshow(_strip(images.train, index[places[band]]), vmin=0, vmax=255, cmap="gray")
            axes.set(xticks=[], yticks=[], frame_on=False)
        label = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 9}
        line[0].set_ylabel(drawable(name, LONGEST), parse_math=False, **label)
    for axes, band in zip(panels[0], bands):
        axes.set_title(band, fontsize=9)
    title = f"Candidates by {column}, from high to low in each band"
    figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


def _strip(split, indices):
    """Images beside each other with gaps, (H, W, C) uint8."""
    pixels = split.gather(torch.from_numpy(indices)).cpu().numpy().transpose(0, 2, 3, 1)
    gap = max(1, pixels.shape[1] // 14)
    padded = np.pad(pixels, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate(padded, axis=1)[:, :-gap]


@picture
def draw_accuracy(runs, dataset, path):
    """Accuracy of linear probes on f against the effect of memorization, a point a run, in the
    colours of `draw_thresholds`.

    runs: rows of runs.csv, not drawn without an accuracy; dataset: the probed one's name.
    """
    figure, axes = subplots(figsize=(7, 5))
    for number, run in enumerate(runs):
        if run["accuracy"] is None:
            continue
        color, _, marker = _style(number)
        errors = [run["d_of_one_seed_std"] or 0, 100 * (run["accuracy_std"] or 0)]
        style = POINTS | {"color": color, "marker": marker, "markersize": 7, "linewidth": 1}
        place = run["d_of_one_seed"], 100 * run["accuracy"]
        label = drawable(run["run"], LONGEST).replace("$", r"\$")
        axes.errorbar(*place, xerr=errors[0], yerr=errors[1], label=label, **style)
    axes.set(
        title="Accuracy and memorization (error bars: standard deviation over seeds)",
        xlabel="d of one seed: (mean score of candidates - that of $S_E$) / pooled deviation",
        ylabel=f"top-1 accuracy of linear probes on f, {dataset}, %",
    )
    axes.margins(0.2)
    axes.legend(**LEGEND)
    return figure
