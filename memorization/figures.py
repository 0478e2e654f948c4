"""Pictures. None depends on the user's settings of matplotlib, and one that cannot be drawn does
not end the work.
"""

import functools
import io
import os
import textwrap
import warnings
from contextlib import contextmanager

import numpy as np
import torch

from memorization.data.subsets import SUBSETS
from memorization.errors import UNPRINTED
from memorization.machine.files import write_atomically
from memorization.machine.processes import on_first_process
from memorization.machine.screen import caution, percent

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLORS = {
    "shared": "#999999",
    "candidate": "#D55E00",
    "independent": "#0072B2",
    "external": "#009E73",
}
NAMES = {
    "shared": "shared $S_S$",
    "candidate": "candidate $S_C$",
    "independent": "independent $S_I$",
    "external": "external $S_E$",
}
POOL = "pool: candidates"  # of a crossover, in place of candidate and independent images
POLICY_COLORS = {
    "memorized": "#D55E00",
    "least": "#0072B2",
    "random": "#999999",
    "random_matched": "#009E73",
    "typical": "#CC79A7",
}
LEGEND = {"fontsize": 8, "framealpha": 0.9, "edgecolor": "none"}
POINTS = {"marker": "o", "markersize": 4, "capsize": 3}
SCORE = "memorization score  $m(x) = L_{align}(g, x) - L_{align}(f, x)$"
SCORE_OF_POOL = "memorization score  $m(x)$: $L_{align}$ without $x$ less $L_{align}$ with $x$"
LOSS_F = "$L_{align}(f, x)$ of the candidate encoder  (L2 distance)"
LOSS_G = "$L_{align}(g, x)$ of the independent encoder  (L2 distance)"
LOSS_WITH = "$L_{align}$ of the encoder with the image  (L2 distance)"
LOSS_WITHOUT = "$L_{align}$ of the encoder without the image  (L2 distance)"
GALLERY_COLUMNS, GALLERY_ROWS = 8, 2
SCORES = {"score": "scores", "score_local": "local scores"}  # in titles
Q_LEVEL = 0.1  # candidates with a smaller q stand out in the gallery
GRAY = "#767676"
LETTERS_AN_INCH = 12  # of a title, about
APART = 1.015  # factor between the same counts of two policies
LONGEST_NAME = 16  # characters above a small picture
LONGEST_FILE = 20  # characters of the end of a path


def picture(draw):
    """Decorate draw(..., path), which returns a figure, to write it to path as a PNG file.

    A picture that cannot be drawn is left out with a Caution, as the numbers do not depend on it.
    Raises WrongUse if the file cannot be written.
    """

    @functools.wraps(draw)
    @on_first_process
    def draw_and_write(*arguments):
        path = arguments[-1]
        try:
            with _fixed_settings():
                content = io.BytesIO()
                draw(*arguments).savefig(content, format="png", dpi=150, bbox_inches="tight")
        except Exception as error:  # matplotlib raises any kind, for fonts, texts or its own cache
            fault = f"{type(error).__name__}: {error}"
            caution(f"{path}: this picture cannot be drawn ({fault}); the work goes on without it")
            return
        write_atomically(path, content.getvalue())

    return draw_and_write


@contextmanager
def _fixed_settings():
    """Draw with matplotlib's own settings, whatever the user's files and variables say."""
    # matplotlib cannot be imported with a name that it does not know
    os.environ["MPLBACKEND"] = "Agg"
    import matplotlib

    default = matplotlib.rcParamsDefault
    settings = {name: default[name] for name in default if not name.startswith("backend")}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a box is drawn
        yield


def subplots(rows=1, columns=1, figsize=None, layout=None, **options):
    """A figure and its axes, as of matplotlib.pyplot.subplots, without its search for a display."""
    figure = _figure(figsize, layout)
    return figure, figure.subplots(rows, columns, **options)


def _figure(figsize, layout=None):
    from matplotlib.figure import Figure  # may fail, as it reads the user's settings and fonts

    return Figure(figsize=figsize, layout=layout)


