"""Deja Vu: does an encoder know from a part of a training image what the whole image was? Labels
are inferred by nearest neighbours, f against g.

    python dejavu.py --config configs/simclr_cifar10.yaml
    python dejavu.py --config configs/simclr_cifar10.yaml --dejavu.query corner
    python dejavu.py --config configs/simclr_cifar10.yaml --dejavu.reference crops
    python dejavu.py --config configs/simclr_cifar10.yaml --checkpoint all

A part of every image of S_C and S_I is shown to both encoders. The k public images nearest to the
part, in an encoder's representation, vote for a label. The encoder that trained on the image is the
target, the other one the reference. The Deja Vu score is how much more often the target is right.

Reads the run folder (encoder.pt of every seed and role, subsets.npz, config.yaml, scores/ if there)
and the data set. Writes into dejavu/ of the run folder: dejavu.csv, summary.json, confidence.png,
shares.png and cases.png. For another checkpoint, query or reference, and for other seeds or
settings than those of the run's config.yaml, a folder in dejavu/ is named after them. With
--checkpoint all every kept checkpoint is measured, and training_curve.png is drawn. With
--dejavu.reference crops f alone is needed. It is compared with a small classifier of the same parts
of images, which is trained on images that f never saw.
"""

import time
from dataclasses import replace

from memorization.checkpoint import encoder_file
from memorization.machine.command import one_line_errors
from memorization.machine.device import describe_machine
from memorization.machine.files import exists
from memorization.machine.processes import on_first_process
from memorization.machine.resources import OTHER_DEVICE, memory_for
from memorization.measuring.attacks import attack_one_model, attack_pair, open_attack_sets
from memorization.measuring.deja_vu_figures import (
    draw_deja_vu_cases,
    draw_deja_vu_confidence,
    draw_deja_vu_curve,
    draw_deja_vu_shares,
)
from memorization.measuring.deja_vu_printing import print_summary
from memorization.measuring.deja_vu_summary import (
    DejaVuSummary,
    fingerprints_of,
    summarize,
    table_of,
)
from memorization.results import SUMMARY
from memorization.run import open_run

ACTIONS = {"checkpoint": "encoder (the default), epoch_NNNN for a kept one, or all for a curve"}
PICTURES = ["confidence.png", "shares.png", "cases.png", "training_curve.png"]


@one_line_errors
def main(argv=None):
    run = open_run(__doc__, argv, "dejavu", ACTIONS)
    results = {name: result_of(run, name) for name in run.checkpoints}
    images = run.images
    with memory_for("device", run.config.device, OTHER_DEVICE):
        sets = open_attack_sets(images, run.subsets, run.settings, run.device)
    scores = {name: scores_of_candidates(run, name) for name in results}
    with memory_for("dejavu.memory_gb", run.settings.memory_gb):
        summaries = [
            attack_checkpoint(run, name, result, sets, scores[name])
            for name, result in results.items()
        ]
    if run.actions["checkpoint"] == "all":
        result = results[run.checkpoints[-1]]
        with result.lock():
            draw_deja_vu_curve(summaries, result.folder / "training_curve.png")


def result_of(run, checkpoint):
    """The Result of a checkpoint. It is compared with scores of these settings, and of no others.

    Raises WrongUse if its folder holds something else.
    """
    result = run.output(checkpoint=checkpoint)
    settings = run.output("scores", checkpoint).settings
    of_scores = {key.removeprefix("scores."): value for key, value in settings.items()}
    result = replace(result, fingerprints=result.fingerprints | {"scores": of_scores})
    result.check_place()
    return result


def scores_of_candidates(run, checkpoint):
    """The CandidateScores of a checkpoint. None if there are none, or if there is no encoder g any
    more that they could be checked against.
    """
    is_scored = exists(run.scores_output(checkpoint).folder / SUMMARY)
    has_g = all(exists(encoder_file(run.folder, seed, "independent")) for seed in run.seeds)
    if not is_scored or (run.settings.reference == "crops" and not has_g):
        return None
    return run.candidate_scores(checkpoint)


def attack_checkpoint(run, checkpoint, result, sets, scores):
    """Attack one checkpoint of every seed. Its DejaVuSummary is written, printed and returned."""
    start, settings, attacks = time.monotonic(), run.settings, []
    for seed in run.seeds:
        if settings.reference == "independent":
            attack = attack_pair(run.pair(seed, checkpoint), sets, settings, run.recipes)
        else:
            f = run.encoder(seed, "candidate", checkpoint)
            attack = attack_one_model(f, seed, sets, settings, run.recipes)
        attacks.append(attack)
    seconds = time.monotonic() - start
    summary = DejaVuSummary(
        **summarize(attacks, sets, settings, scores),
        checkpoint={"name": checkpoint, "epoch": attacks[0].epoch},
        fingerprints=result.fingerprints | fingerprints_of(attacks, sets.public),
        machine=describe_machine(run.device),
        seconds=seconds,
    )
    write_result(attacks, sets, summary, result)
    print_summary(summary, result.folder)
    return summary


@on_first_process
def write_result(attacks, sets, summary, result):
    """Write the folder of a Result."""
    folder = result.folder
    with result.save({"dejavu.csv": table_of(attacks)}, summary, PICTURES):
        draw_deja_vu_confidence(summary, folder / "confidence.png")
        draw_deja_vu_shares(summary, folder / "shares.png")
        draw_deja_vu_cases(attacks[0], sets, summary, folder / "cases.png")


if __name__ == "__main__":
    main()
