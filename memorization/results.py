"""Results of measurements: the folder that each has to itself, and files that belong together."""

import hashlib
import json
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pydantic

from memorization.data.subsets import ROLES
from memorization.errors import WrongUse, escape, short_form
from memorization.fingerprints import first_difference
from memorization.machine.files import (
    check_writable,
    delete_file,
    exists,
    json_text,
    open_regular,
    parse_json,
    read_text,
    refuse_broken,
    rename,
    stage,
    sync_folder,
)
from memorization.machine.locks import sole_process
from memorization.machine.processes import on_first_process
from memorization.machine.screen import say
from models.settings import Settings

SUMMARY = "summary.json"
Number = int | float | None  # of a summary; NaN and infinity are written as null


class Document(pydantic.BaseModel):
    """What a JSON file says, or a part of it. The same class writes and reads it.

    The fields are the keys of the file, in their order. Only fields that were given are written. On
    reading, keys of other versions are kept as attributes; a field that earlier versions do not
    write needs a default.
    """

    model_config = pydantic.ConfigDict(extra="allow")

    @classmethod
    def parse(cls, text):
        """The Document in a JSON text. Raises ValueError if the text is broken, or lacks a key."""
        try:
            return cls.model_validate(parse_json(text))
        except pydantic.ValidationError as error:
            problem = error.errors(include_url=False)[0]
            key = ".".join(map(str, problem["loc"]))
            raise ValueError(f"{key}: {problem['msg']}" if key else problem["msg"]) from None

    def plain(self):
        """The dict of the file: keys in order, plain types."""
        return self.model_dump(exclude_unset=True)


class Summary(Document):
    """What summary.json says of a result.

    Each measurement has a subclass. Among its fields are seeds, settings and fingerprints, as plain
    types. files: {name: SHA-256} of the files that belong to the result; `Result.save` adds it as
    the last key.
    """

    files: dict[str, str] = {}

    def plain(self):
        """The dict of summary.json without `files`."""
        return self.model_dump(exclude={"files"}, exclude_unset=True)


class Checkpoint(pydantic.BaseModel):
    """Of a Summary: which checkpoint was measured."""

    name: str
    epoch: int | None  # None if others trained the encoder


class Spread(pydantic.BaseModel):
    """Of a Summary: what `mean_and_spread` gives. std is None for a single value."""

    mean: float | None
    std: float | None
    n: int

    def __format__(self, form):
        """Such as "+0.25 ± 0.10"."""
        mean = f"{self.mean:{form}}"
        return mean if self.std is None else f"{mean} ± {self.std:{form.removeprefix('+')}}"


class MeasurementSettings(Settings):
    """A config's section of a measurement.

    SCRIPT: the command that makes its results. PLAIN: {setting: value} of what adds nothing to the
    name of a result's folder. BUILT_ON: other sections that are named there if they differ from the
    run's; DETERMINED_BY: those among them that determine the numbers of this measurement, too.
    WITHOUT_G: what can be measured instead of f alone, for messages.
    """

    SCRIPT: ClassVar[str]
    PLAIN: ClassVar[dict] = {}
    BUILT_ON: ClassVar[tuple] = ()
    DETERMINED_BY: ClassVar[tuple] = ()
    WITHOUT_G: ClassVar[str] = "membership_inference.py measures f alone"

    @property
    def roles(self):
        """The roles of the encoders that the measurement needs."""
        return ROLES

    def determining(self):
        """The names of the settings that determine the numbers of a result."""
        raise NotImplementedError


