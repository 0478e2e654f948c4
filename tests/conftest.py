"""A whole experiment small enough for tests: a tiny ResNet on made-up images, trained in a second
or two.
"""

import contextlib
import copy
import csv
import importlib
import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn as nn
import yaml
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import dejavu
import linear_probing_train
import memorization_scores
import remove_samples
import train_simclr
from memorization.checkpoint import read_checkpoint, save_checkpoint
from memorization.data.augmentations import View
from memorization.data.catalogue import DataSettings
from memorization.data.images import Split, open_images
from memorization.data.randomness import sample_keys, stream
from memorization.data.recipes import ViewRecipe
from memorization.data.subsets import (
    ROLES,
    Subsets,
    SubsetSettings,
    draw_subsets,
)
from memorization.encoder import Encoder
from memorization.measuring import attacks, retraining
from memorization.measuring.queries import Queries
from memorization.measuring.representations import Examples
from memorization.settings import TrainingSettings
from memorization.training import loop
from models.encoders import encoder_settings, make_encoder
from models.mae import MAE, MAESettings
from models.settings import MethodSettings
from models.vit import patchify, unpatchify

pytest_plugins = ["opened_pages"]  # fixtures of tests/browser
pytest.register_assert_rewrite("hostile")  # so that its asserts show values too

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


TINY_TRAINING = TrainingSettings(**EXPERIMENT["training"])
ROOT = Path(__file__).parents[1]
WHERE = os.environ.get("DEVICE", "cuda")  # of tests/machine/test_on_gpu.py


def pytest_collection_modifyitems(items):
    """Skip the tests marked `gpu` if there is none, but for those that `DEVICE=cpu` tries."""
    for item in items:
        is_tried = WHERE == "cpu" and item.path.name == "test_on_gpu.py"
        if item.get_closest_marker("gpu") and not (torch.cuda.is_available() or is_tried):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@dataclass(frozen=True)
class Method:
    """A training method. script: that trains it; module: its class; schema: of its settings;
    changes: what it changes in the tiny experiment.
    """

    script: ModuleType
    module: type[nn.Module]
    schema: type[MethodSettings]
    changes: dict

    @property
    def views(self):
        """The recipes of its views."""
        return self.changes["augmentation.views"]


def find_methods():
    """{name: Method} of every script train_<name>.py. All that tests know of a method is what its
    script imports, and a config of it.
    """
    methods = {}
    for path in sorted(ROOT.glob("train_*.py")):
        name, script = path.stem.removeprefix("train_"), importlib.import_module(path.stem)
        classes = [value for value in vars(script).values() if isinstance(value, type)]
        (module,) = (value for value in classes if issubclass(value, nn.Module))
        (schema,) = (value for value in classes if issubclass(value, MethodSettings))
        methods[name] = Method(script, module, schema, make_tiny(first_config(name), schema))
    return methods


def first_config(name):
    """The content of a method's demo, or else of the first of its configs. A method without one is
    tried as it is by default, in the tiny experiment.
    """
    configs = ROOT / "configs"
    paths = [*configs.glob(f"demo_{name}.yaml"), *sorted(configs.glob(f"{name}_*.yaml"))]
    if paths:
        return yaml.safe_load(paths[0].read_text())
    return copy.deepcopy(EXPERIMENT) | {"method": {"name": name}}


def make_tiny(config, schema, most=8):
    """The views, method and encoder of a config, made small, as changes of the tiny experiment.

    most: the largest number of the method's settings. Those of epochs are at most 1, and a momentum
    is at most .9: a slow copy is to move in a few steps.
    """
    settings = schema(**config["method"]).model_dump()
    for key, value in settings.items():
        if type(value) is int:
            settings[key] = min(value, 1 if key.endswith("_epochs") else most)
        elif key.endswith("momentum"):
            settings[key] = min(value, 0.9)
    views = config["augmentation"]["views"]
    full_size = max(recipe["size"] for recipe in views)
    for recipe in views:
        recipe["size"] = 16 if recipe["size"] == full_size else 8
        recipe["count"] = min(recipe.get("count", 1), 2)
    is_transformer = config["encoder"]["name"].startswith("vit_")
    encoder = TINY_TRANSFORMER if is_transformer else EXPERIMENT["encoder"]
    return {"method": settings, "augmentation.views": views, "encoder": encoder}


