"""Checkpoints of a run: last.pt to go on, encoder.pt to measure."""

import re
from pathlib import Path
from types import NoneType

import torch

from memorization.checkpoint_file import read_checkpoint, save_checkpoint
from memorization.data.subsets import ROLES, load_subsets
from memorization.encoder import Encoder, Pair, place_of
from memorization.errors import Broken, WrongUse, short_form
from memorization.fields import MOST_PIXELS
from memorization.fingerprints import checksum, first_difference, on_cpu
from memorization.machine.files import delete_file, exists, names_in, rename, sync_folder
from memorization.machine.screen import caution
from memorization.settings import read_trained, with_defaults
from models.encoders import encoder_settings, make_encoder

# The names of encoders that training.checkpoint_epochs keeps.
KEPT = re.compile(r"encoder_epoch_[0-9]{4,7}\.pt")
# The names of the folders of seeds.
OF_SEED = re.compile("seed_(0|[1-9][0-9]{0,18})")


def save_progress(folder, content):
    """Write last.pt; the one before becomes previous.pt, once the new one is whole on the disk."""
    save_checkpoint(folder / "next.pt", content)
    if exists(folder / "last.pt"):
        rename(folder / "last.pt", folder / "previous.pt")
    rename(folder / "next.pt", folder / "last.pt")
    sync_folder(folder)


def read_progress(folder):
    """The content of last.pt, of previous.pt if last.pt is missing or broken, or None if neither
    was written.

    A broken last.pt is deleted, or the next save would put it in the place of a good previous.pt.
    Raises WrongUse if there is no previous.pt, and if last.pt cannot be read: it may be whole.
    """
    last, previous = folder / "last.pt", folder / "previous.pt"
    if not exists(last):
        return read_checkpoint(previous) if exists(previous) else None
    try:
        return read_checkpoint(last)
    except Broken as error:
        if not exists(previous):
            raise Broken(f"{error}; delete it to train from the start") from None
        content = read_checkpoint(previous)
        caution(f"{error}; going on from {previous}")
        delete_file(last)
        return content


