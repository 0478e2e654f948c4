"""Task: one encoder to train, and what its training is determined by."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from memorization.checkpoint import check_belongs, folder_of, read_checkpoint, save_checkpoint
from memorization.data.images import Images
from memorization.data.subsets import Subsets
from memorization.encoder import place_of
from memorization.machine.device import uses_bf16
from memorization.machine.files import exists
from memorization.optimizers import scaled_learning_rate, schedule
from memorization.settings import Trained
from memorization.training.privacy import privacy_spent


@dataclass(frozen=True, eq=False)
class Task:
    """One encoder to train, and what its training is determined by.

    trained: the settings; images: on the device, or kept as `training.data_device` says;
    run: the run folder; role: "candidate" or "independent". The tasks of a pair differ in their
    role alone.
    """

    trained: Trained
    images: Images
    subsets: Subsets
    device: torch.device
    run: Path
    seed: int
    role: str

    @property
    def settings(self):
        """The TrainingSettings."""
        return self.trained.training

    @property
    def name(self):
        """In messages, such as "candidate seed 0"."""
        return f"{self.role} seed {self.seed}"

    @property
    def place(self):
        """Where in the run folder the encoder is kept, such as "seed_0/candidate"."""
        return place_of(self.seed, self.role)

    @property
    def folder(self):
        """The encoder's folder, a Path."""
        return folder_of(self.run, self.seed, self.role)

    @property
    def is_finished(self):
        """Whether encoder.pt is there."""
        return exists(self.folder / "encoder.pt")

    @property
    def is_begun(self):
        """Whether last.pt is there."""
        return exists(self.folder / "last.pt")

    @cached_property
    def training_set(self):
        """The indices of its training images, shared ones first, (n,) int64."""
        return torch.from_numpy(self.subsets.of_seed(self.seed).training_set(self.role))

    @property
    def steps_per_epoch(self):
        """Number of whole batches of an epoch; the last partial one is dropped."""
        return len(self.training_set) // self.settings.batch_size

    @property
    def steps(self):
        """Number of steps of the whole training."""
        return self.settings.epochs * self.steps_per_epoch

    @property
    def full_learning_rate(self):
        """The learning rate after scaling and warm-up."""
        return scaled_learning_rate(self.settings)

    def learning_rate(self, step):
        """The learning rate of a step, counted from 0."""
        warmup_steps = self.settings.warmup_epochs * self.steps_per_epoch
        return self.full_learning_rate * schedule(step, self.steps, warmup_steps)

    def privacy_spent(self, step):
        """{"epsilon": that of differential privacy after so many steps}, without it empty."""
        if self.settings.privacy is None:
            return {}
        share = self.settings.batch_size / len(self.training_set)
        return {"epsilon": privacy_spent(self.settings.privacy, share, step)}

    @cached_property
    def identity(self):
        """What a checkpoint says of its training, a dict of plain types."""
        return {
            "config": self.trained.trained_part(),
            "subsets": self.subsets.fingerprint,
            "role": self.role,
            "seed": self.seed,
            "precision": "bf16" if uses_bf16(self.settings.precision, self.device) else "fp32",
        }

    def check_encoder(self):
        """Raise WrongUse if encoder.pt is of another task."""
        path = self.folder / "encoder.pt"
        check_belongs(read_checkpoint(path), {"kind": "encoder", **self.identity}, path)

    def save_encoder(self, name, encoder, epoch):
        """Write what is measured, the encoder's weights and what was trained, into the folder."""
        mean, std = self.images.normalization
        content = {
            "kind": "encoder",
            **self.identity,
            "epoch": epoch,
            "channels": self.images.channels,
            "size": self.trained.size,
            "mean": list(mean),
            "std": list(std),
            **self.privacy_spent(epoch * self.steps_per_epoch),
            "weights": encoder.state_dict(),
        }
        save_checkpoint(self.folder / name, content)