TINY_TRANSFORMER = {"name": "vit_mini", "width": 32, "depth": 1}
METHODS = find_methods()


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
    METHODS[method].script.main(["--config", path, *options])


def trained_bytes(run):
    """The bytes of the encoder.pt of both roles."""
    return {role: (run / "seed_0" / role / "encoder.pt").read_bytes() for role in ROLES}


def run_out_of_memory(*_, **__):
    """What a GPU's torch does whose memory is full."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


class Executes:
    """An object whose pickle runs a command if it is loaded."""

    def __reduce__(self):
        return os.system, ("touch executed",)


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


@pytest.fixture
def watch_adamw(monkeypatch):
    """watch_adamw(see) has every step of AdamW call see(parameters) first."""

    def watch(see):
        step = torch.optim.AdamW.step

        def watched_step(optimizer):
            see([parameter for group in optimizer.param_groups for parameter in group["params"]])
            return step(optimizer)

        monkeypatch.setattr(torch.optim.AdamW, "step", watched_step)

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
def run(run_copy):
    """The folder of a run that a test may change."""
    return run_copy[1]


@pytest.fixture
def refusal(capsys):
    """refusal(main, argv) -> the one line with which a script refuses wrong use; fails if it
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
def no_network(monkeypatch):
    """Every download fails."""

    def fail(*_, **__):
        raise URLError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", fail)


