"""Membership: can an attacker tell which images an encoder was trained on?

    python membership_inference.py --config configs/demo.yaml
    python membership_inference.py --config configs/import_timm.yaml
    python membership_inference.py --config configs/demo.yaml --membership.attacks alignment lira
    python membership_inference.py --config configs/simclr_cifar10.yaml --checkpoint all

Reads the run folder (encoder.pt of every seed, of f and, if it is there, of g; subsets.npz,
config.yaml) and the data set. Writes into membership/ of the run folder: membership.csv,
membership.npz, summary.json, losses.png, roc.png and scatter.png.

Members are images that an encoder saw, others images that it did not. First come the guards: if a
classifier of raw pixels, or an untrained encoder, tells members from others, the lists differ in
something that is not membership, and no attack proves anything. Then the attacks, each on one
encoder at a time, on f and on g:

    alignment            an image that the encoder saw is aligned better
    encodermi_threshold  the mean cosine similarity of its views
    encodermi_vector     a small network on all similarities, trained on the other encoder
    reference            how much better than the other encoder: the memorization score
    lira                 the likelihood ratio by the losses of all other seeds of a crossover
    crops                how well parts are found in the map of the whole; only if asked for

f alone, as of an import without g, gets the first two and the last one. Of each: the area under the
curve (AUC: how often a member has the larger signal), the advantage, and how many members are found
at a low false positive rate, at a threshold that was chosen on other images. With --checkpoint all
every kept checkpoint is attacked, and training_curve.png drawn: AUC beside the kNN accuracy.

This is about sets of images. By f alone it is no memorization score, which needs g, and no verdict
on one image.
"""

import time

import numpy as np

from memorization.checkpoint import encoder_file, untrained_encoder
from memorization.data.confounders import warn_of_confounders
from memorization.data.subsets import ROLES
from memorization.errors import WrongUse
from memorization.figures import draw_losses
from memorization.machine.command import one_line_errors
from memorization.machine.device import describe_machine
from memorization.machine.files import exists
from memorization.machine.resources import memory_for
from memorization.measuring.membership import (
    MEANINGS,
    PICTURES,
    MembershipSummary,
    check_rows,
    files_of,
    scores_of,
    summarize,
    table_of_losses,
)
from memorization.measuring.membership_attacks import (
    ATTACKS,
    align_rows,
    align_seed,
    choose_attacks,
    gather_evidence,
)
from memorization.measuring.membership_figures import draw_exposure, draw_roc, draw_training
from memorization.measuring.membership_guards import find_lists, find_shared_images, measure_guards
from memorization.measuring.membership_printing import print_guards, print_summary
from memorization.measuring.membership_training import follow_training, print_training
from memorization.measuring.score_tables import rows_to_score, signs_of
from memorization.run import open_run
from memorization.training import read_log

ACTIONS = {"checkpoint": "encoder (the default), epoch_NNNN for a kept one, or all"}


@one_line_errors
def main(argv=None):
    run = open_run(__doc__, argv, "membership", ACTIONS)
    roles = find_roles(run)
    rows = rows_to_score(run.subsets, run.images, run.settings.per_subset)
    check_rows(rows, run.subsets, run.settings.per_subset, with_g=len(roles) > 1)
    encoders = [run.encoder(run.seeds[0], role, run.checkpoints[0]) for role in roles]
    choose_attacks(run.settings.attacks, run.subsets, run.seeds, encoders)
    warn_of_confounders(run.subsets, run.images, run.config.subsets)
    guarded = guard(run, rows, encoders)
    summaries = [measure_checkpoint(run, rows, roles, name, guarded) for name in run.checkpoints]
    if run.actions["checkpoint"] == "all":
        show_training(run, roles, summaries)


