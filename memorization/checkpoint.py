"""last.pt to go on, encoder.pt to measure: plain types and tensors, a checksum, and nothing that is executed on loading."""

import hashlib
import io
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch

from memorization.config import first_difference, read_run_config, shortened, trained_part, with_defaults
from memorization.errors import Caution, WrongUse
from memorization.storage import sync_folder, write_atomically
from memorization.subsets import ROLES, load_subsets
from models.encoders import make_encoder

FORMAT = "memorization checkpoint 1"


def save_checkpoint(path, content):
    """Write a dict of plain types and tensors, with its checksum. Equal contents give equal bytes."""
    content = _on_cpu({"format": FORMAT, **content})
    file = io.BytesIO()
    torch.save({**content, "checksum": checksum(content)}, file)
    write_atomically(path, file.getvalue())


def read_checkpoint(path):
    """The dict in a checkpoint. Raises WrongUse where the file is missing, foreign, truncated or changed."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WrongUse(f"{path}: no such file") from None
    except Exception:  # torch raises many kinds for foreign and broken files, with advice that is none here
        raise WrongUse(f"{path}: not a whole checkpoint: truncated, broken, or another kind of file") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise WrongUse(f"{path}: not a checkpoint of this project ({FORMAT!r} is missing)")
    if content.pop("checksum", None) != checksum(content):
        raise WrongUse(f"{path}: its checksum does not fit; the file is broken")
    return content


def save_progress(folder, content):
    """Write last.pt; the one before becomes previous.pt, once the new one is whole on the disk."""
    save_checkpoint(folder / "next.pt", content)
    if (folder / "last.pt").exists():
        (folder / "last.pt").replace(folder / "previous.pt")
    (folder / "next.pt").replace(folder / "last.pt")
    sync_folder(folder)


def read_progress(folder):
    """The content of last.pt, of previous.pt where last.pt is missing or broken, or None where neither was written.

    A broken last.pt is deleted, or the next save would put it in the place of a good previous.pt. Raises WrongUse where only it is left.
    """
    last, previous = folder / "last.pt", folder / "previous.pt"
    if not last.exists():
        return read_checkpoint(previous) if previous.exists() else None
    try:
        return read_checkpoint(last)
    except WrongUse as error:
        if not previous.exists():
            raise WrongUse(f"{error}; delete it to train from the start") from None
        content = read_checkpoint(previous)
        warnings.warn(Caution(f"{error}; going on from {previous}"), stacklevel=2)
        last.unlink()
        return content


def load_encoder(path):
    """A trained encoder, in eval mode on the CPU, from its file alone.

    Returns (encoder, record); record tells what was trained: config, role, seed, epoch, precision, channels, size, mean, std, subsets
    (fingerprint).
    Raises WrongUse where the file is not a whole encoder.pt.
    """
    record = read_checkpoint(path)
    if record.get("kind") != "encoder":
        raise WrongUse(f"{path}: a checkpoint, but not of an encoder; encoder.pt is what is measured")
    weights = record.pop("weights")
    encoder = _fresh_encoder(record)
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise WrongUse(f"{path}: its weights do not fit its encoder ({' '.join(str(error).split())})") from None
    return encoder.eval().requires_grad_(False), record


def untrained_encoder(record, seed):
    """An encoder like that of a record before its training, in eval mode on the CPU. seed: of its initial weights."""
    torch.manual_seed(seed)
    return _fresh_encoder(record).eval().requires_grad_(False)


def _fresh_encoder(record):
    return make_encoder(SimpleNamespace(**record["config"]["encoder"]), record["channels"], record["size"])


def load_pair(run, seed, checkpoint="encoder"):
    """The pair of one seed: (f, g, record), with the record of f.

    run: the run folder; checkpoint: "encoder", or such as "epoch_0100". Raises WrongUse where f and g do not belong together or to this
    run: another config, role, seed, epoch, split or precision.
    """
    (f, record), (g, other) = (load_trained(run, seed, role, checkpoint) for role in ROLES)
    if record["precision"] != other["precision"]:
        raise WrongUse(f"{run}/seed_{seed}: precision is {record['precision']!r} of f, but {other['precision']!r} of g")
    return f, g, record


def load_trained(run, seed, role, checkpoint="encoder"):
    """One encoder of a run: (encoder, record). Raises WrongUse where it is not of this run, seed, role and epoch; see `load_pair`."""
    run = Path(run).expanduser()
    path = run / f"seed_{seed}" / role / ("encoder.pt" if checkpoint == "encoder" else f"encoder_{checkpoint}.pt")
    encoder, record = load_encoder(path)
    subsets, trained = load_subsets(run / "subsets.npz").fingerprint, trained_part(read_run_config(run))
    epoch = trained["training"]["epochs"] if checkpoint == "encoder" else int(checkpoint.removeprefix("epoch_"))
    check_belongs(record, {"role": role, "seed": seed, "subsets": subsets, "config": trained, "epoch": epoch}, path)
    return encoder, record


def chosen_checkpoints(action, run, seeds, roles=ROLES):
    """The checkpoints that an action `checkpoint` names, such as ["epoch_0100", "epoch_0200", "encoder"] for "all"; None is "encoder".

    Raises WrongUse where the encoders of these seeds and roles do not all have it.
    """
    if action in (None, "encoder"):
        return ["encoder"]
    kept = kept_epochs(run, seeds, roles)
    if action == "all" and kept:
        return [*kept, "encoder"]
    if action not in kept:
        has = f"has {', '.join(kept)}" if kept else "kept none; name their epochs in training.checkpoint_epochs"
        raise WrongUse(f"command line: --checkpoint: {action!r} is not allowed: beside encoder, {run} {has}")
    return [action]


def kept_epochs(run, seeds, roles):
    """The kept checkpoints that the encoders of these seeds and roles all have, such as ["epoch_0100", "epoch_0200"]."""
    kept = [
        {path.stem.removeprefix("encoder_") for path in Path(run, f"seed_{seed}", role).glob("encoder_epoch_*.pt")}
        for seed in seeds
        for role in roles
    ]
    return sorted(set.intersection(*kept), key=lambda name: int(name.removeprefix("epoch_")))


def pair_fingerprints(pairs):
    """{"seed_0/candidate": a hash of that encoder's weights, ...}. pairs: {seed: what load_pair gives}, on the CPU."""
    return {
        f"seed_{seed}/{role}": checksum(encoder.state_dict()) for seed, (f, g, _) in pairs.items() for role, encoder in zip(ROLES, (f, g))
    }


def check_belongs(content, expected, path):
    """Raise WrongUse where a checkpoint's content differs from what is expected of it, a dict of some of its keys."""
    found = {key: content.get(key) for key in expected}
    if found.get("config"):
        found["config"] = with_defaults(found["config"], path)
    difference = first_difference(found, expected)
    if difference:
        key, value, wanted = difference
        raise WrongUse(f"{path}: {key.removeprefix('config.')} is {shortened(value)}, but {shortened(wanted)} belongs here")


def _on_cpu(value):
    """The same nested value, with its tensors contiguous on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().contiguous()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_on_cpu(item) for item in value]
    return value


def checksum(value):
    """SHA-256 over a nested value of plain types and tensors, hexadecimal."""
    digest = hashlib.sha256()

    def add(item):
        if isinstance(item, torch.Tensor):
            digest.update(f"{item.dtype} {tuple(item.shape)} ".encode())
            digest.update(item.contiguous().flatten().view(torch.uint8).numpy())
        elif isinstance(item, dict):
            digest.update(f"dict {len(item)} ".encode())
            for key, part in item.items():
                digest.update(f"{key!r}: ".encode())
                add(part)
        elif isinstance(item, list):
            digest.update(f"list {len(item)} ".encode())
            for part in item:
                add(part)
        else:
            digest.update(f"{item!r} ".encode())

    add(value)
    return digest.hexdigest()
