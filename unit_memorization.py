"""Units: which single images and classes fire the channels of an encoder? This takes f alone.

    python unit_memorization.py --config configs/simclr_cifar10.yaml
    python unit_memorization.py --config configs/simclr_cifar10.yaml --units.center median
    python unit_memorization.py --config configs/simclr_cifar10.yaml --units.prune true
    python unit_memorization.py --config configs/simclr_cifar10.yaml --checkpoint all

UnitMem of a unit is 1 if one image alone fires it, and 0 if all do alike; ClassMem is the same of
classes. It has no reference model, and a maximum grows with the number of images. Beside f on
images that it was trained on stand f on as many external images, g if there is one, and an
untrained encoder.

Reads the run folder (encoder.pt of every seed and role, subsets.npz, config.yaml, scores/ if there)
and the data set. Writes into units/ of the run folder: units.csv, units.npz, summary.json,
units.png, scatter.png and gallery.png; for another checkpoint, and for other seeds or settings than
those of the run's config.yaml, into a folder in it, named after them. With --units.prune true the
units with the highest, random and the lowest UnitMem are set to 0, and what is left is probed.
"""

import time

from memorization.data.confounders import warn_of_confounders
from memorization.data.subsets import ROLES
from memorization.errors import escape
from memorization.machine import processes
from memorization.machine.command import one_line_errors
from memorization.machine.device import describe_machine
from memorization.machine.files import exists
from memorization.machine.resources import memory_for, print_estimate, seconds_of
from memorization.machine.screen import say
from memorization.measuring.pruning import CSV, open_pruning, print_pruning, pruning_table
from memorization.measuring.unit_figures import (
    draw_histograms,
    draw_unit_gallery,
    draw_unit_scatter,
)
from memorization.measuring.unit_summary import FORMAT, UnitsSummary, print_summary, summarize
from memorization.measuring.unit_tables import MEASURED, choose_images, files_of, measure_seed
from memorization.measuring.units import find_unit_layers, measure_units
from memorization.results import SUMMARY
from memorization.run import open_run

ACTIONS = {"checkpoint": "encoder (the default), epoch_NNNN for a kept one, or all"}
LONG = 50  # batches from which on one is tried first, to tell what all will take
PICTURES = ["units.png", "scatter.png", "gallery.png"]


@one_line_errors
def main(argv=None):
    run = open_run(__doc__, argv, "units", ACTIONS)
    scores = {name: scores_of_candidates(run, name) for name in run.checkpoints}
    warn_of_confounders(run.subsets, run.images, run.config.subsets)
    chosen = choose_images(run.subsets, run.seeds, run.settings.images)
    if "independent" not in run.trained_roles:
        say(f"units: {run.name} has f alone: without numbers of g")
    pruning = None
    if run.settings.prune:
        config = run.config
        pruning = open_pruning(run.settings, config.probe, config.data, config.size, run.device)
    print_estimate_of_units(run, chosen)
    for checkpoint in run.checkpoints:
        measure_checkpoint(run, chosen, checkpoint, scores[checkpoint], pruning)


def scores_of_candidates(run, checkpoint):
    """The CandidateScores of a checkpoint; None if there are none, or if there is no g."""
    if "independent" not in run.trained_roles:
        return None
    return run.scores_if_made(checkpoint, "nothing to compare top images with")


def print_estimate_of_units(run, chosen):
    """What a long measurement will take, from a batch on trial. chosen: of `choose_images`."""
    settings, seed = run.settings, run.seeds[0]
    encoders = len(MEASURED) - 2 + len(run.trained_roles)
    times = len(run.checkpoints) * len(run.seeds) * encoders
    n_images = len(chosen[1])
    if n_images * times < LONG * settings.batch_size:
        return
    f = run.encoder(seed, "candidate", run.checkpoints[0])
    layers, batch = find_unit_layers(f, run.device, settings.names), chosen[0][seed]
    batch = batch[: settings.batch_size]
    viewing = settings.viewing(run.config.scores.recipes(run.recipes), seed)

    def measure():
        return measure_units(f, layers, run.images_on_device.train, batch, viewing)

    with memory_for("units.batch_size", settings.batch_size):
        seconds = seconds_of(measure, run.device) / len(batch) * n_images * times
    what = f"measuring {layers.count} units by {n_images} images, {times} times"
    print_estimate(what, seconds / processes.count(), run.device, 0, run.folder)


def measure_checkpoint(run, chosen, checkpoint, scores, pruning):
    """Measure the units of one checkpoint of every seed, and write its folder.

    chosen: of `choose_images`; scores: CandidateScores, or None; pruning: a Pruning, or None.
    """
    settings, start, images = run.settings, time.monotonic(), run.images_on_device
    seeds, encoders, pruned = [], {}, []
    for seed in run.seeds:
        f, g = (
            run.encoder(seed, role, checkpoint) if role in run.trained_roles else None
            for role in ROLES
        )
        viewing = settings.viewing(run.config.scores.recipes(run.recipes), seed)
        with memory_for("units.batch_size", settings.batch_size):
            of_seed = chosen[0][seed], chosen[1]
            units = measure_seed(f, g, images, of_seed, viewing, settings.names)
        if pruning is not None:
            unitmem = units.layers.split(units.of["f"].unitmem)
            pruned += pruning.measure(f, units.layers.layers, unitmem, seed)
        seeds.append(units)
        encoders |= {each.place: each.weights_fingerprint for each in (f, g) if each is not None}
    result, files = run.output(checkpoint=checkpoint), files_of(seeds, images.train)
    if pruning is not None:
        files |= {CSV: pruning_table(pruned)}
    summary = UnitsSummary(
        format=FORMAT,
        **summarize(seeds, scores),
        pruning=None if pruning is None else pruning.summarize(pruned),
        checkpoint={"name": checkpoint, "epoch": f.record["epoch"]},
        settings={
            section: getattr(run.config, section).model_dump()
            for section in ("units", *settings.BUILT_ON)
        },
        fingerprints=result.fingerprints | {"encoders": encoders},
        machine=describe_machine(run.device),
        seconds=time.monotonic() - start,
    )
    with result.save(files, summary, PICTURES):
        draw_histograms(seeds, result.folder / "units.png")
        if summary.has_labels:
            draw_unit_scatter(seeds, result.folder / "scatter.png")
        draw_unit_gallery(seeds[0], images, result.folder / "gallery.png")
    print_summary(summary)
    if summary.pruning is not None:
        print_pruning(summary.pruning)
    written = [*files, SUMMARY, *(name for name in PICTURES if exists(result.folder / name))]
    say(f"the results are in {escape(result.folder)}: {', '.join(written)}")


if __name__ == "__main__":
    main()
