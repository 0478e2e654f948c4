"""Probing: how well a linear classifier, or the nearest neighbours, tell classes apart in frozen
representations.
"""

from typing import Annotated, Literal

import numpy as np
import pydantic
import torch
from pydantic import Field

from memorization.data.catalogue import IN_FILES, OF_TORCHVISION
from memorization.data.images import open_images
from memorization.data.subsets import ROLES, first_by_hash
from memorization.errors import WrongUse
from memorization.fields import MOST_EPOCHS, Distinct, Rate, Seed
from memorization.machine import processes
from memorization.measuring.linear_classifier import accuracies, confusion_matrix, fit_probe
from memorization.measuring.representations import stored_examples
from memorization.neighbors import knn_accuracy
from memorization.optimizers import OptimizerSettings
from memorization.results import Document, MeasurementSettings, Spread, Summary
from memorization.significance import mean_and_spread, paired_test

FEWEST = 10  # labelled training images, of which one is held out
# The kNN accuracies beside the probe's.
NEIGHBORS = {"knn_20": {"k": 20}, "knn_200": {"k": 200, "temperature": 0.1}}


class ProbeSettings(MeasurementSettings, OptimizerSettings):
    datasets: Annotated[list[Literal[tuple(OF_TORCHVISION)]], Distinct] = Field(
        [], description="the probed datasets, looked for in data.root; [] for the one of training"
    )
    seeds: Annotated[list[Seed], Field(min_length=1), Distinct] = Field(
        [0, 1, 2], description="each seed trains one probe"
    )
    train_images: int | None = Field(
        None,
        ge=200,
        description="probe with so many training images only, the first by hash; null for all",
    )
    epochs: int = Field(90, ge=1, le=MOST_EPOCHS, description="passes over the training images")
    batch_size: int = Field(
        4096, ge=1, description="images a step; a quarter of the training images if that is less"
    )
    optimizer: Literal["sgd", "adamw", "lars"] = Field("lars", description="the optimizer")
    learning_rates: Annotated[list[Rate], Field(min_length=1, max_length=100), Distinct] = Field(
        [1.6, 6.4, 25.6],
        description="learning rates to choose from, for batch_size; less if the batch is smaller",
    )
    weight_decays: Annotated[
        list[Annotated[float, Field(ge=0)]], Field(min_length=1, max_length=100), Distinct
    ] = Field([0.0, 0.001, 0.003, 0.01, 0.03], description="weight decays to choose from")
    warmup_epochs: int = Field(10, ge=0, description="epochs of linear warm-up, before the cosine")
    fine_tune: bool = Field(False, description="train all weights, not the linear layer alone")
    fine_tune_epochs: int = Field(
        30, ge=1, le=MOST_EPOCHS, description="fine_tune: passes over the training images"
    )
    fine_tune_batch_size: int = Field(
        256,
        ge=1,
        description="fine_tune: images a step; a quarter of the training images if that is less",
    )
    fine_tune_learning_rate: Rate = Field(0.001, description="fine_tune: learning rate of AdamW")

    @pydantic.model_validator(mode="after")
    def _check_warmup(self):
        if self.warmup_epochs >= self.epochs:
            bound = f"must be less than epochs ({self.epochs})"
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}, but {bound}")
        return self

    SCRIPT = "linear_probing_train.py"
    PLAIN = {"fine_tune": False}

    @property
    def roles(self):
        """The roles of the encoders that are needed."""
        return ROLES[:1]

    def determining(self):
        """The names of the settings that determine the numbers of a result."""
        names = ["fine_tune", "datasets", "seeds", "train_images"]
        if self.fine_tune:
            names += ["fine_tune_epochs", "fine_tune_batch_size", "fine_tune_learning_rate"]
            return names
        names += ["epochs", "batch_size", "optimizer", "learning_rates", "weight_decays"]
        of_optimizer = {
            "sgd": ["momentum"],
            "lars": ["momentum", "lars_eta", "lars_clip"],
            "adamw": ["betas"],
        }
        return [*names, "warmup_epochs", *of_optimizer[self.optimizer]]


# --- results --------------------------------------------------------------------------------------

Share = Annotated[float, Field(ge=0, le=1, strict=True)]


class Accuracy(Spread):
    """An accuracy over several probes."""

    mean: Share

    @property
    def in_percent(self):
        """The same in per cent, a Spread."""
        std = None if self.std is None else 100 * self.std
        return Spread(mean=100 * self.mean, std=std, n=self.n)


class PairedTest(pydantic.BaseModel):
    """A result of `paired_test` over seeds."""

    t: float | None
    p: float | None
    n: int
    mean_difference: float | None


class ProbeResult(Document):
    """What probes of one encoder on one dataset measured. Only fields that were given are written.

    seeds: what each probe chose, and its accuracies; per_class: accuracies, None for a class
    without test images; confusion: [label][prediction], numbers of test images over all seeds;
    knn_20, knn_200: accuracies of nearest neighbours. Fine-tuning gives classes, seeds and
    accuracies alone.
    """

    train_images: int = 0
    test_images: int = 0
    classes: list[str] = []
    seeds: list[dict] = []
    top_1: Accuracy
    top_5: Accuracy | None = None  # of more than five classes
    per_class: list[Share | None] = []
    confusion: list[list[int]] = []
    knn_20: Share | None = None
    knn_200: Share | None = None


class Probed(Document):
    """What was probed. adapted: what was done to the images for the encoder, in words."""

    dataset: str
    encoder: str
    adapted: str


class ProbeRow(ProbeResult, Probed):
    """A row of the table: the keys of Probed, then those of ProbeResult."""


