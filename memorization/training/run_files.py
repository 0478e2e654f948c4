"""What a training writes into the run folder beside the encoders: config.yaml, subsets.npz,
environment.json and skipped_images.json.
"""

import json
import os
from dataclasses import dataclass

from memorization.checkpoint import (
    check_belongs,
    folder_of,
    newest_checkpoint,
    places_in,
    read_checkpoint,
)
from memorization.config import Config, read_run_config
from memorization.data.subsets import load_subsets, save_subsets, seeds_in
from memorization.errors import WrongUse, escape, short_form
from memorization.fingerprints import first_difference
from memorization.machine.device import describe_machine
from memorization.machine.files import (
    check_writable,
    exists,
    is_folder,
    parse_json,
    read_text,
    refuse_broken,
    write_atomically,
    write_json,
)
from memorization.machine.locks import sole_process
from memorization.machine.screen import caution, say

LOCK = ".lock"  # held while config.yaml, subsets.npz and environment.json are checked and written


@dataclass(frozen=True)
class RunFiles:
    """The files of a run folder. config: of the training, whose seeds join those of the run."""

    config: Config

    @property
    def folder(self):
        """The run folder, a Path."""
        return self.config.folder

    def check(self, roles):
        """Raise WrongUse if the folder cannot be a run folder, or if something else was trained
        there. roles: of the encoders to train.
        """
        if self._run_config() is None:
            self._check_nearest_folder()
        # A run whose encoders are all finished may be another user's.
        if not self.is_finished(roles):
            check_writable(self.folder)

    def is_finished(self, roles):
        """Whether all encoders of these roles are there."""
        folders = [
            folder_of(self.folder, seed, role) for seed in self.config.seeds for role in roles
        ]
        return all(exists(folder / "encoder.pt") for folder in folders)

    def _check_nearest_folder(self):
        """Raise WrongUse if no run folder can be made at its path."""
        refused = f"run: {self.config.run!r} is not allowed"
        nearest = next(path for path in (self.folder, *self.folder.parents) if exists(path))
        if not is_folder(nearest):
            raise WrongUse(f"{refused}: {nearest} is a file")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise WrongUse(f"{refused}: {nearest} may not be written to")

    def _run_config(self):
        """The Config in the folder, or None. Raises WrongUse if it is of another training."""
        if not exists(self.folder / "config.yaml"):
            return None
        run = read_run_config(self.config.run)
        difference = first_difference(self.config.trained_part(), run.trained_part())
        if difference:
            key, value, trained = difference
            other = f"{self.config.run} was trained with {trained!r}; choose another --run"
            raise WrongUse(f"{key}: {value!r} was given, but {other}")
        return run

    def open(self, subsets):
        """Write config.yaml and subsets.npz. If they are there already, check them, and add the new
        seeds.

        Processes that start at once do so one after the other. A lost file is written again if the
        encoders in the folder were trained with this config and these subsets. Raises WrongUse if
        anything in the folder is of another training.
        """
        run, is_whole = self._check_files(subsets)
        if is_whole and set(self.config.seeds) <= set(run.seeds):
            return  # reading needs no lock, and no right to write
        with sole_process(self.folder / LOCK, wait=True):
            run, is_whole = self._check_files(subsets)
            seeds = set(self.config.seeds) if run is None else {*run.seeds, *self.config.seeds}
            trained = {} if is_whole else self._check_encoders(subsets)
            if trained:
                lost = "config.yaml" if run is None else "subsets.npz"
                first = next(iter(trained.values()))
                caution(f"{self.folder}: {lost} was lost; it is written again, to fit {first}")
                seeds |= {seed for seed, _ in trained}
            self._write_subsets(subsets, seeds)
            if run is None or seeds != set(run.seeds):
                seeds = sorted(seeds) if run or trained else self.config.seeds
                # The settings of measurements stay those of the first training. The folder may
                # have been moved since.
                changes = {"seeds": seeds, "run": self.config.run}
                (run or self.config).model_copy(update=changes).save()

    def _write_subsets(self, subsets, seeds):
        """Write subsets.npz if it is missing, or if it lacks the halves of a crossover's seed."""
        path, kept = self.folder / "subsets.npz", set()
        if exists(path):
            kept = seeds_in(path)
            if subsets.scheme == "fixed" or seeds <= kept:
                return
        save_subsets(subsets, path, sorted(seeds | kept))

    def _check_files(self, subsets):
        """(Config in the folder or None, whether subsets.npz is there too).

        Raises WrongUse if either is of another training.
        """
        run, path = self._run_config(), self.folder / "subsets.npz"
        if not exists(path):
            return run, False
        trained = load_subsets(path).fingerprint
        if trained != subsets.fingerprint:
            refused = f"{self.config.run}/subsets.npz: its fingerprint is {short_form(trained)}"
            own = f"{short_form(subsets.fingerprint)} belongs here"
            images = f"drawn from other images than those in {self.config.data.root}"
            lost = "; config.yaml, which could tell more, is missing: choose another --run"
            others = f"other subsets than these, or {images}{'' if run else lost}"
            raise WrongUse(f"{refused}, but {own}: {others}")
        return run, run is not None

    def _check_encoders(self, subsets):
        """{(seed, role): path of its newest checkpoint} of each encoder in the folder.

        Raises WrongUse if one was trained on other subsets, or with other settings, than these.
        """
        expected = {"config": self.config.trained_part(), "subsets": subsets.fingerprint}
        checked = {}
        for seed, role in places_in(self.folder):
            path = newest_checkpoint(self.folder, seed, role)
            if path is None:
                continue
            try:
                check_belongs(read_checkpoint(path), expected, path)
            except WrongUse as error:
                lost = "config.yaml or subsets.npz of this run is missing"
                raise WrongUse(f"{error}; {lost}: choose another --run") from None
            checked[seed, role] = path
        return checked

    def list_skipped(self, faults):
        """Write skipped_images.json if broken images were left out, and say how many.

        faults: {split: {index: its fault}}.
        """
        skipped = {
            split: [
                {"index": index, "file": fault.file, "reason": fault.reason}
                for index, fault in sorted(of_split.items())
            ]
            for split, of_split in faults.items()
        }
        n_skipped = sum(map(len, skipped.values()))
        if n_skipped:
            path = self.folder / "skipped_images.json"
            if not exists(path):
                write_json(path, skipped)
            left_out = f"{n_skipped} broken images are left out, others are in their places"
            say(f"{left_out}: {escape(path)}")


