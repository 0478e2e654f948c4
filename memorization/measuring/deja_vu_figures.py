"""The pictures of Deja Vu."""

import numpy as np
import torch

from memorization.figures import (
    COLORS,
    LEGEND,
    POINTS,
    as_picture,
    drawable,
    mark_whole_numbers,
    picture,
    subplots,
)

OUTCOME_COLORS = {
    "memorized": "#D55E00",
    "correlated": "#999999",
    "forgotten": "#0072B2",
    "unassociated": "#DDDDDD",
}
CASES = 6


@picture
def draw_deja_vu_confidence(summary, path):
    """Accuracy of target and reference on the surest images, against their share; a thin line for
    every seed. summary: a DejaVuSummary.
    """
    figure, axes = subplots(figsize=(6.5, 4.5))
    words, sweeps = summary.words, [seed.over_confidence for seed in summary.seeds]
    percent = sweeps[0].percent
    for key, style, color, name in (
        ("acc_target", "-", "candidate", f"{words.target} (trained on the image)"),
        ("acc_reference", "--", "independent", f"{words.full_reference} (not trained on it)"),
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
        xlabel="the surest images of each model, % of all", ylabel="right labels, %", ylim=(0, 103)
    )
    title = f"Labels inferred from a part of the image (query: {summary.query})"
    _set_title(axes, title, summary.caveat)
    axes.legend(**LEGEND)
    return figure


@picture
def draw_deja_vu_shares(summary, path):
    """Shares of the four outcomes as bars. summary: a DejaVuSummary."""
    figure, axes = subplots(figsize=(6.5, 4))
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
    axes.set(ylabel="attacked images, %", ylim=(0, 1.15 * highest + 2))
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
    figure, panels = subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in panels.flat:
        axes.axis("off")
    for row, case in zip(panels, cases):
        index = torch.tensor([attack.index[case]])
        query = as_picture(attack.queries.pixels(index, 0)[0], attack.normalization)
        row[0].imshow(query, cmap="gray", vmin=0, vmax=1)
        _show_image(row[1], images.train, index, images.classes)
        nearest = np.concatenate([indices[case] for indices in neighbors.values()])
        for axes, neighbor in zip(row[2:], nearest):
            _show_image(axes, public, torch.tensor([neighbor]), images.classes)
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
        cases_of = f"{len(cases)} of the candidates that {target} tells and {reference} does not"
        title = f"The most striking cases: {cases_of}"
    figure.suptitle(_two_lines(title, summary.caveat), fontsize=9 if summary.caveat else 11)
    return figure


@picture
def draw_deja_vu_curve(summaries, path):
    """The Deja Vu score over training.

    summaries: DejaVuSummaries of the checkpoints, in order of their epochs.
    """
    figure, axes = subplots(figsize=(7, 4.5))
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
    mark_whole_numbers(axes.xaxis)
    axes.legend(**LEGEND)
    return figure


def _set_title(axes, title, caveat):
    axes.set_title(_two_lines(title, caveat), fontsize=9 if caveat else 12)


def _two_lines(title, caveat):
    return f"{title}\n{caveat}" if caveat else title


def _show_image(axes, split, index, classes):
    """Draw an image of a split, (1,) its index, with the name of its class above."""
    pixels = split.gather(index)[0].cpu().numpy().transpose(1, 2, 0)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    axes.set_title(drawable(classes[split.labels[index]]), fontsize=7.5, parse_math=False)
