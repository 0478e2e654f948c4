"""The training loop, which knows no method: it calls the parts that models/__init__.py names."""

import torch
import torch.nn as nn
from tqdm import tqdm

from memorization.data.augmentations import Draw, training_views
from memorization.data.prefetching import make_ahead, prefetch
from memorization.data.randomness import permutation
from memorization.figures import draw_pictures
from memorization.machine import processes
from memorization.machine.device import uses_bf16
from memorization.machine.shared_norms import share_norms
from memorization.optimizers import make_optimizer, set_learning_rate
from memorization.training.diagnostics import measure_encoder
from memorization.training.privacy import draw_positions, noise_seed
from memorization.training.progress import Progress
from models.alignment_penalty import penalize_alignment
from models.private_loss import PrivateLoss


def train_encoder(make_method, task, stop):
    """Train one encoder and write its folder.

    make_method: () -> a method; task: a Task; stop: of `stop_requests`. Goes on from last.pt if it
    is there. Of several processes each has its part of every batch. Raises Interrupted, after
    saving, once a signal has come.
    """
    settings = task.settings
    torch.manual_seed(task.seed)
    method = penalize_alignment(make_method(), settings.alignment_penalty)
    method = share_norms(method)
    method = method.to(task.device, memory_format=torch.channels_last)
    optimizer = make_optimizer(method, settings)
    progress = Progress(task, method, optimizer, stop)
    forward = choose_forward(method, optimizer, task, progress)
    for epoch in progress.epochs():
        for views in batches(task, epoch, progress.step_of_epoch):
            rate = task.learning_rate(progress.step)
            set_learning_rate(optimizer, rate, task.full_learning_rate)
            loss = train_step(method, optimizer, views, settings, progress.share, forward)
            progress.note(loss)
        views = _choose_shown_views(task, views, epoch)
        _draw_pictures(method, views, task, epoch + 1)
        progress.end_epoch(measure_encoder(method.encoder, views[0], task, epoch + 1))
    progress.finish()


def choose_forward(method, optimizer, task, progress):
    """What is called in a step instead of the method, as `train_step` takes it."""
    settings = task.settings
    if settings.privacy:

        def seed_of_noise():
            return noise_seed(task.seed, progress.epoch, progress.step_of_epoch)

        return PrivateLoss(method, optimizer, settings.privacy, settings.batch_size, seed_of_noise)
    forward = processes.share_gradients(method)
    return torch.compile(forward) if settings.compile else forward


def batches(task, epoch, first_step):
    """The views of every step of an epoch, from its step `first_step` on, with a progress bar.

    A batch is a set of positions in the training list, in an order that depends on (seed, epoch)
    alone. The last partial batch of an epoch is dropped. With `training.privacy` the positions of a
    batch depend on (seed, epoch, step) alone, and a batch may be empty.
    """
    n, batch_size, steps = len(task.training_set), task.settings.batch_size, task.steps_per_epoch
    if task.settings.privacy:
        remaining = range(first_step, steps)
        positions = [draw_positions(n, batch_size, task.seed, epoch, step) for step in remaining]
    else:
        order = permutation(n, task.seed, "order", epoch=epoch)
        positions = order.split(batch_size)[first_step:steps]
    indices = [task.training_set[processes.shard(batch)] for batch in positions]
    fetched, hidden = prefetch(task.images.train, indices), processes.hidden_bar()
    views = make_ahead((draw_views(task, *each, epoch) for each in fetched), task.device)
    yield from tqdm(views, f"epoch {epoch + 1}", len(indices), leave=False, disable=hidden)


def draw_views(task, indices, split, epoch):
    """The views of one step, a list. indices: of images in a Split, (B,) int64."""
    recipes, normalization = task.trained.augmentation.views, task.images.normalization
    draw = Draw(task.seed, "training", epoch, task.trained.encoder.patch_size)
    return training_views(split, indices, recipes, normalization, draw)


def train_step(method, optimizer, views, settings, share, forward=None):
    """One step of any method. Returns the loss, a detached scalar.

    views: of this process's part of the batch; settings: TrainingSettings; share: of the training
    that is done before the step, in [0, 1]; forward: what is called instead of the method, such as
    a module that averages its gradients over processes, or a PrivateLoss.
    """
    device = views[0].pixels.device
    in_bf16 = uses_bf16(settings.precision, device)
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=in_bf16):
        loss = (method if forward is None else forward)(*views)
    loss.backward()
    if settings.clip_gradient:
        nn.utils.clip_grad_norm_(method.parameters(), settings.clip_gradient)
    if hasattr(method, "before_step"):
        method.before_step(share, optimizer)
    optimizer.step()
    if hasattr(method, "after_step"):
        method.after_step(share)
    return processes.mean(loss.detach().float())


def _choose_shown_views(task, views, epoch):
    """The views of which an epoch's spread and pictures are: those of its last step. With
    `training.privacy` that batch may be empty: views of the first images of the training set.
    """
    if task.settings.privacy is None:
        return views
    indices = task.training_set[: task.settings.batch_size]
    return draw_views(task, indices, task.images.train, epoch)


def _draw_pictures(method, views, task, epoch):
    """Draw the method's pictures every `training.pictures_every` epochs."""
    if task.settings.pictures_every and epoch % task.settings.pictures_every == 0:
        path = task.folder / f"pictures_epoch_{epoch:04d}.png"
        draw_pictures(method.pictures(views), task.images.normalization, path)
