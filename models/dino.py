"""DINO: Emerging Properties in Self-Supervised Vision Transformers (Caron et al. 2021, arXiv
2104.14294).
"""

from itertools import groupby
from typing import Literal

import pydantic
import torch
import torch.nn as nn
import torch.nn.functional as F
from pydantic import Field

from models.gather import mean_over_processes
from models.heads import HEAD_NORMS
from models.momentum import follow, momentum_at, slow_copy
from models.precision import in_full_precision
from models.schedules import half_cosine
from models.settings import MethodSettings


class DINOSettings(MethodSettings):
    """The config's `method:` section. Large and small crops are recipes in augmentation.views."""

    name: Literal["dino"]
    hidden_dim: int = Field(
        2048, ge=1, le=16384, description="width of the hidden layers of the head"
    )
    head_layers: int = Field(3, ge=1, le=16, description="layers of the head before its prototypes")
    projection_dim: int = Field(
        256, ge=1, le=16384, description="width of the head before its prototypes"
    )
    prototypes: int = Field(
        2048, ge=2, le=262144, description="outputs of the head, over which views are distributed"
    )
    head_norm: Literal["batch", "layer", "none"] = Field(
        "none", description="normalization in the head"
    )
    frozen_epochs: int = Field(
        1, ge=0, description="epochs at the start in which the prototypes stay as they are"
    )
    student_temperature: float = Field(
        0.1, gt=0, description="temperature of the student's softmax over prototypes"
    )
    teacher_temperature: float = Field(
        0.04, gt=0, description="temperature of the teacher's softmax, after its warm-up"
    )
    warmup_teacher_temperature: float = Field(
        0.04, gt=0, description="temperature of the teacher's softmax at the start of its warm-up"
    )
    warmup_temperature_epochs: int = Field(
        0, ge=0, description="epochs in which the teacher's temperature rises on a line; 0 for none"
    )
    centre_momentum: float = Field(
        0.9, ge=0, lt=1, description="momentum of the centre of the teacher's outputs"
    )
    momentum: float = Field(
        0.996,
        ge=0,
        le=1,
        description="momentum of the teacher at the start; it rises to 1 by half a cosine",
    )
    final_weight_decay: float | None = Field(
        None,
        ge=0,
        description="weight decay at the end, to which training.weight_decay goes by half a "
        "cosine; null leaves it",
    )
    kept: Literal["teacher", "student"] = Field(
        "teacher", description="which of the two encoders is measured and kept"
    )

    @pydantic.model_validator(mode="after")
    def _check_temperatures(self):
        keys = ["teacher_temperature"]
        if self.warmup_temperature_epochs:
            keys.append("warmup_teacher_temperature")
        for key in keys:
            if getattr(self, key) > self.student_temperature:
                most = f"but is at most student_temperature ({self.student_temperature})"
                raise ValueError(f"{key} is {getattr(self, key)}, {most}")
        return self

    def arguments(self, training):
        """See MethodSettings. The schedules need the epochs and the weight decay of a training.

        Raises ValueError if a schedule of the first epochs is longer than the training.
        """
        for key in ("frozen_epochs", "warmup_temperature_epochs"):
            if getattr(self, key) > training.epochs:
                most = f"but is at most training.epochs ({training.epochs})"
                raise ValueError(f"method.{key}: {getattr(self, key)}, {most}")
        schedules = {"epochs": training.epochs, "weight_decay": training.weight_decay}
        return super().arguments(training) | schedules


