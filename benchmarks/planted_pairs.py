"""Pairs of encoders that are trained on planted images, and their scores: the experiments of
`benchmarks.validity`.
"""

import functools
import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.plants import PlantedSet, Sizes, plant_crossover, plant_outliers, plant_sorted
from memorization.checkpoint import load_encoder
from memorization.data.subsets import ROLES
from memorization.encoder import Pair
from memorization.fingerprints import checksum
from memorization.machine.files import atomically, exists, make_folder
from memorization.machine.locks import sole_process
from memorization.measuring.calibration import local_offsets
from memorization.measuring.score_tables import ScoredSeed, score_rows, table_of_scores
from memorization.measuring.scores import ImageScores, Scoring
from memorization.settings import Trained
from memorization.training.loop import train_encoder
from memorization.training.task import Task
from models.encoders import make_encoder
from models.mae import MAE, MAESettings
from models.simclr import SimCLR, SimCLRSettings

SETS, SETS_OF_MAE = 5, 2  # of different images
SEEDS = 8  # of a crossover
SEEDS_OF_OTHERS = 3
SHARED, SHARED_OF_MAE = 256, 0  # further images of S_S
CPU = torch.device("cpu")
# The recipes of the demo, but for smaller views and encoders.
TRAINING = {
    "batch_size": 64,
    "optimizer": "adamw",
    "learning_rate": 0.002,
    "base_batch_size": 64,
    "weight_decay": 0.0001,
    "warmup_epochs": 10,
    "checkpoint_minutes": 0.5,
}
CROP_AND_JITTER = {
    "crop_scale": [0.5, 1.0],
    "jitter": 1.0,
    "jitter_strength": [0.4, 0.4, 0.0, 0.0],
}


@dataclass(frozen=True)
class Recipe:
    """How a pair is trained and scored. make: a method of an encoder and its arguments; settings:
    sections of a config; views: of each image that is scored.
    """

    make: Callable
    settings: dict[str, Any]
    views: int = 20


def simclr(temperature, epochs):
    """The Recipe of SimCLR."""
    method = SimCLRSettings(
        name="simclr", hidden_dim=128, projection_dim=64, temperature=temperature
    )
    settings = {
        "augmentation": {"views": [{"count": 2, "size": 14, **CROP_AND_JITTER}]},
        "encoder": {"name": "resnet_small", "width": 16},
        "method": method,
        "training": TRAINING | {"epochs": epochs},
    }
    return Recipe(SimCLR, settings)


SIMCLR_OF_DEMO = simclr(temperature=0.2, epochs=250)
# Shorter, so that repeated images stand out from ordinary ones: see docs/validity.md.
SIMCLR = simclr(temperature=0.5, epochs=60)
MASKED = Recipe(
    MAE,
    {
        "augmentation": {"views": [{"count": 1, "size": 14, "mask_ratio": 0.75}]},
        "encoder": {"name": "vit_mini", "width": 64, "depth": 2, "patch": 2},
        "method": MAESettings(name="mae", decoder_dim=32, decoder_depth=1, decoder_heads=2),
        "training": TRAINING | {"epochs": 300},
    },
)


@dataclass(frozen=True)
class Experiment:
    """Pairs that are trained on one PlantedSet. plant: Images -> a PlantedSet; seeds: of pairs."""

    recipe: Recipe
    plant: Callable
    seeds: range


def list_experiments():
    """{name: Experiment}, those that tell most first."""

    def crossover(recipe, number, shared):
        plant = functools.partial(plant_crossover, number=number, sizes=Sizes(shared=shared))
        return Experiment(recipe, plant, range(SEEDS))

    def other(plant, **arguments):
        plant = functools.partial(plant, number=0, **arguments)
        return Experiment(SIMCLR_OF_DEMO, plant, range(SEEDS_OF_OTHERS))

    return {
        "simclr_0": crossover(SIMCLR, 0, SHARED),
        "mae_0": crossover(MASKED, 0, SHARED_OF_MAE),
        "outliers_fixed": other(plant_outliers),
        "sorted_fixed": other(plant_sorted, is_fixed=True),
        "sorted_crossover": other(plant_sorted),
        **{f"simclr_{number}": crossover(SIMCLR, number, SHARED) for number in range(1, SETS)},
        **{
            f"mae_{number}": crossover(MASKED, number, SHARED_OF_MAE)
            for number in range(1, SETS_OF_MAE)
        },
    }


