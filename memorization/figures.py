"""Every picture. A picture does not depend on the user's settings of matplotlib, and one that
cannot be drawn does not end the work.
"""

import functools
import io
import os
import warnings
from contextlib import contextmanager

import numpy as np
import torch

from memorization.data.subsets import SUBSETS
from memorization.errors import UNPRINTED
from memorization.machine.files import write_atomically
from memorization.machine.processes import on_first_process
from memorization.machine.screen import caution

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
POLICY_COLORS = {
    "memorized": "#D55E00",
    "least": "#0072B2",
    "random": "#999999",
    "random_matched": "#009E73",
    "typical": "#CC79A7",
}
OUTCOME_COLORS = {
    "memorized": "#D55E00",
    "correlated": "#999999",
    "forgotten": "#0072B2",
    "unassociated": "#DDDDDD",
}
LEGEND = {"fontsize": 8, "framealpha": 0.9, "edgecolor": "none"}
POINTS = {"marker": "o", "markersize": 4, "capsize": 3}
SCORE = "memorization score  $m(x) = L_{align}(g, x) - L_{align}(f, x)$"
GALLERY_COLUMNS, GALLERY_ROWS = 8, 2
CASES = 6
LONGEST_NAME = 16  # characters above a small picture


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


def _subplots(rows=1, columns=1, figsize=None, layout=None, **options):
    """A figure and its axes, as of matplotlib.pyplot.subplots, without its search for a display."""
    figure = _figure(figsize, layout)
    return figure, figure.subplots(rows, columns, **options)


def _figure(figsize, layout=None):
    from matplotlib.figure import Figure  # may fail, as it reads the user's settings and fonts

    return Figure(figsize=figsize, layout=layout)


def _mark_whole_numbers(axis):
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


@picture
def draw_histogram(scores, path):
    """The scores of the four subsets as overlaid histograms. scores: dict of (N,) arrays "score"
    and "subset".
    """
    figure, axes = _subplots(figsize=(7.5, 4.5))
    bins = np.histogram_bin_edges(scores["score"], bins=40)
    for name in SUBSETS:
        values = scores["score"][scores["subset"] == name]
        if len(values):
            label = f"{NAMES[name]}: n = {len(values)}, mean {values.mean():.4f}"
            axes.hist(
                values, bins, density=True, histtype="stepfilled", alpha=0.25, color=COLORS[name]
            )
            axes.hist(
                values,
                bins,
                density=True,
                histtype="step",
                linewidth=1.5,
                color=COLORS[name],
                label=label,
            )
            axes.axvline(values.mean(), color=COLORS[name], linestyle="--", linewidth=1)
    axes.set(
        title="How much the candidate encoder memorized each image", xlabel=SCORE, ylabel="density"
    )
    axes.legend(**LEGEND)
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])  # room for the legend
    return figure


@picture
def draw_scatter(scores, path):
    """L_align of f against L_align of g, an image a point; above the diagonal lies what f
    memorized.

    scores: dict of (N,) arrays "alignment_loss_f", "alignment_loss_g" and "subset".
    """
    figure, axes = _subplots(figsize=(6, 6))
    f, g = scores["alignment_loss_f"], scores["alignment_loss_g"]
    low, high = min(f.min(), g.min()), max(f.max(), g.max())
    margin = 0.03 * (high - low)
    limits = low - margin, high + margin
    axes.plot(limits, limits, color="black", linewidth=0.8, label="equally well aligned")
    size = 12 if len(f) < 5000 else 3
    # the subsets that should differ on top
    for name in ("external", "shared", "independent", "candidate"):
        chosen = scores["subset"] == name
        if chosen.any():
            axes.scatter(
                f[chosen],
                g[chosen],
                s=size,
                alpha=0.5,
                linewidths=0,
                color=COLORS[name],
                label=NAMES[name],
                rasterized=True,
            )
    axes.set(
        title="Above the diagonal: memorized by f",
        xlabel="alignment loss of the candidate encoder  $L_{align}(f, x)$  (L2 distance)",
        ylabel="alignment loss of the independent encoder  $L_{align}(g, x)$  (L2 distance)",
        xlim=limits,
        ylim=limits,
        aspect="equal",
    )
    axes.legend(frameon=False, fontsize=8, markerscale=1.5)
    return figure


