"""Make a run out of encoders that others trained, so that all measurements work on it.

    python import_encoders.py --config configs/import_timm.yaml

Reads the config, the files of weights that its section `import` names, and the data set. Nothing in
a file of weights is executed. Writes the run folder: config.yaml with the SHA-256 of each file of
weights, subsets.npz, environment.json, and for each seed and role encoder.pt. There is no log.jsonl
and no last.pt, as nothing is trained. The same command again checks what is there.

Prints how the representations of each encoder differ from those of untrained ones, and warns if
they do not. Next: memorization_scores.py with the same config; without g, membership_inference.py.
"""

import itertools

import torch

from memorization.checkpoint import check_belongs, encoder_file, load_encoder, read_checkpoint
from memorization.checkpoint_file import save_checkpoint
from memorization.config import read_import_config, read_run_config
from memorization.data.confounders import warn_of_confounders
from memorization.data.images import open_images
from memorization.data.subsets import (
    check_subsets,
    draw_subsets,
    first_by_hash,
    prepare_subsets,
)
from memorization.encoder import place_of
from memorization.errors import WrongUse, escape
from memorization.imports.networks import check_output, load_network
from memorization.imports.normalization import with_recorded_normalization
from memorization.machine import processes
from memorization.machine.command import one_line_errors
from memorization.machine.device import choose_device
from memorization.machine.files import exists
from memorization.machine.screen import say
from memorization.measuring.untrained_twins import (
    MOST_IMAGES,
    compare_with_twins,
    measure_representations,
    measure_twins,
)
from memorization.training.duplicate_check import list_duplicates
from memorization.training.run_files import RunFiles, note_machine
from models.encoders import make_encoder


@one_line_errors
def main(argv=None):
    config = read_import_config(__doc__, argv)
    device = choose_device(config.device, config.threads)
    if processes.count() > 1:
        alone = f"import_encoders.py is one process, but torchrun started {processes.count()}"
        raise WrongUse(alone)
    images = open_images(config.data)
    subsets = draw_subsets(config.subsets, images)
    check_subsets(subsets)
    config = complete(config, images.channels)
    files, roles = RunFiles(config), tuple(config.import_settings.weights)
    files.check(roles)
    check_seeds(config)
    subsets, images = prepare_subsets(subsets, images, config.subsets)
    files.open(subsets)
    files.list_skipped(images.left_out)
    warn_of_confounders(subsets, images, config.subsets)
    if not files.is_finished(roles):
        list_duplicates(subsets, images, config.subsets, config.folder, device)
    for number, role in places(config):
        write_encoder(config, number, role, subsets.fingerprint)
        place = place_of(config.seeds[number], role)
        note_machine(config.folder, place, device, is_resumed=True)
    rows = first_by_hash(subsets.external, MOST_IMAGES, "test")
    compare(config, images.test, torch.from_numpy(rows), device)


def places(config):
    """(number of the seed, role) of every encoder."""
    return itertools.product(range(len(config.seeds)), config.import_settings.weights)


def complete(config, channels):
    """The config with what its files say: the SHA-256 of each, and the mean and std of pixels if
    the architecture's library is to tell them.

    channels: of the images. Raises WrongUse if a file does not fit, or something is missing.
    """
    encoder, settings = config.encoder, config.import_settings
    if "output" in type(encoder).model_fields and "output" not in encoder.model_fields_set:
        raise WrongUse("encoder.output: is missing: what of the network is its representation")
    if config.subsets.separate_duplicates:
        seen = "the encoders have seen their images already"
        raise WrongUse(f"subsets.separate_duplicates: True is not allowed: {seen}")
    settings.check_files(config.seeds)
    settings = with_recorded_normalization(settings, encoder)
    if len(settings.mean) != channels:
        raise WrongUse(f"import.mean: {settings.mean}, but the images have {channels} channels")
    config, hashes = config.model_copy(update={"import": settings}), {}
    for number, role in places(config):
        network, (sha256, _) = make_network(config, number, role)
        check_output(network, channels, settings.size)
        hashes.setdefault(role, []).append(sha256)
    settings.check_hashes(hashes)
    return config.model_copy(update={"import": settings.with_hashes(hashes)})


def check_seeds(config):
    """Raise WrongUse if the run folder has other seeds, or the same ones in another order."""
    if not exists(config.folder / "config.yaml"):
        return
    seeds = read_run_config(config.run).seeds
    if config.seeds != seeds:
        order = f"{config.run} was imported with {seeds}, and its weights are in their order"
        raise WrongUse(f"seeds: {config.seeds} was given, but {order}; choose another --run")


def make_network(config, number, role):
    """(A network with the weights of a file, what `load_network` returns). number: of the seed."""
    settings = config.import_settings
    try:
        network = make_encoder(config.encoder, len(settings.mean), settings.size)
    except ValueError as error:
        raise WrongUse(str(error)) from None
    return network, load_network(network, settings.weights[role], number, f"import.{role}")


def write_encoder(config, number, role, fingerprint):
    """Write encoder.pt, or check the one that is there. fingerprint: of the subsets."""
    seed, settings = config.seeds[number], config.import_settings
    path = encoder_file(config.folder, seed, role)
    record = {
        "kind": "encoder",
        "config": config.trained_part(),
        "subsets": fingerprint,
        "role": role,
        "seed": seed,
        "precision": None,
        "epoch": None,
        "channels": len(settings.mean),
        "size": settings.size,
        "mean": settings.mean,
        "std": settings.std,
    }
    if exists(path):
        check_belongs(read_checkpoint(path), record, path)
        return say(f"{escape(path)}: imported already, nothing to do")
    network, (_, words) = make_network(config, number, role)
    save_checkpoint(path, {**record, "weights": network.state_dict()})
    source = settings.weights[role].weights[number]
    say(f"{escape(path)}: written from {escape(source)}, {escape(words)}")


def compare(config, split, rows, device):
    """Print how the encoders differ from untrained ones in some images of a split, and warn if they
    do not.
    """
    twins = None
    for number, role in places(config):
        seed = config.seeds[number]
        encoder = load_encoder(encoder_file(config.folder, seed, role), f"{role} seed {seed}")
        twins = twins or measure_twins(encoder, split, rows, device)
        measured = measure_representations(encoder, split, rows, device)
        compare_with_twins(encoder.name, measured, twins)


if __name__ == "__main__":
    main()
