"""Train linear probes on the frozen encoders of a run: what f and g know of the classes, beside a
random encoder and raw pixels.

    python linear_probing_train.py --config configs/simclr_cifar10.yaml
    python linear_probing_train.py --config configs/simclr_cifar10.yaml --probe.datasets cifar100
    python linear_probing_train.py --config configs/simclr_cifar10.yaml --encoder other/encoder.pt

Reads the run folder (encoder.pt of every seed and role) and the probed data sets. Encoders see
whole images, resized and in the channels that the encoder takes. Writes into probe/ of the run
folder: summary.json, probe.png, and representations/, a cache that is safe to delete. --encoder
probes another encoder in the place of the run's; --probe.fine_tune true trains all weights. Both
write into folders of their own in probe/, as do seeds and settings that differ from config.yaml.
"""

from dataclasses import replace

from memorization.checkpoint import load_encoder, untrained_encoder
from memorization.errors import WrongUse, escape
from memorization.figures import draw_probe
from memorization.machine.command import one_line_errors
from memorization.machine.device import describe_machine
from memorization.machine.resources import memory_for
from memorization.machine.screen import say
from memorization.measuring.fine_tuning import fine_tune
from memorization.measuring.probing import (
    NEIGHBORS,
    ProbeRow,
    ProbeSummary,
    compare_roles,
    open_probed_images,
    probe,
    probed_data,
    probed_rows,
)
from memorization.measuring.representations import raw_pixels, state_adaptation
from memorization.run import open_run

ACTIONS = {"encoder": "an encoder.pt to probe in the place of those of the run"}
KINDS = {False: "linear layer on the frozen encoder", True: "all weights trained"}


@one_line_errors
def main(argv=None):
    run = open_run(__doc__, argv, "probe", ACTIONS)
    encoders = chosen_encoders(run)
    result = run.output(encoder=encoders[0].identity if run.actions["encoder"] else None)
    result.check_place()
    datasets = probed_images(run)
    data = {images.name: images.fingerprint for images in datasets}
    result = replace(result, fingerprints={"data": data})
    result.check_place()
    rows = [measure(encoder, images, run) for images in datasets for encoder in encoders]
    summary = ProbeSummary(
        kind=KINDS[run.settings.fine_tune],
        seeds=run.seeds,
        results=rows,
        over_pairs=compare_roles(rows, run.seeds),
        trained=run.config.trained_part(),
        settings=run.settings.model_dump(),
        fingerprints={
            "encoders": {encoder.name: encoder.identity for encoder in encoders},
            **result.fingerprints,
        },
        machine=describe_machine(run.device),
    )
    with result.save({}, summary, ["probe.png"]):
        draw_probe(summary.plain(), result.folder / "probe.png")
    say(f"\nthe picture is in {escape(result.folder)}: probe.png")


def chosen_encoders(run):
    """The Encoders to probe: f and g of every seed (f if others trained no g), or the one of
    --encoder, and beside them a random encoder and raw pixels.
    """
    path = run.actions["encoder"]
    if path is not None:
        try:
            encoders = [load_encoder(path)]
        except WrongUse as error:
            raise WrongUse(f"command line: --encoder: {error}") from None
    elif len(run.trained_roles) == 1:
        encoders = [run.encoder(seed, role) for seed in run.seeds for role in run.trained_roles]
    else:
        encoders = [encoder for pair in run.pairs() for encoder in pair]
    last = encoders[-1]
    encoders.append(untrained_encoder(last, run.seeds[0]))
    return encoders if run.settings.fine_tune else [*encoders, raw_pixels(last)]


def probed_images(run):
    """The Images of every probed data set. Prints which kNN accuracies need more images."""
    data, settings, size = run.config.data, run.settings, run.config.size
    if data.name in (each.name for each in probed_data(data, settings, size)):
        _ = run.images  # refuses other images than those of training
    datasets = open_probed_images(data, settings, size)
    for images in datasets if not settings.fine_tune else ():
        (_, train), _ = probed_rows(images, settings)
        for name, rule in NEIGHBORS.items():
            if rule["k"] > len(train):
                too_few = f"{len(train)} labelled training images are too few"
                left_out = f"for {name.replace('_', ' ')}, which is left out"
                say(f"{images.name}: {too_few} {left_out}")
    return datasets


def measure(encoder, images, run):
    """The ProbeRow of one encoder on one dataset, which is printed, too."""
    settings = run.settings
    if settings.fine_tune:
        with memory_for("probe.fine_tune_batch_size", settings.fine_tune_batch_size):
            measured = fine_tune(encoder, images, settings, run.device)
    else:
        cache = run.folder / "probe" / "representations"
        with memory_for("probe.train_images", settings.train_images):
            measured = probe(encoder, images, settings, cache, run.device)
    row = ProbeRow(
        dataset=images.name,
        encoder=encoder.name,
        adapted=state_adaptation(encoder, images),
        **measured.plain(),
    )
    print_row(row)
    return row


def print_row(row):
    """One line of the table on the screen."""
    shares = []
    for name in ("top_1", "top_5"):
        if name in row.model_fields_set:
            shares.append(f"{name.replace('_', '-')} {getattr(row, name).in_percent:.2f} %")
    for name in NEIGHBORS:
        if name in row.model_fields_set:
            shares.append(f"{name.replace('_', ' ')} {100 * getattr(row, name):.2f} %")
    adapted = "" if row.adapted == "as they are" else f"  (images {row.adapted})"
    say(f"{row.dataset:>14}  {escape(row.encoder):<22} {'  '.join(shares)}{adapted}")


if __name__ == "__main__":
    main()
