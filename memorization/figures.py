"""Every picture. None of them depends on the user's settings of matplotlib, and none ends the work."""

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
            reason = f"{type(error).__name__}: {error}"
            caution(f"{path}: this picture cannot be drawn ({reason}); the work goes on without it")
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
    axes.legend(fontsize=8, framealpha=0.9, edgecolor="none")
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


def no_proof(trained_on):
    """A sentence: f's advantage over a classifier of parts proves nothing, since f saw more images.

    trained_on: {"f": its training images, "reference": the classifier's}; or None, for "", if f is
    compared with g.
    """
    if trained_on is None:
        return ""
    f, reference = trained_on["f"], trained_on["reference"]
    return f"no proof of memorization: f saw {f} images, the classifier {reference} ({f / reference:.1f} times as many)"


def _two_lines(title, caveat):
    return f"{title}\n{caveat}" if caveat else title


@picture
def draw_deja_vu_confidence(summary, path):
    """Accuracy of target and reference on the surest images, against their share, a thin line a
    seed. summary: of dejavu.py.
    """
    figure, axes = _subplots(figsize=(6.5, 4.5))
    sweeps = [seed["over_confidence"] for seed in summary["seeds"]]
    percent = sweeps[0]["percent"]
    caveat = no_proof(summary.get("trained_on"))
    target, reference = ("f", "classifier of parts") if caveat else ("target", "reference")
    for key, style, name in (
        ("acc_target", "-", f"{target} (trained on the image)"),
        ("acc_reference", "--", f"{reference} (did not)"),
    ):
        color = COLORS["candidate" if key == "acc_target" else "independent"]
        curves = 100 * np.array([sweep[key] for sweep in sweeps])
        axes.plot(percent, curves.mean(0), style, color=color, label=name)
        for curve in curves if len(curves) > 1 else ():
            axes.plot(percent, curve, style, color=color, linewidth=0.6, alpha=0.5)
    axes.axhline(
        100 * summary["chance"], color="black", linewidth=0.8, linestyle=":", label="chance"
    )
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    title = _two_lines(
        f"Labels inferred from a part of the image (query: {summary['query']})", caveat
    )
    axes.set(
        title=title,
        xlabel="the surest images of each model, % of all",
        ylabel="right labels, %",
        ylim=(0, 103),
    )
    axes.title.set_fontsize(9 if caveat else 12)
    axes.legend(fontsize=8, framealpha=0.9, edgecolor="none")
    return figure


@picture
def draw_deja_vu_shares(summary, path):
    """Shares of the four outcomes as bars. summary: of dejavu.py."""
    figure, axes = _subplots(figsize=(6.5, 4))
    shares = summary["shares"]
    colors = {
        "memorized": "#D55E00",
        "correlated": "#999999",
        "forgotten": "#0072B2",
        "unassociated": "#DDDDDD",
    }
    means, errors = (
        [100 * (share[key] or 0) for share in shares.values()] for key in ("mean", "std")
    )
    axes.bar(
        range(len(shares)),
        means,
        yerr=errors if any(errors) else None,
        capsize=3,
        color=[colors[name] for name in shares],
    )
    for place, (mean, error) in enumerate(zip(means, errors)):
        axes.text(place, mean + error + 1, f"{mean:.1f}", ha="center", fontsize=9)
    meaning = {
        "memorized": "target right,\nreference wrong", "correlated": "both right", "forgotten": "target wrong,\nreference right",
        "unassociated": "both wrong",
    }  # fmt: skip
    names = {name: name for name in shares}
    caveat, what = no_proof(summary.get("trained_on")), "Deja Vu score = memorized - forgotten"
    if caveat:  # words of memory would claim what the difference does not show
        names = {
            "memorized": "f alone",
            "correlated": "both",
            "forgotten": "classifier alone",
            "unassociated": "neither",
        }
        meaning = dict.fromkeys(shares, "") | {
            "memorized": "classifier wrong",
            "forgotten": "f wrong",
        }
        what = "difference = f alone - classifier alone"
    axes.set_xticks(range(len(shares)), [f"{names[name]}\n{meaning[name]}" for name in shares])
    score = summary["score"]["100"]
    net = f"{what} = {100 * score['mean']:+.1f} %"
    spread = (
        "" if score["std"] is None else f" (± {100 * score['std']:.1f} over {score['n']} seeds)"
    )
    axes.set(
        title=_two_lines(net + spread, caveat),
        ylabel="images asked about, %",
        ylim=(0, 1.15 * max(mean + error for mean, error in zip(means, errors)) + 2),
    )
    axes.title.set_fontsize(9 if caveat else 12)
    return figure