@pytest.fixture
def one_thread():
    """Torch on one thread, so that it adds up in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CPU = torch.device("cpu")
CROPS = [ViewRecipe(size=16, crop_scale=[0.3, 1.0])]
EVERY_OPERATION = {
    "crop_scale": [0.2, 1.0],
    "flip": 0.5,
    "rotate": [0, 90, 180, 270],
    "jitter": 0.8,
    "grayscale": 0.2,
    "blur": 0.5,
    "solarize": 0.3,
    "noise": 0.05,
}
# by the number of channels
NORMALIZATION = {1: ((0.3,), (0.35,)), 3: ((0.5, 0.4, 0.3), (0.25, 0.3, 0.2))}

# --- what measures --------------------------------------------------------------------------------

SCORE_FILES = ["gallery.png", "histogram.png", "scatter.png", "scores.csv", "scores.mat"]
SCORE_FILES += ["scores.npz", "summary.json"]
ASKED = ["--dejavu.k", "20", "--dejavu.views", "3"]
PROBE = {"epochs": 3, "warmup_epochs": 1, "seeds": [0, 1], "train_images": 300}
QUICK_PROBE = "--probe.epochs 3 --probe.warmup_epochs 1 --probe.seeds 0 1".split()
QUICK_PROBE += ["--probe.train_images", "300"]
HALVES = {
    "subsets.shared": 0, "subsets.candidate": 32, "subsets.independent": 32, "seeds": [0, 1],
    "training.epochs": 2, "probe": PROBE | {"seeds": [0], "train_images": 200},
    "removal": {"counts": [4, 8], "policies": ["memorized", "random"], "draws": 2},
}  # fmt: skip
CROSSOVER = {key: value for key, value in HALVES.items() if not key.startswith("subsets")}
CROSSOVER["subsets"] = {"scheme": "crossover", "shared": 0, "pool": 64, "external": 40}
ONE_REMOVAL = "--removal.counts 4 --removal.policies memorized --seeds 0 --retrain".split()


def score(path, *options):
    memorization_scores.main(["--config", path, *options])


def read_table(folder):
    """The header of scores.csv, and its columns as arrays."""
    with open(folder / "scores.csv", newline="") as file:
        rows = list(csv.reader(file))
    return rows[0], columns_of(dict(zip(rows[0], row)) for row in rows[1:])


def columns_of(rows):
    """{name: array} of the rows of a table, dicts of texts; numbers are floats."""
    rows, text = list(rows), ("split", "subset", "outcome", "file")
    return {
        name: np.array([row[name] for row in rows], dtype=str if name in text else float)
        for name in rows[0]
    }


def last_written(run, name):
    """The folder of the file of this name that was written last."""
    return max(run.rglob(name), key=lambda file: file.stat().st_mtime_ns).parent


def table_with(run_copy, *options):
    """The table of the folder that was written last."""
    path, run = run_copy
    score(path, "--run", str(run), *options)
    return read_table(last_written(run, "scores.csv"))[1]


def ask(path, run, *options):
    """The rows of dejavu.csv, and the summary, of the folder that was written last."""
    dejavu.main(["--config", path, "--run", str(run), *ASKED, *options])
    folder = last_written(run, "dejavu.csv")
    with open(folder / "dejavu.csv", newline="") as file:
        return list(csv.DictReader(file)), json.loads((folder / "summary.json").read_text())


def accuracy_on_surest(right, confidence, percent):
    """The slow sum: accuracy on the surest images, of equals the first. Both: (N,)."""
    surest = sorted(range(len(right)), key=lambda i: (-confidence[i], i))
    return np.mean(right[surest[: int(np.ceil(percent * len(right) / 100))]])


ONE_MODEL = ["--dejavu.reference", "crops", "--dejavu.reference_epochs", "4"]


@pytest.fixture(scope="session", params=METHODS)
def one_model(request, tmp_path_factory):
    """An encoder f without g, compared with a classifier: the config's path, the run folder, the
    rows and the summary of dejavu.py, what its classifier was trained with, the texts of its
    pictures and of the screen. Not to be changed.
    """
    folder = tmp_path_factory.mktemp("one_model")
    asked = {"k": 20, "views": 3, "reference_epochs": 4}
    changes = METHODS[request.param].changes | {"training.epochs": 1, "dejavu": asked}
    path = write_experiment(folder, changes)
    train(path, "--role", "candidate", method=request.param)
    train_classifier = attacks.train_classifier
    pictures, trainings, screen = [], [], io.StringIO()

    def watched_save(figure, *_, **__):
        pictures.append(" ".join(text.get_text() for text in figure.findobj(Text)))

    def watched_train(*arguments):
        trainings.append(arguments)
        return train_classifier(*arguments)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(screen):
        patch.setattr(Figure, "savefig", watched_save)
        patch.setattr(attacks, "train_classifier", watched_train)
        rows, summary = ask(path, folder / "run", *ONE_MODEL)
    return SimpleNamespace(
        path=path, run=folder / "run", rows=rows, summary=summary, training=trainings[0],
        pictures=pictures, printed=screen.getvalue(),
    )  # fmt: skip


def remove(halves_copy, *options):
    path, run = halves_copy
    remove_samples.main(["--config", path, "--run", str(run), *options])


@pytest.fixture(scope="session")
def masked_run(tmp_path_factory):
    """(config path, run folder) of a tiny pair trained by MAE and scored. Not to be changed."""
    folder = tmp_path_factory.mktemp("masked")
    mask = {
        "encoder.patch": 2,
        "encoder.width": 64,
        "augmentation.views": [{"size": 16, "mask_ratio": 0.75}],
    }
    path = write_experiment(folder, METHODS["mae"].changes | mask)
    train(path, method="mae")
    score(path)
    return path, folder / "run"


@pytest.fixture(scope="session")
def probed_run(scored_run, tmp_path_factory):
    """(config path, a copy of the scored run, probed). Not to be changed."""
    run = tmp_path_factory.mktemp("probed") / "run"
    shutil.copytree(scored_run[1], run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["probe"] |= PROBE
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    linear_probing_train.main(["--config", scored_run[0], "--run", str(run), *QUICK_PROBE])
    return scored_run[0], run


@pytest.fixture
def probed_copy(probed_run, tmp_path):
    """(config path, a copy of the probed run to change)."""
    path, run = probed_run
    return path, Path(shutil.copytree(run, tmp_path / "probed"))


@pytest.fixture(scope="session")
def halves(tmp_path_factory):
    """(config path, run folder) of a tiny pair of disjoint halves, trained and scored. Not to be
    changed.
    """
    return train_and_score(tmp_path_factory.mktemp("halves"), HALVES)


def train_and_score(folder, changes):
    """(config path, run folder) of the tiny experiment with changes, trained and scored."""
    path = write_experiment(folder, changes)
    train_simclr.main(["--config", path])
    score(path)
    return path, folder / "run"


@pytest.fixture
def halves_copy(halves, tmp_path):
    """(config path, a copy of the run of halves that a test may change)."""
    shutil.copytree(halves[1], tmp_path / "run")
    return halves[0], tmp_path / "run"


@pytest.fixture(scope="session")
def pool(tmp_path_factory):
    """(config path, run folder) of a tiny crossover of two seeds, trained and scored. Not to be
    changed.
    """
    return train_and_score(tmp_path_factory.mktemp("pool"), CROSSOVER)


@pytest.fixture
def pool_copy(pool, tmp_path):
    """(config path, a copy of the crossover that a test may change)."""
    shutil.copytree(pool[1], tmp_path / "run")
    return pool[0], tmp_path / "run"


@pytest.fixture
def in_process(monkeypatch):
    """Retraining in this process, which is quicker; returns the list of the commands' arguments."""
    commands = []

    def run_script(script, arguments, stop):
        commands.append(arguments)
        METHODS[script.stem.removeprefix("train_")].script.main(arguments)
        return 0

    monkeypatch.setattr(retraining, "run_script", run_script)
    return commands


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures are drawn but not written, which is quicker."""
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)


@pytest.fixture
def texts(monkeypatch):
    """A list that takes the texts of every picture that is drawn."""
    pictures = []

    def watched_save(figure, *_, **__):
        pictures.append("\n".join(text.get_text() for text in figure.findobj(Text)))

    monkeypatch.setattr(Figure, "savefig", watched_save)
    return pictures


# --- encoders -------------------------------------------------------------------------------------


def random_pixels(B, channels, size, seed=1):
    """Normalized pixels, as encoders take them."""
    shape = (B, channels, size, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def foreign_encoder(name, seed, **changes):
    """An Encoder of a network that takes pixels alone, as networks of other programs do."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8)).eval()
    return Encoder(**{"name": name, "network": network, "channels": 3, "size": 16,
                      "normalization": ((0.5,) * 3, (0.25,) * 3)} | changes)  # fmt: skip


