"""Where in the network an encoder memorizes: how much better f aligns the views of images than g
does, at every layer. Positive means f memorized them.

    python layer_memorization.py --config configs/simclr_cifar10.yaml
    python layer_memorization.py --config configs/simclr_cifar10.yaml --layers.representation pooled
    python layer_memorization.py --config configs/simclr_cifar10.yaml --checkpoint all

Reads the run folder (encoder.pt of every seed and role, subsets.npz, config.yaml, scores/ if there)
and the data set. Writes into layers/ of the run folder: layers.csv, layers.npz, summary.json,
layers.png and heatmap.png; for another checkpoint, and for other seeds or settings than those of
the run's config.yaml, into a folder in it, named after them. With --checkpoint all every kept
checkpoint is measured, and layers_over_training.png drawn.

LayerMem is measured for images of each subset; external images, which neither encoder saw, show the
offset of a pair. If the images were scored, the most and the least memorized tenth of the
candidates are measured, too. They were chosen by scores of these same encoders and views, so their
last layers are far from 0 by choice.
"""

import time
from dataclasses import replace

from memorization.data.confounders import warn_of_confounders
from memorization.machine import processes
from memorization.machine.command import one_line_errors
from memorization.machine.device import describe_machine, warn_of_emulation
from memorization.machine.resources import memory_for, print_estimate, seconds_of
from memorization.measuring.layer_figures import (
    draw_heatmap,
    draw_layers,
    draw_layers_over_training,
)
from memorization.measuring.layer_printing import print_summary
from memorization.measuring.layer_summary import FORMAT, MEANING, LayersSummary, summarize
from memorization.measuring.layer_tables import (
    files_of,
    measure_seed,
    rows_to_measure,
    table_of_layers,
)
from memorization.results import hash_of_file
from memorization.run import open_run

ACTIONS = {"checkpoint": "encoder (the default), epoch_NNNN for a kept one, or all, over training"}
LEFT_OUT = "without its most and least memorized"  # if there are no scores
PICTURES = ["layers.png", "heatmap.png", "layers_over_training.png"]
LONG = 2000  # images from which on a few are tried first, to tell what all will take
TRIED = 32
BYTES_A_NUMBER = 20  # of layers.npz, for each image, layer and seed


@one_line_errors
def main(argv=None):
    run = open_run(__doc__, argv, "layers", ACTIONS)
    scores = {name: run.scores_if_made(name, LEFT_OUT) for name in run.checkpoints}
    warn_of_confounders(run.subsets, run.images, run.config.subsets)
    warn_of_emulation("scores.precision", run.config.scores.precision, run.device)
    summaries = [measure_checkpoint(run, name, scores[name]) for name in run.checkpoints]
    if run.actions["checkpoint"] == "all":
        result = run.output(checkpoint=run.checkpoints[-1])
        with result.lock():
            draw_layers_over_training(summaries, result.folder / "layers_over_training.png")


def measure_checkpoint(run, checkpoint, scores):
    """Measure the layers of one checkpoint of every seed, and write its folder. Returns the
    LayersSummary.
    """
    settings, images, pairs = run.settings, run.images_on_device, run.pairs(checkpoint)
    scored = run.scores_output(checkpoint).folder
    rows = rows_to_measure(run.subsets, images, settings, scores)
    with memory_for("layers.batch_size", settings.batch_size):
        print_estimate_of_layers(run, images, rows, pairs[0])
        start = time.monotonic()
        seeds = [measure_pair(run, pair, images, rows) for pair in pairs]
        seconds = time.monotonic() - start
    table, result = table_of_layers(rows, seeds), run.output(checkpoint=checkpoint)
    statistics = summarize(table)
    encoders = {place: value for pair in pairs for place, value in pair.fingerprints.items()}
    summary = LayersSummary(
        format=FORMAT,
        meaning=MEANING,
        seeds=run.seeds,
        **statistics,
        chosen_by=None if scores is None else hash_of_file(scored / "scores.npz"),
        checkpoint={"name": checkpoint, "epoch": pairs[0].epoch},
        settings={
            section: getattr(run.config, section).model_dump()
            for section in ("layers", *settings.BUILT_ON)
        },
        fingerprints=result.fingerprints | {"encoders": encoders},
        machine=describe_machine(run.device),
        seconds=seconds,
        images_per_second=len(rows["index"]) * len(pairs) / seconds,
    )
    with result.save(files_of(table, summary.subsets, run.seeds), summary, PICTURES):
        draw_layers(summary, result.folder / "layers.png")
        draw_heatmap(table, result.folder / "heatmap.png")
    print_summary(summary, result.folder)
    return summary


def measure_pair(run, pair, images, rows):
    """The MeasuredSeed of rows by one Pair. Their views are those of scores."""
    of_scores = run.config.scores.scoring(pair.seed)
    scoring = replace(of_scores, batch_size=run.settings.batch_size)
    views = run.config.scores.recipes(run.recipes), scoring
    return measure_seed(pair, images, rows, run.subsets, run.settings, views)


def print_estimate_of_layers(run, images, rows, pair):
    """What measuring many images will take, from a few on trial."""
    n_images, views = len(rows["index"]) * len(run.seeds), run.config.scores.views
    if n_images < LONG:
        return
    few, n_layers = {name: values[:TRIED] for name, values in rows.items()}, []

    def measure():
        n_layers.append(len(measure_pair(run, pair, images, few).names))

    seconds = seconds_of(measure, run.device) * n_images / TRIED / processes.count()
    what = f"{n_layers[0]} layers of two encoders for {n_images} images by {views} views"
    n_bytes = BYTES_A_NUMBER * n_layers[0] * n_images
    print_estimate(what, seconds, run.device, n_bytes, run.folder)


if __name__ == "__main__":
    main()