@picture
def draw_deja_vu_cases(found, images, public, path):
    """The most striking cases: what was asked with, the image, and the nearest public images in the
    target and in the reference.

    found: of one seed, of dejavu.py's `attacked`; images: where its rows lead to; public: the Split
    of the neighbours.
    """
    rows = found["rows"]
    target, reference = list(found["guesses"].items())
    margin = target[1].label_share - reference[1].label_share
    striking = np.flatnonzero((rows["outcome"] == "memorized") & (rows["subset"] == "candidate"))
    striking = striking[np.argsort(-margin[striking], kind="stable")][:CASES]
    models = [(name, guess) for name, guess in (target, reference) if guess.neighbors is not None]
    shown = sum(guess.neighbors.shape[1] for _, guess in models)
    figure, all_axes = _subplots(
        max(1, len(striking)),
        2 + shown,
        figsize=(1.2 * (2 + shown), 1.5 * max(1, len(striking)) + 0.6),
        squeeze=False,
        layout="constrained",
    )
    for axes in all_axes.flat:
        axes.axis("off")
    queries = found["queries"]
    for axes, case in zip(all_axes, striking):
        index = torch.tensor([rows["index"][case]])
        axes[0].imshow(
            _as_picture(queries.pixels(index, 0)[0], images.normalization),
            cmap="gray",
            vmin=0,
            vmax=1,
        )
        _show_labelled(axes[1], images.train, index, images.classes)
        place = 2
        for _, guess in models:
            for neighbor in guess.neighbors[case]:
                _show_labelled(axes[place], public, torch.tensor([neighbor]), images.classes)
                place += 1
    for axes, title in zip(all_axes[0], ["query", "image"]):
        axes.set_title(f"{title}\n{axes.get_title()}".strip(), fontsize=7.5, parse_math=False)
    place = 2
    for name, guess in models:
        axes = all_axes[0][place]
        axes.set_title(
            f"nearest in {name}\n{axes.get_title()}".strip(), fontsize=7.5, parse_math=False
        )
        place += guess.neighbors.shape[1]
    count = f"{len(striking)} of the candidates that {target[0]} tells and {reference[0]} does not"
    caveat = no_proof(found.get("trained_on"))
    title = f"The most striking cases: {count}" if len(striking) else "No candidate was memorized"
    if caveat and len(striking) == 0:
        title = "No candidate that f tells and the classifier does not"
    figure.suptitle(_two_lines(title, caveat), fontsize=9 if caveat else 11)
    return figure


@picture
def draw_deja_vu_curve(summaries, path):
    """The Deja Vu score over training.

    summaries: of dejavu.py, of the checkpoints in order of their epochs.
    """
    figure, axes = _subplots(figsize=(7, 4.5))
    epochs = [summary["checkpoint"]["epoch"] for summary in summaries]
    for percent, color in (("100", "#D55E00"), ("20", "#0072B2"), ("5", "#009E73")):
        for number in range(len(summaries[0]["seeds"])):
            at = [summary["seeds"][number]["at"][percent] for summary in summaries]
            scores = np.array([point["score"] for point in at])
            bounds = np.array([point["interval_95"] for point in at])
            errors = np.maximum([scores - bounds[:, 0], bounds[:, 1] - scores], 0)
            label = (
                None if number else f"the surest {percent} %" if percent != "100" else "all images"
            )
            axes.errorbar(
                epochs,
                100 * scores,
                100 * errors,
                color=color,
                marker="o",
                markersize=4,
                capsize=3,
                label=label,
            )
    axes.axhline(0, color="black", linewidth=0.8)
    caveat = no_proof(summaries[0].get("trained_on"))
    what = "f less a classifier of parts" if caveat else "Deja Vu"
    title = _two_lines(f"{what} over training (error bars: 95 % intervals over images)", caveat)
    axes.set(
        title=title,
        xlabel="epoch",
        ylabel="difference of accuracies, %" if caveat else "Deja Vu score, %",
    )
    axes.title.set_fontsize(9 if caveat else 12)
    _mark_whole_numbers(axes.xaxis)
    axes.legend(fontsize=8, framealpha=0.9, edgecolor="none")
    return figure


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
        axes.legend(fontsize=8, framealpha=0.9, edgecolor="none")
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