class Counting(nn.Module):
    """Flat pixels, and of how many images they were asked for, part by part."""

    def __init__(self):
        super().__init__()
        self.images = []

    def forward(self, pixels):
        self.images.append(len(pixels))
        return pixels.flatten(1)


def flat_pixels(channels=3, size=8, identity="a", normalization=((0.5,) * 3, (0.5,) * 3)):
    return Encoder("flat pixels", Counting(), channels, size, normalization, identity=identity)


class Rows(nn.Module):
    """Each row of an image is a token; their mean is the representation."""

    def forward(self, pixels, visible=None):
        return self.tokens(pixels).mean(1)

    def tokens(self, pixels, visible=None):
        return pixels[:, 0]


class Places(nn.Module):
    """A vision transformer whose token of a pixel is that pixel, after a class token of fives."""

    patch = 1

    def tokens(self, pixels, visible=None):
        patches = pixels.flatten(2).transpose(1, 2)  # (B, T, C)
        if visible is not None:
            patches = patches.gather(1, visible[:, :, None].expand(-1, -1, patches.shape[2]))
        return torch.cat([torch.full_like(patches[:, :1], 5.0), patches], dim=1)


class FlatPixels(nn.Module):
    """An encoder whose representation is the image itself, as of `two_views`."""

    dim = 48

    def forward(self, pixels, visible=None):
        return pixels.flatten(1)


