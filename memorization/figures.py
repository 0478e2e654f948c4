"""Every picture."""

import io
import json

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from memorization.storage import write_atomically
from memorization.subsets import SUBSETS

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLORS = {"shared": "#999999", "candidate": "#D55E00", "independent": "#0072B2", "external": "#009E73"}
NAMES = {"shared": "shared $S_S$", "candidate": "candidate $S_C$", "independent": "independent $S_I$", "external": "external $S_E$"}
POLICY_COLORS = {"memorized": "#D55E00", "least": "#0072B2", "random": "#999999", "random_matched": "#009E73", "typical": "#CC79A7"}
SCORE = "memorization score  $m(x) = L_{align}(g, x) - L_{align}(f, x)$"
GALLERY_COLUMNS, GALLERY_ROWS = 8, 2


def draw_histogram(scores, path):
    """The scores of the four subsets as overlaid histograms. scores: dict of (N,) arrays "score" and "subset"."""
    figure, axes = plt.subplots(figsize=(7.5, 4.5))
    bins = np.histogram_bin_edges(scores["score"], bins=40)
    for name in SUBSETS:
        values = scores["score"][scores["subset"] == name]
        if len(values):
            label = f"{NAMES[name]}: n = {len(values)}, mean {values.mean():.4f}"
            axes.hist(values, bins, density=True, histtype="stepfilled", alpha=0.25, color=COLORS[name])
            axes.hist(values, bins, density=True, histtype="step", linewidth=1.5, color=COLORS[name], label=label)
            axes.axvline(values.mean(), color=COLORS[name], linestyle="--", linewidth=1)
    axes.set(title="How much the candidate encoder memorized each image", xlabel=SCORE, ylabel="density")
    axes.legend(fontsize=8, framealpha=0.9, edgecolor="none")
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])  # room for the legend
    _save(figure, path)


def draw_scatter(scores, path):
    """L_align of f against L_align of g, an image a point; above the diagonal lies what f memorized.

    scores: dict of (N,) arrays "alignment_loss_f", "alignment_loss_g" and "subset".
    """
    figure, axes = plt.subplots(figsize=(6, 6))
    f, g = scores["alignment_loss_f"], scores["alignment_loss_g"]
    low, high = min(f.min(), g.min()), max(f.max(), g.max())
    margin = 0.03 * (high - low)
    limits = low - margin, high + margin
    axes.plot(limits, limits, color="black", linewidth=0.8, label="equally well aligned")
    size = 12 if len(f) < 5000 else 3
    for name in ("external", "shared", "independent", "candidate"):  # the subsets that should differ on top
        chosen = scores["subset"] == name
        if chosen.any():
            axes.scatter(f[chosen], g[chosen], s=size, alpha=0.5, linewidths=0, color=COLORS[name], label=NAMES[name], rasterized=True)
    axes.set(
        title="Above the diagonal: memorized by f",
        xlabel="alignment loss of the candidate encoder  $L_{align}(f, x)$  (L2 distance)",
        ylabel="alignment loss of the independent encoder  $L_{align}(g, x)$  (L2 distance)",
        xlim=limits,
        ylim=limits,
        aspect="equal",
    )
    axes.legend(frameon=False, fontsize=8, markerscale=1.5)
    _save(figure, path)


