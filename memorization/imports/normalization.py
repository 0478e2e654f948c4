"""The mean and std of pixels that the library of an architecture records for it."""

from pathlib import Path

from memorization.errors import WrongUse, escape
from memorization.imports.settings import FROM_MODEL, ImportSettings
from memorization.machine.files import exists, parse_json, read_text, refuse_broken
from memorization.machine.screen import say

PREPROCESSOR = "preprocessor_config.json"  # of transformers


def recorded_normalization(encoder):
    """(mean, std, where they are recorded) of an architecture, lists of floats and a text.

    encoder: EncoderSettings. Raises WrongUse if nothing is recorded, or several things are.
    """
    find = {"timm": _of_timm, "torchvision": _of_torchvision, "transformers": _of_transformers}
    if encoder.name not in find:
        raise WrongUse(f"import.mean: {FROM_MODEL}, but {encoder.name} has no record; give numbers")
    records, place = find[encoder.name](encoder)
    if len(records) != 1:
        which = "no mean and std" if not records else f"several: {', '.join(map(str, records))}"
        raise WrongUse(f"import.mean: {FROM_MODEL}, but {place} records {which}; give numbers")
    ((mean, std),) = records
    return list(mean), list(std), place


def _of_timm(encoder):
    import timm

    config = timm.get_pretrained_cfg(encoder.model)
    known = config is not None and config.mean and config.std
    records = {(tuple(config.mean), tuple(config.std))} if known else set()
    return records, f"pretrained_cfg of timm's {encoder.model}"


def _of_torchvision(encoder):
    from torchvision.models import get_model_weights

    transforms = [weights.transforms() for weights in get_model_weights(encoder.model)]
    records = {(tuple(each.mean), tuple(each.std)) for each in transforms}
    return records, f"torchvision's weights of {encoder.model}"


def _of_transformers(encoder):
    path = Path(encoder.folder).expanduser() / PREPROCESSOR
    if not exists(path):
        return set(), str(path)
    with refuse_broken(path, "not a whole preprocessor of transformers"):
        record = parse_json(read_text(path))
        mean, std = record.get("image_mean"), record.get("image_std")
        records = set() if mean is None or std is None else {(tuple(mean), tuple(std))}
    return records, str(path)


def with_recorded_normalization(settings, encoder):
    """ImportSettings with the numbers of mean and std, which are printed if they were looked up, or
    if others are recorded for the architecture.

    encoder: EncoderSettings. Raises WrongUse if they are to be looked up and nothing is recorded.
    """
    if settings.mean == FROM_MODEL:
        mean, std, place = recorded_normalization(encoder)
        say(f"import.mean and import.std, by {escape(place)}: {mean}, {std}")
        values = settings.model_dump() | {"mean": mean, "std": std}
        try:
            return ImportSettings.model_validate(values)
        except ValueError:
            raise WrongUse(f"import.mean: {place} records {mean} and {std}") from None
    try:
        mean, std, place = recorded_normalization(encoder)
    except WrongUse:
        return settings
    if (mean, std) != (settings.mean, settings.std):
        say(f"import.mean and import.std are yours; {escape(place)} records {mean}, {std}")
    return settings
