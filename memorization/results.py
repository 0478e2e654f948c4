"""Results of measurements: the folder that each has to itself, and files that belong together."""

import hashlib
import json
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from memorization.config import Config, first_difference, shortened
from memorization.errors import WrongUse, visible
from memorization.machine.files import (
    check_writable,
    delete_file,
    exists,
    is_folder,
    json_text,
    open_regular,
    parse_json,
    read_text,
    refuse_broken,
    rename,
    sole_process,
    stage,
    sync_folder,
)
from memorization.measuring.removal import DRAWN

SUMMARY = "summary.json"
MOST_NAME = 100  # characters of a folder's name
HASH = 8  # digits of a hash in a name
# Values that add nothing to a folder's name, whatever the run's config.yaml says; others are named.
PLAIN = {
    "scores.representation": "pooled",
    "scores.augmentation": "training",
    "scores.precision": "fp32",
    "dejavu.query": "training",
    "dejavu.reference": "independent",
    "probe.fine_tune": False,
}


@dataclass(frozen=True)
class Result:
    """One result: its folder, and what it is of. A result of something else in that folder is never
    overwritten.

    again: the command that makes it. settings: {"section.name": value} of those that change its
    numbers, plain types. seeds: of the pairs. fingerprints: of the measured subsets, data and
    boxes.
    """

    folder: Path
    again: str
    settings: dict
    seeds: list
    fingerprints: dict

    def check_place(self, encoders=None):
        """Raise WrongUse if the folder holds the result of something else, or cannot be written to.

        encoders: {name: hash} of the measured ones, if they are known already. Returns a sentence
        that says why the result in the folder may be replaced; None if there is none, or the same.
        """
        check_writable(self.folder)
        if not exists(self.folder / SUMMARY):
            return None
        advice = f"; to measure anew, delete {self.folder / SUMMARY}"
        with refuse_broken(self.folder / SUMMARY, "not a whole summary of a result", advice):
            there = parse_json(read_text(self.folder / SUMMARY))
            found, fingerprints = settings_in(there, self.settings), there.get("fingerprints", {})
            if found.get("probe.datasets") == []:
                found.pop("probe.datasets")  # the one of training
            found |= {
                name: fingerprints[name] for name in self.fingerprints if name in fingerprints
            }
            seeds, trained = _seeds_in(there), fingerprints.get("encoders", {})
            retrained = [
                name
                for name in trained
                if trained[name] != (encoders or trained).get(name, trained[name])
            ]
        wanted = {
            key: value for key, value in (self.settings | self.fingerprints).items() if key in found
        }
        difference = first_difference(found, json.loads(json.dumps(wanted)))
        if difference:
            key, value, other = difference
            both = f"{key} is {shortened(value)}, but {shortened(other)} belongs here"
            raise WrongUse(f"{self.folder}: holds another result: {both}{advice}")
        if not set(seeds) <= set(self.seeds):
            raise WrongUse(
                f"{self.folder}: holds another result: seeds is {seeds}, but {self.seeds} belongs here{advice}"
            )
        if retrained:
            return f"{retrained[0]} was trained again since the result that was there"
        if 0 < len(seeds) < len(self.seeds):
            return f"seeds {self.seeds} replace the result of seeds {seeds}"
        return None

    def lock(self):
        """Keep other processes from replacing the result meanwhile; wait if one is doing so."""
        return sole_process(self.folder / "lock", wait=True)

    @contextmanager
    def save(self, files, summary, pictures=()):
        """Put a result in place: all files are new, or all are old, or there is no summary.

        files: {name: bytes}; summary: the dict of summary.json; pictures: names of the result's
        pictures. They are deleted if the files change. The body draws them, while the folder is
        locked.
        """
        summary = summary | {
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        }
        with self.lock():
            reason = self.check_place(summary["fingerprints"].get("encoders"))
            if reason:
                print(f"{visible(self.folder)}: {reason}")
            written = self._written_files()
            with ExitStack() as stack:
                contents = files | {SUMMARY: json_text(summary).encode()}
                new = {
                    name: stack.enter_context(stage(self.folder / name, content))
                    for name, content in contents.items()
                }
                delete_file(self.folder / SUMMARY)
                sync_folder(self.folder)  # from here on nothing is taken for whole
                for name in pictures if summary["files"] != written else ():
                    delete_file(self.folder / name)
                for name in files:
                    rename(new[name], self.folder / name)
                sync_folder(self.folder)
                rename(new[SUMMARY], self.folder / SUMMARY)
                sync_folder(self.folder)
            yield

    def _written_files(self):
        """The hashes of files in the summary that is there, or None."""
        if not exists(self.folder / SUMMARY):
            return None
        return parse_json(read_text(self.folder / SUMMARY)).get("files")