def find_roles(run):
    """The roles of the encoders that are attacked: that of f, and that of g if every seed has it at
    every checkpoint.
    """
    missing = [
        file
        for seed in run.seeds
        for checkpoint in run.checkpoints
        if not exists(file := encoder_file(run.folder, seed, ROLES[1], checkpoint))
    ]
    if not missing:
        return ROLES
    if run.subsets.scheme == "crossover":
        both = "in a crossover f and g of a seed have the halves of one pool, and both are needed"
        raise WrongUse(f"membership: {missing[0]} is missing: {both}")
    return ROLES[:1]


def guard(run, rows, encoders):
    """What tells lists apart without a trained encoder, printed: the guards, the duplicates, and
    the Alignment of rows under an untrained encoder. encoders: of the first seed.
    """
    images, seed, settings = run.images_on_device, run.seeds[0], run.settings
    lists = find_lists(rows, run.subsets, seed, len(encoders) > 1)
    shared = find_shared_images(lists, rows, run.images, run.device)
    untrained = untrained_encoder(encoders[0], seed)
    with memory_for("membership.batch_size", settings.batch_size):
        recipes, scoring = settings.recipes(run.recipes), settings.scoring(seed)
        alignment = align_rows(untrained, images, rows, recipes, scoring)
    guards = measure_guards(lists, rows, images, untrained, alignment)
    print_guards(guards, shared)
    return guards, shared, alignment


def measure_checkpoint(run, rows, roles, checkpoint, guarded):
    """Attack the encoders of every seed at one checkpoint, and write its folder. guarded: of
    `guard`. Returns the MembershipSummary.
    """
    settings, start = run.settings, time.monotonic()
    (guards, shared, untrained), recipes = guarded, settings.recipes(run.recipes)
    encoders = [[run.encoder(seed, role, checkpoint) for role in roles] for seed in run.seeds]
    attacks, left_out = choose_attacks(settings.attacks, run.subsets, run.seeds, encoders[0])
    with memory_for("membership.batch_size", settings.batch_size):
        alignments = [
            align_seed(
                of_seed, run.images_on_device, rows, recipes, settings.scoring(seed), attacks
            )
            for seed, of_seed in zip(run.seeds, encoders)
        ]
    evidence = gather_evidence(alignments, rows, run.subsets, run.seeds)
    signals = {attack: ATTACKS[attack](evidence) for attack in attacks}
    signs = np.stack([signs_of(rows, run.subsets, seed) for seed in run.seeds])
    table = table_of_losses(rows, evidence, signals, signs)
    result = run.output(checkpoint=checkpoint)
    measured = [encoder for of_seed in encoders for encoder in of_seed]
    hashes = {"encoders": {each.place: each.weights_fingerprint for each in measured}}
    summary = MembershipSummary(
        meaning=MEANINGS[len(roles)],
        seeds=run.seeds,
        guards=guards,
        duplicates=shared,
        left_out=left_out,
        **summarize(table, untrained.loss, signals, evidence, signs),
        checkpoint={"name": checkpoint, "epoch": encoders[0][0].record["epoch"]},
        settings=settings.model_dump(),
        fingerprints=result.fingerprints | hashes,
        machine=describe_machine(run.device),
        seconds=time.monotonic() - start,
    )
    with result.save(files_of(table, evidence, signals), summary, PICTURES):
        is_pool = run.subsets.scheme == "crossover"
        draw_losses(table, is_pool, result.folder / "losses.png")
        draw_roc(signals, evidence, result.folder / "roc.png")
        if summary.exposure:
            table["score"] = scores_of(evidence, signs).mean(0)
            draw_exposure(table, summary.exposure, is_pool, result.folder / "scatter.png")
    print_summary(summary, result.folder)
    return summary


def show_training(run, roles, summaries):
    """Print and draw what attacks gain over training. summaries: of the checkpoints."""
    logs = [run.folder_of(seed, role) / "log.jsonl" for seed in run.seeds for role in roles]
    logs = [read_log(log) if exists(log) else [] for log in logs]
    table, result = follow_training(summaries, logs), run.output(checkpoint=run.checkpoints[-1])
    print_training(table)
    with result.lock():
        draw_training(table, logs, result.folder / "training_curve.png")


if __name__ == "__main__":
    main()
