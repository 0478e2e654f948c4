"""At the door: what is refused before a training writes anything."""

import inspect

import torch

from memorization.data.augmentations import blank_views
from memorization.data.subsets import ROLES
from memorization.errors import WrongUse
from memorization.machine import processes
from memorization.machine.screen import caution
from memorization.machine.shared_norms import find_own_norm
from memorization.training.board import import_writer
from memorization.training.diagnostics import is_one_class
from models.alignment_penalty import penalize_alignment
from models.private_loss import check_private


def chosen_roles(role, subsets, file):
    """The roles of the encoders to train, of ROLES.

    role: the action of the command line, or None; file: of the subsets, for messages. Raises
    WrongUse if there is no such role, or if a subset file is of the other one.
    """
    if role is not None and role not in ROLES:
        raise WrongUse(f"command line: --role: {role!r} is not allowed: it is {' or '.join(ROLES)}")
    if subsets.role is not None and role != subsets.role:
        alone = f"{file} is a training set of the {subsets.role} encoder alone"
        raise WrongUse(f"subsets.file: {alone}; add --role {subsets.role}")
    return ROLES if role is None else (role,)


def check_fit(make_method, images, subsets, roles, trained):
    """Raise WrongUse if settings do not fit the data or the method.

    subsets: of one seed, see `Subsets.of_seed`; trained: a Trained.
    """
    batch_size = trained.training.batch_size
    size = min(len(subsets.training_set(role)) for role in roles)
    if size < batch_size:
        more = f"{batch_size} is more than the {size} images of a training set"
        raise WrongUse(f"training.batch_size: {more}")
    try_method(make_method, images.channels, trained)
    if trained.training.knn_every:
        _check_labels(images, subsets, roles, trained.training.knn_every)


def _check_labels(images, subsets, roles, knn_every):
    """Raise WrongUse if labels are missing that a kNN accuracy needs; warn if they are of one
    class.
    """
    key = f"training.knn_every: {knn_every}"
    labels_of = {}
    for role in roles:
        labels = images.train.labels[subsets.training_set(role)]
        labels_of[f"training image of the {role} encoder"] = labels
    labels_of["external image"] = images.test.labels[subsets.external]
    for name, labels in labels_of.items():
        if not (labels >= 0).any():
            raise WrongUse(f"{key} needs labels, but no {name} has one; set it to 0")
        if name != "external image" and is_one_class(labels):
            one = f"the labels of each {name} are one class"
            caution(f"training.knn_every: {one}: nothing to tell, kNN accuracies are left out")


def try_method(make_method, channels, trained):
    """Raise WrongUse if a method cannot be made with the settings, or does not take the views that
    they describe. trained: a Trained.
    """
    recipes, name = trained.augmentation.views, trained.method.name
    pictures_every = trained.training.pictures_every
    try:
        method = make_method()
        views = blank_views(recipes, channels, trained.encoder.patch_size, n_images=2)
        signature = inspect.signature(method.forward)
        try:
            signature.bind(*views)
        except TypeError:
            takes = f"{len(views)} views are drawn, but {name} takes {signature}"
            raise ValueError(f"augmentation.views: {takes}") from None
        with torch.no_grad():
            penalize_alignment(method, trained.training.alignment_penalty)(*views)
        if trained.training.privacy:
            check_private(method, name)
        if trained.training.tensorboard:
            import_writer()
        if pictures_every and not hasattr(method, "pictures"):
            draws = f"{pictures_every}, but {name} draws none; set it to 0"
            raise ValueError(f"training.pictures_every: {draws}")
    except ValueError as error:
        raise WrongUse(str(error)) from None


def check_device(make_method, trained, device):
    """Raise WrongUse if the processes cannot train this together, or if `training.data_device` does
    not fit the device. trained: a Trained.
    """
    settings, n_processes = trained.training, processes.count()
    if settings.compile and n_processes > 1:
        together = f"not allowed with {n_processes} processes; set it to false, or start one"
        raise WrongUse(f"training.compile: True is {together}")
    if settings.privacy and n_processes > 1:
        raise WrongUse(
            f"training.privacy: not allowed with {n_processes} processes; set it to null, or start "
            "one"
        )
    if settings.batch_size % n_processes:
        multiple = f"{settings.batch_size} is not a multiple of the {n_processes} processes"
        raise WrongUse(f"training.batch_size: {multiple}")
    norm = find_own_norm(make_method()) if n_processes > 1 else None
    if norm:
        own = f"{trained.encoder.name} has a batch norm of a class of its own ({norm})"
        raise WrongUse(f"encoder.name: {own}, which {n_processes} processes cannot share")
    if settings.data_device == "cuda" and device.type != "cuda":
        other = f"training is on the {device.type}; set it to auto"
        raise WrongUse(f"training.data_device: 'cuda' is not allowed: {other}")
