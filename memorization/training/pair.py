"""The rule of the pair: f and g are trained by one function called twice."""

import itertools

from memorization.data.confounders import warn_of_confounders
from memorization.data.images import open_images
from memorization.data.subsets import check_pair, check_subsets, draw_subsets, prepare_subsets
from memorization.errors import escape
from memorization.machine import processes
from memorization.machine.device import choose_device, warn_of_emulation
from memorization.machine.interruption import stop_requests
from memorization.machine.locks import sole_process
from memorization.machine.resources import memory_for
from memorization.machine.screen import loss_of_screen, say
from memorization.training.door import check_device, check_fit, chosen_roles
from memorization.training.duplicate_check import list_duplicates, separate_duplicates
from memorization.training.loop import train_encoder
from memorization.training.plan import estimate, print_plan
from memorization.training.run_files import RunFiles
from memorization.training.task import Task

# The action of the training scripts, see `read_config`.
ROLE_ACTION = {"role": "train this encoder only, candidate or independent, and not the pair"}


def open_training_images(data, device, threads=None):
    """The Images of a `data:` section. Processes meet first, so that one of them prepares the data.

    device, threads: see `choose_device`.
    """
    choose_device(device, threads)
    return open_images(data)


def train_pair(make_method, images, config):
    """Train f and g for every seed of the config, by one function called twice.

    f and g differ in their training sets alone: same seed, initial weights, schedule and number of
    steps, and both meet a shared image in the same batch, slot and views. make_method: () -> a
    method (see models/__init__.py), its weights drawn from torch's global generator; images: of
    `open_training_images`. An interrupted run goes on; a finished one is left alone. With the
    action `role` only that encoder is trained; a subset file of one encoder's training set needs
    it. Ctrl-C and SIGTERM save at the next step. Raises WrongUse, before anything is written, if
    the config does not fit the data, the method or the run folder.
    """
    settings, files = config.training, RunFiles(config)
    device = choose_device(config.device, config.threads)
    subsets = draw_subsets(config.subsets, images)
    check_subsets(subsets)
    check_pair(subsets)
    roles = chosen_roles(config.actions.get("role"), subsets, config.subsets.file)
    check_fit(make_method, images, subsets.of_seed(config.seeds[0]), roles, config)
    check_device(make_method, config, device)
    files.check(roles)
    with processes.first_before_others():
        subsets, images = prepare_subsets(subsets, images, config.subsets)
    if config.subsets.separate_duplicates:
        subsets, images = separate_duplicates(subsets, images, config.subsets, device)
    with processes.first_before_others():
        files.open(subsets)
    files.list_skipped(images.left_out)
    warn_of_confounders(subsets, images, config.subsets)
    if not files.is_finished(roles):
        list_duplicates(subsets, images, config.subsets, config.folder, device)
    with memory_for("training.data_device", settings.data_device, "take cpu"):
        images = images.to(device, settings.data_device)
    warn_of_emulation("training.precision", settings.precision, device)
    tasks = [
        Task(config, images, subsets, device, config.folder, seed, role)
        for seed, role in itertools.product(config.seeds, roles)
    ]
    print_plan(tasks[0], config.run)
    with stop_requests() as stop, memory_for("training.batch_size", settings.batch_size):
        estimate(make_method, tasks)
        for task in tasks:
            _train(make_method, task, stop)


def _train(make_method, task, stop):
    """Do a task, unless it is finished."""
    if not task.is_finished:
        # Several processes compare their signals in Progress. If the screen is lost, a step is done
        # first: it leaves a checkpoint to go on from.
        if processes.count() == 1 and not loss_of_screen():
            stop.check(f"the training of {task.folder} was not begun")
        with sole_process(task.folder / "lock"):
            if not task.is_finished:  # by another process meanwhile
                train_encoder(make_method, task, stop)
                return
    task.check_encoder()
    say(f"{escape(task.folder)}: finished already, nothing to do")