# What the settings of encoders of other libraries need beside their name.
OF_OTHERS = {
    "timm": {"model": "resnet10t"},
    "torchvision": {"model": "resnet18"},
    "transformers": {
        "output": "class",
        "architecture": {
            "model_type": "vit",
            "patch_size": 32,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
    },
    "function": {
        "file": str(Path(__file__).parents[1] / "examples/own_encoder.py"),
        "function": "make_encoder",
    },
}


def make_vit(channels=3, size=16, **settings):
    """A vision transformer of patches of 4 x 4 pixels, always with the same weights."""
    torch.manual_seed(0)
    settings = encoder_settings(**{"name": "vit_mini", "depth": 1, "patch": 4} | settings)
    return make_encoder(settings, channels, size)


def make_mae(channels=1, **settings):
    """A small masked autoencoder on `make_vit`."""
    settings = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2} | settings
    arguments = MAESettings(name="mae", **settings).arguments()
    return MAE(make_vit(channels, width=32), **arguments)


def masked_view(B=6, channels=3, K=5, seed=0):
    """Noise for `make_vit`, with K of the 16 patches visible."""
    generator = torch.Generator().manual_seed(seed)
    visible = torch.rand(B, 16, generator=generator).argsort(dim=1)[:, :K]
    return View(torch.randn(B, channels, 16, 16, generator=generator), visible)


