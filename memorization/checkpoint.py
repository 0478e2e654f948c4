"""last.pt to go on, encoder.pt to measure: plain types and tensors, a checksum, and nothing that is
executed on loading.
"""

import errno
import os
import pickletools
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch

from memorization.data.subsets import ROLES, load_subsets
from memorization.encoder import Encoder, Pair, place_of
from memorization.errors import Broken, WrongUse, short_form, shorten
from memorization.fields import MOST_PIXELS
from memorization.fingerprints import checksum, first_difference, on_cpu
from memorization.machine.archives import open_archive
from memorization.machine.files import (
    atomically,
    delete_file,
    exists,
    names_in,
    open_regular,
    refuse_broken,
    rename,
    sync_folder,
)
from memorization.machine.processes import on_first_process
from memorization.machine.screen import caution
from memorization.settings import read_trained, with_defaults
from models.encoders import encoder_settings, make_encoder

FORMAT = "memorization checkpoint 1"
# The names in a pickle that torch.save makes of tensors.
GLOBALS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage")
# Bounds on what is not tensors, in bytes and in parts of a pickle. Most of it is the losses of an
# unfinished epoch, 100 bytes and 20 parts a step.
MOST_PICKLED, MOST_PARTS = 2**23, 2**21
# The names of encoders that training.checkpoint_epochs keeps.
KEPT = re.compile(r"encoder_epoch_[0-9]{4,7}\.pt")
# The names of the folders of seeds.
OF_SEED = re.compile("seed_(0|[1-9][0-9]{0,18})")
# Errors of the system, whatever a file's content is.
OF_SYSTEM = (
    errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENODEV, errno.EACCES, errno.ENOSPC,
)  # fmt: skip
DEEPEST = 50  # of dicts and lists in each other


class _Foreign(ValueError):
    """A whole file, but not one of ours; the message says of what."""


@on_first_process
def save_checkpoint(path, content):
    """Write a dict of plain types and tensors, with its checksum; equal dicts give equal bytes."""
    content = on_cpu({"format": FORMAT, **content})
    with atomically(path) as file:
        torch.save({**content, "checksum": checksum(content)}, file)


def read_checkpoint(path):
    """The dict in a checkpoint.

    Raises WrongUse if the file is missing, foreign or cannot be read, and Broken if it is truncated
    or changed.
    """
    with refuse_broken(path, "not a whole checkpoint"):
        try:
            content = _load(path)
        except (OSError, MemoryError):
            raise
        except _Foreign as error:
            raise WrongUse(f"{path}: a checkpoint of another program ({error})") from None
        # torch raises many kinds for foreign and broken files, with advice that is none here
        except Exception as error:
            _raise_if_of_system(error)
            fault = "truncated, broken, or another kind of file"
            raise Broken(f"{path}: not a whole checkpoint: {fault}") from None
    if content.pop("checksum", None) != checksum(content):
        raise Broken(f"{path}: its checksum does not fit; the file is broken")
    return content


def _load(path):
    _check_first_bytes(path)
    with open_archive(path) as archive:
        _check_pickle_of_tensors(archive)
        with _copy_of(archive.fp, path) as copy:
            # Mapped, a tensor cannot claim more than the file holds; read into memory, torch takes
            # its word.
            content = torch.load(copy, map_location="cpu", weights_only=True, mmap=True)
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                raise _Foreign(f"{FORMAT!r} is missing")
            _check_plain(content, 4 * os.path.getsize(copy))
    return _in_memory(content)


def _check_first_bytes(path):
    """Raise _Foreign if a file begins as other programs' checkpoints do; ours are zip files."""
    with open_regular(path) as file:
        start = file.read(10)
    if start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5" and len(start) > 2:
        raise _Foreign("a pickle, as torch.save wrote before 1.6")
    if start[8:10] == b'{"':
        raise _Foreign("safetensors")
    if start.startswith(b"\x89HDF\r\n"):
        raise _Foreign("HDF5")


def _raise_if_of_system(error):
    """Raise OSError if an error of torch quotes one of the system."""
    for code in OF_SYSTEM:
        if os.strerror(code) in str(error):
            raise OSError(code, os.strerror(code)) from None


@contextmanager
def _copy_of(file, path):
    """Copy an open file, and give the copy's path, to be mapped into memory. path: of the file.

    The file's own file system may not map files, and a mapped page that cannot be read would end
    the process. A copy in memory may be larger than a limit on the size of files; then path itself
    is given.
    """
    in_memory = None
    if hasattr(os, "memfd_create"):
        in_memory = os.fdopen(os.memfd_create("checkpoint"), "r+b", 0)
    with in_memory or tempfile.NamedTemporaryFile(buffering=0) as copy:
        place = f"/proc/self/fd/{copy.fileno()}" if in_memory else copy.name
        file.seek(0)
        while block := memoryview(file.read(2**20)):
            try:
                while block:
                    block = block[copy.write(block) :]
            except OSError as error:
                if error.errno != errno.EFBIG:
                    raise
                place = os.fspath(path)
                break
        yield place