def note_machine(run, place, device, is_resumed):
    """Add the machine that trains an encoder to environment.json, which lists those of every
    encoder in order.

    run: the run folder; place: of the encoder, such as "seed_0/candidate". The same machine is not
    repeated. If a training is resumed on another machine, a line says what differs.
    """
    machine, path = describe_machine(device), run / "environment.json"
    with sole_process(run / LOCK, wait=True):
        environments = {}
        advice = "; delete it, and it will be made again"
        with refuse_broken(path, "not a whole record of machines", advice):
            if exists(path):
                environments = parse_json(read_text(path))
            machines = environments.get(place, []) if is_resumed else []
            # Earlier versions named the last machine alone.
            machines = [machines] if type(machines) is dict else machines
            if type(machines) is not list or not all(type(known) is dict for known in machines):
                raise ValueError(f"{place} is {short_form(machines)}")
        if machines and machines[-1] != machine:
            changes = _changes_of_machine(machines[-1], machine)
            warning = "its bytes may differ from those of an uninterrupted training"
            say(f"  resumed with {changes}: {warning}")
        if machine not in machines[-1:]:
            machines = [*machines, machine]
        write_atomically(path, json.dumps(environments | {place: machines}, indent=2) + "\n")


def _changes_of_machine(before, after):
    """What differs between two machines, dicts of `describe_machine`, in words."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    changes = [(name, *(short_form(side.get(name)) for side in (after, before))) for name in names]
    return ", ".join(f"{name} {value} (was {earlier})" for name, value, earlier in changes)