class RoleComparison(pydantic.BaseModel):
    """The top-1 accuracies of f and g on one dataset, over the seeds of the run."""

    candidate: Accuracy
    independent: Accuracy
    paired: dict[str, PairedTest]


class ProbeSummary(Summary):
    """summary.json of linear_probing_train.py. over_pairs: one RoleComparison a dataset."""

    kind: str
    seeds: list[int]
    results: list[ProbeRow]
    over_pairs: dict[str, RoleComparison]
    trained: dict
    settings: dict
    fingerprints: dict
    machine: dict


# --- probing --------------------------------------------------------------------------------------


def probe(encoder, images, settings, cache, device):
    """The ProbeResult of linear classifiers and nearest neighbours on an encoder's representations
    of a dataset.

    images: Images; settings: ProbeSettings; cache: the folder that keeps representations, or None.
    Each seed trains one classifier on the labelled training images, or on `train_images` of them.
    Raises WrongUse if labels are missing, if representations are not finite or all alike, or if a
    classifier diverges.
    """
    train, test = (
        stored_examples(encoder, split, rows, cache, device)
        for split, rows in probed_rows(images, settings)
    )
    classes = len(images.classes)

    def probe_once(seed):
        classifier, choice = fit_probe(train, classes, settings, seed)
        logits = classifier(test.values)
        confusion = confusion_matrix(logits.argmax(1), test.labels, classes).cpu()
        return {"seed": seed, **choice}, accuracies(logits, test.labels), confusion

    choices, shares, confusions = zip(
        *processes.map_in_processes(probe_once, settings.seeds, "probing")
    )
    confusion = sum(confusions)
    tested = confusion.sum(1)
    per_class = zip((confusion.diagonal() / tested).tolist(), tested.tolist())
    return ProbeResult(
        train_images=len(train.labels),
        test_images=len(test.labels),
        classes=list(images.classes),
        seeds=[choice | of_seed for choice, of_seed in zip(choices, shares)],
        **{name: mean_and_spread([of_seed[name] for of_seed in shares]) for name in shares[0]},
        per_class=[share if n_images else None for share, n_images in per_class],
        confusion=confusion.tolist(),
        **_neighbor_accuracies(train, test),
    )


def _neighbor_accuracies(train, test):
    """{name: accuracy} of the rules in NEIGHBORS. Those with more neighbours than training images
    are left out: all images would vote for every image.
    """
    return {
        name: knn_accuracy(test.values, test.labels, train.values, train.labels, **rule)
        for name, rule in NEIGHBORS.items()
        if rule["k"] <= len(train.labels)
    }


def compare_roles(rows, seeds):
    """{dataset: RoleComparison} of f and g, paired over the run's seeds. Empty for one seed, and if
    f and g were not probed. rows: ProbeRows.
    """
    comparisons = {}
    for dataset in dict.fromkeys(row.dataset for row in rows) if len(seeds) > 1 else ():
        top_1 = {row.encoder: row.top_1.mean for row in rows if row.dataset == dataset}
        if any(f"{role} seed {seeds[0]}" not in top_1 for role in ROLES):
            continue
        shares = {role: [top_1[f"{role} seed {seed}"] for seed in seeds] for role in ROLES}
        means = {role: mean_and_spread(values) for role, values in shares.items()}
        test = paired_test(*shares.values())
        comparisons[dataset] = RoleComparison(**means, paired={"f > g": test})
    return comparisons


# --- the probed images ----------------------------------------------------------------------------


def open_probed_images(data, settings, size):
    """The Images of every probed data set, prepared for probing; see `probed_data`."""
    probed = probed_data(data, settings, size)
    return [prepare_for_probing(open_images(each), settings) for each in probed]


def probed_data(data, settings, size):
    """The DataSettings of the probed data sets: those of `settings.datasets`, in the folder of the
    training data, or the training data themselves.

    data: DataSettings of training; size: to which image files are resized, pixels.
    """
    if not settings.datasets:
        return [data]
    sizes = dict.fromkeys(IN_FILES, size)
    return [
        data.model_copy(update={"name": name, "size": sizes.get(name)})
        for name in settings.datasets
    ]


def prepare_for_probing(images, settings):
    """The Images from which all images that a probe uses can be gathered."""
    images = images.leave_out_broken(*(rows.numpy() for _, rows in probed_rows(images, settings)))
    return images.prepare(*(rows for _, rows in probed_rows(images, settings)))


def probed_rows(images, settings):
    """The labelled images of a dataset that a probe uses: [(training split, indices), (test split,
    indices)], indices (n,) int64.

    Raises WrongUse if there are none, too few, or images of one class alone.
    """
    rows = []
    for split, n_images in ((images.train, settings.train_images), (images.test, None)):
        labelled = images.keep(split.name, np.flatnonzero(split.labels.numpy() >= 0))
        if len(labelled) == 0:
            no_label = f"{images.name} has no labelled {split.name} image"
            raise WrongUse(f"probe.datasets: {no_label}; a probe needs labels")
        probed = np.sort(first_by_hash(labelled, n_images, split.name))
        rows.append((split, torch.from_numpy(probed)))
    labels = images.train.labels[rows[0][1]]
    if len(labels) < FEWEST:
        too_few = f"{images.name} has {len(labels)} labelled training images"
        raise WrongUse(f"probe.datasets: {too_few}; a probe needs {FEWEST} of them")
    if labels.min() == labels.max():
        one_class = f"the {len(labels)} labelled training images of {images.name} are of one class"
        raise WrongUse(f"probe.datasets: {one_class}: nothing to tell")
    return rows
