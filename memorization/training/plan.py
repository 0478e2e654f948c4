"""What a training prints before it starts: its sizes, and what it will take."""

from dataclasses import replace

import torch

from memorization.errors import escape
from memorization.machine import processes
from memorization.machine.files import exists
from memorization.machine.resources import (
    advise_on_threads,
    print_estimate,
    seconds_of,
    tensor_bytes,
)
from memorization.machine.screen import caution, say
from memorization.optimizers import make_optimizer
from memorization.training.log import whole_lines
from memorization.training.loop import draw_views, train_step
from memorization.training.privacy import state_guarantee
from models.private_loss import PrivateLoss

LONG = 200  # steps from which on a training is tried first, to estimate what it will take


def print_plan(task, run):
    """Print sizes, steps and the learning rate. task: any of the run; run: its name."""
    trained, settings, per_epoch = task.trained, task.settings, task.steps_per_epoch
    size = len(task.training_set)
    left_out = size - per_epoch * settings.batch_size
    steps = f"{settings.epochs} epochs of {per_epoch} steps"
    rate = f"learning rate {task.full_learning_rate:.6g} after scaling"
    what = f"{trained.method.name} on {trained.data.name}, {trained.encoder.label}, {task.device}"
    say(f"{escape(run)}: {what}")
    say(f"  {task.subsets.sizes}; {size} images train each encoder")
    if settings.privacy:
        say(f"  {steps}, each with {settings.batch_size} images on average, drawn by chance")
        say(f"  privacy of one encoder: {state_guarantee(task, task.steps)}")
        if settings.privacy.delta * size >= 1:
            most = f"{settings.privacy.delta:g} is not below 1 / {size}, one part in all images"
            caution(f"training.privacy.delta: {most}: it allows to publish one of them")
    else:
        say(f"  {steps}, {left_out} images left out of each epoch's last batch")
    say(f"  {rate}, {settings.optimizer}")


def estimate(make_method, tasks):
    """Print what the rest of a long training will take, from steps of a method that is thrown away.

    tasks: those of the run.
    """
    tasks = [task for task in tasks if not task.is_finished]
    steps = sum(map(_steps_left, tasks))
    if steps < LONG:
        return
    task = replace(tasks[0], seed=0)
    method = make_method().to(task.device, memory_format=torch.channels_last)
    optimizer = make_optimizer(method, task.settings)
    forward = None
    if task.settings.privacy:
        privacy, batch_size = task.settings.privacy, task.settings.batch_size
        forward = PrivateLoss(method, optimizer, privacy, batch_size, noise_seed=lambda: 0)
    indices = processes.shard(task.training_set[: task.settings.batch_size])

    def step():
        views = draw_views(task, indices, task.images.train, epoch=0)
        train_step(method, optimizer, views, task.settings, share=0.0, forward=forward)

    seconds_a_step = seconds_of(step, task.device)
    progress = tensor_bytes(method.state_dict()) + tensor_bytes(optimizer.state_dict())
    encoder = tensor_bytes(method.encoder.state_dict())
    encoders = encoder * (1 + len(task.settings.checkpoint_epochs))
    # last.pt and previous.pt of every encoder, and for a moment next.pt
    disk = len(tasks) * (2 * progress + encoders) + progress
    what, seconds = f"{steps} steps for {len(tasks)} encoders", steps * seconds_a_step
    print_estimate(what, seconds, task.device, disk, task.run)
    advise_on_threads(step, task.device, seconds_a_step)


def _steps_left(task):
    """Number of steps of a task without its logged epochs."""
    log, logged = task.folder / "log.jsonl", 0
    if task.is_begun and exists(log):
        logged = sum(line["epoch"] for line in whole_lines(log)[-1:])
    return (task.settings.epochs - logged) * task.steps_per_epoch