def restore(progress, method, optimizer, folder):
    """Put the weights of a method and the state of its optimizer back. progress: of read_progress
    in this folder.

    Raises WrongUse if they do not fit this method and optimizer, or are not finite.
    """
    path = folder / "last.pt"
    message = f"{path}: its weights do not fit its method"
    check_weights(progress.get("method"), method.state_dict(), message)
    try:
        state = progress["optimizer"]
        _check_optimizer(state, optimizer)
        optimizer.load_state_dict(state | {"param_groups": optimizer.state_dict()["param_groups"]})
        _lay_out_alike(optimizer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        other = f"its optimizer is not that of this training ({error})"
        raise WrongUse(f"{path}: {other}") from None
    method.load_state_dict(progress["method"])


def _check_optimizer(state, optimizer):
    """Raise ValueError unless an optimizer's state dict fits another optimizer, and is finite."""
    parameters = []
    for group in optimizer.param_groups:
        parameters += group["params"]
    shapes = dict(enumerate(parameter.shape for parameter in parameters))
    for i, values in state["state"].items():
        for name, value in values.items():
            if (name, value) == ("momentum_buffer", None):
                continue
            if value.shape not in ((), shapes[i]) or not value.isfinite().all():
                raise ValueError(f"{name} of parameter {i}")
    groups = _constant_options(state), _constant_options(optimizer.state_dict())
    difference = first_difference(*map(on_cpu, groups), "optimizer")
    if difference:
        raise ValueError(f"{difference[0]} is {difference[1]!r}")


def _constant_options(state):
    """The parameter groups of an optimizer's state dict, without what schedules set in each step:
    the learning rate and the weight decay.
    """
    scheduled, groups = ("lr", "weight_decay"), state["param_groups"]
    return [{key: group[key] for key in group if key not in scheduled} for group in groups]


def _lay_out_alike(optimizer):
    """Give what an optimizer keeps of each parameter the parameter's layout in memory, without
    which a GPU takes them one by one.

    Files hold contiguous tensors, parameters may be channels_last.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value is not None and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)


def load_encoder(path, name=None):
    """The Encoder in an encoder.pt, on the CPU, from its file alone.

    name: in messages and tables; the path if None. Its record tells what was trained: config, role,
    seed, epoch, precision, subsets (fingerprint); epoch and precision are None if others trained
    it. Raises WrongUse if the file is no whole encoder.pt.
    """
    record = read_checkpoint(path)
    if record.get("kind") != "encoder":
        other = "a checkpoint, but not of an encoder; encoder.pt is what is measured"
        raise WrongUse(f"{path}: {other}")
    weights = record.pop("weights", None)
    _check_record(record, path)
    try:
        # its shapes alone: a record may claim an encoder larger than the memory
        with torch.device("meta"):
            shapes = _fresh_network(record).state_dict()
    except ValueError as error:
        raise WrongUse(f"{path}: {error}") from None
    check_weights(weights, shapes, f"{path}: its weights do not fit its encoder")
    network = _fresh_network(record)
    network.load_state_dict(weights)
    return _encoder(str(path) if name is None else name, network, record)


def _encoder(name, network, record):
    """The Encoder of a network with a record. It is frozen, and in eval mode."""
    network.eval().requires_grad_(False)
    # Two encoders may differ in their pooling alone.
    parts = {"encoder": record["config"]["encoder"], "weights": network.state_dict()}
    return Encoder(
        name=name,
        network=network,
        channels=record["channels"],
        size=record["size"],
        normalization=(record["mean"], record["std"]),
        patch=getattr(network, "patch", None),
        identity=checksum(parts),
        record=record,
    )


def _check_record(record, path):
    """Raise WrongUse unless the record in a file has the types and bounds of what save_encoder
    writes.
    """
    trained, epoch = with_defaults(record.get("config"), path), record.get("epoch")
    # Nobody knows how others trained.
    precisions, epochs = (None,), (None,)
    if "training" in trained:
        precisions, epochs = ("fp32", "bf16"), range(trained["training"]["epochs"] + 1)
    channels, mean, std = (record.get(key) for key in ("channels", "mean", "std"))
    right = {
        "subsets": type(record.get("subsets")) is str,
        "role": record.get("role") in ROLES,
        "seed": type(record.get("seed")) is int and record["seed"] >= 0,
        "precision": record.get("precision") in precisions,
        "epoch": type(epoch) in (int, NoneType) and epoch in epochs,
        "channels": type(channels) is int and channels in (1, 3),
        "size": type(record.get("size")) is int and 1 <= record["size"] <= MOST_PIXELS,
        "mean": _is_per_channel(mean, channels),
        "std": _is_per_channel(std, channels) and min(std) > 0,
    }
    for key, is_right in right.items():
        if not is_right:
            raise WrongUse(f"{path}: {key} is {str(record.get(key))[:80]}, which no encoder.pt has")


def _is_per_channel(values, channels):
    if type(values) is not list or type(channels) is not int or len(values) != channels:
        return False
    return all(type(value) is float and abs(value) < 100 for value in values)


def check_weights(weights, expected, message):
    """Raise WrongUse, which begins with a message, unless two state dicts agree in names, shapes
    and dtypes, and the first is finite.
    """
    if type(weights) is not dict or set(weights) != set(expected):
        raise WrongUse(f"{message}: other names")
    for name, fitting in expected.items():
        weight = weights[name]
        kind, needed = _kind(weight), _kind(fitting)
        if kind != needed:
            raise WrongUse(f"{message}: {name} is {kind}, but {needed} is needed")
        if not weight.isfinite().all():
            raise WrongUse(f"{message}: {name} is not finite")


def _kind(weight):
    """Dtype and shape of a tensor, or the type of something else, in words."""
    if type(weight) is not torch.Tensor:
        return type(weight).__name__
    return f"{weight.dtype} {tuple(weight.shape)}"


def untrained_encoder(encoder, seed):
    """An Encoder like another one before its training. seed: of its initial weights."""
    torch.manual_seed(seed)
    return _encoder("random encoder", _fresh_network(encoder.record), encoder.record)


def _fresh_network(record):
    settings = encoder_settings(**record["config"]["encoder"])
    return make_encoder(settings, record["channels"], record["size"])


def folder_of(run, seed, role):
    """The folder of one encoder in a run folder, a Path."""
    return Path(run).expanduser() / place_of(seed, role)


def places_in(run):
    """The (seed, role) of every encoder that has a folder in a run folder, a list."""
    names = filter(OF_SEED.fullmatch, names_in(run))
    seeds = sorted(int(name.removeprefix("seed_")) for name in names)
    places = [(seed, role) for role in ROLES for seed in seeds]
    return [place for place in places if exists(folder_of(run, *place))]


def newest_checkpoint(run, seed, role):
    """The file of an encoder, or of the progress of its training; None if there is none."""
    folder = folder_of(run, seed, role)
    paths = [folder / name for name in ("encoder.pt", "last.pt", "previous.pt")]
    return next((path for path in paths if exists(path)), None)


def encoder_file(run, seed, role, checkpoint="encoder"):
    """The file of one encoder in a run folder, a Path. checkpoint: see `load_pair`."""
    name = "encoder.pt" if checkpoint == "encoder" else f"encoder_{checkpoint}.pt"
    return folder_of(run, seed, role) / name


def load_pair(run, seed, checkpoint="encoder"):
    """The Pair of one seed.

    run: the run folder; checkpoint: "encoder", or such as "epoch_0100". Raises WrongUse if f and g
    do not belong together or to this run: another config, role, seed, epoch, split or precision.
    """
    pair = Pair(*(load_trained(run, seed, role, checkpoint) for role in ROLES), seed)
    of_f, of_g = (encoder.record["precision"] for encoder in pair)
    if of_f != of_g:
        place = folder_of(run, seed, ROLES[0]).parent
        raise WrongUse(f"{place}: precision is {of_f!r} of f, but {of_g!r} of g")
    return pair


def load_trained(run, seed, role, checkpoint="encoder"):
    """One Encoder of a run. Raises WrongUse if it is not of this run, seed, role and epoch."""
    path = encoder_file(run, seed, role, checkpoint)
    encoder = load_encoder(path, f"{role} seed {seed}")
    run = Path(run).expanduser()
    trained = read_trained(run)
    epoch = trained.epochs
    if checkpoint != "encoder":
        epoch = int(checkpoint.removeprefix("epoch_"))
    subsets = load_subsets(run / "subsets.npz").fingerprint
    expected = {"role": role, "seed": seed, "subsets": subsets}
    expected |= {"config": trained.trained_part(), "epoch": epoch}
    check_belongs(encoder.record, expected, path)
    return encoder


def chosen_checkpoints(action, run, seeds, roles=ROLES):
    """The checkpoints that an action `checkpoint` names, such as ["epoch_0100", "epoch_0200",
    "encoder"] for "all"; None is "encoder".

    Raises WrongUse if one of the encoders of these seeds and roles lacks it.
    """
    if action in (None, "encoder"):
        return ["encoder"]
    kept = kept_epochs(run, seeds, roles)
    if action == "all" and kept:
        return [*kept, "encoder"]
    if action not in kept:
        has = "has none; a training keeps those that training.checkpoint_epochs names"
        if kept:
            has = f"has {', '.join(kept)}"
        refused = f"--checkpoint: {action!r} is not allowed"
        raise WrongUse(f"command line: {refused}: beside encoder, {run} {has}")
    return [action]


def kept_epochs(run, seeds, roles):
    """The kept checkpoints that the encoders of these seeds and roles all have, such as
    ["epoch_0100", "epoch_0200"].
    """
    folders = [folder_of(run, seed, role) for seed in seeds for role in roles]
    files = [filter(KEPT.fullmatch, names_in(folder)) for folder in folders]
    kept = [{name[len("encoder_") : -len(".pt")] for name in names} for names in files]
    return sorted(set.intersection(*kept), key=lambda name: int(name.removeprefix("epoch_")))


def check_belongs(content, expected, path):
    """Raise WrongUse if a checkpoint's content differs from what is expected of it, a dict of some
    of its keys.
    """
    values = {key: content.get(key) for key in expected}
    if type(values.get("config")) is dict:
        values["config"] = with_defaults(values["config"], path)
    difference = first_difference(values, expected)
    if difference:
        key, value, other = difference
        both = f"is {short_form(value)}, but {short_form(other)} belongs here"
        raise WrongUse(f"{path}: {key.removeprefix('config.')} {both}")
