"""Train linear probes on the frozen encoders of a run: what f and g know of the classes, beside a
random encoder and raw pixels.

    python linear_probing_train.py --config configs/simclr_cifar10.yaml
    python linear_probing_train.py --config configs/simclr_cifar10.yaml --probe.datasets cifar10 cifar100
    python linear_probing_train.py --config configs/simclr_cifar10.yaml --encoder elsewhere/encoder.pt

Reads the run folder (encoder.pt of every seed and role) and the probed data sets, whose images it
shows whole, resized and in the channels that the encoder takes. Writes into probe/ of the run
folder: summary.json, probe.png, and representations/, what was encoded once, which is safe to
delete. With --encoder that encoder stands in the place of the run's, and with --probe.fine_tune
true all weights are trained, each into a folder of its own in probe/, as are other seeds or
settings than those of the run's config.yaml.
"""

from dataclasses import replace

from memorization.checkpoint import load_encoder, untrained_encoder
from memorization.data.images import open_images
from memorization.data.subsets import ROLES
from memorization.errors import WrongUse, escape
from memorization.figures import draw_probe
from memorization.machine import processes
from memorization.machine.command import one_line_errors
from memorization.machine.device import describe_machine
from memorization.machine.resources import memory_for
from memorization.measuring.probing import (
    NEIGHBORS,
    fine_tune,
    prepared_for_probing,
    probe,
    probed_data,
    probed_rows,
)
from memorization.measuring.representations import raw_pixels, stated_adaptation
from memorization.results import Summary
from memorization.run import open_run
from memorization.significance import mean_and_spread, paired_test, plus_minus

ACTIONS = {"encoder": "an encoder.pt to probe in the place of those of the run"}


@one_line_errors
def main(argv=None):
    run = open_run(__doc__, argv, "probe", ACTIONS)
    config, device = run.config, run.device
    encoders = chosen_encoders(run)
    foreign = encoders[0].identity if run.actions["encoder"] is not None else None
    result = run.output(encoder=foreign)
    result.check_place()
    if config.data.name in (data.name for data in probed_data(config)):
        _ = run.images  # refuses other images than those of training
    datasets = [
        prepared_for_probing(open_images(data), config.probe) for data in probed_data(config)
    ]
    if not config.probe.fine_tune:
        print_left_out(datasets, config)
    result = replace(
        result, fingerprints={"data": {images.name: images.fingerprint for images in datasets}}
    )
    result.check_place()
    folder, rows = result.folder, []
    for images in datasets:
        for encoder in encoders:
            if config.probe.fine_tune:
                with memory_for("probe.fine_tune_batch_size", config.probe.fine_tune_batch_size):
                    found = fine_tune(encoder, images, config.probe, device)
            else:
                with memory_for("probe.train_images", config.probe.train_images):
                    found = probe(
                        encoder,
                        images,
                        config.probe,
                        config.folder / "probe" / "representations",
                        device,
                    )
            rows.append(
                {
                    "dataset": images.name,
                    "encoder": encoder.name,
                    "adapted": stated_adaptation(encoder, images),
                    **found,
                }
            )
            print_row(rows[-1])
    summary = {
        "kind": "all weights trained"
        if config.probe.fine_tune
        else "linear layer on the frozen encoder",
        "seeds": config.seeds,
        "results": rows,
        "over_pairs": compare_roles(rows, config.seeds),
        "trained": config.trained_part(),
        "settings": config.probe.model_dump(),
        "fingerprints": {
            "encoders": {encoder.name: encoder.identity for encoder in encoders},
            **result.fingerprints,
        },
        "machine": describe_machine(device),
    }
    if not processes.is_first():
        return
    with result.save({}, Summary(**summary), ["probe.png"]):
        draw_probe(summary, folder / "probe.png")
    print(f"\nthe picture is in {escape(folder)}: probe.png", flush=True)


def chosen_encoders(run):
    """The Encoders to probe: f and g of every seed, or the one of --encoder, and beside them a
    random encoder and raw pixels.
    """
    path = run.actions["encoder"]
    if path is not None:
        try:
            encoders = [load_encoder(path)]
        except WrongUse as error:
            raise WrongUse(f"command line: --encoder: {error}") from None
    else:
        encoders = [encoder for pair in run.pairs() for encoder in pair]
    last = encoders[-1]
    encoders.append(untrained_encoder(last, run.seeds[0]))
    return encoders if run.settings.fine_tune else [*encoders, raw_pixels(last)]


def print_left_out(datasets, config):
    """The kNN accuracies for which a data set has too few training images."""
    for images in datasets:
        (_, train), _ = probed_rows(images, config.probe)
        for name, rule in NEIGHBORS.items():
            if rule["k"] > len(train):
                print(
                    f"{images.name}: {len(train)} labelled training images are too few for {name.replace('_', ' ')}, which is left out"
                )


def print_row(row):
    """One line of the table on the screen."""
    shares = [
        f"{name.replace('_', '-')} {100 * row[name]['mean']:.2f}{plus_minus(row[name], '.2f', scale=100)} %"
        for name in ("top_1", "top_5")
        if name in row
    ]
    shares += [
        f"{name.replace('_', ' ')} {100 * row[name]:.2f} %"
        for name in ("knn_20", "knn_200")
        if name in row
    ]
    adapted = "" if row["adapted"] == "as they are" else f"  (images {row['adapted']})"
    print(
        f"{row['dataset']:>14}  {escape(row['encoder']):<22} {'  '.join(shares)}{adapted}",
        flush=True,
    )


def compare_roles(rows, seeds):
    """For each data set, top-1 of f and of g over the run's seeds, each its mean over probes, and a
    paired t test; empty for one seed.
    """
    compared = {}
    for dataset in dict.fromkeys(row["dataset"] for row in rows) if len(seeds) > 1 else ():
        of = {row["encoder"]: row["top_1"]["mean"] for row in rows if row["dataset"] == dataset}
        shares = {
            role: [of[f"{role} seed {seed}"] for seed in seeds if f"{role} seed {seed}" in of]
            for role in ROLES
        }
        if all(shares.values()):
            compared[dataset] = {role: mean_and_spread(values) for role, values in shares.items()}
            compared[dataset]["paired"] = {"f > g": paired_test(*shares.values())}
    return compared


if __name__ == "__main__":
    main()
