"""The Deja Vu attack: the public set, and the labels that the two models of a seed infer from parts
of images.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from memorization.data.augmentations import Draw, augment, measuring_recipe, whole_images
from memorization.data.subsets import first_by_hash
from memorization.encoder import place_of
from memorization.errors import WrongUse
from memorization.measuring.crop_classifier import (
    infer_by_classifier,
    make_classifier,
    train_classifier,
)
from memorization.measuring.deja_vu import (
    PublicSet,
    encode_public,
    infer_by_neighbors,
    neighbor_accuracy,
    outcomes,
)
from memorization.measuring.queries import Queries, make_queries
from memorization.measuring.representations import encode_images
from memorization.normalization import normalize

# The share of the public images on which the classifier of crops is validated. They are no
# neighbours.
HELD_OUT_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class AttackSets:
    """The sets of an attack: S_C and S_I, which are attacked, and the public set.

    images: the Images of the run; subsets: the Subsets of training, which tell S_C and S_I of a
    seed; public: a PublicSet.
    """

    images: object
    subsets: object
    public: PublicSet


@dataclass(frozen=True, eq=False)
class Attack:
    """The labels that the two models of a seed infer for N images: f, and the model that it is
    compared with.

    queries: the Queries about the images. subset: (N,) "candidate" or "independent". inferences:
    {model: Inference}; f comes first, the other model is "g" or "reference". knn: {encoder:
    accuracy on whole test images}, None if those have no labels. epoch: of the encoders.
    normalization: (mean, std) of the channels, as the encoders take them.
    fingerprints: {place in the run: hash} of the encoders. If a classifier of parts is the
    reference, classifier is what `train_classifier` returned, and trained_on the numbers of images
    that {"f", "reference"} were trained on; else both are None.
    """

    seed: int
    queries: Queries
    subset: np.ndarray
    inferences: dict
    knn: dict
    epoch: int | None
    fingerprints: dict
    normalization: tuple
    classifier: dict | None = None
    trained_on: dict | None = None

    @property
    def index(self):
        """The images, (N,) int64."""
        return self.queries.rows.numpy()

    @property
    def label(self):
        """Their labels, (N,) int64."""
        return self.queries.labels.numpy()

    @cached_property
    def right(self):
        """Whether the target and the reference infer the label of each image, (N,) bool each. f is
        the target of candidates and the reference of independent images.
        """
        f, other = (inference.prediction == self.label for inference in self.inferences.values())
        is_candidate = self.subset == "candidate"
        return np.where(is_candidate, f, other), np.where(is_candidate, other, f)

    @cached_property
    def outcome(self):
        """The outcome of every image, (N,); see `outcomes`."""
        return outcomes(*self.right)

    @property
    def answers(self):
        """For every attacked set the answers of (target, reference), as `deja_vu` takes them."""
        answers, models = [], list(self.inferences.values())
        for subset, of_set in (("candidate", models), ("independent", models[::-1])):
            rows = self.subset == subset
            if rows.any():
                answers.append(
                    [(x.prediction[rows] == self.label[rows], x.confidence[rows]) for x in of_set]
                )
        return answers

    @property
    def margin(self):
        """How much more of the target's vote than of the reference's goes to the label, (N,)
        float64. f is the target of candidates and the reference of independent images.
        """
        f, other = self.inferences.values()
        more_of_f = f.label_share - other.label_share
        return np.where(self.subset == "candidate", more_of_f, -more_of_f)


# --- the sets -------------------------------------------------------------------------------------


def open_attack_sets(images, subsets, settings, device):
    """The AttackSets of a run, their images gathered on the device.

    Raises WrongUse if the public set is too small, if its labels do not fit those of S_C and S_I,
    or if a classifier is the reference and has no image to be trained on.
    """
    if settings.reference == "crops" and subsets.scheme == "fixed" and not len(subsets.independent):
        unseen = "independent images, which f did not see, and there are none"
        raise WrongUse(f"dejavu.reference: crops trains its classifier on {unseen}")
    public = public_images(images, subsets, settings, device)
    check_labels(images, subsets, public, settings)
    return AttackSets(images.to(device), subsets, public)


def public_images(images, subsets, settings, device):
    """The PublicSet that the settings name. Images in files are decoded now."""
    split = images.test if settings.public_split == "test" else images.train
    trained = subsets.train if split is images.train else subsets.train[:0]
    labelled = np.flatnonzero(split.labels.numpy() >= 0)
    if not len(labelled):
        no_label = f"{images.name} has no labelled {split.name} image"
        raise WrongUse(f"dejavu: {no_label}, and there is no label to infer")
    labelled = np.setdiff1d(labelled, trained)
    rows = np.sort(first_by_hash(labelled, settings.public_images, split.name))
    rows = images.leave_out_broken(*_by_split(split, rows)).keep(split.name, rows)
    held_out = np.empty(0, dtype=np.int64)
    if settings.reference == "crops":
        held_out = np.sort(first_by_hash(rows, round(HELD_OUT_SHARE * len(rows)), split.name))
        rows = np.setdiff1d(rows, held_out)
    if settings.k >= len(rows):
        too_few = f"{settings.k} neighbours are to vote, but the public set has {len(rows)} images"
        raise WrongUse(f"dejavu.k: {too_few}")
    needed = np.concatenate([rows, held_out])
    assert not np.isin(needed, trained).any(), "a public image was trained on"
    prepared = images.prepare(*_by_split(split, needed))
    split = getattr(prepared, split.name).to(device)
    return PublicSet(split, torch.from_numpy(rows), torch.from_numpy(held_out), images.classes)


def _by_split(split, rows):
    """(indices of training images, indices of test images) of rows of one split."""
    return (rows, rows[:0]) if split.name == "train" else (rows[:0], rows)


def check_labels(images, subsets, public, settings):
    """Raise WrongUse if an attacked image has no label, or one that no public image has, or if all
    public images are of one class.
    """
    public_split = f"the {settings.public_split} set"
    if len(np.unique(public.labels)) == 1:
        of_one_class = f"the {len(public.labels)} public images of {public_split} are of one class"
        raise WrongUse(f"dejavu.public_split: {of_one_class}: nothing to tell")
    for subset in ("candidate", "independent"):
        labels = images.train.labels.numpy()[getattr(subsets, subset)]
        if (labels < 0).any():
            unlabelled = f"{(labels < 0).sum()} of {len(labels)} {subset} images"
            raise WrongUse(f"dejavu: {unlabelled} have no label, and there is none to infer")
        absent = np.setdiff1d(labels, public.labels)
        if len(absent):
            of_class = f"is of class {images.classes[absent[0]]!r}, as {subset} images are"
            raise WrongUse(f"dejavu.public_split: no image of {public_split} {of_class}")


# --- the attack -----------------------------------------------------------------------------------


def attack_pair(pair, sets, settings, recipes):
    """The Attack of f and g on S_C and S_I, in a crossover on the halves of their seed.

    pair: a Pair; sets: AttackSets; settings: DejaVuSettings; recipes: of the training views.
    """
    # In order of index, which decides between equal confidences.
    subsets = sets.subsets.of_seed(pair.seed)
    rows = np.concatenate([np.sort(subsets.candidate), np.sort(subsets.independent)])
    queries = _queries_about(sets.images.train, rows, pair.f, settings, recipes, pair.seed)
    inferences, knn = {}, {}
    for name, encoder in (("f", pair.f), ("g", pair.g)):
        bank = _encode_public(encoder, sets.public, settings, recipes, pair.seed)
        inferences[name] = infer_by_neighbors(encoder, queries, bank, settings)
        knn[name] = _knn_on_test_images(encoder, bank, sets, settings)
        del bank  # before the next one is made: it may be large
    subset = np.where(np.isin(queries.rows, subsets.candidate), "candidate", "independent")
    fingerprints, normalization = pair.fingerprints, pair.f.normalization
    return Attack(
        pair.seed, queries, subset, inferences, knn, pair.epoch, fingerprints, normalization
    )


def attack_one_model(f, seed, sets, settings, recipes):
    """The Attack of f on S_C. It is compared with a classifier of queries, which is trained on
    those about S_I: f never saw these images.

    f: an Encoder; sets: AttackSets; settings: DejaVuSettings; recipes: of the training views.
    """
    train, public, subsets = sets.images.train, sets.public, sets.subsets.of_seed(seed)
    queries = _queries_about(train, np.sort(subsets.candidate), f, settings, recipes, seed)
    bank = _encode_public(f, public, settings, recipes, seed)
    inference = infer_by_neighbors(f, queries, bank, settings)
    knn = _knn_on_test_images(f, bank, sets, settings)
    training = _queries_about(train, subsets.independent, f, settings, recipes, seed)
    held_out = _queries_about(public.split, public.held_out.numpy(), f, settings, recipes, seed)
    network = make_classifier(f, len(public.classes), seed)
    epochs, device = settings.reference_epochs, train.device
    best = train_classifier(network, training, held_out, epochs, seed, device)
    inferences = {"f": inference, "reference": infer_by_classifier(network, queries)}
    images_of_f = len(subsets.training_set("candidate"))
    return Attack(
        seed,
        queries,
        np.full(len(queries.rows), "candidate"),
        inferences,
        {"f": knn},
        f.record["epoch"],
        {place_of(seed, "candidate"): f.weights_fingerprint},
        f.normalization,
        classifier=best,
        trained_on={"f": images_of_f, "reference": len(training.rows)},
    )


def _queries_about(split, rows, encoder, settings, recipes, seed):
    """The Queries about some images of a split, (n,) int64."""
    return make_queries(split, torch.from_numpy(rows), encoder, settings, recipes, seed)


def _encode_public(encoder, public, settings, recipes, seed):
    """The Bank of an encoder: of whole images, or of a training view of each."""
    split, normalization = public.split, encoder.normalization

    def whole(rows):
        return whole_images(split, rows, encoder.size, normalization)

    def view(rows):
        recipe = measuring_recipe(recipes, 0)
        draw = Draw(seed, "query", patch=encoder.patch)
        return augment(split, rows, recipe, normalization, draw)

    make_view = whole if settings.public == "whole" else view
    return encode_public(encoder, public, make_view, settings.normalize)


def _knn_on_test_images(encoder, bank, sets, settings):
    """kNN accuracy of whole test images in the bank: of the public images if they are test images,
    else of S_E. None if S_E has no labels.
    """
    public, is_test = sets.public, sets.public.split.name == "test"
    split, rows = public.split, public.rows
    if not is_test:
        split, rows = sets.images.test, torch.from_numpy(sets.subsets.external)
    rows = rows[split.labels[rows] >= 0]
    if len(rows) == 0:
        return None
    if is_test and settings.public == "whole":
        values = bank.values
    else:
        values = encode_images(encoder, split, rows, split.device).to(split.device)
        values = normalize(values, dim=1) if settings.normalize else values
    labels = split.labels.numpy()[rows]
    return neighbor_accuracy(values, labels, bank, settings, leave_out=is_test)