def _in_memory(value):
    """The same nested value, with its tensors copied out of the file."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _in_memory(item) for key, item in value.items()}
    return [_in_memory(item) for item in value] if isinstance(value, list) else value


def _check_pickle_of_tensors(archive):
    """Raise _Foreign unless an open zip file is one of torch.save, whose pickle names only tensors.

    Raises ValueError if the pickle is broken.
    """
    pickles = [m for m in archive.infolist() if m.filename.endswith("data.pkl")]
    if len(pickles) != 1:
        raise _Foreign("a zip file, but not one of torch.save")
    if pickles[0].file_size > MOST_PICKLED:
        raise _Foreign(f"{pickles[0].file_size} bytes beside its tensors")
    pickled = archive.read(pickles[0])
    for number, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if number == MOST_PARTS:
            raise _Foreign(f"more than {MOST_PARTS} parts beside its tensors")
        if opcode.name in ("STACK_GLOBAL", "INST"):
            raise _Foreign("it names more than tensors")
        if opcode.name == "GLOBAL" and not GLOBALS.fullmatch(argument):
            raise _Foreign(f"it names {shorten(argument)}")


def _check_plain(content, most):
    """Raise ValueError unless a value is what save_checkpoint writes: a tree of dicts and lists of
    numbers, text and whole tensors, of at most so many bytes. A pickle may hold a list in itself,
    or a small tensor a million times.
    """
    visited, size = set(), 0
    waiting = [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        if type(value) in (dict, list):
            if id(value) in visited or depth > DEEPEST:
                raise ValueError("its parts hold each other")
            visited.add(id(value))
            parts = [*value, *value.values()] if type(value) is dict else value
            waiting += [(part, depth + 1) for part in parts]
        elif type(value) is torch.Tensor:
            if value.requires_grad or not value.is_contiguous():
                raise ValueError("a tensor that was not saved so")
            size += value.nbytes
        elif type(value) is str:
            size += len(value)
        elif type(value) is int and abs(value) >= 2**64:
            raise ValueError("an int of more than 64 bits")
        elif value is not None and type(value) not in (bool, float, int):
            raise ValueError(f"a {type(value).__name__}")
        if size > most:
            raise ValueError("it holds more than its bytes")


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
        optimizer.load_state_dict(state)
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
    groups = _groups_without_rate(state), _groups_without_rate(optimizer.state_dict())
    difference = first_difference(*map(on_cpu, groups), "optimizer")
    if difference:
        raise ValueError(f"{difference[0]} is {difference[1]!r}")


def _groups_without_rate(state):
    """The parameter groups of an optimizer's state dict, without the learning rate."""
    groups = state["param_groups"]
    return [{key: group[key] for key in group if key != "lr"} for group in groups]


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
    seed, epoch, precision, subsets (fingerprint). Raises WrongUse if the file is no whole
    encoder.pt.
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
    """Raise WrongUse unless what a file tells of its encoder has the types and bounds of what is
    written there.
    """
    epochs = with_defaults(record.get("config"), path)["training"]["epochs"]
    channels, mean, std = (record.get(key) for key in ("channels", "mean", "std"))
    right = {
        "subsets": type(record.get("subsets")) is str,
        "role": record.get("role") in ROLES,
        "seed": type(record.get("seed")) is int and record["seed"] >= 0,
        "precision": record.get("precision") in ("fp32", "bf16"),
        "epoch": type(record.get("epoch")) is int and 0 <= record["epoch"] <= epochs,
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
        raise WrongUse(f"{run}: seed {seed}: precision is {of_f!r} of f, but {of_g!r} of g")
    return pair


def load_trained(run, seed, role, checkpoint="encoder"):
    """One Encoder of a run. Raises WrongUse if it is not of this run, seed, role and epoch."""
    path = encoder_file(run, seed, role, checkpoint)
    encoder = load_encoder(path, f"{role} seed {seed}")
    run = Path(run).expanduser()
    trained = read_trained(run).trained_part()
    epoch = trained["training"]["epochs"]
    if checkpoint != "encoder":
        epoch = int(checkpoint.removeprefix("epoch_"))
    subsets = load_subsets(run / "subsets.npz").fingerprint
    expected = {"role": role, "seed": seed, "subsets": subsets, "config": trained, "epoch": epoch}
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
        has = "kept none; name their epochs in training.checkpoint_epochs"
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
