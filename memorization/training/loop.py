"""Training a pair: the rule of the pair in `train_pair`, and the loop, which knows no method, in
`train_encoder`.
"""

import inspect
import json
import math
import os
import re
import time
import warnings
from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.nn as nn
from tqdm import tqdm

from memorization.checkpoint import (
    check_belongs,
    folder_of,
    read_checkpoint,
    read_progress,
    restore,
    save_checkpoint,
    save_progress,
)
from memorization.config import read_run_config, save_config
from memorization.data.augmentations import Draw, blank_views, training_views, whole_images
from memorization.data.confounders import warn_of_confounders
from memorization.data.prefetching import prefetch
from memorization.data.randomness import permutation
from memorization.data.subsets import (
    ROLES,
    SUBSETS,
    check_subsets,
    draw_subsets,
    load_subsets,
    prepare_subsets,
    save_subsets,
)
from memorization.encoder import place_of
from memorization.errors import Caution, WrongUse, escape, short_form
from memorization.fields import MOST_EPOCHS
from memorization.figures import draw_pictures
from memorization.fingerprints import first_difference
from memorization.machine import processes
from memorization.machine.device import (
    choose_device,
    describe_machine,
    uses_bf16,
    warn_of_emulation,
)
from memorization.machine.files import (
    MOST_TEXT,
    append,
    check_writable,
    exists,
    is_folder,
    make_folder,
    parse_json,
    read_bytes,
    read_text,
    refuse_broken,
    sole_process,
    write_atomically,
    write_json,
)
from memorization.machine.interruption import stop_requests
from memorization.machine.resources import memory_for, print_estimate, seconds_of, tensor_bytes
from memorization.machine.screen import loss_of_screen
from memorization.machine.threads import encode_in_parts
from memorization.neighbors import knn_accuracy
from memorization.normalization import normalize
from memorization.optimizers import (
    make_optimizer,
    scaled_learning_rate,
    schedule,
    set_learning_rate,
)

KNN_NEIGHBORS = 20
COLLAPSED = 0.02  # spread of representations below which they tell hardly anything
LONG = 200  # steps from which on a training is tried first, to tell what it will take
RUN_LOCK = ".lock"  # held to look at config.yaml, subsets.npz and environment.json and write them
SEED_FOLDER = re.compile("seed_[0-9]{1,19}")
# of the training scripts
ROLE_ACTION = {"role": "train this encoder only, candidate or independent, and not the pair"}
# steps between two times that several processes tell each other of signals; fewer if they take over
# a second
MOST_UNASKED = 10
ENCODING_BATCH = 512  # whole images encoded at a time for the kNN accuracy


def train_pair(make_method, images, config):
    """Train f and g for every seed of the config, by one function called twice.

    f and g differ in their training sets alone: same seed, initial weights, schedule and number of
    steps, and a shared image is met by both in the same batch, slot and views. make_method: () -> a
    method (see models/__init__.py), its weights drawn from torch's global generator; images: of
    open_images. A run that was interrupted goes on; one that is finished is left alone. With the
    action `role` only that encoder is trained, now; a subset file that names one encoder's training
    set needs it. Ctrl-C and SIGTERM save at the next step. Raises WrongUse, before anything is
    written, where the config does not fit the data, the method or the run folder.
    """
    device = choose_device(config.device, config.threads)
    subsets = draw_subsets(config.subsets, images)
    check_subsets(subsets)
    roles = _chosen_roles(subsets, config)
    _check_fit(make_method, images, subsets, roles, config)
    _check_processes(make_method, config, device)
    if config.training.data_device == "cuda" and device.type != "cuda":
        raise WrongUse(
            f"training.data_device: 'cuda' is not allowed: training is on the {device.type}; set it to auto"
        )
    _check_run_folder(config)
    if _unfinished(roles, config):  # a run that is finished may be another user's
        check_writable(config.folder)
    with processes.first_before_others():
        subsets, images = prepare_subsets(subsets, images, config.subsets)
    with processes.first_before_others():
        _open_run(subsets, config)
    _list_skipped(images, config)
    warn_of_confounders(subsets, images, config.subsets)
    with memory_for("training.data_device", config.training.data_device, "take cpu"):
        images = images.to(device, config.training.data_device)
    warn_of_emulation("training.precision", config.training.precision, device)
    _print_plan(subsets, roles, config, device)
    with stop_requests() as stop, memory_for("training.batch_size", config.training.batch_size):
        _print_estimate(make_method, images, subsets, roles, config, device)
        for seed in config.seeds:
            for role in roles:
                folder = folder_of(config.folder, seed, role)
                writes = processes.is_first() and not exists(folder / "encoder.pt")
                # Several processes ask each other, in `train_encoder`. If the screen is lost, a
                # step is done first: the folder then has something to go on from.
                if writes and processes.count() == 1 and not loss_of_screen():
                    stop.check(f"the training of {folder} was not begun")
                with sole_process(folder / "lock") if writes else nullcontext():
                    train_encoder(make_method, images, subsets, role, seed, config, device, stop)


