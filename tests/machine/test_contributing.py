"""What CONTRIBUTING.md promises: how many lines a new method, encoder and data set take."""

import difflib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import EXPERIMENT, METHODS
from PIL import Image
from started import run_script

ROOT = Path(__file__).parents[2]
METHOD = '''"""Alignment and uniformity (Wang and Isola 2020, arXiv 2005.10242)."""

from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from pydantic import Field

from models.settings import MethodSettings


class UniformitySettings(MethodSettings):
    """The config's `method:` section."""

    name: Literal["uniformity"]
    weight: float = Field(1.0, ge=0, description="weight of the uniformity beside the alignment")


class Uniformity(nn.Module):
    """Views of an image are close together, and images spread over the sphere."""

    def __init__(self, encoder, weight):
        super().__init__()
        self.encoder = encoder
        self.weight = weight

    def forward(self, first, second):
        z1, z2 = (
            F.normalize(self.encoder(view.pixels, view.visible), dim=1) for view in (first, second)
        )
        alignment = (z1 - z2).square().sum(1).mean()
        uniformity = sum(torch.pdist(z).square().mul(-2).exp().mean().log() for z in (z1, z2)) / 2
        return alignment + self.weight * uniformity
'''
ENCODER = '''"""A linear encoder."""

from typing import Literal

import torch.nn as nn
from pydantic import Field

from models.settings import BaseEncoderSettings


class LinearSettings(BaseEncoderSettings):
    name: Literal["linear"] = Field(description="the encoder")
    dim: int = Field(16, ge=1, description="dimensions of the representation")

    def make(self, channels, size):
        return Linear(channels * size**2, self.dim)


class Linear(nn.Module):
    def __init__(self, pixels, dim):
        super().__init__()
        self.layer = nn.Linear(pixels, dim)
        self.dim = dim

    def forward(self, pixels, visible=None):
        return self.layer(pixels.flatten(1))

    def tokens(self, pixels, visible=None):
        return self(pixels)[:, None]
'''


@pytest.fixture
def copy(tmp_path):
    """A copy of the project, without what is not in it."""
    for name in ("models", "memorization", "configs"):
        leave_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=leave_out)
    for script in ROOT.glob("*.py"):
        shutil.copy(script, tmp_path)
    return tmp_path


def run(copy, script):
    done = run_script(copy / script, "--config", "new.yaml", folder=copy)
    assert done.returncode == 0, done.stderr
    return done.stdout


def add_line(path, before, line):
    """Put a line into a file, in front of the first line that begins with `before`."""
    lines = path.read_text().splitlines()
    place = next(i for i, text in enumerate(lines) if text.startswith(before))
    lines.insert(place, line)
    path.write_text("\n".join(lines) + "\n")


def changed_lines(copy):
    """{file: number of added or removed lines} of the files of the project that differ."""
    changed = {}
    for path in [*ROOT.glob("*.py"), *ROOT.glob("models/*.py"), *ROOT.glob("memorization/**/*.py")]:
        name = path.relative_to(ROOT)
        lines = [place.joinpath(name).read_text().splitlines() for place in (ROOT, copy)]
        difference = [line for line in difflib.ndiff(*lines) if line[0] in "+-"]
        if difference:
            changed[str(name)] = len(difference)
    return changed


def write_config(copy, **sections):
    config = {**EXPERIMENT, **sections, "run": "run"}
    config["training"] = {**config["training"], "epochs": 1}
    (copy / "new.yaml").write_text(yaml.safe_dump(config))


def test_a_method_is_a_file_a_script_of_three_other_lines_and_a_config(copy):
    (copy / "models/uniformity.py").write_text(METHOD)
    script = (copy / "train_simclr.py").read_text()
    renamed = script.replace("simclr", "uniformity").replace("SimCLR", "Uniformity")
    code = [text.split('"""')[2].splitlines() for text in (script, renamed)]
    assert sum(line[0] == "+" for line in difflib.ndiff(*code)) == 3
    (copy / "train_uniformity.py").write_text(renamed)
    write_config(copy, method={"name": "uniformity", "weight": 0.5})
    run(copy, "train_uniformity.py")
    assert "candidate" in run(copy, "memorization_scores.py")
    shutil.copy(copy / "new.yaml", copy / "configs/uniformity_fake.yaml")
    tests = collect_tests(copy)
    # MAE alone takes one view, and compares no images: it lacks tests of what refuses that
    of_all = set.intersection(*(tests[name] for name in METHODS if name != "mae"))
    assert len(of_all) > 10 and tests["uniformity"] == of_all
    assert changed_lines(copy) == {}


def collect_tests(copy):
    """{name: the tests whose parameters name it} of all methods of a copy, its new one too."""
    for name in ("tests", "examples"):
        leave_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=leave_out)
    shutil.copy(ROOT / "pyproject.toml", copy)
    files = [str(path) for path in copy.glob("tests/*/*.py") if '("method' in path.read_text()]
    pytest_itself = Path(pytest.__file__).with_name("__main__.py")
    options = ["-o", "addopts=", "-q", "--collect-only"]
    done = run_script(pytest_itself, *options, *files, folder=copy)
    assert done.returncode == 0, done.stdout
    tests = {path.stem.removeprefix("train_"): set() for path in copy.glob("train_*.py")}
    for line in done.stdout.splitlines():
        test, _, parameters = line.partition("[")
        for name in tests.keys() & set(re.split(r"[\]-]", parameters)):
            tests[name].add(test)
    return tests


def test_an_encoder_is_a_file_and_a_line(copy):
    (copy / "models/linear.py").write_text(ENCODER)
    add_line(copy / "models/encoders.py", "]", '    "models.linear:LinearSettings",')
    write_config(copy, encoder={"name": "linear", "dim": 8})
    run(copy, "train_simclr.py")
    assert "candidate" in run(copy, "memorization_scores.py")
    assert changed_lines(copy) == {"models/encoders.py": 1}


def write_food101(folder, classes, images):
    """Files in Food-101's format: one image folder a class, and lists of both splits."""
    lists = {split: {name: [] for name in classes} for split in images}
    for split, count in images.items():
        for number in range(count):
            name = classes[number % len(classes)]
            place = folder / "images" / name / f"{split}{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place)
            lists[split][name].append(f"{name}/{place.stem}")
    (folder / "meta").mkdir()
    for split, of_split in lists.items():
        (folder / "meta" / f"{split}.json").write_text(json.dumps(of_split))


def test_a_data_set_that_torchvision_reads_is_a_line(copy):
    catalogue = copy / "memorization/data/catalogue.py"
    add_line(catalogue, '    "gtsrb"', '    "food101": _files(tv.Food101, BY_SPLIT, *IMAGENET),')
    write_food101(copy / "data/food-101", ["pizza", "ramen"], {"train": 80, "test": 40})
    write_config(copy, data={"name": "food101", "size": 16})
    run(copy, "train_simclr.py")
    assert "candidate" in run(copy, "memorization_scores.py")
    assert changed_lines(copy) == {"memorization/data/catalogue.py": 1}