def draw_gallery(scores, images, path):
    """The most and the least memorized candidates with their scores.

    scores: dict of (N,) arrays "index", "subset", "label", "score" and "stderr"; images: where the indices lead to.
    """
    candidates = np.flatnonzero(scores["subset"] == "candidate")
    by_score = candidates[np.argsort(-scores["score"][candidates], kind="stable")]
    shown = min(GALLERY_COLUMNS * GALLERY_ROWS, len(by_score) // 2)
    blocks = [("The most memorized candidates", by_score[:shown]), ("The least memorized candidates", by_score[-shown:][::-1])]
    columns = min(GALLERY_COLUMNS, max(4, shown))
    rows = -(-shown // columns)
    figure = plt.figure(figsize=(1.25 * columns, 2 * (1.75 * rows + 0.4)), layout="constrained")
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
            axes.set_title(f"{scores['score'][row]:+.4f}\n± {scores['stderr'][row]:.4f}\n{_shortened(name)}", fontsize=7.5)
    _save(figure, path)


def draw_training_curve(folders, logs):
    """Memorization over training, into training_curve.png beside the folder of the last checkpoint.

    folders: of the scored checkpoints, in order of their epochs, each with a summary.json; logs: for every seed the lines of f's log.jsonl.
    """
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    epochs = [summary["checkpoint"]["epoch"] for summary in summaries]
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(7.5, 7), sharex=True)
    for name in summaries[0]["subsets"]:
        raw = [summary["subsets"][name]["raw"] for summary in summaries]
        errors = [values["standard_error"] for values in raw]
        upper.errorbar(
            epochs, [values["mean"] for values in raw], errors, color=COLORS[name], marker="o", capsize=3, label=f"{NAMES[name]}, mean"
        )
    top = [summary["subsets"]["candidate"]["raw"]["top_tenth_mean"] for summary in summaries]
    upper.plot(epochs, top, color=COLORS["candidate"], linestyle=":", marker="^", label=f"{NAMES['candidate']}, mean of the top 10 %")
    upper.axhline(0, color="black", linewidth=0.8)
    upper.set(title="Memorization over training (error bars: standard error over images)", ylabel="memorization score $m(x)$")
    upper.legend(frameon=False, fontsize=8)
    accuracy_axes = lower.twinx()
    for seed, log in enumerate(logs):
        label = None if seed else "training loss of f (left)"
        lower.plot([line["epoch"] for line in log], [line["loss"] for line in log], color="black", linewidth=1, label=label)
        measured = [line for line in log if line["knn_accuracy"] is not None]
        label = None if seed else "kNN accuracy of f (right)"
        accuracy = [100 * line["knn_accuracy"] for line in measured]
        accuracy_axes.plot([line["epoch"] for line in measured], accuracy, color="#CC79A7", marker="s", markersize=4, label=label)
    lower.set(xlabel="epoch", ylabel="training loss")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy_axes.set_ylabel("kNN accuracy, %")
    handles = [axes.get_legend_handles_labels() for axes in (lower, accuracy_axes)]
    lower.legend(
        handles[0][0] + handles[1][0], handles[0][1] + handles[1][1], fontsize=8, framealpha=0.9, edgecolor="none", loc="center right"
    )
    _save(figure, folders[-1] / "training_curve.png")


def draw_pictures(rows, normalization, path):
    """Rows of pictures, such as originals above reconstructions.

    rows: {title: (n, C, H, W) pixels, normalized}; normalization: (mean, std) of the channels.
    """
    columns = max(len(pictures) for pictures in rows.values())
    figure, all_axes = plt.subplots(len(rows), columns, figsize=(1.25 * columns, 1.4 * len(rows)), squeeze=False, layout="constrained")
    mean, std = (np.array(values).reshape(-1, 1, 1) for values in normalization)
    for axes_row, (title, pictures) in zip(all_axes, rows.items()):
        for axes in axes_row:
            axes.set(xticks=[], yticks=[], frame_on=False)
        axes_row[0].set_ylabel(title)
        for axes, picture in zip(axes_row, pictures.detach().float().cpu().numpy()):
            axes.imshow((picture * std + mean).clip(0, 1).transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1)
    _save(figure, path)


def draw_probe(summary, path):
    """Top-1 accuracy of every encoder as a bar, a panel a dataset. summary: of linear_probing_train.py."""
    datasets = list(dict.fromkeys(row["dataset"] for row in summary["results"]))
    rows = {dataset: [row for row in summary["results"] if row["dataset"] == dataset] for dataset in datasets}
    height = 1.2 + 0.4 * max(len(members) for members in rows.values())
    figure, panels = plt.subplots(1, len(datasets), figsize=(1.5 + 4.5 * len(datasets), height), squeeze=False, layout="constrained")
    for axes, (dataset, members) in zip(panels[0], rows.items()):
        names = [_shortened(row["encoder"], 30) for row in members]
        means, errors = ([100 * (row["top_1"][key] or 0) for row in members] for key in ("mean", "std"))
        colors = [COLORS.get(row["encoder"].split()[0], "#BBBBBB") for row in members]
        places = np.arange(len(members))
        axes.barh(places, means, xerr=errors, color=colors, capsize=3)
        for place, mean, error in zip(places, means, errors):
            axes.text(mean + error + 1, place, f"{mean:.1f}", va="center", fontsize=8)
        axes.set(title=dataset, xlabel="top-1 accuracy on the test images, %", yticks=places, yticklabels=names, xlim=(0, 109))
        axes.invert_yaxis()
    figure.suptitle(f"{summary['kind']} (error bars: standard deviation over probes)".capitalize(), fontsize=10)
    _save(figure, path)


def draw_removal_curve(summary, path):
    """Accuracy against the number of samples removed, a line a policy, a panel a dataset. summary: of remove_samples.py."""
    datasets = summary["datasets"]
    figure, panels = plt.subplots(1, len(datasets), figsize=(6 * len(datasets), 4.2), squeeze=False, layout="constrained")
    for axes, (dataset, found) in zip(panels[0], datasets.items()):
        whole = found["nothing_removed"]
        axes.axhline(100 * whole["mean"], color="black", linewidth=1, label="nothing removed")
        if whole["std"] is not None:
            low, high = (100 * (whole["mean"] + sign * whole["std"]) for sign in (-1, 1))
            axes.axhspan(low, high, color="black", alpha=0.1, linewidth=0)
        for number, (policy, of_count) in enumerate(found["policies"].items()):
            counts = [int(count) * 1.015**number for count in of_count]  # set apart, so that error bars do not hide each other
            means, errors = ([100 * (values[key] or 0) for values in of_count.values()] for key in ("mean", "std"))
            label = policy.replace("_", ", ")
            axes.errorbar(counts, means, errors, color=POLICY_COLORS[policy], marker="o", markersize=4, capsize=3, label=label)
        axes.set(title=dataset, xlabel="samples removed from f's training set", ylabel="top-1 accuracy of a linear probe, %", xscale="log")
        ticks = sorted({int(count) for of_count in found["policies"].values() for count in of_count})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.legend(fontsize=8, framealpha=0.9, edgecolor="none")
    figure.suptitle("What removal costs (error bars and band: standard deviation over seeds and draws)", fontsize=10)
    _save(figure, path)


def _shortened(name, most=16):
    """A name short enough for a small picture."""
    return name if len(name) <= most else name[: most - 1] + "…"


def _save(figure, path):
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150, bbox_inches="tight")
    plt.close(figure)
    write_atomically(path, content.getvalue())
