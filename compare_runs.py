"""Compare runs on the same candidates: how much do they memorize, and the same images?

    python compare_runs.py runs/demo runs/demo_byol runs/demo_mae
    python compare_runs.py runs/demo runs/demo_byol --output runs/two_methods
    python compare_runs.py runs/demo runs/demo_byol --scores epoch_0100

Reads scores/ and probe/ of each run folder, and the data set of the first run. Writes runs.csv, a
row per run; comparison.csv and heatmap.png, how well each two rankings agree, beside the ceiling
and chance; thresholds.csv and thresholds.png, the share of candidates above a threshold;
strips.png, images by their scores; accuracy.png, accuracy against memorization, if the runs were
probed; and summary.json. An earlier comparison in the same folder is replaced as a whole.
"""

from pathlib import Path

from memorization.errors import WrongUse, escape
from memorization.fields import check_path
from memorization.machine import processes
from memorization.machine.command import one_line_errors
from memorization.machine.files import exists, read_text, refuse_broken
from memorization.machine.screen import say
from memorization.measuring.compared_runs import (
    add_accuracy,
    check_same_candidates,
    read_scored_run,
)
from memorization.measuring.comparison import (
    FORMAT,
    common_rankings,
    files_of,
    summarize,
    thresholds_of,
)
from memorization.measuring.comparison_figures import (
    draw_accuracy,
    draw_heatmap,
    draw_strips,
    draw_thresholds,
)
from memorization.measuring.comparison_printing import print_comparison
from memorization.options import read_words
from memorization.results import SUMMARY, Result, Summary
from memorization.run import check_different, read_run, short_names

RUNS = ("RUN", "run folders that are scored, two or more")
OPTIONS = {
    "output": ("FOLDER", "runs/comparison", "where to write (default: runs/comparison)"),
    "scores": ("NAME", None, "a folder in scores/ of each run (default: scores/ itself)"),
    "data.root": ("FOLDER", None, "the data set, if it is not where the first run found it"),
}
PICTURES = ["heatmap.png", "thresholds.png", "strips.png", "accuracy.png"]


@one_line_errors
def main(argv=None):
    words = read_words(argv, __doc__, RUNS, OPTIONS)
    check_words(words)
    result = output(words["output"])
    runs = [read_run(path, words["data.root"]) for path in words["RUN"]]
    names = short_names(words["RUN"])
    scored = [scored_run(run, name, words["scores"]) for run, name in zip(runs, names)]
    check_same_candidates(scored)
    rankings = common_rankings(scored)
    summary = summarize(scored, rankings, {"scores": words["scores"]})
    thresholds, images = thresholds_of(scored, rankings), runs[0].images
    strips = {
        run.name: (rankings.candidate, rankings.scores(run, "candidate").mean(0)) for run in scored
    }
    probed = [run for run in summary.runs if run["accuracy"] is not None]
    with result.save(files_of(summary, thresholds), summary, PICTURES):
        draw_heatmap(summary, result.folder / "heatmap.png")
        draw_thresholds(thresholds, rankings.column, result.folder / "thresholds.png")
        draw_strips(strips, images, rankings.column, result.folder / "strips.png")
        if probed:
            draw_accuracy(summary.runs, images.name, result.folder / "accuracy.png")
    print_comparison(summary, result.folder)
    say_what_is_missing(summary, probed)


def check_words(words):
    """Raise WrongUse if the command line does not name two runs or more, or what cannot be."""
    if processes.count() > 1:
        alone = f"compare_runs.py is one process, but torchrun started {processes.count()}"
        raise WrongUse(alone)
    paths = [*words["RUN"], words["output"], *filter(None, [words["data.root"]])]
    for path in paths:
        try:
            check_path(path)
        except ValueError as error:
            raise WrongUse(f"command line: {error}") from None
    if len(words["RUN"]) < 2:
        number = len(words["RUN"])
        raise WrongUse(f"command line: two runs or more are needed, not {number}")
    check_different(words["RUN"])
    name = words["scores"]
    if name is not None and (Path(name).name != name or name in ("", "..")):
        raise WrongUse(f"command line: --scores: {name!r} is not allowed: a name of a folder is")


def output(folder):
    """The Result of the comparison. Raises WrongUse if its folder holds something else."""
    folder = Path(folder).expanduser()
    result = Result(folder, "compare_runs.py", {}, {}, [], {})
    advice = "; choose another --output"
    if exists(folder / "config.yaml"):
        raise WrongUse(f"{folder}: is a run, and no comparison is written there{advice}")
    if exists(folder / SUMMARY):
        with refuse_broken(folder / SUMMARY, "not a whole summary of a result", advice):
            written = Summary.parse(read_text(folder / SUMMARY)).plain().get("format")
        if written != FORMAT:
            raise WrongUse(f"{folder}: holds the result of something else{advice}")
    result.check_place()
    return result


def scored_run(run, name, scores):
    """The ScoredRun of a Run. scores: the name of a folder in scores/; None for scores/ itself."""
    folder = run.folder / "scores" / (scores or "")
    return add_accuracy(read_scored_run(run, name, folder), run)


def say_what_is_missing(summary, probed):
    """Say which runs are not in the picture of accuracies, and what differs between runs."""
    missing = [run["run"] for run in summary.runs if run not in probed]
    if not probed:
        no_probes = "no run has linear probes of the scored encoders (linear_probing_train.py)"
        say(f"accuracy.png is not drawn: {no_probes}")
    elif missing:
        say(f"not in accuracy.png, as they have no linear probes: {escape(', '.join(missing))}")
    for key, words in (("views", "views of scoring"), ("probe_images", "images of probing")):
        values = {run["run"]: run[key] for run in summary.runs if run[key] is not None}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            say(f"the number of {words} differs: {escape(listed)}")


if __name__ == "__main__":
    main()
