"""A whole experiment small enough for tests: a tiny ResNet on made-up images, trained in a second
or two.
"""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
import yaml

import memorization_scores
import train_byol
import train_mae
import train_simclr
from memorization.data.augmentations import View
from memorization.data.subsets import ROLES
from memorization.training import loop
from models.byol import BYOLSettings
from models.mae import MAESettings
from models.simclr import SimCLRSettings
from models.vit import patchify, unpatchify

EXPERIMENT = {
    "run": "runs/tiny",
    "seeds": [0],
    "threads": 1,
    "device": "cpu",
    "data": {"name": "fake", "size": 16},
    "subsets": {"shared": 32, "candidate": 24, "independent": 24, "external": 40},
    "augmentation": {
        "views": [
            {
                "count": 2,
                "size": 16,
                "crop_scale": [0.5, 1.0],
                "flip": 0.5,
                "jitter": 0.8,
                "grayscale": 0.2,
            }
        ]
    },
    "encoder": {"name": "resnet_small", "width": 8},
    "method": {"name": "simclr", "hidden_dim": 8, "projection_dim": 8},
    "training": {
        "epochs": 3,
        "batch_size": 16,
        "optimizer": "adamw",
        "learning_rate": 0.01,
        "base_batch_size": None,
    },
    "scores": {"views": 4},
    "dejavu": {"k": 20, "views": 3},
}

# Of every method: its script, the schema of its settings, and what it changes in the tiny
# experiment.
METHODS = {
    "simclr": (train_simclr, SimCLRSettings, {}),
    "byol": (
        train_byol,
        BYOLSettings,
        {
            "method": {"name": "byol", "hidden_dim": 8, "projection_dim": 8, "momentum": 0.9},
            "augmentation": {
                "views": [
                    {"size": 16, "crop_scale": [0.5, 1.0], "jitter": 0.8},
                    {"size": 16, "crop_scale": [0.5, 1.0], "solarize": 0.5},
                ]
            },
        },
    ),
    "mae": (
        train_mae,
        MAESettings,
        {
            "method": {"name": "mae", "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
            "augmentation": {"views": [{"size": 16, "mask_ratio": 0.75}]},
            "encoder": {"name": "vit_mini", "width": 32, "depth": 1},
        },
    ),
}


def write_experiment(folder, changes=()):
    """Write a config into a folder: the tiny experiment with dotted keys changed; a value of None
    takes a key out. Returns its path.
    """
    experiment = copy.deepcopy(EXPERIMENT)
    for key, value in copy.deepcopy({"run": str(folder / "run"), **dict(changes)}).items():
        *sections, last = key.split(".")
        section = experiment
        for part in sections:
            section = section[part]
        section[last] = value
        if value is None:
            del section[last]
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return str(path)


def train(path, *options, method="simclr"):
    """Run a training script. path: of its config."""
    METHODS[method][0].main(["--config", path, *options])


def trained_bytes(run):
    """The bytes of the encoder.pt of both roles."""
    return {role: (run / "seed_0" / role / "encoder.pt").read_bytes() for role in ROLES}


def log_of(run, role="candidate", seed=0):
    """The lines of a log.jsonl, a list of dicts."""
    text = (run / f"seed_{seed}" / role / "log.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def log_without_times(run, role="candidate"):
    times = ("seconds", "images_per_second")
    return [{k: v for k, v in line.items() if k not in times} for line in log_of(run, role)]


def random_bytes(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def with_hidden_pixels(view, value, patch=4):
    """A masked view with the pixels of its hidden patches set to a value; what sees only the
    visible ones cannot tell.
    """
    patches = patchify(view.pixels, patch)
    seen = torch.zeros(patches.shape[:2], dtype=torch.bool).scatter_(1, view.visible, True)
    return View(unpatchify(torch.where(seen[:, :, None], patches, value), patch), view.visible)


@pytest.fixture
def write_config(tmp_path):
    """write_config(changes) -> path of a config whose run folder is tmp_path / "run"; see
    write_experiment.
    """
    return lambda changes=(): write_experiment(tmp_path, changes)


@pytest.fixture
def at_step(monkeypatch):
    """at_step(numbers, act) has training call act() before its steps of these numbers, counted from
    1 over all encoders. Returns a list that has an item for every step begun.
    """

    def watch(numbers, act):
        step, steps = loop.train_step, []

        def watched_step(*arguments, **named):
            steps.append(None)
            if len(steps) in numbers:
                act()
            return step(*arguments, **named)

        monkeypatch.setattr(loop, "train_step", watched_step)
        return steps

    return watch


@pytest.fixture(scope="session")
def scored_run(tmp_path_factory):
    """(config path, run folder) of a tiny pair of two seeds, trained with a checkpoint after epoch
    2, and scored. Not to be changed.
    """
    folder = tmp_path_factory.mktemp("scored")
    path = write_experiment(
        folder, {"seeds": [0, 1], "training.checkpoint_epochs": [2], "training.knn_every": 1}
    )
    train_simclr.main(["--config", path])
    memorization_scores.main(["--config", path])
    return path, folder / "run"


@pytest.fixture
def run_copy(scored_run, tmp_path):
    """(config path, run folder) of a copy of scored_run that a test may change."""
    path, run = scored_run
    shutil.copytree(run, tmp_path / "run")
    return path, tmp_path / "run"


@pytest.fixture
def refusal(capsys):
    """refusal(main, argv) -> the one line with which a script refuses wrong use; fails where it
    does not.
    """

    def refuse(main, argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ending:
            main(argv)
        line = capsys.readouterr().err
        assert ending.value.code == 2
        assert line.startswith("error: ") and line.count("\n") == 1, line
        return line

    return refuse


@pytest.fixture
def one_thread():
    """Torch on one thread, so that it adds up in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