@dataclass(frozen=True, eq=False)
class Trial:
    """An experiment in a folder, with its images. planted: of the experiment."""

    experiment: Experiment
    planted: PlantedSet
    folder: Path

    def train(self, seed, stop):
        """Train and score the pair of a seed; encoders and scores that are there are kept. stop: of
        `stop_requests`.

        Raises Interrupted, after saving, once a signal has come, and WrongUse if an encoder of
        another experiment lies in the folder.
        """
        make_folder(self.folder)
        for task in self.tasks(seed):
            with sole_process(task.folder / "lock"):
                if not task.is_finished:
                    train_quietly(self._make_method, task, stop)
            task.check_encoder()
        if self.read_scores(seed) is None:
            self._write_scores(seed)

    def tasks(self, seed):
        """The Tasks of f and g."""
        subsets = replace(self.planted.subsets(seed), data=self.planted.images.fingerprint)
        sizes = {name: len(getattr(subsets, name)) for name in ("shared", *ROLES, "external")}
        settings = self.experiment.recipe.settings
        trained = Trained(data={"name": "fashion_mnist"}, subsets=sizes, **settings)
        images = self.planted.images
        return [Task(trained, images, subsets, CPU, self.folder, seed, role) for role in ROLES]

    def pair(self, seed):
        """The Pair of a seed."""
        tasks = self.tasks(seed)
        return Pair(*(load_encoder(task.folder / "encoder.pt", task.name) for task in tasks), seed)

    def score(self, seed, pair, rows):
        """The ImageScores of rows by a Pair, by the views of a seed."""
        recipes = self.tasks(seed)[0].trained.augmentation.views
        scoring = Scoring(views=self.experiment.recipe.views, seed=seed)
        return score_rows(pair, self.planted.images, rows, recipes, scoring)

    def scored_seed(self, seed, pair):
        """The ScoredSeed of all rows by a Pair."""
        rows, signs = self.planted.rows, self.planted.signs(seed)
        scores = self.score(seed, pair, rows)
        offsets = local_offsets(pair, self.planted.images, rows, signs, scores)
        return ScoredSeed(scores, signs, *offsets)

    def read_scores(self, seed):
        """The ScoredSeed that `train` wrote, or None if there is none of these encoders."""
        path = self._path_of_scores(seed)
        if not exists(path):
            return None
        with np.load(path, allow_pickle=False) as file:
            if str(file["identity"]) != self._identity(seed):
                return None
            scores = ImageScores(file["loss_f"], file["loss_g"], file["error"])
            return ScoredSeed(scores, file["signs"], file["local_offset"], float(file["explained"]))

    def _write_scores(self, seed):
        scored = self.scored_seed(seed, self.pair(seed))
        with atomically(self._path_of_scores(seed)) as file:
            np.savez(
                file,
                identity=self._identity(seed),
                loss_f=scored.scores.loss_f,
                loss_g=scored.scores.loss_g,
                error=scored.scores.error,
                signs=scored.signs,
                local_offset=scored.local_offset,
                explained=scored.explained,
            )

    def _path_of_scores(self, seed):
        return self.folder / f"seed_{seed}" / "scores.npz"

    def _identity(self, seed):
        """A hash of what the scores of a seed are determined by."""
        rows = {name: values.tolist() for name, values in self.planted.rows.items()}
        tasks = [task.identity for task in self.tasks(seed)]
        return checksum({"tasks": tasks, "rows": rows, "views": self.experiment.recipe.views})

    def _make_method(self):
        recipe, images = self.experiment.recipe, self.planted.images
        trained = self.tasks(0)[0].trained
        encoder = make_encoder(trained.encoder, images.channels, trained.size)
        return recipe.make(encoder, **trained.method.arguments())

    @functools.cached_property
    def scored_seeds(self):
        """{seed: ScoredSeed} of the seeds that are scored."""
        scored = {seed: self.read_scores(seed) for seed in self.experiment.seeds}
        return {seed: scores for seed, scores in scored.items() if scores is not None}

    def tables(self, count):
        """Tables of the mean scores of so many seeds, a list: of the first ones, of the next ones,
        and so on, without those that are not scored. See `table_of_scores`; with the column "kind".
        """
        seeds, tables = self.experiment.seeds, []
        for first in range(0, len(seeds) - count + 1, count):
            group = seeds[first : first + count]
            if all(seed in self.scored_seeds for seed in group):
                scored = [self.scored_seeds[seed] for seed in group]
                tables.append(table_of_scores(self.planted.rows, scored))
        return tables


def train_quietly(make_method, task, stop):
    """Train an encoder. Its lines on the screen are left out, but for warnings."""
    warnings = io.StringIO()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(warnings):
            train_encoder(make_method, task, stop)
    finally:
        sys.stderr.write(warnings.getvalue())
