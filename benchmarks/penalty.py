"""What does an alignment penalty cost, and what does it save?

    python -m benchmarks.penalty runs/penalty_demo_*

Reads runs that differ in training.alignment_penalty alone, as configs/penalty_demo.yaml trains
them, with their scores and linear probes. Prints a line for each. Writes penalty.json and
penalty.png into runs/benchmarks.

Every figure is the mean over the seeds and their standard deviation. The score is that of
candidates less that of S_E; d is its effect size. Both AUCs tell members from S_E: by the score,
for which an attacker needs g, and by the alignment loss of f alone. The penalty acts on the very
distances that score and alignment loss are made of, so that an attacker who looks at something else
may find more.
"""

import argparse

import numpy as np
import torch

from benchmarks.contest import RESULTS, save
from memorization.errors import WrongUse, short_form
from memorization.figures import COLORS, LEGEND, POINTS, picture, subplots
from memorization.fingerprints import first_difference
from memorization.machine.command import one_line_errors
from memorization.measuring.compared_runs import read_accuracy, read_scored
from memorization.measuring.membership_rates import auc
from memorization.results import Spread
from memorization.run import read_run
from memorization.significance import cohens_d, mean_and_spread

COLUMNS = {
    "score": "score x 1000",
    "d": "d",
    "auc_score": "AUC, by score",
    "auc_alignment": "AUC, by f alone",
    "accuracy": "linear probe, %",
}


@one_line_errors
def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder")
    runs = [read_run(path) for path in parser.parse_args(argv).runs]
    check_differ_in_penalty(runs)
    rows = sorted(map(measure, runs), key=lambda row: row["alignment_penalty"])
    print_rows(rows)
    save("penalty", rows, torch.device("cpu"))
    draw_penalties(rows, RESULTS / "penalty.png")


def check_differ_in_penalty(runs):
    """Raise WrongUse unless runs differ in training.alignment_penalty, and in nothing else."""
    penalties = {}
    for run in runs:
        trained = run.config.trained_part()
        if "training" not in trained:
            raise WrongUse(f"{run.name}: was imported, and nobody knows its penalty")
        weight = trained["training"].pop("alignment_penalty", 0.0)
        other = penalties.setdefault(weight, run)
        if other is not run:
            same = f"has the training.alignment_penalty of {other.name}, {weight}"
            raise WrongUse(f"{run.name}: {same}")
        first = runs[0].config.trained_part()
        first["training"].pop("alignment_penalty", None)
        difference = first_difference(trained, first)
        if difference:
            key, *values = difference
            value, other = map(short_form, values)
            raise WrongUse(f"{run.name}: {key} is {value}, but {other} in {runs[0].name}")


def measure(run):
    """The figures of a run: its penalty, and of each column {"mean", "std", "n"} over the seeds, or
    None; a dict of plain types.
    """
    _, table = read_scored(run.folder / "scores", run.subsets)
    accuracy, _ = read_accuracy(run.folder / "probe", run.config.data.name)
    figures = figures_of_seeds(table)
    if accuracy is not None:
        figures["accuracy"] = {
            "mean": 100 * accuracy.mean,
            "std": None if accuracy.std is None else 100 * accuracy.std,
            "n": accuracy.n,
        }
    weight = run.config.training.alignment_penalty
    return {"run": run.name, "alignment_penalty": weight, "accuracy": None} | figures


def figures_of_seeds(table):
    """{column: {"mean", "std", "n"}} of what the scores of each seed show. table: of
    `table_of_scores`.
    """
    is_candidate, is_external = (table["subset"] == name for name in ("candidate", "external"))
    of_seeds = {name: [] for name in ("score", "d", "auc_score", "auc_alignment")}
    for scores, losses, signs in zip(table["per_seed"], table["L_f"], table["sign"]):
        candidates, external = scores[is_candidate], scores[is_external]
        members = losses[is_candidate & (signs > 0)]  # f saw these; in a crossover, half of them
        of_seeds["score"].append(1000 * (candidates.mean() - external.mean()))
        of_seeds["d"].append(cohens_d(candidates, external))
        of_seeds["auc_score"].append(auc(-candidates, -external))
        of_seeds["auc_alignment"].append(auc(members, losses[is_external]))
    return {name: mean_and_spread(values) for name, values in of_seeds.items()}


def print_rows(rows):
    print(f"{'penalty':>8}" + "".join(f"{words:>18}" for words in COLUMNS.values()))
    for row in rows:
        cells = [f"{Spread(**row[key]):.2f}" if row[key] else "--" for key in COLUMNS]
        print(f"{row['alignment_penalty']:>8g}" + "".join(f"{cell:>18}" for cell in cells))


@picture
def draw_penalties(rows, path):
    """Accuracy, mean score and AUC against the penalty. rows: of `measure`."""
    panels = {
        "accuracy": ({"accuracy": None}, "top-1 accuracy of linear probes on f, %"),
        "mean score": ({"score": None}, "candidates less $S_E$, x 1000"),
        "AUC": ({"auc_score": "by the score", "auc_alignment": "by f alone"}, "members from $S_E$"),
    }
    figure, axes = subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    colors = [COLORS["candidate"], COLORS["independent"]]
    for panel, (title, (columns, words)) in zip(axes, panels.items()):
        for (column, label), color in zip(columns.items(), colors):
            own = [row for row in rows if row[column]]
            weights = [row["alignment_penalty"] for row in own]
            means = [row[column]["mean"] for row in own]
            errors = [row[column]["std"] or 0 for row in own]
            style = POINTS | {"color": color, "linestyle": "-", "linewidth": 1}
            panel.errorbar(weights, means, yerr=errors, label=label, **style)
        panel.set(title=title, ylabel=words, xlabel="training.alignment_penalty")
        panel.margins(0.1)
    axes[1].axhline(0, color="#999999", linewidth=0.8)
    axes[2].axhline(0.5, color="#999999", linewidth=0.8)
    axes[2].legend(**LEGEND)
    n_seeds = np.unique([row["score"]["n"] for row in rows])
    seeds = " to ".join(str(n) for n in sorted({n_seeds.min(), n_seeds.max()}))
    figure.suptitle(f"Under an alignment penalty ({seeds} seeds; error bars: standard deviation)")
    return figure


if __name__ == "__main__":
    main()