def mark_whole_numbers(axis):
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def _names_of(subsets):
    """{subset: its name in a picture}. subsets: the names of those that are there. A crossover has
    no "independent", and its candidates are the pool.
    """
    return NAMES if "independent" in subsets else NAMES | {"candidate": POOL}


@picture
def draw_histogram(scores, path):
    """The scores of the four subsets as overlaid histograms. scores: dict of (N,) arrays "score"
    and "subset".
    """
    figure, axes = subplots(figsize=(7.5, 4.5))
    _draw_histograms(axes, scores["score"], scores["subset"], _names_of(scores["subset"]))
    if "independent" in scores["subset"]:
        title, xlabel = "How much the candidate encoder memorized each image", SCORE
    else:
        title, xlabel = "How much the encoders with an image memorized it", SCORE_OF_POOL
    axes.set(title=title, xlabel=xlabel, ylabel="density")
    return figure


@picture
def draw_losses(table, is_crossover, path):
    """The alignment losses of f, in a crossover of the encoder with the image, as overlaid
    histograms. table: dict of (N,) arrays "alignment_loss_f" and "subset".
    """
    figure, axes = subplots(figsize=(7.5, 4.5))
    names = NAMES | {"candidate": POOL} if is_crossover else NAMES
    _draw_histograms(axes, table["alignment_loss_f"], table["subset"], names)
    title = "How well the encoder aligns images that it saw, and others"
    axes.set(title=title, xlabel=LOSS_WITH if is_crossover else LOSS_F, ylabel="density")
    return figure


def _draw_histograms(axes, numbers, subsets, names):
    """Overlaid histograms of the numbers of each subset, with a legend. numbers, subsets: (N,);
    names: {subset: its name}.
    """
    bins = np.histogram_bin_edges(numbers, bins=40)
    for name in SUBSETS:
        values = numbers[subsets == name]
        if len(values):
            label = f"{names[name]}: n = {len(values)}, mean {values.mean():.4f}"
            options = {"bins": bins, "density": True, "color": COLORS[name]}
            axes.hist(values, histtype="stepfilled", alpha=0.25, **options)
            axes.hist(values, histtype="step", linewidth=1.5, label=label, **options)
            axes.axvline(values.mean(), color=COLORS[name], linestyle="--", linewidth=1)
    axes.legend(**LEGEND)
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])  # room for the legend


@picture
def draw_scatter(scores, path):
    """L_align of the encoder without each image against L_align of the one with it, a point for
    every image; under a fixed split these are g and f. The diagonal is shifted by the median
    difference in S_E, and a band holds 95 % of S_E.

    scores: dict of (N,) arrays "alignment_loss_f", "alignment_loss_g" and "subset".
    """
    figure, axes = subplots(figsize=(6, 6))
    f, g = scores["alignment_loss_f"], scores["alignment_loss_g"]
    low, high = min(f.min(), g.min()), max(f.max(), g.max())
    margin = 0.03 * (high - low)
    limits = np.array([low - margin, high + margin])
    of_external = (g - f)[scores["subset"] == "external"]
    lowest, offset, highest = np.quantile(of_external, [0.025, 0.5, 0.975])
    line = {"color": "black", "linewidth": 0.8}
    axes.plot(limits, limits + offset, label=f"offset of $S_E$: {offset:+.4f}", **line)
    band = f"band of 95 % of $S_E$: {lowest:+.4f} to {highest:+.4f}"
    axes.plot(limits, limits + lowest, label=band, linestyle="--", **line)
    axes.plot(limits, limits + highest, linestyle="--", **line)
    options = {"s": 12 if len(f) < 5000 else 3, "alpha": 0.5, "linewidths": 0, "rasterized": True}
    names = _names_of(scores["subset"])
    # the subsets that should differ lie on top
    for name in ("external", "shared", "independent", "candidate"):
        rows = scores["subset"] == name
        if rows.any():
            axes.scatter(f[rows], g[rows], color=COLORS[name], label=names[name], **options)
    fixed = "independent" in scores["subset"]
    axes.set(
        title="Above the band: higher scores than 97.5 % of $S_E$",
        xlabel=LOSS_F if fixed else LOSS_WITH,
        ylabel=LOSS_G if fixed else LOSS_WITHOUT,
        xlim=limits,
        ylim=limits,
        aspect="equal",
    )
    axes.legend(frameon=False, fontsize=8, markerscale=1.5)
    return figure