class DINO(nn.Module):
    """From every view of an image, the student predicts how the teacher, its slow copy, distributes
    each other full-size view over prototypes.

    Views of full size, the largest, go through teacher and student, smaller ones through the
    student alone. As in the paper's code, views of one size are one batch to the encoder, and all
    views are one batch to the head; the batch norms of the teacher keep their own statistics.

    epochs, weight_decay: of the training; the other arguments: see DINOSettings.
    """

    def __init__(
        self,
        encoder,
        hidden_dim,
        head_layers,
        projection_dim,
        prototypes,
        head_norm,
        frozen_epochs,
        student_temperature,
        teacher_temperature,
        warmup_teacher_temperature,
        warmup_temperature_epochs,
        centre_momentum,
        momentum,
        final_weight_decay,
        kept,
        epochs,
        weight_decay,
    ):
        super().__init__()
        self.student_encoder = encoder
        self.student_head = DINOHead(
            encoder.dim, hidden_dim, projection_dim, prototypes, head_norm, head_layers
        )
        self.teacher_encoder = slow_copy(encoder)
        self.teacher_head = slow_copy(self.student_head)
        self.frozen_share = frozen_epochs / epochs
        self.student_temperature = student_temperature
        self.warmup_share = warmup_temperature_epochs / epochs
        self.temperature_bounds = (warmup_teacher_temperature, teacher_temperature)
        self.centre_momentum = centre_momentum
        self.base_momentum = momentum
        self.weight_decays = (weight_decay, final_weight_decay)
        self.kept = kept
        self.register_buffer("centre", torch.zeros(prototypes))
        self.register_buffer("teacher_temperature", torch.tensor(self._temperature_at(0.0)))

    @property
    def encoder(self):
        """The encoder that is measured and kept."""
        return self.student_encoder if self.kept == "student" else self.teacher_encoder

    @property
    def online_encoder(self):
        """The encoder that gradients train."""
        return self.student_encoder

    def forward(self, *views):
        """Views of the same B images, two or more of them of full size. Returns the loss, a scalar,
        and moves the centre.

        Raises ValueError if there are fewer than two views of full size.
        """
        size = max(view.pixels.shape[-1] for view in views)
        full_size = [view for view in views if view.pixels.shape[-1] == size]
        small = [view for view in views if view.pixels.shape[-1] < size]
        if len(full_size) < 2:
            drawn = f"{len(full_size)} of the largest size, {size} pixels, is drawn"
            raise ValueError(f"augmentation.views: DINO needs two large views or more, but {drawn}")
        with torch.no_grad():
            t = self.teacher_head(encode_views(self.teacher_encoder, full_size))
        s = self.student_head(encode_views(self.student_encoder, [*full_size, *small]))
        # (T, B, K), (S, B, K)
        t, s = (x.unflatten(0, (-1, len(views[0].pixels))) for x in (t, s))
        temperatures = self.teacher_temperature, self.student_temperature
        loss = distillation_loss(t, s, self.centre, *temperatures)
        self._move_centre(t)
        return loss

    def before_step(self, progress, optimizer):
        """Leave the prototypes as they are in the first epochs, and set the weight decay."""
        if progress < self.frozen_share:
            self.student_head.prototypes.grad = None
        start, end = self.weight_decays
        if end is not None:
            for group in optimizer.param_groups:
                if any(parameter.ndim > 1 for parameter in group["params"]):  # no biases, no norms
                    group["weight_decay"] = half_cosine(progress, start, end)

    def after_step(self, progress):
        """Move the teacher towards the student, and set its temperature for the next step."""
        slow = [self.teacher_encoder, self.teacher_head]
        online = [self.student_encoder, self.student_head]
        follow(slow, online, momentum_at(progress, self.base_momentum))
        self.teacher_temperature.fill_(self._temperature_at(progress))

    def _move_centre(self, outputs):
        """Move the centre towards the mean output of the teacher for the images of all processes.
        outputs: (T, B, K).
        """
        mean = mean_over_processes(outputs.mean((0, 1)))
        self.centre.lerp_(mean, 1 - self.centre_momentum)

    def _temperature_at(self, progress):
        """The teacher's temperature: on a line, then constant. progress: share of the training that
        was done before the step that has just ended.
        """
        start, end = self.temperature_bounds
        if progress >= self.warmup_share:
            return end
        return start + (end - start) * progress / self.warmup_share


class DINOHead(nn.Module):
    """A perceptron of `layers` linear layers with GELU, whose output is compared with prototypes:
    (B, inputs) -> (B, prototypes), cosines in at least float32.

    Divided by a temperature of .04, cosines of bfloat16 would be off by a tenth. The norm of a
    prototype plays no part, as in a linear layer under weight norm whose norm is fixed at 1.
    """

    def __init__(self, inputs, hidden, outputs, prototypes, norm, layers=3):
        super().__init__()
        parts, width = [], inputs
        for _ in range(layers - 1):
            linear = nn.Linear(width, hidden, bias=norm == "none")  # a norm has a bias of its own
            parts += [linear, HEAD_NORMS[norm](hidden), nn.GELU()]
            width = hidden
        self.layers = nn.Sequential(*parts, nn.Linear(width, outputs))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.prototypes = nn.Linear(outputs, prototypes, bias=False).weight

    def forward(self, representations):
        """(B, inputs) -> (B, prototypes)"""
        z = in_full_precision(self.layers(representations))
        with torch.autocast(z.device.type, enabled=False):
            return F.normalize(z, dim=1) @ F.normalize(self.prototypes, dim=1).T


def encode_views(encoder, views):
    """(V B, D), view by view. Neighbours in the list that have one shape are encoded as one batch.

    views: V views of the same B images.
    """

    def shapes(view):
        return view.pixels.shape, None if view.visible is None else view.visible.shape

    batches = []
    for _, group in groupby(views, key=shapes):
        pixels, visible = zip(*((view.pixels, view.visible) for view in group))
        visible = None if visible[0] is None else torch.cat(visible)
        batches.append(encoder(torch.cat(pixels), visible))
    return torch.cat(batches)


def distillation_loss(teacher, student, centre, teacher_temperature, student_temperature):
    """The mean cross entropy between the teacher's distribution of a view and the student's of
    another view of the same image (eq. 3 and algorithm 1 of the paper), a scalar.

    teacher: (T, B, K), outputs for the first T of S views; student: (S, B, K); centre: (K,).
    Computed in at least float32.
    """
    teacher, student = in_full_precision(teacher), in_full_precision(student)
    T, B, _ = teacher.shape
    with torch.autocast(teacher.device.type, enabled=False):
        q = ((teacher - centre) / teacher_temperature).softmax(2)
        log_p = (student / student_temperature).log_softmax(2)
        products = torch.einsum("tbk,sbk->ts", q, log_p)
    of_one_view = products.diagonal().sum()
    return (of_one_view - products.sum()) / (B * T * (len(student) - 1))