def settings_in(summary, keys):
    """{"section.name": value} of a summary, of the sections that it has. A setting that is newer
    than it has its default.
    """
    sections = {key.split(".")[0] for key in keys}
    found = summary["settings"]
    if len(sections) == 1 and not set(found) <= set(Config.model_fields):
        found = {section: found for section in sections}
    values = {}
    for section, name in (key.split(".") for key in keys):
        default = Config.model_fields[section].annotation.model_fields[name].default
        if section in found:
            values[f"{section}.{name}"] = found[section].get(name, default)
    return values


def _seeds_in(summary):
    """The seeds of a result of any kind."""
    seeds = summary.get("seeds", [])
    seeds = seeds["retrained"] if isinstance(seeds, dict) else seeds
    return [seed["seed"] if isinstance(seed, dict) else seed for seed in seeds]


def read_summary(folder, again):
    """The dict of a result's summary.json. Raises WrongUse if its files are not all of one result.

    again: the command that makes it. Summaries of earlier versions hold no hashes of files.
    """
    with refuse_broken(folder / SUMMARY, "not a whole summary of a result", f"; run {again} again"):
        summary = parse_json(read_text(folder / SUMMARY))
        files = dict(summary.get("files", {}))
    check_files(folder, files, again)
    return summary


def check_files(folder, files, again):
    """Raise WrongUse unless a result's files are those of its summary.

    files: {name: SHA-256}; those that are missing are passed over. Call this after the files were
    read: another result may have replaced them meanwhile.
    """
    for name, written in files.items():
        path = folder / name
        if Path(name).name != name or not exists(path):
            continue
        with refuse_broken(path, "cannot be read"):
            found = _hash_of_file(path)
        if found != written:
            both = f"{name} is {shortened(found)}, but {shortened(written)} belongs here"
            raise WrongUse(f"{folder}: files of different results: {both}; run {again} again")


# --- folders --------------------------------------------------------------------------------------


def score_result(config, subsets, checkpoint="encoder"):
    """The Result of memorization_scores.py for a checkpoint of a run."""
    return _result("scores", "memorization_scores.py", _score_keys(), config, subsets, [checkpoint])


def deja_vu_result(config, subsets, checkpoint="encoder"):
    """The Result of dejavu.py for a checkpoint of a run."""
    settings = config.dejavu
    keys = ["query", "reference", "k", "public", "public_split", "public_images", "normalize"]
    keys += {
        "training": ["views"],
        "corner": ["corner", "corner_fraction"],
        "center_masked": ["masked_fraction"],
    }.get(settings.query, [])
    keys += ["boxes"] if settings.query == "boxes" else []
    keys += ["reference_epochs"] if settings.reference == "crops" else []
    return _result(
        "dejavu",
        "dejavu.py",
        [f"dejavu.{key}" for key in keys],
        config,
        subsets,
        [checkpoint],
        _score_keys(),
    )


def probe_result(config, encoder=None):
    """The Result of linear_probing_train.py. encoder: the identity of one that is not of the run."""
    named = [] if encoder is None else [f"encoder_{encoder[:HASH]}"]
    return _result(
        "probe", "linear_probing_train.py", _probe_keys(config.probe), config, None, named
    )


def curve_result(config, subsets):
    """The Result of remove_samples.py --retrain."""
    settings = config.removal
    keys = ["counts", "percentages", "policies", "fixed_steps", "group_duplicates"]
    keys += ["draws"] if set(DRAWN) & set(settings.policies) else []
    keys += ["clusters"] if "typical" in settings.policies else []
    keys += ["duplicates_in", "duplicate_similarity"] if settings.group_duplicates else []
    keys = [*(f"removal.{key}" for key in keys), *_probe_keys(config.probe), *_score_keys()]
    return _result("removal", "remove_samples.py --retrain", keys, config, subsets, [])


