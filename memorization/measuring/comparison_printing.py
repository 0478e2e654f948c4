"""What the screen shows of a comparison: a line a run, and how well each two rankings agree."""

from memorization.errors import escape
from memorization.machine.screen import say

# Columns of the table: {heading: (key of runs.csv, format)}.
TABLE = {
    "seeds": ("seeds", "d"),
    "mean S_C": ("mean_candidate", ".5f"),
    "mean S_E": ("mean_external", ".5f"),
    "d": ("d", ".2f"),
    "d free": ("d_free_of_views", ".2f"),
    "d of a seed": ("d_of_one_seed", ".2f"),
    "p": ("p", ".1g"),
    "> 95 % S_E": ("above_external_95", ".1%"),
    "from": ("above_external_95_low", ".1%"),
    "to": ("above_external_95_high", ".1%"),
    "q < .1": ("q_below_0.1", "d"),
    "reliability": ("reliability", ".2f"),
    "accuracy": ("accuracy", ".1%"),
}
OF_OTHERS = "for other images and, of several seeds, other seeds"  # what this interval is of
LONGEST = 24  # characters of a name
MATRICES = {"tau": "Kendall's tau", "overlap": "first tenth in common"}


def print_comparison(summary, folder):
    """Print a ComparisonSummary. folder: of the result."""
    _print_runs(summary)
    _print_ranking(summary)
    for key, words in MATRICES.items():
        _print_matrix(summary, key, words)
    names = "runs.csv, comparison.csv, thresholds.csv, summary.json and pictures"
    say(f"\n{escape(folder)}: {names}")


def _print_runs(summary):
    columns = [["run", *(_name(run["run"]) for run in summary.runs)]]
    columns.append(["method", *(_name(run["method"]) for run in summary.runs)])
    for heading, (key, form) in TABLE.items():
        values = [run[key] for run in summary.runs]
        columns.append(
            [heading, *("-" if value is None else f"{value:{form}}" for value in values)]
        )
    widths = [max(map(len, column)) for column in columns]
    say("")
    for cells in zip(*columns):
        texts = [f"{cell:<{width}}" for cell, width in zip(cells[:2], widths)]
        texts += [f"{cell:>{width}}" for cell, width in zip(cells[2:], widths[2:])]
        say("  ".join(texts))
    say("means, d and p are of score, over all seeds; d free: of the noise of views")
    of_column = f"> 95 % S_E, q < .1 and reliability are of {summary.column}"
    say(f"{of_column}; accuracy: of linear probes on f")
    say(f"from, to: 95 % interval of > 95 % S_E, {OF_OTHERS}")


def _print_ranking(summary):
    counts = summary.candidates
    ranked = f"{counts['ranked']} of {counts['n']} candidates are ranked by {summary.column}"
    left_out = f"{counts['no_local_score']} have no local score in some run"
    say(f"\n{ranked}{'; ' + left_out if counts['no_local_score'] else ''}")
    size = summary.seeds_of_a_half
    if size is None:
        say("each run has one seed: there is no ceiling")
        if all(row["halves_tau"] is None for row in summary.agreement):
            same = "all runs have the same seed: their tau and overlap are in comparison.csv"
            say(f"{same}, with the noise that they share")
        return
    one = [_name(run["run"]) for run in summary.runs if run["seeds"] == 1]
    halves = f"compared: means over {size} seeds of each run with means over {size} other seeds"
    say(
        f"{halves}; the diagonal is the ceiling"
        if size > 1
        else "compared: single seeds of each run with other seeds; the diagonal is the ceiling"
    )
    if one:
        say(f"of one seed, and without a ceiling: {', '.join(one)}")


def _print_matrix(summary, key, words):
    """One line a run, one column a run, of candidates and, beside it, of S_E."""
    names = [run["run"] for run in summary.runs]
    cells = {}
    for row in summary.agreement:
        for prefix in ("", "external_"):
            value = row[f"{prefix}halves_{key}"]
            text = "-" if value is None else f"{value:.2f}".replace("-0.00", "0.00")
            cells[prefix, row["run_a"], row["run_b"]] = text
            cells[prefix, row["run_b"], row["run_a"]] = text
    width = max(len(_name(name)) for name in names)
    numbers = "".join(f"{number:>6}" for number in range(1, len(names) + 1))
    say(f"\n{words} (by chance {summary.chance[key]:.2f}):")
    say(f"{'':<{width + 5}}{'candidates':<{len(numbers)}}   S_E")
    say(f"{'':<{width + 5}}{numbers}   {numbers}")
    for number, name in enumerate(names, 1):
        line = f"{number:>3}  {_name(name):<{width}}"
        for prefix in ("", "external_"):
            line += "".join(f"{cells[prefix, name, other]:>6}" for other in names) + "   "
        say(line.rstrip())


def _name(name):
    name = escape(name)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."