def two_views(B=6):
    """Two views of noise, of 4 x 4 pixels."""
    first, second = torch.randn(2, B, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return View(first), View(second)


def losses_of(method, draw_views, steps, learning_rate):
    """The losses of so many steps of Adam. draw_views: () -> the views of a step."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    adam, settings = torch.optim.Adam(trained, learning_rate), TINY_TRAINING
    return [loop.train_step(method, adam, draw_views(), settings, 0.0).item() for _ in range(steps)]


def queries_of_shades(rows):
    """Queries about images whose label, the index modulo 3, is their shade; two views differ a
    little.
    """

    def make_view(rows, view):
        return View((rows % 3).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2) + 0.1 * view)

    rows = torch.as_tensor(rows)
    return Queries(make_view, 2, rows, rows % 3)


def small_classifier():
    """An untrained classifier of three shades."""
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)]
    return nn.Sequential(*layers)


def break_file(path):
    path.write_bytes(path.read_bytes()[:-100])


def nan_weights(path):
    record = read_checkpoint(path)
    record["weights"]["layers.0.weight"].fill_(float("nan"))
    save_checkpoint(path, record)


# --- images and subsets ---------------------------------------------------------------------------


def fake_images(size=8):
    return open_images(DataSettings(name="fake", size=size))


def with_twins(pairs, test_pairs=()):
    """The fake images, with the pixels of some training images put in the place of others, or of
    test images.
    """
    images = fake_images()
    for pixels, twins in ((images.train.pixels, pairs), (images.test.pixels, test_pairs)):
        for one, other in twins:
            pixels[other] = images.train.pixels[one]
    return images


def noise_images(count=12):
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def made_up_split(count, channels, size, name="train"):
    """Random images, the last half of few colours, so that channels tie and saturate."""
    generator = torch.Generator().manual_seed(size)
    shape = (count, channels, size, size)
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    pixels[count // 2 :] = pixels[count // 2 :] // 86 * 127  # 0, 127 or 254
    pixels[-1] = 255  # and one image all white
    return Split(name, pixels, torch.zeros(count, dtype=torch.int64))


def clouds(count, seed=0, noise=2.0):
    """Examples of four classes, a cloud each in 8 dimensions, far from the origin and of very
    unequal scales.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(4, (count,), generator=generator)
    values = centres[labels] + noise * torch.randn(count, 8, generator=generator)
    return Examples(values * torch.logspace(-3, 3, 8) + 50, labels)


def draw_few(**settings):
    """Subsets of six, three, three and four of the fake images."""
    counts = {"shared": 6, "candidate": 3, "independent": 3, "external": 4}
    return draw_subsets(SubsetSettings(**(counts | settings)), fake_images())


def draw_crossover(**settings):
    """Subsets of four fake images, a pool of twelve, and five of the test set."""
    sizes = {"scheme": "crossover", "shared": 4, "pool": 12, "external": 5}
    return draw_subsets(SubsetSettings(**(sizes | settings)), fake_images())


def keys_of(count, *context):
    """One key an image, (count,). context: the arguments of the stream."""
    return sample_keys(stream(*context or (0, "training")), torch.arange(count))


def largest_correlation(variables):
    """Of two different variables. variables: (variables, samples)."""
    return (torch.corrcoef(variables) - torch.eye(len(variables))).abs().max()


def subsets_of_five(**arrays):
    """Subsets of two, one, one and one image, but for those that are given."""
    parts = {"shared": [0, 1], "candidate": [2], "independent": [3], "external": [0]} | arrays
    indices = {name: np.array(values, dtype=np.int64) for name, values in parts.items()}
    return Subsets(**indices, data={"name": "made"})


def write_fashion_mnist(folder, images, labels, write=Path.write_bytes, ending=""):
    """Torchvision's four files. images: (N, 28, 28) by split, "train" and "t10k"; labels: as many
    as the larger split needs.
    """
    folder.mkdir(parents=True)
    for split, pixels in images.items():
        header = np.array([0x803, *pixels.shape], dtype=">i4").tobytes()
        write(folder / f"{split}-images-idx3-ubyte{ending}", header + pixels.tobytes())
        header = np.array([0x801, len(pixels)], dtype=">i4").tobytes()
        content = header + np.array(labels[: len(pixels)], dtype=np.uint8).tobytes()
        write(folder / f"{split}-labels-idx1-ubyte{ending}", content)


def write_folder_experiment(folder, subsets, changes):
    """Write a config on the folder of images that lies beside it. Returns its path."""
    data = {"name": "image_folder", "root": str(folder / "images")}
    data |= {"prepared": str(folder / "prepared"), "size": 16}
    return write_experiment(folder, {"data": data, "subsets": subsets, **dict(changes)})


def write_images(folder, count, seed):
    """A class-folder tree of `count` PNG files of different sizes, half of them in either class."""
    generator = torch.Generator().manual_seed(seed)
    for i in range(count):
        height, width = torch.randint(12, 30, (2,), generator=generator).tolist()
        shape = (height, width, 3)
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8).numpy()
        path = folder / f"class_{2 * i // count}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def folder_config(tmp_path):
    """Write images of two classes, and a config on them. Returns its path."""
    write_images(tmp_path / "images/train", 60, seed=0)
    write_images(tmp_path / "images/val", 20, seed=1)
    subsets = {"shared": 16, "candidate": 8, "independent": 8, "external": 10, "order": "shuffled"}
    return write_folder_experiment(tmp_path, subsets, {"training.knn_every": 3})


@pytest.fixture
def four_classes(tmp_path):
    """A folder with images of four classes, of each 20 to train on and 8 to test."""
    chance = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 8)):
        for name in "abcd":
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = chance.integers(0, 255, (18, 18, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{i:02d}.png")
    return tmp_path


def four_classes_config(folder, changes=()):
    """Write a config on images of four classes. Returns its path."""
    subsets = {"shared": 20, "candidate": 20, "independent": 20, "external": 20}
    quick = {"training.epochs": 1, "scores": {"views": 3}}
    return write_folder_experiment(folder, subsets, quick | dict(changes))


def meets_no_box(rectangle, boxes):
    """Whether no box overlaps a rectangle (top, left, height, width). boxes: (n, 4) of xmin, ymin,
    xmax, ymax.
    """
    top, left, height, width = rectangle
    xmin, ymin, xmax, ymax = boxes.T
    is_beside = (xmin >= left + width) | (xmax <= left)
    return (is_beside | (ymin >= top + height) | (ymax <= top)).all()
