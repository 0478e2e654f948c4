"""Score every image of a trained run: how much better f aligns its views than g does. Positive
means f memorized it.

    python memorization_scores.py --config configs/simclr_cifar10.yaml
    python memorization_scores.py --config configs/simclr_cifar10.yaml --checkpoint epoch_0100
    python memorization_scores.py --config configs/simclr_cifar10.yaml --checkpoint all

Reads the run folder (encoder.pt of every seed and role, subsets.npz, config.yaml) and the data set.
Writes into scores/ of the run folder: scores.csv, scores.npz, scores.mat, summary.json,
histogram.png, scatter.png and gallery.png; for another checkpoint, representation, augmentation or
precision, and for other seeds or settings than those of the run's config.yaml, into a folder in it,
named after them.

With --checkpoint all every kept checkpoint is scored, and training_curve.png drawn.
"""

import hashlib
import time

import torch

from memorization.data.confounders import warn_of_confounders
from memorization.errors import WrongUse, escape
from memorization.figures import draw_gallery, draw_histogram, draw_scatter, draw_training_curve
from memorization.machine import processes
from memorization.machine.command import one_line_errors
from memorization.machine.device import describe_machine, warn_of_emulation
from memorization.machine.files import exists
from memorization.machine.resources import memory_for, print_estimate, seconds_of
from memorization.machine.screen import say
from memorization.measuring.score_tables import (
    FORMAT,
    ScoresSummary,
    error_of_precision,
    files_of,
    rows_to_score,
    score_rows,
    summarize,
    table_of_scores,
)
from memorization.measuring.scores import score_batch
from memorization.run import open_run
from memorization.training import read_log

ACTIONS = {"checkpoint": "encoder (the default), epoch_NNNN for a kept one, or all, over training"}
PICTURES = ["histogram.png", "scatter.png", "gallery.png", "training_curve.png"]
LONG = 20  # batches from which on one is tried first, to tell what all will take
BYTES_A_ROW = 600  # of scores.csv, scores.npz and scores.mat together, about


@one_line_errors
def main(argv=None):
    run = open_run(__doc__, argv, "scores", ACTIONS)
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
        print_plan(run, images, rows, pairs[0])
        start, recipes = time.monotonic(), settings.recipes(run.recipes)
        scores = [
            score_rows(pair, images, rows, recipes, settings.scoring(pair.seed)) for pair in pairs
        ]
        seconds = time.monotonic() - start
        error = None
        if settings.precision != "fp32":
            error = error_of_precision(scores[0], pairs[0], images, rows, settings, run.recipes)
    table = table_of_scores(rows, scores)
    files, result = files_of(table), run.output(checkpoint=checkpoint)
    encoders = {place: value for pair in pairs for place, value in pair.fingerprints.items()}
    hashes = {"encoders": encoders, "scores": hashlib.sha256(files["scores.npz"]).hexdigest()}
    summary = ScoresSummary(
        format=FORMAT,
        seeds=run.seeds,
        **summarize(table),
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
        draw_gallery(table, images, result.folder / "gallery.png")
    print_summary(summary, result.folder)
    return summary.plain()


def print_plan(run, images, rows, pair):
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


def print_summary(summary, folder):
    """A table of the subsets and the tests."""
    columns = f"{'mean score':>12} {'std. error':>11} {'range scale':>12} {'ratio':>9}"
    say(f"\n{'subset':>12} {'n':>7} {columns}")
    for name, scales in summary.subsets.items():
        raw, in_range, ratio = scales["raw"], scales["range"]["mean"], scales["ratio"]["mean"]
        means = f"{raw['mean']:>12.5f} {raw['standard_error']:>11.5f} {in_range:>12.4f}"
        say(f"{name:>12} {raw['n']:>7} {means} {ratio:>9.4f}")
    offset = f"{summary.offset_on_unseen_images:.5f}"
    say(f"\noffset of this pair on unseen images (mean of external): {offset}")
    for name, contrast in summary.free_of_the_offset.items():
        low, high = contrast["interval_95"]
        interval = f"95 % interval {low:.5f} to {high:.5f}"
        say(f"{name:>32}: {contrast['value']:.5f}  ({interval})")
    say("\ngiven this pair, one-sided Welch tests:")
    for name, test in summary.given_this_pair["welch"].items():
        say(f"{name:>32}: t {test['t']:.2f}  p {test['p']:.2g}  Cohen's d {test['d']:.2f}")
    if summary.over_seeds:
        say(f"\nover {len(summary.seeds)} seeds, paired t tests of the means:")
        for name, test in summary.over_seeds["paired"].items():
            difference = f"mean difference {test['mean_difference']:.5f}"
            say(f"{name:>32}: t {test['t']:.2f}  p {test['p']:.2g}  {difference}")
    if summary.error_of_precision:
        off = summary.error_of_precision["score_error"]
        by_views = summary.error_of_precision["standard_error_of_scores"]
        against = f"{summary.settings['precision']}, against fp32 on {off['n']} images of one seed"
        say(f"\n{against}: scores are off by {off['mean']:.2g} on average,")
        spread = f"std {off['std']:.2g}, at most {off['largest']:.2g}"
        say(f"{spread}; the choice of views alone leaves a standard error of {by_views:.2g}")
    pictures = f"{escape(folder)}: gallery.png, histogram.png, scatter.png"
    say(f"\n{summary.images_per_second:.0f} images/s; the pictures are in {pictures}")


if __name__ == "__main__":
    main()
