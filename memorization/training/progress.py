"""Progress: how far the training of an encoder is. It saves, logs, and ends at a signal."""

import itertools
import math
import time
from datetime import timedelta

import torch
from tqdm import tqdm

from memorization.checkpoint import check_belongs, read_progress, restore, save_progress
from memorization.errors import WrongUse, escape
from memorization.machine import processes
from memorization.machine.files import exists
from memorization.machine.screen import caution, say
from memorization.training.board import Board
from memorization.training.log import Log
from memorization.training.privacy import state_guarantee
from memorization.training.run_files import note_machine

COLLAPSED = 0.02  # spread of representations below which they hardly differ
MOST_LINES = 25  # on the screen in a training, about
# Steps between two comparisons of the processes' signals, at most. Fewer take over a second.
MOST_STEPS = 10


class Progress:
    """How far the training of an encoder is: its step, the losses of its current epoch, its clock
    and its log.

    `step` counts the steps that are done, those before an interruption included: a new Progress
    goes on from last.pt if it is there. It saves every `training.checkpoint_minutes`. Once a signal
    has come to any of the processes, all of them save and raise Interrupted after the same step.
    Raises WrongUse, and keeps the last good checkpoint, if a loss, a weight or a representation is
    not finite.
    """

    def __init__(self, task, method, optimizer, stop):
        """task: a Task; stop: of `stop_requests`."""
        self.task, self.method, self.optimizer, self.stop = task, method, optimizer, stop
        with processes.first_before_others():
            self.step, self.losses = _resume(task, method, optimizer)
            note_machine(task.run, task.place, task.device, is_resumed=self.step > 0)
            self.log = Log(task.folder, finished_epochs=self.epoch)
        self.board = Board(task.folder) if task.settings.tensorboard else None
        self.clock = Clock(first_step=self.step)
        self.first_epoch = self.epoch
        self.period = epochs_between_lines(task.settings.epochs, task.settings.knn_every)
        self.is_warned = False
        self.next_question = self.step
        self._plan_next_save()

    @property
    def epoch(self):
        """Number of epochs that are done."""
        return self.step // self.task.steps_per_epoch

    @property
    def step_of_epoch(self):
        """Number of steps of the current epoch that are done."""
        return self.step % self.task.steps_per_epoch

    @property
    def share(self):
        """The share of the training that is done, in [0, 1]."""
        return self.step / self.task.steps

    @property
    def learning_rate(self):
        """The learning rate of the step that was taken last."""
        return self.task.learning_rate(max(0, self.step - 1))

    def epochs(self):
        """The epochs that are still to be trained, counted from 0."""
        return range(self.epoch, self.task.settings.epochs)

    def note(self, loss):
        """Count a step, and save if it is time. loss: of the step, a detached scalar."""
        self.losses.append(loss)
        self.step += 1
        if self.step_of_epoch:
            self._save_if_due()
        else:  # At its end, an epoch is saved after it is measured and logged.
            self._check_finite()

    def end_epoch(self, measured):
        """Log an epoch, keep its encoder if `training.checkpoint_epochs` names it, and save if it
        is time. measured: of `measure_encoder`.
        """
        self._check_spread(measured["spread"])
        line = {
            "epoch": self.epoch,
            "step": self.step,
            "loss": torch.stack(self.losses).mean().item(),
            "learning_rate": self.learning_rate,
            **measured,
            **self.task.privacy_spent(self.step),
        }
        self._log_epoch(line)
        if self.epoch in self.task.settings.checkpoint_epochs:
            self._save_encoder(f"encoder_epoch_{self.epoch:04d}.pt")
        self.losses.clear()
        self._save_if_due(is_end=True)

    def finish(self):
        """Save, and write encoder.pt."""
        self._save()
        self._save_encoder("encoder.pt")
        if self.board:
            self.board.close()
        if self.task.settings.privacy:
            say(f"{self.task.name}: {state_guarantee(self.task, self.step)}")

    def _save_if_due(self, is_end=False):
        """Save if it is time. If a signal has come, save and raise Interrupted. is_end: whether an
        epoch has ended; then the processes always compare their signals.
        """
        number = 0
        if is_end or self.step >= self.next_question:
            milliseconds = round(1000 * self.clock.seconds_per_step(self.step))
            number, milliseconds = processes.maxima(self.stop.number or 0, milliseconds)
            self.next_question = self.step + steps_between_questions(milliseconds)
        if number or time.monotonic() > self.next_save:
            self._save()
        if number:
            processes.wait_for_all()  # a process that ends takes the others with it
            self.stop.number = number
            saved = f"{self.task.folder} is saved after step {self.step} of {self.task.steps}"
            self.stop.check(saved)

    def _save(self):
        self._check_finite()
        content = {
            "kind": "progress",
            **self.task.identity,
            "step": self.step,
            "losses": self.losses,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        save_progress(self.task.folder, content)
        self._plan_next_save()

    def _plan_next_save(self):
        self.next_save = time.monotonic() + 60 * self.task.settings.checkpoint_minutes

    def _save_encoder(self, name):
        self.task.save_encoder(name, self.method.encoder, self.epoch)

    def _check_finite(self):
        """Raise WrongUse at a loss of the current epoch, or a weight, that is not finite."""
        are_finite = torch.stack(self.losses).isfinite().tolist() if self.losses else []
        if not all(are_finite):
            step = self.step - len(self.losses) + are_finite.index(False) + 1
            raise self._not_finite(f"the loss of step {step}")
        if not all(weight.isfinite().all() for weight in self.method.state_dict().values()):
            raise self._not_finite(f"a weight after step {self.step}")

    def _check_spread(self, spread):
        """Raise WrongUse if representations are not finite; warn, once, if they have collapsed."""
        if not math.isfinite(spread):
            raise self._not_finite(f"a representation after step {self.step}")
        if spread < COLLAPSED and not self.is_warned:
            after = f"collapsed after epoch {self.epoch}: spread {spread:.2g}"
            caution(f"{self.task.folder}: {after}")
            self.is_warned = True

    def _not_finite(self, what):
        """A WrongUse, which names the last good checkpoint."""
        folder = self.task.folder
        names = [name for name in ("last.pt", "previous.pt") if exists(folder / name)]
        good = f"the last good checkpoint: {names[0] if names else 'none'}"
        rate = f"learning rate {self.learning_rate:.6g}"
        return WrongUse(f"{folder}: {what} is not finite ({rate}); {good}")

    def _log_epoch(self, line):
        """Write the line of an epoch into the log and, if it is one of few, on the screen."""
        seconds, steps = self.clock.end_epoch(self.step)
        images_per_second = steps * self.task.settings.batch_size / seconds
        speed = {"images_per_second": round(images_per_second, 1), "seconds": round(seconds, 3)}
        self.log.append(line | speed)
        if self.board:
            self.board.append(line | speed)
        epoch, last = line["epoch"], self.task.settings.epochs
        if epoch % self.period and epoch not in (self.first_epoch + 1, last):
            return
        seconds_left = self.clock.seconds_per_step(self.step) * (self.task.steps - self.step)
        numbers = [f"loss {line['loss']:.4f}", f"spread {line['spread']:.3f}"]
        if line["knn_accuracy"] is not None:
            numbers[-1] += f"  kNN {line['knn_accuracy']:.1%}"
        numbers += [
            f"{images_per_second:.0f} images/s",
            f"{timedelta(seconds=round(seconds_left))} left",
        ]
        tqdm.write("  ".join([self.task.name, f"epoch {epoch}/{last}", *numbers]))


class Clock:
    """Time since the start of this process's training, and of its current epoch."""

    def __init__(self, first_step):
        self.first_step = self.first_step_of_epoch = first_step
        self.start = self.start_of_epoch = time.monotonic()

    def seconds_per_step(self, step):
        """The mean since the start. step: number of steps that are done."""
        return (time.monotonic() - self.start) / (step - self.first_step)

    def end_epoch(self, step):
        """Returns an epoch's (seconds, number of steps), of this process. Starts the next epoch."""
        now = time.monotonic()
        seconds, steps = now - self.start_of_epoch, step - self.first_step_of_epoch
        self.start_of_epoch, self.first_step_of_epoch = now, step
        return seconds, steps


def epochs_between_lines(epochs, knn_every):
    """Every how many epochs a training prints a line: about MOST_LINES in all, and those of epochs
    with a kNN accuracy first.
    """
    least = math.ceil(epochs / MOST_LINES)
    if knn_every > least:
        return next(d for d in range(least, knn_every + 1) if knn_every % d == 0)
    if knn_every:
        return knn_every * math.ceil(least / knn_every)
    round_numbers = (digit * 10**zeros for zeros in itertools.count() for digit in (1, 2, 5))
    return next(number for number in round_numbers if number >= least)


def steps_between_questions(milliseconds):
    """Number of steps until the processes compare their signals again. milliseconds: of a step."""
    return 1 if processes.count() == 1 else min(MOST_STEPS, max(1, 1000 // max(1, milliseconds)))


def _resume(task, method, optimizer):
    """Load what last.pt keeps. Returns (steps that are done, losses of the current epoch)."""
    content, path = read_progress(task.folder), task.folder / "last.pt"
    if content is None:
        return 0, []
    check_belongs(content, {"kind": "progress", **task.identity}, path)
    step, losses = content.get("step"), content.get("losses")
    if type(step) is not int or not 0 <= step <= task.steps:
        raise WrongUse(f"{path}: step is {step}, but the training has {task.steps}")
    steps = step % task.steps_per_epoch
    is_whole = type(losses) is list and len(losses) == steps
    if not is_whole or not all(map(_is_finite_scalar, losses)):
        raise WrongUse(f"{path}: losses are not those of the {steps} steps of its epoch")
    restore(content, method, optimizer, task.folder)
    say(f"{escape(task.folder)}: going on after step {step}")
    return step, [loss.to(task.device) for loss in losses]


def _is_finite_scalar(loss):
    is_scalar = type(loss) is torch.Tensor and loss.shape == () and loss.dtype == torch.float32
    return is_scalar and bool(loss.isfinite())
