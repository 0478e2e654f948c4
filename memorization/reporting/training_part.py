"""The training curve: the losses of all encoders, and the scores of kept checkpoints."""

import numpy as np

from memorization.data.subsets import ROLES
from memorization.machine.files import exists
from memorization.reporting.blocks import (
    axis,
    code,
    figure,
    missing_result,
    note,
    part,
    trace,
    warning,
)
from memorization.reporting.result_folders import (
    command_of_encoders,
    has_encoders,
    missing_measurement,
)
from memorization.reporting.score_parts import TITLES
from memorization.training.log import whole_lines

MOST_POINTS = 200  # of a line
WORDS = {"candidate": "f", "independent": "g"}


def training_part(run, checkpoints):
    """The losses in log.jsonl and, of FoundResults of checkpoints, the scores over training; None
    if others trained the encoders. run: a Run.
    """
    if run.config.training is None:
        return None
    logs = {role: _read_logs(run, role) for role in ROLES}
    logs = {role: of_seeds for role, of_seeds in logs.items() if of_seeds}
    if not logs:
        # a training that is finished is left alone, and writes no log again
        command = None if has_encoders(run) else command_of_encoders(run)
        return part("training", "Training", missing_result("There are no training logs.", command))
    state, scores = _unfinished(run), _scores(run, checkpoints)
    plots = _losses(logs, not state), _accuracies(logs)
    return part("training", "Training", *state, *plots, *scores)


def _unfinished(run):
    """A warning that encoders are not trained to the end, and the command that goes on; an empty
    list if all are.
    """
    folders = [run.folder_of(seed, role) for seed in run.seeds for role in ROLES]
    n_finished = sum(_is_finished(folder, run.config.training.epochs) for folder in folders)
    if n_finished == len(folders):
        return []
    state = warning(
        f"The training is not finished: {n_finished} of {len(folders)} encoders are. Curves show "
        "the epochs that all encoders of a line have reached. This command goes on:"
    )
    return [state, code([command_of_encoders(run)])]


def _is_finished(folder, epochs):
    """Whether an encoder is there, or was: its log is whole. epochs: of the training."""
    if exists(folder / "encoder.pt") or not exists(folder / "log.jsonl"):
        return exists(folder / "encoder.pt")
    log = whole_lines(folder / "log.jsonl")
    return bool(log) and log[-1]["epoch"] == epochs


def _read_logs(run, role):
    """The lines of log.jsonl of every seed, a list of lists."""
    paths = [run.folder_of(seed, role) / "log.jsonl" for seed in run.seeds]
    logs = [whole_lines(path) for path in paths if exists(path)]
    return [log for log in logs if log]


def _over_seeds(logs, key):
    """(epochs, means, lowest, highest) of a value in logs of several seeds, at most MOST_POINTS;
    epochs without it in some seed are left out.
    """
    of_seeds = [{line["epoch"]: line[key] for line in log if line[key] is not None} for log in logs]
    epochs = sorted(set.intersection(*map(set, of_seeds)))
    if len(epochs) > MOST_POINTS:
        places = np.linspace(0, len(epochs) - 1, MOST_POINTS).round().astype(int)
        epochs = [epochs[place] for place in np.unique(places)]
    values = np.array([[of_seed[epoch] for epoch in epochs] for of_seed in of_seeds])
    if not epochs:
        return [], [], [], []
    return epochs, *(part.tolist() for part in (values.mean(0), values.min(0), values.max(0)))


def _curves(logs, key, words):
    """A line of the mean over seeds for each role, and a band from the lowest to the highest."""
    traces = []
    for role, of_seeds in logs.items():
        epochs, means, low, high = _over_seeds(of_seeds, key)
        if not epochs:
            continue
        name = f"{words} of {WORDS[role]}"
        traces.append(trace("line", name, role, epochs, means, dash=role == "independent"))
        if len(of_seeds) > 1:
            traces.append(trace("band", f"{name}, all seeds", role, epochs, low=low, high=high))
    return traces


def _losses(logs, is_finished):
    traces = _curves(logs, "loss", "training loss")
    last = [log[-1]["loss"] for log in logs.get("candidate", [])] if is_finished else []
    end = f" At the end that of f is {np.mean(last):.4g}." if last else ""
    seeds = "Lines are means over seeds, bands reach from the lowest to the highest."
    return figure(
        "training-loss",
        "Training loss",
        f"The training loss over the epochs.{end} {seeds}",
        {"x": axis("epoch"), "y": axis("training loss")},
        traces,
    )


def _accuracies(logs):
    traces = _curves(logs, "knn_accuracy", "kNN accuracy")
    if not traces:
        return None
    return figure(
        "training-knn",
        "kNN accuracy over training",
        "Share of external images whose nearest neighbours vote for their class, over the epochs.",
        {"x": axis("epoch"), "y": axis("kNN accuracy", form="percent")},
        traces,
    )


def _scores(run, checkpoints):
    """Mean scores of the subsets at kept checkpoints, blocks."""
    if checkpoints:
        summaries = [result.summary for result in checkpoints]
        epochs = [summary.checkpoint.epoch for summary in summaries]
        traces = []
        for name in summaries[-1].subsets:
            raw = [summary.subsets[name]["raw"] for summary in summaries]
            means = [values["mean"] for values in raw]
            errors = [values["standard_error"] for values in raw]
            low = [mean - error for mean, error in zip(means, errors)]
            high = [mean + error for mean, error in zip(means, errors)]
            more = {"low": low, "high": high, "joined": True}
            traces.append(trace("points", TITLES[name], name, epochs, means, **more))
        plot = figure(
            "training-scores",
            "Memorization over training",
            "Mean memorization scores of the subsets at checkpoints; error bars are standard "
            "errors over images.",
            {"x": axis("epoch"), "y": axis("mean memorization score")},
            traces,
        )
        return [plot]
    if run.config.training.checkpoint_epochs:
        what = "The kept checkpoints are not scored, so there is no curve of memorization."
        return [missing_measurement(run, "scores", what, "--checkpoint", "all")]
    epochs = run.config.training.epochs
    some = sorted({max(1, epochs * part // 4) for part in (1, 2, 3)})
    advice = (
        "No checkpoints were kept, so memorization over training is not known. A training with "
    )
    advice += "this setting keeps some:"
    return [note(advice), code([f"training: {{checkpoint_epochs: {some}}}"])]
