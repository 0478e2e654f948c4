"""Do scores of single images find what is planted, and nothing else?

    python -m benchmarks.validity
    python -m benchmarks.validity --processes 4
    python -m benchmarks.validity --measure-only

Encoders are trained on images of Fashion-MNIST and planted ones, and their scores are compared with
what the definition demands. docs/validity.md tells what that is, and what came out.

Takes up to 40 minutes on two idle cores. Encoders and scores are kept in runs/validity: the same
command goes on where it was interrupted. Writes validity.json, validity_kinds.png and
validity_power.png into runs/benchmarks. With --measure-only nothing is trained, and what is not
there is left out.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import demands
from benchmarks.contest import RESULTS, save
from benchmarks.planted_figures import draw_kinds, draw_power
from benchmarks.planted_pairs import CPU, SEEDS, Trial, list_experiments
from memorization.data.catalogue import DataSettings
from memorization.data.images import open_images
from memorization.encoder import Pair
from memorization.machine.command import one_line_errors
from memorization.machine.device import choose_device
from memorization.machine.interruption import run_child, stop_requests
from memorization.machine.screen import say
from memorization.measuring.calibration import local_offsets
from memorization.measuring.scores import ImageScores

RUNS = Path("runs/validity")
METHODS = {"simclr": "SimCLR", "mae": "MAE"}
NOTHING_EXPECTED = {"auc": float("nan"), "seeds": None}
NUMBERS_OF_SEEDS = (1, 3, SEEDS)  # whose mean scores are measured


@one_line_errors
def main(argv=None):
    options = read_options(argv)
    choose_device("cpu", 1)
    images = open_images(DataSettings(name="fashion_mnist"))
    trials = {
        name: Trial(experiment, experiment.plant(images), RUNS / name)
        for name, experiment in list_experiments().items()
    }
    if options.share:
        return train_share(trials, *options.share)
    if not options.measure_only:
        train_in_processes(options.processes)
    results = measure(trials)
    results["demands"] = demands.compare(results)
    print_results(results)
    save("validity", results, CPU)
    tables = [table for trial in of_method(trials, "simclr") for table in trial.tables(SEEDS)]
    if tables:
        draw_kinds(tables, RESULTS / "validity_kinds.png")
    draw_power(results["crossover"], RESULTS / "validity_power.png")


def read_options(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="that train side by side")
    parser.add_argument("--measure-only", action="store_true", help="train nothing")
    # of one process: its number, and how many there are
    parser.add_argument("--share", type=int, nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# --- training -------------------------------------------------------------------------------------


def train_in_processes(count):
    """Train and score what is not there yet, in so many processes."""
    command = [sys.executable, "-m", "benchmarks.validity", "--share"]
    with stop_requests() as stop, ThreadPoolExecutor(count) as pool:
        commands = [[*command, str(share), str(count)] for share in range(count)]
        codes = list(pool.map(partial(run_child, stop=stop), commands))
    stop.check("what was trained is kept")
    if any(codes):
        raise SystemExit(max(codes))


def train_share(trials, share, count):
    """Train and score every count-th pair, from the share-th on."""
    pairs = [(name, seed) for name in trials for seed in trials[name].experiment.seeds]
    with stop_requests() as stop:
        for name, seed in pairs[share::count]:
            stop.check(f"the training of {name} seed {seed} was not begun")
            if trials[name].read_scores(seed) is None:
                start = time.monotonic()
                trials[name].train(seed, stop)
                say(f"{name} seed {seed}: trained and scored, {time.monotonic() - start:.0f} s")


# --- measuring ------------------------------------------------------------------------------------


def measure(trials):
    """All that is measured, a dict of plain types; see docs/validity.md."""
    return {
        "crossover": measure_crossovers(trials),
        "outliers_fixed": measure_outliers(trials["outliers_fixed"]),
        "sorted": {
            scheme: measure_sorted(trials[f"sorted_{scheme}"]) for scheme in ("fixed", "crossover")
        },
        "stand_in": measure_stand_in(trials["simclr_0"]),
        "mirror": measure_mirror(trials["simclr_0"]),
        "explained": {
            method: [
                float(seed.explained)
                for trial in of_method(trials, method)
                for seed in trial.scored_seeds.values()
            ]
            for method in METHODS
        },
    }


def of_method(trials, method):
    """The Trials of crossovers of a method."""
    return [trial for name, trial in trials.items() if name.startswith(f"{method}_")]


def measure_crossovers(trials):
    """A list of dicts, one for each method, number of seeds, and column."""
    cells = []
    for method in METHODS:
        for count in NUMBERS_OF_SEEDS:
            by_set = [trial.tables(count) for trial in of_method(trials, method)]
            by_set = [tables for tables in by_set if tables]
            if by_set:
                names = {"method": method, "seeds": count, "sets": len(by_set)}
                cells += [
                    names | {"column": column} | measure_column(by_set, column)
                    for column in demands.COLUMNS
                ]
    return cells


def measure_column(by_set, column):
    """What one column of scores shows. by_set: tables of every set."""
    tables = [table for of_set in by_set for table in of_set]
    first = [of_set[0] for of_set in by_set]  # of other seeds nulls are the same images
    expected = {}
    if len(first[0]["per_seed"]) == SEEDS:
        for contrast, least in demands.NEEDED.items():
            expected[contrast] = demands.predict_power(first, column, contrast, least)
    return {
        "auc": demands.compare_kinds(tables, column),
        "expected": expected,
        "null": demands.check_nulls(first, column),
        "false": demands.summarize_false(tables, column),
        "false_among_nulls": demands.summarize_false(tables, column, demands.MOSTLY_NULLS),
        "means": demands.mean_over_tables(tables, column),
        "unlike_external": demands.count_unknown(tables, column),
    }


def measure_outliers(trial):
    """Mean scores of waves and noise that f alone has, and of unseen ones; {column: ...}."""
    tables = trial.tables(1)
    return {
        column: demands.mean_over_tables(tables, column) for column in demands.COLUMNS if tables
    }


def measure_sorted(trial):
    """{column: {seeds: how far the images of a sorted folder score above others}}."""
    return {
        column: {
            str(count): demands.compare_classes(trial.tables(count), column)
            for count in (1, 3)
            if trial.tables(count)
        }
        for column in demands.COLUMNS
    }


def measure_stand_in(trial):
    """What an S_E that stands in for all subsets scores: raw by the mean of all seeds, local by the
    first pair, to which the offset is fitted anew in every draw. None if there is none.
    """
    tables = trial.tables(SEEDS)
    if not tables:
        return None
    is_external = tables[0]["subset"] == "external"
    rows = {name: values[is_external] for name, values in trial.planted.rows.items()}
    pair, first = trial.pair(0), trial.scored_seeds[0]
    losses = (first.scores.loss_f, first.scores.loss_g, first.scores.error)
    scores = ImageScores(*(values[is_external] for values in losses))
    signs = first.signs[is_external]

    def draw_local(subset):
        images = trial.planted.images
        offsets, _ = local_offsets(pair, images, rows | {"subset": subset}, signs, scores)
        return signs * (scores.score - offsets)

    return {
        "score": demands.stand_in(tables[0]["score"][is_external]),
        "score_local": demands.stand_in(scores.score, draw_local),
    }


def measure_mirror(trial):
    """The largest difference between scores of S_I by (g, f) and the negative of those by (f, g); 0
    is demanded. None if there is no pair.
    """
    if 0 not in trial.scored_seeds:
        return None
    rows, independent = trial.planted.rows, trial.planted.subsets(0).independent
    is_chosen = (rows["split"] == "train") & np.isin(rows["index"], independent)
    is_chosen |= rows["kind"] == "unseen waves"
    chosen = {name: values[is_chosen] for name, values in rows.items()}
    pair = trial.pair(0)
    exchanged = trial.score(0, Pair(pair.g, pair.f, 0), chosen)
    return float(np.abs(exchanged.score + trial.score(0, pair, chosen).score).max())


# --- printing -------------------------------------------------------------------------------------


def print_results(results):
    for method, name in METHODS.items():
        cells = [cell for cell in results["crossover"] if cell["method"] == method]
        if cells:
            print_cells(name, cells)
    print_outliers(results["outliers_fixed"])
    print_sorted(results["sorted"])
    print_demands(results["demands"])


def print_cells(name, cells):
    """The figures of a method: a line each, a column for each number of seeds and kind of score."""
    heads = [f"{cell['seeds']} {demands.COLUMNS[cell['column']]}" for cell in cells]
    print(f"\n{f'{name}: AUC':<44}" + "".join(f"{head:>9}" for head in heads))
    print(f"{'sets of images':>44}" + "".join(f"{cell['sets']:>9}" for cell in cells))
    for contrast in demands.CONTRASTS:
        print_line(contrast, [cell["auc"][contrast]["mean"] for cell in cells])
    nulls = [cell["null"] for cell in cells]
    print_line("twin in S_I: p of a test against S_E", [null["p_of_test"] for null in nulls])
    print_line("twin in S_I: share with p < .1", [null["share_below_.1"] for null in nulls])
    for contrast, least in demands.NEEDED.items():
        expected = [cell["expected"].get(contrast, NOTHING_EXPECTED) for cell in cells]
        print_line(f"of 100 seeds: {contrast}", [row["auc"] for row in expected])
        counts = ("--" if row["seeds"] is None else row["seeds"] for row in expected)
        numbers = "".join(f"{count:>9}" for count in counts)
        print(f"{f'seeds for {least:g}: {contrast}':>44}{numbers}")
    for key, words in (("false", "all"), ("false_among_nulls", "few, mostly nulls")):
        counts = [cell[key] for cell in cells]
        print_line(f"candidates at q < .1, of {words}", [count["found"] for count in counts])
        print_line("  false ones among them", [count["share"] for count in counts])


def print_outliers(by_column):
    """Mean scores of the kinds of a fixed scheme. by_column: of `measure_outliers`."""
    title = "one pair, fixed scheme: score less S_E, x 1000"
    heads = "".join(f"{demands.COLUMNS[column]:>9}" for column in by_column)
    print(f"\n{title:<44} {heads}")
    for kind in ("ordinary", "waves", "unseen waves", "noise", "unseen noise"):
        print_line(kind, [1000 * means[kind] for means in by_column.values()])


def print_sorted(schemes):
    """The contrasts of a sorted folder. schemes: {scheme: of `measure_sorted`}."""
    print("\nsorted folder: above S_E and above unseen images of the class, x 1000; ratio")
    for scheme, by_column in schemes.items():
        for column, by_count in by_column.items():
            for count, row in by_count.items():
                words = f"{scheme}, {count} seeds, {demands.COLUMNS[column]}"
                above = (1000 * row["above_S_E"], 1000 * row["above_unseen_of_class"])
                print_line(words, [*above, row["ratio"]])


def print_line(words, values):
    numbers = ("       --" if np.isnan(value) else f"{value:>9.3f}" for value in values)
    print(f"{words:>44}" + "".join(numbers))


def print_demands(rows):
    """A line for each demand that was tested, for raw and for local scores."""
    print(f"\n{'demanded':<76}" + "".join(f"{name:>18}" for name in demands.COLUMNS.values()))
    for row in rows:
        cells = [row[name] for name in demands.COLUMNS.values()]
        if any(cell["met"] is not None for cell in cells):
            words = f"{row['case']}: {row['demand']}, {state_bounds(*row['bounds'])}"
            print(f"{words:<76}" + "".join(f"{state_verdict(**cell):>18}" for cell in cells))
    missing = sum(row["raw"]["met"] is None for row in rows)
    if missing:
        print(f"{missing} more were not tested: their encoders are not trained")


def state_bounds(least, most):
    """The bounds of a demand, in words."""
    if least == most:
        return f"{least:g}"
    bounds = [f"at least {least:.2g}"] if least is not None else []
    return ", ".join(bounds + ([f"at most {most:.2g}"] if most is not None else []))


def state_verdict(value, met):
    """What was measured, and whether it is what is demanded."""
    return "--" if met is None else f"{value:.3f} {'met' if met else 'NOT MET'}"


if __name__ == "__main__":
    main()
