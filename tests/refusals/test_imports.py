"""What does not fit an import ends in one line, and nothing is written."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import Executes, fake_images, write_experiment

import import_encoders
import memorization_scores
import train_simclr
from memorization.config import read_config
from memorization.data.subsets import Subsets, save_subsets
from memorization.imports.settings import ImportSettings
from memorization.results import hash_of_file
from models.encoders import encoder_settings, make_encoder

# A handful of steps, or none, trained these.
pytestmark = pytest.mark.filterwarnings("ignore:.*representations differ in nothing")


ORDER = {"subsets.order": "file"}


def save_weights(path, seed, **settings):
    torch.manual_seed(seed)
    network = make_encoder(encoder_settings("resnet_small", width=8, **settings), 3, 16)
    state = {f"backbone.{name}": weight for name, weight in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, path)


@pytest.fixture
def write_import(tmp_path):
    """write_import(changes) -> path of a config that imports two files of weights."""
    for seed, name in enumerate("fg"):
        save_weights(tmp_path / f"{name}.pth", seed)
    f, g = (
        {"weights": str(tmp_path / f"{name}.pth"), "at": "state_dict", "strip": ["backbone."]}
        for name in "fg"
    )
    section = {"candidate": f, "independent": g, "size": 16, "mean": [0.5] * 3, "std": [0.5] * 3}
    without = {"method": None, "training": None, "import": section, **ORDER}
    return lambda changes=(): write_experiment(tmp_path, without | dict(changes))


def refused(refusal, path, *options):
    """The line with which import_encoders.py refuses; fails if it writes something."""
    run = os.path.join(os.path.dirname(path), "run")
    line = refusal(import_encoders.main, ["--config", path, *options])
    assert not os.path.exists(run)
    return line


@pytest.mark.parametrize("changes, words", [
    ({"import.size": None}, "import.size: is missing"),
    ({"import.mean": None}, "import.mean: is missing"),
    ({"import.std": None}, "import.std: is missing"),
    ({"import.independent": None}, "import.independent: is missing"),
    ({"import.candidate.weights": None}, "import.candidate.weights: is missing"),
    ({"augmentation": None}, "augmentation: is missing"),
    ({"subsets.order": None}, "subsets.order: is missing: it says which images each encoder saw"),
    ({"import.size": 32}, "import.size: 32, but the largest views of augmentation.views have 16"),
    ({"import.mean": [0.5, 0.5]}, "import.mean: [0.5, 0.5] is not allowed: a list of 1 or 3"),
    ({"import.mean": [123.7, 116.3, 103.5]}, "from 0 to 1, as pixels are"),
    ({"import.std": [0, 0.5, 0.5]}, "import.std: [0, 0.5, 0.5] is not allowed: above 0"),
    ({"import.mean": "imagenet"}, "import.mean: 'imagenet' is not allowed"),
    ({"import.mean": "from_model"}, "mean and std are both lists, or both from_model"),
    ({"import.mean": [0.5], "import.std": [0.5]}, "import.mean: [0.5], but the images have 3"),
    ({"import.mean": "from_model", "import.std": "from_model"}, "resnet_small has no record"),
    ({"import.candidate.at": "model"}, "import.candidate: "),
    ({"import.candidate.strip": ["module."]}, "no key begins with 'module.'"),
    ({"import.candidate.strip": ["backbo"]}, "45 of the network's 54 keys are missing"),
    ({"import.candidate.strip": []}, "54 of the file's 54 keys are left over"),
    ({"encoder.width": 16}, "import.candidate: "),
    ({"import.candidate.sha256": "0" * 64}, "import.candidate.sha256: 000000000000... was given"),
    ({"import.candidate.sha256": "0"}, "import.candidate.sha256.0: '0' is not allowed"),
    ({"import.candidate.weights": "missing.pth"}, "import.candidate.weights: missing.pth"),
    ({"subsets.separate_duplicates": True}, "subsets.separate_duplicates: True is not allowed"),
    ({"seeds": [0, 1]}, "import.candidate.weights: 1 given, but seeds is [0, 1]"),
    ({"method": {"name": "simclr"}}, "method: is not allowed"),
    ({"training": {"epochs": 3, "batch_size": 16, "optimizer": "sgd", "learning_rate": 0.1}},
     "training: is not allowed"),
    ({"encoder": {"name": "torchvision", "model": "resnet19", "output": "pooled"}},
     "encoder.model: resnet19: torchvision has no such classifier"),
    ({"import": None}, "import: is missing"),
    ({"import.layers": 4}, "import.layers: no such setting"),
])  # fmt: skip
def test_a_wrong_import_is_one_line_and_writes_nothing(changes, words, write_import, refusal):
    assert words in refused(refusal, write_import(changes))


def test_one_file_for_both_encoders_is_refused(write_import, tmp_path, refusal):
    line = refused(refusal, write_import(), "--import.independent.weights", f"{tmp_path}/f.pth")
    assert "import.independent.weights: " in line and "is import.candidate's, too" in line


def test_a_package_that_is_missing_is_named(write_import, monkeypatch, refusal):
    monkeypatch.setitem(sys.modules, "timm", None)
    encoder = {"name": "timm", "model": "resnet18", "output": "pooled"}
    assert "the package timm is missing" in refused(refusal, write_import({"encoder": encoder}))


def test_a_copy_of_the_weights_is_no_other_encoder(write_import, tmp_path, refusal):
    path = write_import()
    shutil.copy(tmp_path / "f.pth", tmp_path / "g.pth")
    assert "g.pth is import.candidate's, too" in refused(refusal, path)
    shutil.copy(tmp_path / "f.pth", tmp_path / "f_again.pth")
    save_weights(tmp_path / "g.pth", 1)
    save_weights(tmp_path / "g_again.pth", 2)
    both, others = (
        [str(tmp_path / name) for name in (f"{role}.pth", f"{role}_again.pth")] for role in "fg"
    )
    path = write_import(
        {"seeds": [0, 1], "import.candidate.weights": both, "import.independent.weights": others}
    )
    assert "f_again.pth holds the weights of another seed" in refused(refusal, path)


def test_an_import_takes_no_other_seeds(write_import, refusal):
    """The same file would become the encoder of another seed."""
    path = write_import()
    import_encoders.main(["--config", path])
    line = refusal(import_encoders.main, ["--config", path, "--seeds", "1"])
    assert "seeds: [1] was given, but" in line and "was imported with [0]" in line


def test_weights_may_lie_in_the_home_folder(write_import, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    import_encoders.main(["--config", write_import({"import.candidate.weights": "~/f.pth"})])
    assert (tmp_path / "run/seed_0/candidate/encoder.pt").exists()


def test_a_key_of_which_lstrip_ate_letters_is_missing(write_import, tmp_path, refusal):
    """lstrip takes letters, not a prefix: "backbone.layers" becomes "yers" here."""
    path = write_import({"import.candidate.strip": []})
    state = torch.load(tmp_path / "f.pth")["state_dict"]
    eaten = {key.lstrip("backbone.l"): weight for key, weight in state.items()}  # noqa: B005
    torch.save({"state_dict": eaten}, tmp_path / "f.pth")
    assert "keys are missing: layers.0.weight" in refused(refusal, path)


def test_what_executes_something_is_not_executed(write_import, tmp_path, monkeypatch, refusal):
    monkeypatch.chdir(tmp_path)
    path = write_import()
    torch.save({"state_dict": Executes()}, tmp_path / "f.pth")
    assert "import.candidate: " in refused(refusal, path)
    assert not (tmp_path / "executed").exists()


def test_weights_that_changed_since_the_import_are_refused(write_import, tmp_path, refusal):
    path = write_import()
    import_encoders.main(["--config", path])
    written = (tmp_path / "run/seed_0/candidate/encoder.pt").read_bytes()
    before = hash_of_file(tmp_path / "f.pth")
    save_weights(tmp_path / "f.pth", seed=5)
    line = refusal(import_encoders.main, ["--config", path])
    assert "import.candidate.sha256.0" in line and before[:12] in line
    assert (tmp_path / "run/seed_0/candidate/encoder.pt").read_bytes() == written


def test_a_run_folder_of_something_else_is_refused(write_import, run_copy, refusal):
    path = write_import()
    line = refusal(import_encoders.main, ["--config", path, "--run", str(run_copy[1])])
    assert "choose another --run" in line


def test_training_scripts_do_not_import_and_measuring_ones_compare(write_import, refusal):
    path = write_import()
    line = refusal(train_simclr.main, ["--config", path])
    assert "import: encoders that others trained come in by import_encoders.py" in line
    import_encoders.main(["--config", path])
    line = refusal(memorization_scores.main, ["--config", path, "--import.mean", ".4", ".5", ".5"])
    assert "command line: import.mean.0: 0.4 was given" in line
    line = refusal(memorization_scores.main, ["--config", path, "--training.epochs", "3"])
    assert "training: is not allowed: the encoders of" in line and "were trained by others" in line


def test_a_trained_run_is_not_measured_as_an_imported_one(write_import, run_copy, refusal):
    path = write_import()
    line = refusal(memorization_scores.main, ["--config", path, "--run", str(run_copy[1])])
    assert "import: is not allowed" in line and "were trained here" in line


def test_from_model_in_a_config_means_what_the_run_has(write_import):
    """A config that lets the numbers be looked up measures the run that has them."""
    path = write_import()
    import_encoders.main(["--config", path])
    words = ["--import.mean", "from_model", "--import.std", "from_model"]
    memorization_scores.main(["--config", path, *words])


def test_from_model_may_be_the_name_of_a_run(write_import, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--config", write_import(), "--run", "from_model"]
    import_encoders.main(words)
    assert read_config("", words).run == "from_model"


def test_lists_of_seen_and_unseen_images_are_a_file_of_subsets(write_import, tmp_path):
    """Without sizes, and not equally many."""
    images = fake_images(16)
    seen, others, neither = (np.arange(*bounds) for bounds in ((0, 30), (30, 50), (0, 40)))
    subsets = Subsets(np.empty(0, np.int64), seen, others, neither, data=images.fingerprint)
    save_subsets(subsets, tmp_path / "seen.npz")
    path = write_import({"subsets": {"file": str(tmp_path / "seen.npz")}})
    import_encoders.main(["--config", path])
    memorization_scores.main(["--config", path])
    summary = json.loads((tmp_path / "run/scores/summary.json").read_text())
    sizes = {name: values["raw"]["n"] for name, values in summary["subsets"].items()}
    assert sizes == {"candidate": 30, "independent": 20, "external": 40}


def test_whole_numbers_are_floats_in_the_record():
    weights = {"weights": "f.pth"}
    settings = ImportSettings(candidate=weights, independent=None, size=8, mean=[0], std=[1])
    assert settings.mean == [0.0] and type(settings.mean[0]) is float
    assert settings.candidate.weights == ["f.pth"]