def _score_keys():
    return [
        f"scores.{name}"
        for name in ("representation", "augmentation", "precision", "views", "per_subset")
    ]


def _probe_keys(settings):
    names = ["fine_tune", "datasets", "seeds", "train_images"]
    if settings.fine_tune:
        names += ["fine_tune_epochs", "fine_tune_batch_size", "fine_tune_learning_rate"]
    else:
        names += [
            "epochs",
            "batch_size",
            "optimizer",
            "learning_rates",
            "weight_decays",
            "warmup_epochs",
        ]
        names += {
            "sgd": ["momentum"],
            "lars": ["momentum", "lars_eta", "lars_clip"],
            "adamw": ["betas"],
        }[settings.optimizer]
    return [f"probe.{name}" for name in names]


def _result(kind, again, keys, config, subsets, named, other_keys=()):
    """A Result, in a folder named after its differences from the settings of the run's config.yaml.

    named: further parts of the name; other_keys: settings of other measurements that this one
    builds on.
    """
    run = config.recorded
    names = [name for name in named if name != "encoder"]
    for key in (*keys, *other_keys):
        section, name = key.split(".")
        value, plain = _value(config, key), _value(run, key)
        if section == kind and key in PLAIN:
            names += [_text(key, value)] if value != PLAIN[key] else []
            if (
                key == "dejavu.query"
                and value == "boxes"
                and config.dejavu.boxes != run.dejavu.boxes
            ):
                names[-1] += f"_{_hash_of_path(config.dejavu.boxes)}"
        elif value != plain and key != "dejavu.boxes":
            is_plain = section == kind and name != "seeds"  # seeds alone are those of the run
            names.append("_".join([*([] if is_plain else [section]), name, _text(key, value)]))
    if set(config.seeds) != set(run.seeds):
        names.append("_".join(["seeds", *map(str, config.seeds)]))
    settings = {key: _value(config, key) for key in keys if key != "dejavu.boxes"}
    fingerprints = {} if subsets is None else {"subsets": subsets.fingerprint, "data": subsets.data}
    if "dejavu.boxes" in keys:
        fingerprints["boxes"] = _hash_of_path(config.dejavu.boxes)
    return Result(
        config.folder / kind / _joined(names), again, settings, list(config.seeds), fingerprints
    )


def _value(config, key):
    """A setting as a plain value; settings that mean the same have the same value."""
    section, name = key.split(".")
    value = getattr(config, section).model_dump()[name]
    if key == "probe.datasets":
        return value or [config.data.name]
    return value


def _text(key, value):
    """A value as a part of a folder's name."""
    if key == "probe.fine_tune":
        return "fine_tuned"
    if key == "scores.augmentation" and value != "training":
        return f"augmentation_{hashlib.sha256(json.dumps(value).encode()).hexdigest()[:HASH]}"
    if value is None:
        return "all"
    if isinstance(value, list):
        return "_".join(_text(key, part) for part in value) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _joined(names):
    """The name of a folder; one that is too long ends in a hash."""
    name = "_".join(names)
    if len(name) <= MOST_NAME:
        return name
    return f"{name[: MOST_NAME - HASH - 1]}_{hashlib.sha256(name.encode()).hexdigest()[:HASH]}"


def _hash_of_path(path):
    """A short hash of what lies at a path: of a file, or of the XML files in a folder; of nothing
    if it is missing.
    """
    path, content = Path(path).expanduser(), b""
    with refuse_broken(path, "cannot be read"):
        if is_folder(path):
            lines = [
                f"{file.relative_to(path)} {_hash_of_file(file)}\n"
                for file in sorted(path.rglob("*.xml"))
            ]
            content = "".join(lines).encode(errors="surrogateescape")
        elif exists(path):
            return _hash_of_file(path)[:HASH]
    return hashlib.sha256(content).hexdigest()[:HASH]


def _hash_of_file(path):
    """The SHA-256 of a file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
