"""Pictures of a membership inference."""

import numpy as np

from memorization.figures import (
    COLORS,
    GRAY,
    LEGEND,
    NAMES,
    POINTS,
    POOL,
    mark_whole_numbers,
    picture,
    subplots,
)
from memorization.measuring.membership import trials_of
from memorization.measuring.membership_rates import roc
from memorization.measuring.membership_training import knn_over_training

ATTACK_COLORS = {
    "alignment": "#D55E00",
    "encodermi_threshold": "#E69F00",
    "encodermi_vector": "#CC79A7",
    "reference": "#0072B2",
    "lira": "#009E73",
    "crops": "#56B4E9",
}
TITLES = {
    "own against external": "own images against $S_E$",
    "own against other": "own images against the other encoder's",
    "shared against external": "shared images against $S_E$",
}
SCORE = "memorization score $m(x)$, mean over the seeds"
MOST_RATES = 400  # points of a line
FEWEST = 4  # encoders with a band


@picture
def draw_roc(signals, evidence, path):
    """The true positive rate at every false positive rate, both axes logarithmic: a panel for every
    comparison, a line for every attack. A line is the mean over all encoders, a band two standard
    errors of this mean.

    signals: {attack: (S, E, N)}; evidence: their Evidence.
    """
    curves = {title: _curves(signals, evidence, name) for name, title in TITLES.items()}
    curves = {title: of for title, of in curves.items() if of}
    figure, panels = subplots(
        1, len(curves), figsize=(4.6 * len(curves), 4.6), squeeze=False, layout="constrained"
    )
    for axes, (title, of_attack) in zip(panels[0], curves.items()):
        least = min(rates[0] for rates, _ in of_attack.values())
        for attack, (rates, found) in of_attack.items():
            color = ATTACK_COLORS[attack]
            mean, style = found.mean(0), "--" if attack == "encodermi_threshold" else "-"
            axes.plot(rates, mean, style, color=color, linewidth=1.5, label=attack)
            if len(found) >= FEWEST:
                half = 2 * found.std(0, ddof=1) / np.sqrt(len(found))
                low = np.maximum(mean - half, least / 2)  # that a logarithm can show
                axes.fill_between(rates, low, mean + half, color=color, alpha=0.15, linewidth=0)
        axes.plot([least, 1], [least, 1], color="black", linewidth=0.8, linestyle="--")
        axes.set(title=title, xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1.2))
        axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
        axes.legend(loc="lower right", **LEGEND)
    return figure


def _curves(signals, evidence, comparison):
    """{attack: (false positive rates (K,), true positive rates of every encoder (T, K))}."""
    curves = {}
    for attack, signal in signals.items():
        trials = []
        for role in range(signal.shape[1]):
            trials += trials_of(signal[:, role], evidence.relation[:, role], comparison)
        if trials:
            least = 1 / min(len(trial.others) for trial in trials)
            rates = np.geomspace(least, 1, MOST_RATES)
            curves[attack] = rates, np.array([_found_at(rates, trial) for trial in trials])
    return curves


def _found_at(rates, trial):
    """The true positive rates at the last thresholds with at most these false positive rates."""
    false, true, _ = roc(*trial.signals)
    return true[np.searchsorted(false, rates * (1 + 1e-9), side="right") - 1]


@picture
def draw_exposure(table, attacks, is_crossover, path):
    """Each signal against the memorization score, a panel for every attack, a point for every image
    of S_C, in a crossover of the pool, and of S_E.

    table: of `table_of_losses`, and "score", (N,); attacks: {attack: its correlations, see
    `correlate`}.
    """
    # reference is the score itself, which is worth no panel beside others
    attacks = {name: of for name, of in attacks.items() if name != "reference"} or attacks
    columns = 2 if len(attacks) in (2, 4) else 3
    rows = -(-len(attacks) // columns)
    figure, panels = subplots(
        rows, columns, figsize=(4 * columns, 3.4 * rows), squeeze=False, layout="constrained"
    )
    subset, score = table["subset"], table["score"]
    names = {
        "external": NAMES["external"],
        "candidate": POOL if is_crossover else NAMES["candidate"],
    }
    for axes, (attack, of) in zip(panels.flat, attacks.items()):
        for name, label in names.items():
            values, known = table[attack][subset == name], of[name]
            style = {"s": 10 if len(values) < 2000 else 3, "linewidths": 0, "rasterized": True}
            if known is not None:
                label = f"{label}: {known['value']:+.2f}"
                style |= {"color": COLORS[name], "alpha": 0.4, "label": label}
                axes.scatter(score[subset == name], values, **style)
        axes.set_title(attack, fontsize=10)
        axes.set(xlabel=SCORE)
        axes.legend(markerscale=1.5, title="rank correlation", title_fontsize=8, **LEGEND)
    for axes in panels.flat[len(attacks) :]:
        axes.axis("off")
    for of_row in panels:
        of_row[0].set_ylabel("signal")
    return figure


@picture
def draw_training(table, logs, path):
    """AUC of every attack and the share of members found at 1 % false positives over training, with
    the kNN accuracy on an axis at the right.

    table: of `follow_training`; logs: the lines of every encoder's log.jsonl.
    """
    figure, (upper, lower) = subplots(2, 1, figsize=(7.5, 7), sharex=True)
    for attack, of in table.items():
        if not isinstance(of, dict):
            continue
        color, dashes = ATTACK_COLORS[attack], "--" if attack == "encodermi_threshold" else "-"
        error = np.abs(of["interval"].T - of["auc"])
        style = POINTS | {"color": color, "linestyle": dashes, "label": attack}
        upper.errorbar(table["epoch"], of["auc"], error, **style)
        del style["capsize"]
        lower.plot(table["epoch"], 100 * of["found"], **style)
    upper.axhline(0.5, color="black", linewidth=0.8)
    lower.axhline(1, color="black", linewidth=0.8)
    epochs, accuracies = knn_over_training(logs)
    for axes in (upper, lower):
        right = axes.twinx()
        right.plot(epochs, 100 * accuracies, color=GRAY, marker="s", markersize=3, linestyle=":")
        right.set_ylabel("kNN accuracy, % (dotted)")
    title = "Membership over training: own images against $S_E$ (error bars: 95 % intervals)"
    upper.set(title=title, ylabel="AUC")
    lower.set(xlabel="epoch", ylabel="found at 1 % false positives, %")
    mark_whole_numbers(lower.xaxis)
    attacks = upper.get_legend_handles_labels()
    # below both panels: within one it would hide an error bar
    figure.legend(*attacks, loc="upper center", bbox_to_anchor=(0.5, 0.04), ncols=3, **LEGEND)
    return figure
