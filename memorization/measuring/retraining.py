"""Retraining: f's encoder is trained again on reduced sets, by its method's own script."""

import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydantic

from memorization.checkpoint import encoder_file, folder_of
from memorization.errors import WrongUse
from memorization.machine.files import exists
from memorization.machine.interruption import run_child
from memorization.machine.locks import sole_process
from memorization.machine.resources import print_estimate
from memorization.machine.screen import say
from memorization.settings import read_trained

KEPT = "what was retrained so far is kept"


def share(removals, part):
    """All removals, or part I of N if `part` is "I/N". All seeds of a removal stay together, in one
    run folder.
    """
    if part in (None, "list"):
        return removals
    numbers = re.fullmatch(r"(\d{1,9})/(\d{1,9})", part)
    if not numbers or int(numbers[1]) >= int(numbers[2]):
        allowed = "list, or I/N with I from 0 to N - 1"
        raise WrongUse(f"command line: --jobs: {part!r} is not allowed: {allowed}")
    return removals[int(numbers[1]) :: int(numbers[2])]


class Steps(pydantic.BaseModel):
    """How long one training is."""

    epochs: int
    steps_an_epoch: int
    steps: int

    def __str__(self):
        return f"{self.epochs} epochs of {self.steps_an_epoch} steps, {self.steps}"


@dataclass(frozen=True)
class Budget:
    """How long f was trained, and how long it is trained again.

    images: in the whole training set, f's or in a crossover that of the whole pool; epochs,
    batch_size: of f's training; fixed_steps: a reduced set is trained for as many steps as the
    whole one, to the nearest epoch, not for as many epochs.
    """

    images: int
    epochs: int
    batch_size: int
    fixed_steps: bool

    def steps_without(self, count):
        """The Steps of a training without `count` images. Batches are whole: a few images less may
        cost a step of every epoch.
        """
        epochs, steps_an_epoch = self.epochs, (self.images - count) // self.batch_size
        if self.fixed_steps:
            epochs = max(1, round(epochs * (self.images // self.batch_size) / steps_an_epoch))
        return Steps(epochs=epochs, steps_an_epoch=steps_an_epoch, steps=epochs * steps_an_epoch)

    def check(self, removals):
        """Raise WrongUse if a Removal leaves less than one batch."""
        most = max(removal.count for removal in removals)
        if self.images - most < self.batch_size:
            too_few = f"{most} leaves {self.images - most} images"
            batch_size = f"training.batch_size is {self.batch_size}"
            raise WrongUse(f"removal.counts: {too_few}, but {batch_size}")

    def print_steps(self, removals):
        """For every count, the steps of a retraining beside those of the whole set."""
        whole = self.steps_without(0)
        for count in dict.fromkeys(removal.count for removal in removals if removal.count):
            steps = self.steps_without(count)
            more = f"{100 * (steps.steps / whole.steps - 1):+.1f} %"
            reduced = f"without {count} of {self.images} images: {steps} in all"
            say(f"{reduced}; with all of them: {whole} ({more})")
        if not self.fixed_steps:
            advice = "--removal.fixed_steps true trains on all sets for as many"
            say(f"  fewer steps cost accuracy by themselves: {advice}")


@dataclass(frozen=True)
class Retraining:
    """How f is trained again.

    run: the run folder of f, a Path; script: that trained it; options: {name: value} of its command
    line that a machine decides, such as "device"; budget: a Budget.
    """

    run: Path
    script: Path
    options: dict
    budget: Budget

    def encoder_file(self, removal, seed):
        """The file of a retrained encoder."""
        return encoder_file(removal.folder_in(self.run), seed, "candidate")

    def check_epochs(self, removals):
        """Raise WrongUse if a reduced set was trained for another number of epochs than it would be
        now.
        """
        for removal in removals:
            folder = removal.folder_in(self.run)
            if not exists(folder / "config.yaml"):
                continue
            epochs = self.budget.steps_without(removal.count).epochs
            trained = read_trained(folder).training.epochs
            if trained != epochs:
                setting = f"removal.fixed_steps: {self.budget.fixed_steps}"
                both = f"trains {folder} for {epochs} epochs, but it was trained for {trained}"
                raise WrongUse(f"{setting} {both}; delete it to train it again")

    def print_estimate(self, jobs, log, device):
        """What the retrainings that are not done yet will take, by the time and the disk that f
        took.

        jobs: (Removal, seed) of each; log: the lines of f's log.jsonl, dicts.
        """
        jobs = [job for job in jobs if not exists(self.encoder_file(*job))]
        speeds = [line["images_per_second"] for line in log if line["images_per_second"] > 0]
        if not jobs or not speeds:
            return
        images = 0
        for removal, _ in jobs:
            epochs = self.budget.steps_without(removal.count).epochs
            images += epochs * (self.budget.images - removal.count)
        _, seed = jobs[0]
        folder = folder_of(self.run, seed, "candidate")
        disk = len(jobs) * sum(file.stat().st_size for file in folder.iterdir())
        seconds = images / np.median(speeds)
        print_estimate(f"{len(jobs)} retrainings", seconds, device, disk, self.run)

    def train(self, removal, seed, stop):
        """Train the encoder of a seed on a reduced set, or go on with an interrupted training.

        stop: of `stop_requests`. Raises Interrupted once a signal has come, WrongUse if the script
        fails.
        """
        options = {
            "config": self.run / "config.yaml",
            "run": removal.folder_in(self.run),
            "seeds": seed,
            "role": "candidate",
            "subsets.file": removal.subset_file_in(self.run),
            "training.epochs": self.budget.steps_without(removal.count).epochs,
            **self.options,
        }
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        with sole_process(removal.folder_in(self.run) / "lock", wait=True):
            with sole_process(self.encoder_file(removal, seed).parent / "lock", wait=True):
                pass  # a child whose parent was killed may still be saving
            code = run_script(self.script, words, stop)
        if code == 128 + signal.SIGPIPE:  # nobody reads what both scripts print
            stop.number = int(signal.SIGPIPE)
            stop.check(KEPT)
        if code != 0:
            failed = f"{self.script.name} failed, see above"
            raise WrongUse(f"{removal.name}, seed {seed}: {failed}; what was done so far is kept")


def run_script(script, arguments, stop):
    """Run a script in a child process, and return its exit code. Raises Interrupted once the child
    has ended if a signal has come.
    """
    code = run_child([sys.executable, script, *arguments], stop)
    stop.check(KEPT)
    return code