@dataclass(frozen=True)
class Result:
    """One result: its folder, and what it is of. A result of something else in that folder is never
    overwritten.

    again: the command that makes it. settings: {"section.name": value} of those that change its
    numbers, plain types; defaults: {"section.name": value}, for summaries of earlier versions,
    which lack some. seeds: of the pairs. fingerprints: of the measured subsets, data and boxes.
    origin: {section: plain values} of encoders that others trained, for the summary; else empty.
    """

    folder: Path
    again: str
    settings: dict
    defaults: dict
    seeds: list
    fingerprints: dict
    origin: dict = field(default_factory=dict)

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
            summary = Summary.parse(read_text(self.folder / SUMMARY)).plain()
            written, fingerprints = self._origin_in(summary), summary.get("fingerprints", {})
            seeds, trained = _seeds_in(summary), fingerprints.get("encoders", {})
            current = trained | (encoders or {})
            retrained = [name for name in trained if trained[name] != current[name]]
        own = self.settings | self.fingerprints
        expected = {key: value for key, value in own.items() if key in written}
        difference = first_difference(written, json.loads(json.dumps(expected)))
        if difference:
            key, value, other = difference
            both = f"{key} is {short_form(value)}, but {short_form(other)} belongs here"
            raise WrongUse(f"{self.folder}: holds another result: {both}{advice}")
        if not set(seeds) <= set(self.seeds):
            both = f"seeds is {seeds}, but {self.seeds} belongs here"
            raise WrongUse(f"{self.folder}: holds another result: {both}{advice}")
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

        files: {name: bytes}; summary: a Summary; pictures: names of the result's pictures. They are
        deleted if the files change. The body draws them, while the folder is locked. Processes
        beside the first write nothing.
        """
        with self.lock():
            self._replace_files(files, summary, pictures)
            yield

    @on_first_process
    def _replace_files(self, files, summary, pictures):
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        content = json_text(summary.plain() | self.origin | {"files": hashes}).encode()
        reason = self.check_place(summary.fingerprints.get("encoders"))
        if reason:
            say(f"{escape(self.folder)}: {reason}")
        has_changed = self._written_files() != hashes
        with ExitStack() as stack:
            contents = files | {SUMMARY: content}
            new = {}
            for name, content in contents.items():
                new[name] = stack.enter_context(stage(self.folder / name, content))
            delete_file(self.folder / SUMMARY)
            sync_folder(self.folder)  # from here on nothing is taken for whole
            for name in pictures if has_changed else ():
                delete_file(self.folder / name)
            for name in files:
                rename(new[name], self.folder / name)
            sync_folder(self.folder)
            rename(new[SUMMARY], self.folder / SUMMARY)
            sync_folder(self.folder)

    def settings_in(self, settings):
        """The `settings` of a summary as {"section.name": value}; see `defaults`.

        A summary of several sections names them; one of a single section may leave its name out.
        """
        sections = {key.split(".")[0] for key in self.settings}
        if len(sections) == 1 and not sections >= set(settings):
            (section,) = sections
            settings = {section: settings}
        values = {}
        for key in self.settings:
            section, name = key.split(".")
            if section in settings:
                values[key] = settings[section].get(name, self.defaults[key])
        return values

    def _origin_in(self, summary):
        """The settings and fingerprints in a summary, with the keys of those of this Result."""
        origin, fingerprints = (
            self.settings_in(summary["settings"]),
            summary.get("fingerprints", {}),
        )
        if origin.get("probe.datasets") == []:
            origin.pop("probe.datasets")  # the one of training
        names = [name for name in self.fingerprints if name in fingerprints]
        return origin | {name: fingerprints[name] for name in names}

    def _written_files(self):
        """The hashes of files in the summary that is there, or None."""
        if not exists(self.folder / SUMMARY):
            return None
        return Summary.parse(read_text(self.folder / SUMMARY)).files


def _seeds_in(summary):
    """The seeds of a result of any kind."""
    seeds = summary.get("seeds", [])
    seeds = seeds["retrained"] if isinstance(seeds, dict) else seeds
    return [seed["seed"] if isinstance(seed, dict) else seed for seed in seeds]


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
            content = hash_of_file(path)
        if content != written:
            both = f"{name} is {short_form(content)}, but {short_form(written)} belongs here"
            raise WrongUse(f"{folder}: files of different results: {both}; run {again} again")


def hash_of_file(path):
    """The SHA-256 of a file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
