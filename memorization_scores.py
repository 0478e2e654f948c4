"""Score every image of a trained run: how much better f aligns its views than g does. Positive
means f memorized it.

    python memorization_scores.py --config configs/simclr_cifar10.yaml
    python memorization_scores.py --config configs/simclr_cifar10.yaml --checkpoint epoch_0100
    python memorization_scores.py --config configs/simclr_cifar10.yaml --checkpoint all
    python memorization_scores.py --config configs/simclr_cifar10.yaml --plan

Reads the run folder (encoder.pt of every seed and role, subsets.npz, config.yaml) and the data set.
Writes into scores/ of the run folder: scores.csv, scores.npz, scores.mat, summary.json,
histogram.png, scatter.png and gallery.png; for another checkpoint, representation, augmentation or
precision, and for other seeds or settings than those of the run's config.yaml, into a folder in it,
named after them.

With --checkpoint all every kept checkpoint is scored, and training_curve.png drawn. With --plan
nothing is scored: it tells how many seeds would make the scores of single images reliable.
"""

import hashlib
import time

import torch

from memorization.data.confounders import class_counts, class_test, warn_of_confounders
from memorization.data.subsets import ROLES
from memorization.errors import WrongUse
from memorization.figures import draw_gallery, draw_histogram, draw_scatter, draw_training_curve
from memorization.machine import processes
from memorization.machine.command import one_line_errors
from memorization.machine.device import describe_machine, warn_of_emulation
from memorization.machine.files import exists
from memorization.machine.resources import memory_for, print_estimate, seconds_of
from memorization.measuring.calibration import local_offsets
from memorization.measuring.candidate_scores import read_scores_summary
from memorization.measuring.score_printing import print_plan, print_summary
from memorization.measuring.score_summary import ScoresSummary, error_of_precision, summarize
from memorization.measuring.score_tables import (
    FORMAT,
    ScoredSeed,
    files_of,
    rows_to_score,
    score_rows,
    signs_of,
    table_of_scores,
)
from memorization.measuring.scores import score_batch
from memorization.run import open_run
from memorization.training import read_log

ACTIONS = {"checkpoint": "encoder (the default), epoch_NNNN for a kept one, or all, over training"}
FLAGS = {"plan": "what more seeds and views would give, by the scores that are there"}
PICTURES = ["histogram.png", "scatter.png", "gallery.png", "training_curve.png"]
LONG = 20  # batches from which on one is tried first, to tell what all will take
BYTES_A_ROW = 600  # of scores.csv, scores.npz and scores.mat together, about


@one_line_errors
def main(argv=None):
    run = open_run(__doc__, argv, "scores", ACTIONS, FLAGS)
    if run.actions["plan"]:
        return print_plan_of_seeds(run)
    warn_of_confounders(run.subsets, run.images, run.config.subsets)
    warn_of_emulation("scores.precision", run.settings.precision, run.device)
    logs = training_logs(run) if run.actions["checkpoint"] == "all" else None
    images = run.images_on_device
    rows = rows_to_score(run.subsets, images, run.settings.per_subset)
    summaries = [score_checkpoint(run, images, rows, name) for name in run.checkpoints]
    if logs:
        result = run.output(checkpoint=run.checkpoints[-1])
        with result.lock():
            draw_training_curve(summaries, logs, result.folder / "training_curve.png")


def print_plan_of_seeds(run):
    """What more seeds would give, by the scores that are there. Raises WrongUse if those are of a
    single seed.
    """
    summary = read_scores_summary(run.scores_output().folder)
    if not summary.ranking_reliability:
        several = "how well scores repeat is known from two seeds on"
        raise WrongUse(f"--plan: the scores of {run.name} are of one seed: {several}")
    folders = [run.folder_of(seed, role) for seed in summary.seeds for role in ROLES]
    logs = [read_log(folder / "log.jsonl") for folder in folders if exists(folder / "log.jsonl")]
    seconds = summary.seconds + sum(line["seconds"] for log in logs for line in log)
    is_known = len(logs) == len(folders)
    print_plan(summary, seconds / len(summary.seeds) if is_known else None)


def training_logs(run):
    """The lines of log.jsonl of every f, a list for each seed."""
    logs = [run.folder_of(seed, "candidate") / "log.jsonl" for seed in run.seeds]
    for log in logs:
        if not exists(log):
            raise WrongUse(f"--checkpoint all: {log} is missing")
    return [read_log(log) for log in logs]


def score_checkpoint(run, images, rows, checkpoint):
    """Score rows by one checkpoint of every seed, and write its folder. Returns what it says."""
    settings, pairs = run.settings, run.pairs(checkpoint)
    with memory_for("scores.batch_size", settings.batch_size):
        print_estimate_of_scoring(run, images, rows, pairs[0])
        start = time.monotonic()
        seeds = [score_seed(run, images, rows, pair) for pair in pairs]
        seconds = time.monotonic() - start
        error = None
        if settings.precision != "fp32":
            scores = seeds[0].scores
            error = error_of_precision(scores, pairs[0], images, rows, settings, run.recipes)
    table, counts = table_of_scores(rows, seeds), class_counts(run.subsets, run.images)
    files, result = files_of(table), run.output(checkpoint=checkpoint)
    encoders = {place: value for pair in pairs for place, value in pair.fingerprints.items()}
    hashes = {"encoders": encoders, "scores": hashlib.sha256(files["scores.npz"]).hexdigest()}
    summary = ScoresSummary(
        format=FORMAT,
        seeds=run.seeds,
        **summarize(table, seeds),
        class_counts=counts,
        class_test=class_test(counts),
        checkpoint={"name": checkpoint, "epoch": pairs[0].epoch},
        settings=settings.model_dump(),
        error_of_precision=error,
        fingerprints=result.fingerprints | hashes,
        machine=describe_machine(run.device),
        seconds=seconds,
        images_per_second=len(rows["index"]) * len(pairs) / seconds,
    )
    with result.save(files, summary, PICTURES):
        draw_histogram(table, result.folder / "histogram.png")
        draw_scatter(table, result.folder / "scatter.png")
        draw_gallery(table, images, summary, result.folder / "gallery.png")
    print_summary(summary, result.folder)
    return summary.plain()


def score_seed(run, images, rows, pair):
    """The ScoredSeed of rows by one Pair."""
    recipes, scoring = run.settings.recipes(run.recipes), run.settings.scoring(pair.seed)
    scores = score_rows(pair, images, rows, recipes, scoring)
    signs = signs_of(rows, run.subsets, pair.seed)
    return ScoredSeed(scores, signs, *local_offsets(pair, images, rows, signs, scores))


def print_estimate_of_scoring(run, images, rows, pair):
    """What a long scoring will take, from a batch on trial."""
    settings, n_images = run.settings, len(rows["index"]) * len(run.seeds)
    if n_images < LONG * settings.batch_size:
        return
    f, g = (encoder.to(run.device) for encoder in pair)
    batch = torch.from_numpy(rows["index"][rows["split"] == "train"][: settings.batch_size])
    recipes, scoring = settings.recipes(run.recipes), settings.scoring(pair.seed)

    def score():
        return score_batch(f, g, images.train, batch, recipes, scoring)

    seconds = seconds_of(score, run.device) * n_images / len(batch) / processes.count()
    what = f"scoring {n_images} images by {settings.views} views through two encoders"
    print_estimate(what, seconds, run.device, BYTES_A_ROW * len(rows["index"]), run.folder)


if __name__ == "__main__":
    main()