@picture
def draw_gallery(scores, images, path):
    """The most and the least memorized candidates with their scores.

    scores: dict of (N,) arrays "index", "subset", "label", "score" and "stderr"; images: where the
    indices lead to.
    """
    candidates = np.flatnonzero(scores["subset"] == "candidate")
    by_score = candidates[np.argsort(-scores["score"][candidates], kind="stable")]
    shown = min(GALLERY_COLUMNS * GALLERY_ROWS, len(by_score) // 2)
    blocks = [
        ("The most memorized candidates", by_score[:shown]),
        ("The least memorized candidates", by_score[-shown:][::-1]),
    ]
    columns = min(GALLERY_COLUMNS, max(4, shown))
    rows = -(-shown // columns)
    figure = _figure(figsize=(1.25 * columns, 2 * (1.75 * rows + 0.4)), layout="constrained")
    for part, (title, members) in zip(figure.subfigures(2, 1), blocks):
        part.suptitle(f"{title}: score ± standard error", fontsize=11)
        all_axes = list(part.subplots(rows, columns, squeeze=False).flat)
        for axes in all_axes:
            axes.axis("off")
        for axes, row in zip(all_axes, members):
            pixels = images.train.gather(torch.tensor([scores["index"][row]]))[0].cpu().numpy()
            axes.imshow(pixels.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
            label = scores["label"][row]
            name = images.classes[label] if label >= 0 else "no label"
            title = f"{scores['score'][row]:+.4f}\n± {scores['stderr'][row]:.4f}\n{_drawable(name)}"
            axes.set_title(title, fontsize=7.5, parse_math=False)
    return figure


@picture
def draw_training_curve(summaries, logs, path):
    """Memorization over training.

    summaries: of memorization_scores.py, of the scored checkpoints in order of their epochs; logs:
    for every seed the lines of f's log.jsonl.
    """
    epochs = [summary["checkpoint"]["epoch"] for summary in summaries]
    figure, (upper, lower) = _subplots(2, 1, figsize=(7.5, 7), sharex=True)
    for name in summaries[0]["subsets"]:
        raw = [summary["subsets"][name]["raw"] for summary in summaries]
        errors = [values["standard_error"] for values in raw]
        upper.errorbar(
            epochs,
            [values["mean"] for values in raw],
            errors,
            color=COLORS[name],
            marker="o",
            capsize=3,
            label=f"{NAMES[name]}, mean",
        )
    top = [summary["subsets"]["candidate"]["raw"]["top_tenth_mean"] for summary in summaries]
    upper.plot(
        epochs,
        top,
        color=COLORS["candidate"],
        linestyle=":",
        marker="^",
        label=f"{NAMES['candidate']}, mean of the top 10 %",
    )
    upper.axhline(0, color="black", linewidth=0.8)
    upper.set(
        title="Memorization over training (error bars: standard error over images)",
        ylabel="memorization score $m(x)$",
    )
    upper.legend(frameon=False, fontsize=8)
    accuracy_axes = lower.twinx()
    for seed, log in enumerate(logs):
        label = None if seed else "training loss of f (left)"
        lower.plot(
            [line["epoch"] for line in log],
            [line["loss"] for line in log],
            color="black",
            linewidth=1,
            label=label,
        )
        measured = [line for line in log if line["knn_accuracy"] is not None]
        label = None if seed else "kNN accuracy of f (right)"
        accuracy = [100 * line["knn_accuracy"] for line in measured]
        accuracy_axes.plot(
            [line["epoch"] for line in measured],
            accuracy,
            color="#CC79A7",
            marker="s",
            markersize=4,
            label=label,
        )
    lower.set(xlabel="epoch", ylabel="training loss")
    _mark_whole_numbers(lower.xaxis)
    accuracy_axes.set_ylabel("kNN accuracy, %")
    handles = [axes.get_legend_handles_labels() for axes in (lower, accuracy_axes)]
    lower.legend(
        handles[0][0] + handles[1][0],
        handles[0][1] + handles[1][1],
        fontsize=8,
        framealpha=0.9,
        edgecolor="none",
        loc="center right",
    )
    return figure


@picture
def draw_deja_vu_confidence(summary, path):
    """Accuracy of target and reference on the surest images, against their share; a thin line for
    every seed. summary: a DejaVuSummary.
    """
    figure, axes = _subplots(figsize=(6.5, 4.5))
    words, sweeps = summary.words, [seed.over_confidence for seed in summary.seeds]
    percent = sweeps[0].percent
    for key, style, color, name in (
        ("acc_target", "-", "candidate", f"{words.target} (trained on the image)"),
        ("acc_reference", "--", "independent", f"{words.full_reference} (did not)"),
    ):
        line = {"linestyle": style, "color": COLORS[color]}
        curves = 100 * np.array([getattr(sweep, key) for sweep in sweeps])
        axes.plot(percent, curves.mean(0), label=name, **line)
        for curve in curves if len(curves) > 1 else ():
            axes.plot(percent, curve, linewidth=0.6, alpha=0.5, **line)
    chance = 100 * summary.chance
    axes.axhline(chance, color="black", linewidth=0.8, linestyle=":", label="chance")
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    axes.set(
        xlabel="the surest images of each model, % of all",
        ylabel="right labels, %",
        ylim=(0, 103),
    )
    title = f"Labels inferred from a part of the image (query: {summary.query})"
    _set_title(axes, title, summary.caveat)
    axes.legend(**LEGEND)
    return figure


@picture
def draw_deja_vu_shares(summary, path):
    """Shares of the four outcomes as bars. summary: a DejaVuSummary."""
    figure, axes = _subplots(figsize=(6.5, 4))
    words, shares = summary.words, summary.shares
    means = [100 * share.mean for share in shares.values()]
    errors = [100 * (share.std or 0) for share in shares.values()]
    colors = [OUTCOME_COLORS[name] for name in shares]
    bars = errors if any(errors) else None
    axes.bar(range(len(shares)), means, yerr=bars, capsize=3, color=colors)
    for place, (mean, error) in enumerate(zip(means, errors)):
        axes.text(place, mean + error + 1, f"{mean:.1f}", ha="center", fontsize=9)
    labels = [f"{words.outcomes[name]}\n{words.meanings[name]}" for name in shares]
    axes.set_xticks(range(len(shares)), labels)
    highest = max(mean + error for mean, error in zip(means, errors))
    axes.set(ylabel="images asked about, %", ylim=(0, 1.15 * highest + 2))
    score = summary.score["100"]
    title = f"{words.equation} = {100 * score.mean:+.1f} %"
    if score.std is not None:
        title += f" (± {100 * score.std:.1f} over {score.n} seeds)"
    _set_title(axes, title, summary.caveat)
    return figure


@picture
def draw_deja_vu_cases(attack, sets, summary, path):
    """The most striking cases: the query, the image, and the nearest public images of the target
    and of the reference.

    attack: the Attack of one seed; sets: AttackSets; summary: the DejaVuSummary.
    """
    images, public = sets.images, sets.public.split
    is_memorized = (attack.outcome == "memorized") & (attack.subset == "candidate")
    cases = np.flatnonzero(is_memorized)
    cases = cases[np.argsort(-attack.margin[cases], kind="stable")][:CASES]
    neighbors = {
        name: inference.neighbors
        for name, inference in attack.inferences.items()
        if inference.neighbors is not None
    }
    rows = max(1, len(cases))
    columns = 2 + sum(indices.shape[1] for indices in neighbors.values())
    size = 1.2 * columns, 1.5 * rows + 0.6
    figure, panels = _subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in panels.flat:
        axes.axis("off")
    for row, case in zip(panels, cases):
        index = torch.tensor([attack.index[case]])
        query = _as_picture(attack.queries.pixels(index, 0)[0], images.normalization)
        row[0].imshow(query, cmap="gray", vmin=0, vmax=1)
        _show_labelled(row[1], images.train, index, images.classes)
        nearest = np.concatenate([indices[case] for indices in neighbors.values()])
        for axes, neighbor in zip(row[2:], nearest):
            _show_labelled(axes, public, torch.tensor([neighbor]), images.classes)
    headings, place = {0: "query", 1: "image"}, 2
    for name, indices in neighbors.items():
        headings[place] = f"nearest in {name}"
        place += indices.shape[1]
    for place, heading in headings.items():
        axes = panels[0][place]
        heading = f"{heading}\n{axes.get_title()}".strip()
        axes.set_title(heading, fontsize=7.5, parse_math=False)
    target, reference = attack.inferences
    title = summary.words.no_cases
    if len(cases):
        count = f"{len(cases)} of the candidates that {target} tells and {reference} does not"
        title = f"The most striking cases: {count}"
    figure.suptitle(_two_lines(title, summary.caveat), fontsize=9 if summary.caveat else 11)
    return figure


@picture
def draw_deja_vu_curve(summaries, path):
    """The Deja Vu score over training.

    summaries: DejaVuSummaries of the checkpoints, in order of their epochs.
    """
    figure, axes = _subplots(figsize=(7, 4.5))
    epochs = [summary.checkpoint.epoch for summary in summaries]
    words, caveat = summaries[0].words, summaries[0].caveat
    for percent, color in (("100", "#D55E00"), ("20", "#0072B2"), ("5", "#009E73")):
        label = "all images" if percent == "100" else f"the surest {percent} %"
        for number in range(len(summaries[0].seeds)):
            at = [summary.seeds[number].at[percent] for summary in summaries]
            scores = np.array([point.score for point in at])
            bounds = np.array([point.interval_95 for point in at])
            errors = np.maximum([scores - bounds[:, 0], bounds[:, 1] - scores], 0)
            style = POINTS | {"color": color, "label": None if number else label}
            axes.errorbar(epochs, 100 * scores, 100 * errors, **style)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="epoch", ylabel=words.axis)
    title = f"{words.topic} over training (error bars: 95 % intervals over images)"
    _set_title(axes, title, caveat)
    _mark_whole_numbers(axes.xaxis)
    axes.legend(**LEGEND)
    return figure


def _set_title(axes, title, caveat):
    axes.set_title(_two_lines(title, caveat), fontsize=9 if caveat else 12)


def _two_lines(title, caveat):
    return f"{title}\n{caveat}" if caveat else title


def _as_picture(pixels, normalization):
    """Normalized pixels (C, H, W) as an array (H, W, C) in [0, 1]."""
    mean, std = (np.array(values).reshape(-1, 1, 1) for values in normalization)
    return (pixels.detach().float().cpu().numpy() * std + mean).clip(0, 1).transpose(1, 2, 0)


def _show_labelled(axes, split, index, classes):
    """An image of a split, (1,) its index, with the name of its class above."""
    axes.imshow(
        split.gather(index)[0].cpu().numpy().transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255
    )
    axes.set_title(_drawable(classes[split.labels[index]]), fontsize=7.5, parse_math=False)


@picture
def draw_pictures(rows, normalization, path):
    """Rows of pictures, such as originals above reconstructions.

    rows: {title: (n, C, H, W) pixels, normalized}; normalization: (mean, std) of the channels.
    """
    columns = max(len(pictures) for pictures in rows.values())
    figure, all_axes = _subplots(
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
        for axes, picture in zip(axes_row, pictures):
            axes.imshow(_as_picture(picture, normalization), cmap="gray", vmin=0, vmax=1)
    return figure


@picture
def draw_probe(summary, path):
    """Top-1 accuracy of every encoder as a bar, a panel a dataset. summary: of
    linear_probing_train.py.
    """
    datasets = list(dict.fromkeys(row["dataset"] for row in summary["results"]))
    rows = {
        dataset: [row for row in summary["results"] if row["dataset"] == dataset]
        for dataset in datasets
    }
    height = 1.2 + 0.4 * max(len(members) for members in rows.values())
    figure, panels = _subplots(
        1,
        len(datasets),
        figsize=(1.5 + 4.5 * len(datasets), height),
        squeeze=False,
        layout="constrained",
    )
    for axes, (dataset, members) in zip(panels[0], rows.items()):
        names = [_drawable(row["encoder"], 30) for row in members]
        means, errors = (
            [100 * (row["top_1"][key] or 0) for row in members] for key in ("mean", "std")
        )
        colors = [COLORS.get(row["encoder"].partition(" ")[0], "#BBBBBB") for row in members]
        places = np.arange(len(members))
        axes.barh(places, means, xerr=errors, color=colors, capsize=3)
        for place, mean, error in zip(places, means, errors):
            axes.text(mean + error + 1, place, f"{mean:.1f}", va="center", fontsize=8)
        axes.set_yticks(places, names, parse_math=False)
        axes.set(title=dataset, xlabel="top-1 accuracy on the test images, %", xlim=(0, 109))
        axes.invert_yaxis()
    figure.suptitle(
        f"{summary['kind']} (error bars: standard deviation over probes)".capitalize(), fontsize=10
    )
    return figure


@picture
def draw_removal_curve(summary, path):
    """Accuracy against the number of samples removed, a line a policy, a panel a dataset. summary:
    of remove_samples.py.
    """
    datasets = summary["datasets"]
    figure, panels = _subplots(
        1, len(datasets), figsize=(6 * len(datasets), 4.2), squeeze=False, layout="constrained"
    )
    for axes, (dataset, found) in zip(panels[0], datasets.items()):
        whole = found["nothing_removed"]
        axes.axhline(100 * whole["mean"], color="black", linewidth=1, label="nothing removed")
        if whole["std"] is not None:
            low, high = (100 * (whole["mean"] + sign * whole["std"]) for sign in (-1, 1))
            axes.axhspan(low, high, color="black", alpha=0.1, linewidth=0)
        for number, (policy, of_count) in enumerate(found["policies"].items()):
            # set apart, so that error bars do not hide each other
            counts = [int(count) * 1.015**number for count in of_count]
            means, errors = (
                [100 * (values[key] or 0) for values in of_count.values()]
                for key in ("mean", "std")
            )
            label = policy.replace("_", ", ")
            axes.errorbar(
                counts,
                means,
                errors,
                color=POLICY_COLORS[policy],
                marker="o",
                markersize=4,
                capsize=3,
                label=label,
            )
        axes.set(
            title=dataset,
            xlabel="samples removed from f's training set",
            ylabel="top-1 accuracy of a linear probe, %",
            xscale="log",
        )
        ticks = sorted(
            {int(count) for of_count in found["policies"].values() for count in of_count}
        )
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25 * 1.015 ** len(found["policies"]))
        axes.legend(**LEGEND)
    figure.suptitle(
        "What removal costs (error bars and band: standard deviation over seeds and draws)",
        fontsize=10,
    )
    return figure


def _drawable(name, most=LONGEST_NAME):
    """A name from outside as it can be drawn in a small picture: shortened, and without what has no
    glyph.
    """
    name = UNPRINTED.sub("\ufffd", name)
    return name if len(name) <= most else name[: most - 1] + "…"
