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

from memorization.checkpoint import load_encoder, load_pair, untrained_encoder
from memorization.config import read_config, trained_part
from memorization.data.images import images_of_run, open_images
from memorization.data.subsets import ROLES, load_subsets
from memorization.errors import WrongUse, visible
from memorization.figures import draw_probe
from memorization.machine import processes
from memorization.machine.command import one_line_errors
from memorization.machine.device import choose_device, describe_machine
from memorization.machine.resources import memory_for
from memorization.measuring.probing import (
    NEIGHBORS,
    fine_tune,
    prepared_for_probing,
    probe,
    probed_data,
    probed_rows,
)
from memorization.measuring.representations import encoder_source, raw_pixels, stated_adaptation
from memorization.results import probe_result
from memorization.significance import mean_and_spread, paired_test, plus_minus

ACTIONS = {"encoder": "an encoder.pt to probe in the place of those of the run"}


@one_line_errors
def main(argv=None):
    config = read_config(__doc__, argv, actions=ACTIONS)
    device = choose_device(config)
    sources = chosen_sources(config)
    result = probe_result(config, foreign_identity(config, sources))
    result.check_place()
    if config.data.name in (data.name for data in probed_data(config)):
        # refuses other images than those of training
        images_of_run(load_subsets(config.folder / "subsets.npz"), config)
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
        for source in sources:
            if config.probe.fine_tune:
                with memory_for("probe.fine_tune_batch_size", config.probe.fine_tune_batch_size):
                    found = fine_tune(source, images, config.probe, device)
            else:
                with memory_for("probe.train_images", config.probe.train_images):
                    found = probe(
                        source,
                        images,
                        config.probe,
                        config.folder / "probe" / "representations",
                        device,
                    )
            rows.append(
                {
                    "dataset": images.name,
                    "encoder": source.name,
                    "adapted": stated_adaptation(source, images),
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
        "trained": trained_part(config),
        "settings": config.probe.model_dump(),
        "fingerprints": {
            "encoders": {source.name: source.identity for source in sources},
            **result.fingerprints,
        },
        "machine": describe_machine(device),
    }
    if not processes.is_first():
        return
    with result.save({}, summary, ["probe.png"]):
        draw_probe(summary, folder / "probe.png")
    print(f"\nthe picture is in {visible(folder)}: probe.png", flush=True)


def chosen_sources(config):
    """The Sources to probe: f and g of every seed, or the encoder of --encoder, and beside them a
    random encoder and raw pixels.
    """
    if config.actions["encoder"] is not None:
        try:
            encoder, record = load_encoder(config.actions["encoder"])
        except WrongUse as error:
            raise WrongUse(f"command line: --encoder: {error}") from None
        sources = [encoder_source(config.actions["encoder"], encoder, record)]
    else:
        sources = []
        for seed in config.seeds:
            *pair, record = load_pair(config.folder, seed)
            sources += [
                encoder_source(f"{role} seed {seed}", encoder, record)
                for role, encoder in zip(ROLES, pair)
            ]
    sources.append(
        encoder_source("random encoder", untrained_encoder(record, config.seeds[0]), record)
    )
    return sources if config.probe.fine_tune else [*sources, raw_pixels(record)]


def foreign_identity(config, sources):
    """What identifies the encoder of --encoder, or None if those of the run are probed."""
    return None if config.actions["encoder"] is None else sources[0].identity


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
        f"{row['dataset']:>14}  {visible(row['encoder']):<22} {'  '.join(shares)}{adapted}",
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
