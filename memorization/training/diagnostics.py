"""What is measured of an encoder after every epoch: spread and kNN accuracy."""

import torch

from memorization.data.augmentations import whole_images
from memorization.machine import processes
from memorization.machine.device import uses_bf16
from memorization.machine.threads import encode_in_parts
from memorization.neighbors import knn_accuracy
from memorization.normalization import normalize

KNN_NEIGHBORS = 20
BATCH = 512  # whole images that are encoded at a time


@torch.no_grad()
def measure_encoder(encoder, view, task, epoch):
    """The state of an encoder after an epoch, counted from 1, a dict.

    spread: of its representations of a view. knn_accuracy: every `training.knn_every` epochs, of
    S_E among the labelled images of its training set; else None.
    """
    encoder.eval()
    representations = processes.gather_rows(encode_in_parts(encoder, [view])[0].float())
    measured = {"spread": spread(representations).item(), "knn_accuracy": None}
    images, knn_every = task.images, task.settings.knn_every
    is_due = knn_every and epoch % knn_every == 0
    if is_due and not is_one_class(images.train.labels[task.training_set]):
        bank, bank_labels = _encode_labelled_images(encoder, images.train, task.training_set, task)
        external = torch.from_numpy(task.subsets.external)
        queries, labels = _encode_labelled_images(encoder, images.test, external, task)
        accuracy = knn_accuracy(queries, labels, bank, bank_labels, KNN_NEIGHBORS)
        measured["knn_accuracy"] = accuracy
    encoder.train()
    return measured


def spread(representations):
    """How much l2-normalized representations differ: about 1 if they point everywhere, 0 if they
    have collapsed to one point.

    representations: (B, D). Returns a scalar, sqrt(D) times the mean over dimensions of their
    standard deviation (SimSiam, section 4.1).
    """
    return normalize(representations, dim=1).std(0).mean() * representations.shape[1] ** 0.5


def is_one_class(labels):
    """Whether the images that have a label, -1 for none, are all of one class."""
    labels = labels[labels >= 0]
    return bool((labels == labels[:1]).all())


def _encode_labelled_images(encoder, split, indices, task):
    """Representations (n, D) and labels (n,) of the labelled ones among some images of a split. The
    images are not augmented.
    """
    indices = indices[split.labels[indices] >= 0]
    device, size = split.device, task.trained.size

    def encode(part):
        view = whole_images(split, part, size, task.images.normalization)
        return encode_in_parts(encoder, [view])[0].float().cpu()

    in_bf16 = uses_bf16(task.settings.precision, device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=in_bf16):
        parts = processes.map_in_processes(encode, indices.split(BATCH), "encoding")
    return torch.cat(parts).to(device), split.labels[indices].to(device)