@picture
def draw_gallery(scores, images, summary, path):
    """The candidates with the highest and the lowest scores, below a title that says how well this
    ranking repeats. Those of q < .1 have a frame, all others gray text.

    scores: dict of (N,) arrays "index", "subset", "label", the score that the summary's `headline`
    names with its q, and, of images in files, "file"; images: the Images that the indices are of;
    summary: the ScoresSummary of these scores.
    """
    column, q = summary.headline, summary.headline.replace("score", "q")
    scores = scores | {"score": scores[column], "q": scores[q]}
    is_ranked = (scores["subset"] == "candidate") & ~np.isnan(scores["score"])
    candidates = np.flatnonzero(is_ranked)
    by_score = candidates[np.argsort(-scores["score"][candidates], kind="stable")]
    n_images = min(GALLERY_COLUMNS * GALLERY_ROWS, len(by_score) // 2)
    blocks = [
        (f"Highest {SCORES[column]} of candidates", by_score[:n_images]),
        (f"Lowest {SCORES[column]} of candidates", by_score[-n_images:][::-1]),
    ]
    columns = min(GALLERY_COLUMNS, max(4, n_images))
    rows = -(-n_images // columns)
    width, lines = 1.25 * columns, []
    for sentence in _reliability(summary):
        lines += textwrap.wrap(sentence, int(LETTERS_AN_INCH * width))
    height = 2 * (1.9 * rows + 0.4) + 0.2 * len(lines)
    figure = _figure(figsize=(width, height), layout="constrained")
    figure.suptitle("\n".join(lines), fontsize=10, parse_math=False)
    for part, (title, members) in zip(figure.subfigures(2, 1), blocks):
        part.suptitle(title, fontsize=11)
        all_axes = list(part.subplots(rows, columns, squeeze=False).flat)
        for axes in all_axes[len(members) :]:
            axes.axis("off")
        for axes, row in zip(all_axes, members):
            pixels = images.train.gather(torch.tensor([scores["index"][row]]))[0].cpu().numpy()
            axes.imshow(pixels.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
            _caption(axes, scores, row, images.classes)
    return figure


def _caption(axes, scores, row, classes):
    """Write the score, q, class name and file name or index of an image above it, and frame it if q
    is small. classes: the names of all classes; if there are none, no line is left for them.
    """
    score, q, label = (scores[key][row] for key in ("score", "q", "label"))
    stands_out = bool(q < Q_LEVEL)
    lines = [f"{score:+.4f}", f"q {q:.2g}"]
    if classes:
        lines.append(drawable(classes[label] if label >= 0 else "no label"))
    file = drawable_end(scores["file"][row]) if "file" in scores else None
    axes.set_title(
        "\n".join([*lines, file or f"index {scores['index'][row]}"]),
        fontsize=7.5,
        color="black" if stands_out else GRAY,
        parse_math=False,
    )
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=stands_out, linewidth=2.5, edgecolor=COLORS["candidate"])


def _reliability(summary):
    """How well the ranking of images repeats, and how many stand out: sentences, a list."""
    images, seeds = summary.single_images, len(summary.seeds)
    if summary.ranking_reliability:
        of = summary.ranking_reliability
        candidate, external = of["candidate"], of["external"]
        common = candidate["predicted_overlap_of_first_tenth"]
        repeats = f"a repetition would have {common:.0%} of the first tenth in common"
        lines = [
            f"Reliability {candidate['predicted']:.2f} ({seeds} seeds): {repeats} (10% by chance)",
            f"Reliability of external images, none of them memorized: {external['predicted']:.2f}",
        ]
    else:
        noise = f"noise of S_E {images['noise']:.4f}, mean effect {images['mean_effect']:.4f}"
        lines = [f"One pair does not tell which single images are memorized: {noise}"]
    counts, candidates = images[summary.headline], images["candidates"]
    beyond = f"{counts['q < 0.1']} of {candidates} candidates stand out from S_E"
    first = f"of the first {min(16, candidates)}"
    share = percent(counts["false_share_of_first_16"])
    lines.append(f"{beyond} at q < 0.1 (framed); {first} at most {share} are expected to be false")
    if counts.get("unlike_all_external"):
        unlike = f"{counts['unlike_all_external']} of {candidates} candidates"
        lines.append(f"Not shown, as they are unlike all external images: {unlike}")
    return lines


@picture
def draw_training_curve(summaries, logs, path):
    """Memorization over training.

    summaries: of memorization_scores.py, of the scored checkpoints in order of their epochs; logs:
    for every seed the lines of f's log.jsonl.
    """
    figure, (upper, lower) = subplots(2, 1, figsize=(7.5, 7), sharex=True)
    _draw_scores_over_training(upper, summaries)
    _draw_logs(lower, logs)
    return figure


def _draw_scores_over_training(axes, summaries):
    epochs = [summary["checkpoint"]["epoch"] for summary in summaries]
    names = _names_of(summaries[0]["subsets"])
    for name in summaries[0]["subsets"]:
        raw = [summary["subsets"][name]["raw"] for summary in summaries]
        means, errors = ([values[key] for values in raw] for key in ("mean", "standard_error"))
        style = {"color": COLORS[name], "marker": "o", "capsize": 3}
        axes.errorbar(epochs, means, errors, label=f"{names[name]}, mean", **style)
    for name in ("candidate", "external"):  # the highest scores are high by chance, too
        top = [summary["subsets"][name]["raw"]["top_tenth_mean"] for summary in summaries]
        style = {"color": COLORS[name], "linestyle": ":", "marker": "^"}
        axes.plot(epochs, top, label=f"{names[name]}, mean of the top 10 %", **style)
    axes.axhline(0, color="black", linewidth=0.8)
    title = "Memorization over training (error bars: standard error over images)"
    axes.set(title=title, ylabel="memorization score $m(x)$")
    axes.legend(ncols=2, **LEGEND)
    low, high = axes.get_ylim()
    axes.set_ylim(top=high + 0.3 * (high - low))  # room for the legend


def _draw_logs(axes, logs):
    """The training loss of f, and its kNN accuracy, if it was measured, on an axis at the right."""
    for seed, log in enumerate(logs):
        label = None if seed else "training loss of f (left)"
        epochs, losses = ([line[key] for line in log] for key in ("epoch", "loss"))
        axes.plot(epochs, losses, color="black", linewidth=1, label=label)
    axes.set(xlabel="epoch", ylabel="training loss")
    mark_whole_numbers(axes.xaxis)
    lines, labels = axes.get_legend_handles_labels()
    logs = [[line for line in log if line["knn_accuracy"] is not None] for log in logs]
    if any(logs):
        right, style = axes.twinx(), {"color": "#CC79A7", "marker": "s", "markersize": 4}
        for log in logs:
            accuracies = [100 * line["knn_accuracy"] for line in log]
            (curve,) = right.plot([line["epoch"] for line in log], accuracies, **style)
        right.set_ylabel("kNN accuracy, %")
        lines, labels = [*lines, curve], [*labels, "kNN accuracy of f (right)"]
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 2}  # no line lies there
    axes.legend(lines, labels, **above, **LEGEND)


def as_picture(pixels, normalization):
    """Normalized pixels (C, H, W) as an array (H, W, C) in [0, 1]."""
    mean, std = (np.array(values).reshape(-1, 1, 1) for values in normalization)
    return (pixels.detach().float().cpu().numpy() * std + mean).clip(0, 1).transpose(1, 2, 0)


@picture
def draw_pictures(rows, normalization, path):
    """Rows of pictures, such as originals above reconstructions.

    rows: {title: (n, C, H, W) pixels, normalized}; normalization: (mean, std) of the channels.
    """
    columns = max(len(pictures) for pictures in rows.values())
    figure, all_axes = subplots(
        len(rows),
        columns,
        figsize=(1.25 * columns, 1.4 * len(rows)),
        squeeze=False,
        layout="constrained",
    )
    for axes_row, (title, pictures) in zip(all_axes, rows.items()):
        for axes in axes_row:
            axes.set(xticks=[], yticks=[], frame_on=False)
        axes_row[0].set_ylabel(title)
        for axes, pixels in zip(axes_row, pictures):
            axes.imshow(as_picture(pixels, normalization), cmap="gray", vmin=0, vmax=1)
    return figure


@picture
def draw_probe(summary, path):
    """Top-1 accuracy of every encoder as a bar, a panel for every data set. summary: of
    linear_probing_train.py.
    """
    datasets = {}
    for row in summary["results"]:
        datasets.setdefault(row["dataset"], []).append(row)
    size = 1.5 + 4.5 * len(datasets), 1.2 + 0.4 * max(map(len, datasets.values()))
    figure, panels = _panels(len(datasets), size)
    for axes, (dataset, rows) in zip(panels, datasets.items()):
        names = [drawable(row["encoder"], 30) for row in rows]
        means = [100 * row["top_1"]["mean"] for row in rows]
        errors = [100 * (row["top_1"]["std"] or 0) for row in rows]
        colors = [COLORS.get(row["encoder"].partition(" ")[0], "#BBBBBB") for row in rows]
        places = np.arange(len(rows))
        axes.barh(places, means, xerr=errors, color=colors, capsize=3)
        for place, mean, error in zip(places, means, errors):
            axes.text(mean + error + 1, place, f"{mean:.1f}", va="center", fontsize=8)
        axes.set_yticks(places, names, parse_math=False)
        axes.set(title=dataset, xlabel="top-1 accuracy on the test images, %", xlim=(0, 109))
        axes.invert_yaxis()
    title = f"{summary['kind']} (error bars: standard deviation over probes)"
    figure.suptitle(title.capitalize(), fontsize=10)
    return figure


@picture
def draw_removal_curve(summary, path):
    """Accuracy against the number of samples removed: a panel for every data set, a line for every
    policy. summary: of remove_samples.py.
    """
    datasets = summary["datasets"]
    figure, panels = _panels(len(datasets), (6 * len(datasets), 4.2))
    for axes, (dataset, results) in zip(panels, datasets.items()):
        whole, policies = results["nothing_removed"], results["policies"]
        axes.axhline(100 * whole["mean"], color="black", linewidth=1, label="nothing removed")
        if whole["std"] is not None:
            low, high = (100 * (whole["mean"] + sign * whole["std"]) for sign in (-1, 1))
            axes.axhspan(low, high, color="black", alpha=0.1, linewidth=0)
        for number, (policy, of_count) in enumerate(policies.items()):
            # set apart, so that error bars do not hide each other
            counts = [int(count) * APART**number for count in of_count]
            means = [100 * values["mean"] for values in of_count.values()]
            errors = [100 * (values["std"] or 0) for values in of_count.values()]
            style = POINTS | {"color": POLICY_COLORS[policy], "label": policy.replace("_", ", ")}
            axes.errorbar(counts, means, errors, **style)
        axes.set(
            title=dataset,
            xlabel="samples removed from the training set",
            ylabel="top-1 accuracy of a linear probe, %",
            xscale="log",
        )
        ticks = sorted({int(count) for of_count in policies.values() for count in of_count})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25 * APART ** len(policies))
        axes.legend(**LEGEND)
    title = "What removal costs (error bars and band: standard deviation over seeds and draws)"
    figure.suptitle(title, fontsize=10)
    return figure


def _panels(n_panels, size):
    """A figure of panels beside each other, and their axes."""
    figure, axes = subplots(1, n_panels, figsize=size, squeeze=False, layout="constrained")
    return figure, axes[0]


def drawable(name, most=LONGEST_NAME):
    """A name as it can be drawn in a small picture: shortened, and without characters that have no
    glyph.
    """
    name = UNPRINTED.sub("\ufffd", name)
    return name if len(name) <= most else name[: most - 1] + "…"


def drawable_end(path, most=LONGEST_FILE):
    """The end of a path as it can be drawn in a small picture: whole names, if the last one fits;
    see `drawable`.
    """
    path = UNPRINTED.sub("\ufffd", path)
    if len(path) <= most:
        return path
    end = path[1 - most :]
    _, slash, names = end.partition("/")
    return f"…{slash + names if slash else end}"