def train_encoder(make_method, images, subsets, role, seed, config, device, stop):
    """Train the encoder of one role ("candidate" or "independent") and seed; write its folder of
    the run.

    A batch is a set of positions in the training list, in an order that depends on (seed, epoch)
    alone; the last partial batch of an epoch is dropped. Of several processes each has its part of
    every batch, and the first one writes. Goes on from last.pt where there is one. stop: of
    `stop_requests`; raises Interrupted, saved, once a signal has come.
    """
    settings = config.training
    folder = folder_of(config.folder, seed, role)
    precision = "bf16" if uses_bf16(settings.precision, device) else "fp32"
    identity = {
        "config": config.trained_part(),
        "subsets": subsets.fingerprint,
        "role": role,
        "seed": seed,
        "precision": precision,
    }
    if exists(folder / "encoder.pt"):
        check_belongs(
            read_checkpoint(folder / "encoder.pt"),
            {"kind": "encoder", **identity},
            folder / "encoder.pt",
        )
        print(f"{escape(folder)}: finished already, nothing to do")
        return

    torch.manual_seed(seed)
    method = processes.share_norms(make_method()).to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(method, settings)
    training_set = torch.from_numpy(subsets.training_set(role))
    steps_per_epoch = len(training_set) // settings.batch_size
    steps = settings.epochs * steps_per_epoch
    full_rate = rate = scaled_learning_rate(settings)

    with processes.first_before_others():
        step, losses = _resume(folder, identity, method, optimizer, steps, steps_per_epoch, device)
    if processes.is_first():
        _note_environment(config.folder, place_of(seed, role), device, resumed=step > 0)
    log = (
        _open_log(folder, finished_epochs=step // steps_per_epoch) if processes.is_first() else None
    )
    forward = processes.share_gradients(method)
    forward = torch.compile(forward) if settings.compile else forward
    clock, warned = _Clock(first_step=step), False
    next_save = time.monotonic() + 60 * settings.checkpoint_minutes
    next_question = step

    def save():
        nonlocal next_save
        if not processes.is_first():
            return
        _check_finite(losses, method, step, rate, folder)
        weights = {"method": method.state_dict(), "optimizer": optimizer.state_dict()}
        save_progress(
            folder, {"kind": "progress", **identity, "step": step, "losses": losses, **weights}
        )
        next_save = time.monotonic() + 60 * settings.checkpoint_minutes

    def save_if_due(at_end=False):
        nonlocal next_question
        signal_number = 0
        if at_end or step >= next_question:
            milliseconds = 1000 * (time.monotonic() - clock.start) / (step - clock.first_step)
            signal_number, milliseconds = processes.maxima(stop.number or 0, round(milliseconds))
            next_question = step + _steps_between_questions(milliseconds)
        if signal_number or time.monotonic() > next_save:
            save()
        if signal_number:
            processes.wait_for_all()  # a process that ends takes the others with it
            stop.number = signal_number
            stop.check(f"{folder} is saved after step {step} of {steps}")

    for epoch in range(step // steps_per_epoch, settings.epochs):
        order = permutation(len(training_set), seed, "order", epoch=epoch)
        left = order.split(settings.batch_size)[step % steps_per_epoch : steps_per_epoch]
        batches = prefetch(
            images.train, [training_set[processes.shard(positions)] for positions in left]
        )
        for indices, split in tqdm(
            batches, f"epoch {epoch + 1}", len(left), leave=False, disable=processes.hidden_bar()
        ):
            views = _views_of(indices, split, images.normalization, config, seed, epoch)
            rate = full_rate * schedule(step, steps, settings.warmup_epochs * steps_per_epoch)
            set_learning_rate(optimizer, rate, full_rate)
            losses.append(train_step(method, optimizer, views, settings, step / steps, forward))
            step += 1
            # at its end, an epoch is saved once it is measured and logged
            if step % steps_per_epoch:
                save_if_due()

        _check_finite(losses, method, step, rate, folder)
        if (
            processes.is_first()
            and settings.pictures_every
            and (epoch + 1) % settings.pictures_every == 0
        ):
            draw_pictures(
                method.pictures(views),
                images.normalization,
                folder / f"pictures_epoch_{epoch + 1:04d}.png",
            )
        measured = measure_encoder(
            method.encoder, views[0], images, subsets, role, config, epoch + 1
        )
        _check_representations(measured["spread"], step, rate, folder)
        if processes.is_first() and measured["spread"] < COLLAPSED and not warned:
            warnings.warn(
                Caution(
                    f"{folder}: collapsed after epoch {epoch + 1}: spread {measured['spread']:.2g}"
                ),
                stacklevel=2,
            )
            warned = True
        if processes.is_first():
            record = {
                "epoch": epoch + 1,
                "step": step,
                "loss": torch.stack(losses).mean().item(),
                "learning_rate": rate,
                **measured,
            }
            _log_epoch(log, record, clock, step, steps, config, f"{role} seed {seed}")
            if epoch + 1 in settings.checkpoint_epochs:
                save_encoder(
                    folder / f"encoder_epoch_{epoch + 1:04d}.pt",
                    method.encoder,
                    identity,
                    images,
                    config,
                    epoch + 1,
                )
        losses.clear()
        save_if_due(at_end=True)

    save()
    if processes.is_first():
        save_encoder(
            folder / "encoder.pt", method.encoder, identity, images, config, settings.epochs
        )


def _steps_between_questions(milliseconds):
    """Number of steps until all processes are asked again for a signal that one of them got.
    milliseconds: of a step.
    """
    return 1 if processes.count() == 1 else min(MOST_UNASKED, max(1, 1000 // max(1, milliseconds)))


def _views_of(indices, split, normalization, config, seed, epoch):
    """The views of a training step."""
    draw = Draw(seed, "training", epoch, config.encoder.patch_size)
    return training_views(split, indices, config.augmentation.views, normalization, draw)


def train_step(method, optimizer, views, settings, progress, forward=None):
    """One step of any method. Returns the loss, a detached scalar.

    views: of this process's part of the batch; progress: in [0, 1], the share of the training done
    before it; forward: what is called in the method's place, such as one that shares its gradients
    between processes.
    """
    device = views[0].pixels.device
    in_bf16 = uses_bf16(settings.precision, device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=in_bf16):
        loss = (method if forward is None else forward)(*views)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if settings.clip_gradient:
        nn.utils.clip_grad_norm_(method.parameters(), settings.clip_gradient)
    if hasattr(method, "before_step"):
        method.before_step(progress, optimizer)
    optimizer.step()
    if hasattr(method, "after_step"):
        method.after_step(progress)
    return processes.mean(loss.detach().float())


@torch.no_grad()
def measure_encoder(encoder, view, images, subsets, role, config, epoch):
    """How an encoder does at the end of an epoch, a dict: the spread of its representations of a
    view and, every `knn_every` epochs, its kNN accuracy on S_E among the labelled images of its
    training set (else None).
    """
    encoder.eval()
    representations = processes.gather_rows(encode_in_parts(encoder, [view])[0].float())
    measured = {"spread": spread(representations).item(), "knn_accuracy": None}
    is_due = config.training.knn_every and epoch % config.training.knn_every == 0
    if is_due and not _is_one_class(images.train.labels[subsets.training_set(role)]):
        bank, bank_labels = _labelled(
            encoder, images, images.train, subsets.training_set(role), config
        )
        queries, query_labels = _labelled(encoder, images, images.test, subsets.external, config)
        measured["knn_accuracy"] = knn_accuracy(
            queries, query_labels, bank, bank_labels, KNN_NEIGHBORS
        )
    encoder.train()
    return measured


def spread(representations):
    """How much l2-normalized representations differ: about 1 where they point everywhere, 0 where
    they have collapsed to one point.

    representations: (B, D). Returns a scalar, sqrt(D) times the mean over dimensions of their
    standard deviation (SimSiam, section 4.1).
    """
    return normalize(representations, dim=1).std(0).mean() * representations.shape[1] ** 0.5


def save_encoder(path, encoder, identity, images, config, epoch):
    """Write what is measured: the encoder's weights and what was trained."""
    mean, std = images.normalization
    sees = {
        "channels": images.channels,
        "size": config.augmentation.size,
        "mean": list(mean),
        "std": list(std),
    }
    save_checkpoint(
        path,
        {"kind": "encoder", **identity, "epoch": epoch, **sees, "weights": encoder.state_dict()},
    )


# --- at the door ----------------------------------------------------------------------------------


def _chosen_roles(subsets, config):
    """The encoders to train, of ROLES. Raises WrongUse for an action `role` that names none, or not
    that of the subset file.
    """
    role = config.actions.get("role")
    if role is not None and role not in ROLES:
        raise WrongUse(f"command line: --role: {role!r} is not allowed: it is {' or '.join(ROLES)}")
    if subsets.role is not None and role != subsets.role:
        raise WrongUse(
            f"subsets.file: {config.subsets.file} is a training set of the {subsets.role} encoder alone; add --role {subsets.role}"
        )
    return ROLES if role is None else (role,)


def _check_fit(make_method, images, subsets, roles, config):
    """Raise WrongUse where the settings do not fit the data or the method."""
    size = min(len(subsets.training_set(role)) for role in roles)
    if size < config.training.batch_size:
        raise WrongUse(
            f"training.batch_size: {config.training.batch_size} is more than the {size} images of a training set"
        )
    try_method(make_method, images.channels, config)
    if config.training.knn_every:
        needed = {
            f"training image of the {role} encoder": images.train.labels[subsets.training_set(role)]
            for role in roles
        }
        needed["external image"] = images.test.labels[subsets.external]
        for name, labels in needed.items():
            if not (labels >= 0).any():
                raise WrongUse(
                    f"training.knn_every: {config.training.knn_every} needs labels, but no {name} has one; set it to 0"
                )
            if name != "external image" and _is_one_class(labels) and processes.is_first():
                message = f"training.knn_every: the labels of each {name} are one class: nothing to tell, kNN accuracies are left out"
                warnings.warn(Caution(message), stacklevel=2)


def _is_one_class(labels):
    """Whether the images that have a label, -1 for none, are all of one class."""
    labels = labels[labels >= 0]
    return bool((labels == labels[:1]).all())


def _check_processes(make_method, config, device):
    """Raise WrongUse where several processes cannot train this together."""
    if config.training.compile and processes.count() > 1:
        raise WrongUse(
            f"training.compile: True is not allowed with {processes.count()} processes; set it to false, or start one"
        )
    if config.training.batch_size % processes.count():
        raise WrongUse(
            f"training.batch_size: {config.training.batch_size} is not a multiple of the {processes.count()} processes"
        )
    norm = processes.find_unshared_norm(make_method(), device)
    if norm:
        raise WrongUse(
            f"encoder.name: {config.encoder.name} with method {config.method.name} has a batch norm ({norm}), which {processes.count()} "
            "processes can share on GPUs only; on CPUs take a vit_... and method.head_norm layer or none, or one process"
        )


def try_method(make_method, channels, config):
    """Raise WrongUse where a method cannot be made with these settings, or does not take the views
    that they describe.
    """
    try:
        method, views = (
            make_method(),
            blank_views(config.augmentation.views, channels, config.encoder.patch_size, count=2),
        )
        signature = inspect.signature(method.forward)
        try:
            signature.bind(*views)
        except TypeError:
            raise ValueError(
                f"augmentation.views: {len(views)} views are drawn, but {config.method.name} takes {signature}"
            ) from None
        with torch.no_grad():
            method(*views)
        if config.training.pictures_every and not hasattr(method, "pictures"):
            raise ValueError(
                f"training.pictures_every: {config.training.pictures_every}, but {config.method.name} draws none; set it to 0"
            )
    except ValueError as error:
        raise WrongUse(str(error)) from None


def _check_run_folder(config):
    """Raise WrongUse for a run folder that cannot be one, or in which something else was trained."""
    if _trained_config(config) is None:
        nearest = next(
            folder for folder in (config.folder, *config.folder.parents) if exists(folder)
        )
        if not is_folder(nearest):
            raise WrongUse(f"run: {config.run!r} is not allowed: {nearest} is a file")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise WrongUse(f"run: {config.run!r} is not allowed: {nearest} may not be written to")


def _trained_config(config):
    """The Config in the run folder, or None. Raises WrongUse if something else was trained there."""
    if not exists(config.folder / "config.yaml"):
        return None
    run = read_run_config(config.run)
    difference = first_difference(config.trained_part(), run.trained_part())
    if difference:
        key, value, trained = difference
        raise WrongUse(
            f"{key}: {value!r} was given, but {config.run} was trained with {trained!r}; choose another --run"
        )
    return run


def _unfinished(roles, config):
    """The folders of the encoders that are still to be trained."""
    folders = [folder_of(config.folder, seed, role) for seed in config.seeds for role in roles]
    return [folder for folder in folders if not exists(folder / "encoder.pt")]


def _open_run(subsets, config):
    """Write config.yaml and subsets.npz. If they are there already, check them, and add new seeds.

    Processes that start at once do so one after the other. A lost file is written again if the
    encoders here were trained with this config; else the run is refused.
    """
    run, is_whole = _check_run(subsets, config)
    if is_whole and set(config.seeds) <= set(run.seeds):
        return  # reading needs no lock, and no right to write
    with sole_process(config.folder / RUN_LOCK, wait=True):
        run, is_whole = _check_run(subsets, config)
        seeds = set(config.seeds) if run is None else {*run.seeds, *config.seeds}
        trained = [] if is_whole else _check_trained(subsets, config)
        if trained:
            lost = "config.yaml" if run is None else "subsets.npz"
            message = f"{config.folder}: {lost} was lost; it is written again, to fit {trained[0]}"
            warnings.warn(Caution(message), stacklevel=2)
            seeds |= {int(path.parts[-3].removeprefix("seed_")) for path in trained}
        if not exists(config.folder / "subsets.npz"):
            save_subsets(subsets, config.folder / "subsets.npz")
        if run is None or seeds != set(run.seeds):
            seeds = sorted(seeds) if run or trained else config.seeds
            # Settings of measurements stay those of the first training.
            save_config((run or config).model_copy(update={"seeds": seeds}))


def _check_run(subsets, config):
    """(Config in the run folder or None, whether subsets.npz is there too).

    Raises WrongUse if either is of another training.
    """
    run, path = _trained_config(config), config.folder / "subsets.npz"
    if not exists(path):
        return run, False
    trained = load_subsets(path).fingerprint
    if trained != subsets.fingerprint:
        lost = (
            "" if run else "; config.yaml, which could tell more, is missing: choose another --run"
        )
        raise WrongUse(
            f"{config.run}/subsets.npz: its fingerprint is {short_form(trained)}, but {short_form(subsets.fingerprint)} belongs here: other "
            f"subsets than these, or drawn from other images than those in {config.data.root}{lost}"
        )
    return run, run is not None


def _check_trained(subsets, config):
    """One checkpoint of each encoder that was trained in the run folder, a list of paths.

    Raises WrongUse if one was trained on other subsets, or with other settings, than these.
    """
    expected, checked = {"config": config.trained_part(), "subsets": subsets.fingerprint}, []
    for role in ROLES:
        for folder in sorted(config.folder.glob(f"seed_*/{role}")):
            paths = [folder / name for name in ("encoder.pt", "last.pt", "previous.pt")]
            path = next((path for path in paths if exists(path)), None)
            if path is not None and SEED_FOLDER.fullmatch(folder.parent.name):
                try:
                    check_belongs(read_checkpoint(path), expected, path)
                except WrongUse as error:
                    lost = "config.yaml or subsets.npz of this run is missing"
                    raise WrongUse(f"{error}; {lost}: choose another --run") from None
                checked.append(path)
    return checked


def _list_skipped(images, config):
    """Write skipped_images.json into the run folder if broken images were left out, and say how
    many.
    """
    skipped = {
        split: [
            {"index": index, "file": fault.file, "reason": fault.reason}
            for index, fault in sorted(faults.items())
        ]
        for split, faults in images.left_out.items()
    }
    count = sum(map(len, skipped.values()))
    if count and processes.is_first():
        path = config.folder / "skipped_images.json"
        if not exists(path):
            write_json(path, skipped)
        print(
            f"{count} broken images are left out, others are in their places: {escape(path)}",
            flush=True,
        )


def _note_environment(run, name, device, resumed):
    """Add the machine that trains an encoder to environment.json, which lists those of every
    encoder in order.

    The same machine is not repeated. Prints what differs if a training is resumed on another one.
    """
    machine, path = describe_machine(device), run / "environment.json"
    with sole_process(run / RUN_LOCK, wait=True):
        with refuse_broken(
            path, "not a whole record of machines", "; delete it, and it will be made again"
        ):
            environments = parse_json(read_text(path)) if exists(path) else {}
            machines = environments.get(name, []) if resumed else []
            # of older runs, which name the last machine alone
            machines = [machines] if type(machines) is dict else machines
            if type(machines) is not list or not all(type(machine) is dict for machine in machines):
                raise ValueError(f"{name} is {short_form(machines)}")
        if machines and machines[-1] != machine:
            changes = _changes_of_machine(machines[-1], machine)
            print(
                f"  resumed with {changes}: its bytes may differ from those of an uninterrupted training"
            )
        if not machines or machines[-1] != machine:
            machines = [*machines, machine]
        write_atomically(path, json.dumps(environments | {name: machines}, indent=2) + "\n")


def _changes_of_machine(before, after):
    """What differs between two machines, dicts of `describe_machine`, in words."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(
        f"{name} {short_form(after.get(name))} (was {short_form(before.get(name))})"
        for name in names
    )


def _print_plan(subsets, roles, config, device):
    """What follows from the config: sizes, steps and the learning rate."""
    settings = config.training
    size = len(subsets.training_set(roles[0]))
    per_epoch = size // settings.batch_size
    print(
        f"{escape(config.run)}: {config.method.name} on {config.data.name}, {config.encoder.name}, {device}"
    )
    print(
        "  "
        + ", ".join(f"{name} {len(getattr(subsets, name))}" for name in SUBSETS)
        + f"; {size} images train each encoder"
    )
    dropped = size - per_epoch * settings.batch_size
    print(
        f"  {settings.epochs} epochs of {per_epoch} steps, {dropped} images left out of each epoch's last batch"
    )
    print(
        f"  learning rate {scaled_learning_rate(settings):.6g} after scaling, {settings.optimizer}",
        flush=True,
    )


def _print_estimate(make_method, images, subsets, roles, config, device):
    """What the rest of a long training will take, from steps of a method that is thrown away."""
    settings = config.training
    left = _unfinished(roles, config)
    logs = [folder / "log.jsonl" for folder in left if exists(folder / "last.pt")]
    done = [whole_lines(log)[-1:] for log in logs if exists(log)]
    epochs = len(left) * settings.epochs - sum(line["epoch"] for lines in done for line in lines)
    training_set = torch.from_numpy(subsets.training_set(roles[0]))
    steps = epochs * (len(training_set) // settings.batch_size)
    if steps < LONG:
        return
    method = make_method().to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(method, settings)

    def step():
        batch = processes.shard(training_set[: settings.batch_size])
        views = _views_of(batch, images.train, images.normalization, config, seed=0, epoch=0)
        train_step(method, optimizer, views, settings, progress=0.0)

    seconds = steps * seconds_of(step, device)
    progress = tensor_bytes(method.state_dict()) + tensor_bytes(optimizer.state_dict())
    encoders = (1 + len(settings.checkpoint_epochs)) * tensor_bytes(method.encoder.state_dict())
    # last.pt and previous.pt, and for a moment next.pt
    disk = len(left) * (2 * progress + encoders) + progress
    print_estimate(f"{steps} steps for {len(left)} encoders", seconds, device, disk, config.folder)


# --- going on where it was ------------------------------------------------------------------------


def _resume(folder, identity, method, optimizer, steps, steps_per_epoch, device):
    """Load the progress kept in a folder. Returns (steps done, losses of the epoch under way)."""
    progress = read_progress(folder)
    if progress is None:
        return 0, []
    check_belongs(progress, {"kind": "progress", **identity}, folder / "last.pt")
    step, losses = progress.get("step"), progress.get("losses")
    if type(step) is not int or not 0 <= step <= steps:
        raise WrongUse(f"{folder}/last.pt: step is {step}, but the training has {steps}")
    if (
        type(losses) is not list
        or len(losses) != step % steps_per_epoch
        or not all(_is_finite_scalar(loss) for loss in losses)
    ):
        raise WrongUse(
            f"{folder}/last.pt: losses are not those of the {step % steps_per_epoch} steps of its epoch"
        )
    restore(progress, method, optimizer, folder)
    print(f"{escape(folder)}: going on after step {step}")
    return step, [loss.to(device) for loss in losses]


def _is_finite_scalar(loss):
    return (
        type(loss) is torch.Tensor
        and loss.shape == ()
        and loss.dtype == torch.float32
        and bool(loss.isfinite())
    )


def _check_finite(losses, method, step, rate, folder):
    """Raise WrongUse at a loss or a weight that is not finite. losses: of the epoch's steps up to
    `step`; rate: of the last one.
    """
    finite = torch.isfinite(torch.stack(losses)).tolist() if losses else []
    if not all(finite):
        what = f"the loss of step {step - len(losses) + finite.index(False) + 1}"
    elif not all(torch.isfinite(weight).all() for weight in method.state_dict().values()):
        what = f"a weight after step {step}"
    else:
        return
    raise WrongUse(
        f"{folder}: {what} is not finite (learning rate {rate:.6g}); {_last_good(folder)}"
    )


def _check_representations(spread, step, rate, folder):
    """Raise WrongUse where representations, whose spread is given, are not finite."""
    if not math.isfinite(spread):
        raise WrongUse(
            f"{folder}: a representation after step {step} is not finite (learning rate {rate:.6g}); {_last_good(folder)}"
        )


def _last_good(folder):
    """Which checkpoint to go back to, in words."""
    return f"the last good checkpoint: {next((name for name in ('last.pt', 'previous.pt') if exists(folder / name)), 'none')}"


# --- the log --------------------------------------------------------------------------------------


class _Clock:
    """Time since the start of this process's training, and of its current epoch."""

    def __init__(self, first_step):
        self.first_step = self.epoch_first_step = first_step
        self.start = self.epoch_start = time.monotonic()

    def lap(self, step):
        """End an epoch. Returns (its seconds, its steps, seconds a step since the start)."""
        now = time.monotonic()
        lap = (
            now - self.epoch_start,
            step - self.epoch_first_step,
            (now - self.start) / (step - self.first_step),
        )
        self.epoch_start, self.epoch_first_step = now, step
        return lap


def _open_log(folder, finished_epochs):
    """log.jsonl with the lines of finished epochs; what an interrupted run logged beyond its
    checkpoint will be logged again.

    No training depends on the log: a warning tells of lost lines, and a line of the log stands for
    them.
    """
    make_folder(folder)
    path = folder / "log.jsonl"
    lines = whole_lines(path, finished_epochs) if finished_epochs and exists(path) else []
    if len(lines) < finished_epochs:
        lost = f"{finished_epochs - len(lines)} of the lines of {finished_epochs} finished epochs"
        message = f"{path}: {lost} are missing or damaged; the training goes on without them"
        warnings.warn(Caution(message), stacklevel=2)
    kept, last = [], 0
    for line in [*lines, {"epoch": finished_epochs + 1}]:
        if line["epoch"] > last + 1:
            kept.append({"lost_epochs": [last + 1, line["epoch"] - 1]})
        kept.append(line)
        last = line["epoch"]
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept[:-1]))
    return path


def read_log(path):
    """The lines of a log.jsonl, dicts in the order of their epochs, without lost epochs and a torn
    last line.

    Raises WrongUse if another line is missing, torn or out of order.
    """
    lines, last = [], 0
    with refuse_broken(path, "not a whole log"):
        texts = read_bytes(path, MOST_TEXT).split(b"\n")
        for number, text in enumerate(texts, start=1):
            line, lost = _parse_line(text), _parse_gap(text)
            if lost and lost[0] == last + 1:
                last = lost[1]
            elif line and line["epoch"] == last + 1:
                lines.append(line)
                last = line["epoch"]
            elif number < len(texts) or (text and not last):
                raise ValueError(f"line {number} is not that of epoch {last + 1}")
    return lines


def whole_lines(path, finished_epochs=MOST_EPOCHS):
    """The whole lines of finished epochs in a log.jsonl, dicts in the order of their epochs.

    Unlike `read_log` it accepts torn lines, of a full disk or a loss of power. Raises WrongUse if
    the file cannot be read.
    """
    lines, last = [], 0
    with refuse_broken(path, "too large for a log", "; delete it, and what was logged is lost"):
        for text in read_bytes(path, MOST_TEXT).split(b"\n"):
            line = _parse_line(text)
            if line is not None and last < line["epoch"] <= finished_epochs:
                lines.append(line)
                last = line["epoch"]
    return lines


def _parse_line(text):
    """The dict in a line of a log, or None if it is not whole. text: bytes."""
    try:
        line = parse_json(text.decode())
        numbers = [
            line["loss"],
            line["spread"],
            line["images_per_second"],
            line["knn_accuracy"] or 0.0,
        ]
        epoch = line["epoch"]
    except (ValueError, KeyError, TypeError):
        return None
    is_whole = type(epoch) is int and all(
        type(number) is float and math.isfinite(number) for number in numbers
    )
    return line if is_whole else None


def _parse_gap(text):
    """[first, last] lost epoch, if a line of a log stands for lost ones, else None. text: bytes."""
    try:
        first, last = parse_json(text.decode())["lost_epochs"]
    except (ValueError, KeyError, TypeError):
        return None
    return (
        [first, last] if type(first) is type(last) is int and first <= last <= MOST_EPOCHS else None
    )


def _log_epoch(log, record, clock, step, steps, config, name):
    """One line on the screen, and the same as JSON in log.jsonl."""
    seconds, epoch_steps, seconds_a_step = clock.lap(step)
    images_per_second = epoch_steps * config.training.batch_size / seconds
    record = {
        **record,
        "images_per_second": round(images_per_second, 1),
        "seconds": round(seconds, 3),
    }
    append(log, json.dumps(record) + "\n")
    left = timedelta(seconds=round(seconds_a_step * (steps - step)))
    knn = "" if record["knn_accuracy"] is None else f"  kNN {record['knn_accuracy']:.1%}"
    tqdm.write(
        f"{name}  epoch {record['epoch']}/{config.training.epochs}  loss {record['loss']:.4f}  spread {record['spread']:.3f}{knn}"
        f"  {images_per_second:.0f} images/s  {left} left"
    )


def _labelled(encoder, images, split, indices, config):
    """Representations (n, D) and labels (n,) of the labelled ones among some images of a split,
    seen whole.
    """
    indices = torch.from_numpy(indices)
    indices = indices[split.labels[indices] >= 0]
    device = split.device
    in_bf16 = uses_bf16(config.training.precision, device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=in_bf16):
        parts = processes.map_parts(
            lambda part: (
                encode_in_parts(
                    encoder,
                    [whole_images(split, part, config.augmentation.size, images.normalization)],
                )[0]
                .float()
                .cpu()
            ),
            indices.split(ENCODING_BATCH),
            "encoding",
        )
    return torch.cat(parts).to(device), split.labels[indices].to(device)
