"""Membership: does the candidate encoder f align the images that it saw better than others? This
takes f alone, without g.

    python membership_inference.py --config configs/import_timm.yaml

Reads the run folder (encoder.pt of f of every seed, subsets.npz, config.yaml) and the data set.
Writes into membership/ of the run folder: membership.csv, summary.json and losses.png. The area
under the curve (AUC) tells how often an image that f saw has a smaller alignment loss than one that
f did not see. Beside it stands the AUC of an untrained encoder, which tells whether these images
differ in something else.

This is about sets of images. It is no memorization score, which needs g, and no verdict on one
image.
"""

import time

import numpy as np

from memorization.checkpoint import untrained_encoder
from memorization.data.confounders import warn_of_confounders
from memorization.errors import WrongUse
from memorization.figures import draw_losses
from memorization.machine.command import one_line_errors
from memorization.machine.device import describe_machine
from memorization.machine.resources import memory_for
from memorization.measuring.membership import (
    MEANING,
    PICTURE,
    MembershipSummary,
    align_rows,
    files_of,
    print_summary,
    summarize,
    table_of_losses,
)
from memorization.measuring.score_tables import rows_to_score
from memorization.run import open_run

ACTIONS = {"checkpoint": "encoder (the default), epoch_NNNN for a kept one, or all"}


@one_line_errors
def main(argv=None):
    run = open_run(__doc__, argv, "membership", ACTIONS)
    if run.subsets.scheme == "crossover":
        halves = "in a crossover every seed saw other images, and memorization_scores.py has g"
        raise WrongUse(f"membership: {run.name}: {halves}")
    warn_of_confounders(run.subsets, run.images, run.config.subsets)
    rows = rows_to_score(run.subsets, run.images_on_device, run.settings.per_subset)
    for checkpoint in run.checkpoints:
        measure_checkpoint(run, rows, checkpoint)


def measure_checkpoint(run, rows, checkpoint):
    """Measure rows by f of every seed at one checkpoint, and write its folder."""
    settings, start = run.settings, time.monotonic()
    encoders = [run.encoder(seed, "candidate", checkpoint) for seed in run.seeds]
    untrained = untrained_encoder(encoders[0], run.seeds[0])
    with memory_for("membership.batch_size", settings.batch_size):
        losses = [
            align_rows(encoder, run.images_on_device, rows, settings.recipes(run.recipes), scoring)
            for encoder, scoring in zip(
                [*encoders, untrained],
                [settings.scoring(seed) for seed in (*run.seeds, run.seeds[0])],
            )
        ]
    table = table_of_losses(rows, np.stack(losses[:-1]))
    hashes = {"encoders": {each.place: each.weights_fingerprint for each in encoders}}
    result = run.output(checkpoint=checkpoint)
    summary = MembershipSummary(
        meaning=MEANING,
        seeds=run.seeds,
        **summarize(table, losses[-1][0]),
        checkpoint={"name": checkpoint, "epoch": encoders[0].record["epoch"]},
        settings=settings.model_dump(),
        fingerprints=result.fingerprints | hashes,
        machine=describe_machine(run.device),
        seconds=time.monotonic() - start,
    )
    with result.save(files_of(table), summary, [PICTURE]):
        draw_losses(table, result.folder / PICTURE)
    print_summary(summary, result.folder)


if __name__ == "__main__":
    main()
