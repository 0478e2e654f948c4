"""Networks with weights that others trained, and whether they take the images."""

from pathlib import Path

import torch

from memorization.errors import WrongUse, short_form
from memorization.imports.weights import (
    match_weights,
    place_of_weights,
    places_of_twins,
    select_weights,
    strip_prefixes,
    weights_in_words,
)
from memorization.imports.weights_file import file_checksum, read_weights_file


def load_network(network, settings, number, key):
    """Put the weights of a file into a network. Returns (the file's SHA-256, hexadecimal; which
    weights they are, in words).

    network: of `make_encoder`; settings: WeightsSettings; number: of the file among its weights;
    key: of the settings, such as "import.candidate", for messages. Raises WrongUse if the file
    cannot be read, is not the one of `sha256`, or does not fit the network in every key and shape.
    """
    path = Path(settings.weights[number]).expanduser()
    try:
        content, sha256 = read_weights_file(path), file_checksum(path)
    except WrongUse as error:
        raise WrongUse(f"{key}.weights: {error}") from None
    if settings.sha256 is not None and settings.sha256[number] != sha256:
        both = f"{short_form(settings.sha256[number])} was given, but {path} has"
        raise WrongUse(f"{key}.sha256: {both} {short_form(sha256)}")
    of_library = getattr(network, "network", network)
    try:
        place = place_of_weights(content, settings.at)
        stored = select_weights(content, place)
        stripped = strip_prefixes(stored, settings.strip)
        names = getattr(network, "names_in_files", {})
        weights = {names.get(name, name): weight for name, weight in stripped.items()}
        state = match_weights(weights, of_library, settings.unused)
    except WrongUse as error:
        raise WrongUse(f"{key}: {path}: {error}") from None
    of_library.load_state_dict(state)
    taken = {name: weight for name, weight in stripped.items() if names.get(name, name) in state}
    words, twins = weights_in_words(stored, place), places_of_twins(content, taken)
    if twins:
        words += f"; weights of the same names and shapes are at {'; '.join(twins)}, too"
    return sha256, words


@torch.no_grad()
def check_output(network, channels, size):
    """Raise WrongUse unless a network maps images (B, channels, size, size) to finite vectors
    (B, D).
    """
    pixels = torch.zeros(2, channels, size, size)
    takes = f"encoder: {channels} channels of {size} pixels (import.size)"
    try:
        values = network.eval()(pixels)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise WrongUse(f"{takes} are not what it takes: {error}") from None
    if not isinstance(values, torch.Tensor):
        raise WrongUse(f"{takes} become a {type(values).__name__}, not a tensor (B, D)")
    if values.ndim != 2 or len(values) != 2 or not values.is_floating_point():
        raise WrongUse(f"{takes} become {values.dtype} of shape {tuple(values.shape)}, not (2, D)")
    if not values.isfinite().all():
        raise WrongUse(f"{takes} become numbers that are not finite")
