"""What unit_memorization.py refuses in one line, before anything is written."""

import numpy as np
import pytest
from conftest import CPU, foreign_encoder, nan_weights, subsets_of_five, train, write_experiment

import unit_memorization
from memorization.checkpoint import read_checkpoint, save_checkpoint
from memorization.data.subsets import Subsets
from memorization.errors import WrongUse
from memorization.measuring.unit_statistics import StoredActivations
from memorization.measuring.unit_tables import choose_images
from memorization.measuring.units import find_unit_layers

NO_ACTIVATION = """
import torch.nn as nn

def make_encoder(channels, size):
    return nn.Sequential(nn.Conv2d(channels, 12, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.mark.parametrize("options, message", [
    ("--units.names layer3.0.rellu", "units.names: layer3.0.rellu: the encoder has no such layer"),
    ("--units.names relu layer9", "units.names: layer9: the encoder has no such layer; did you"),
    ("--units.names relu relu", "each value may stand once"),
    ("--units.names []", "units.names: [] is not allowed"),
    ("--units.images 9", "units.images: 9 is not allowed"),
    ("--units.images 2", "units.images: 2 is not allowed"),
    ("--units.views 0", "units.views: 0 is not allowed"),
    ("--units.center mode", "units.center: 'mode' is not allowed"),
    ("--units.batch_size 0", "units.batch_size: 0 is not allowed"),
    ("--units.prune_share 1", "units.prune_share: 1"),
    ("--units.image 10", "units.image"),
    ("--checkpoint epoch_0001", "--checkpoint: 'epoch_0001' is not allowed"),
    ("--units.prune true --probe.fine_tune true", "probe.fine_tune"),
])  # fmt: skip
def test_settings_that_do_not_fit(options, message, run_copy, refusal):
    path, run = run_copy
    before = sorted(run.rglob("*"))
    arguments = ["--config", path, "--run", str(run), *options.split()]
    assert message in refusal(unit_memorization.main, arguments)
    assert sorted(run.rglob("*")) == before


def test_the_nearest_layers_are_suggested(run_copy, refusal):
    path, run = run_copy
    line = refusal(
        unit_memorization.main,
        ["--config", path, "--run", str(run), "--units.names", "layer3.0.rellu"],
    )
    assert "did you mean layer3.0.relu" in line


@pytest.mark.parametrize("candidates, external, message", [
    (2, 40, "there are 2 candidates that f was trained on"),
    (9, 40, "there are 9 candidates that f was trained on"),
    (40, 9, "there are 9 external images"),
])  # fmt: skip
def test_too_few_images_are_refused(candidates, external, message):
    subsets = subsets_of_five(
        candidate=np.arange(3, 3 + candidates),
        independent=np.arange(100, 100 + candidates),
        external=np.arange(external),
    )
    with pytest.raises(
        WrongUse, match=f"units.images: {message}, and the maximum of fewer than 10"
    ):
        choose_images(subsets, [0], 1000)


def test_half_of_a_pool_is_too_few():
    pool = {"shared": np.arange(0), "candidate": np.arange(18), "independent": np.arange(0)}
    pool = {name: values.astype(np.int64) for name, values in pool.items()}
    subsets = Subsets(**pool, external=np.arange(40), scheme="crossover")
    with pytest.raises(WrongUse, match="there are 9 candidates that f was trained on"):
        choose_images(subsets, [0, 1], 1000)


def test_an_encoder_whose_layers_are_not_known_is_refused():
    with pytest.raises(WrongUse, match="units: plain: its network has no layers that can be"):
        find_unit_layers(foreign_encoder("plain", 0), CPU)


def test_an_encoder_without_a_non_linearity_is_told_to_name_layers(tmp_path, refusal):
    (tmp_path / "own.py").write_text(NO_ACTIVATION)
    encoder = {"name": "function", "file": str(tmp_path / "own.py"), "function": "make_encoder"}
    path = write_experiment(tmp_path, {"encoder": encoder, "training.epochs": 1})
    train(path)
    line = refusal(unit_memorization.main, ["--config", path])
    assert "units.names: null: " in line and "name some of its layers: " in line
    unit_memorization.main(["--config", path, "--units.names", "0", "--units.views", "1"])
    assert (tmp_path / "run/units/views_1_names_0/units.csv").exists()


def test_a_broken_encoder_and_other_scores_are_refused(run_copy, refusal):
    path, run = run_copy
    arguments = ["--config", path, "--run", str(run)]
    encoder = run / "seed_1/candidate/encoder.pt"
    whole = encoder.read_bytes()
    nan_weights(encoder)
    assert "is not finite" in refusal(unit_memorization.main, arguments)
    encoder.write_bytes(whole)
    (run / "scores/summary.json").write_text("{}")
    assert "scores" in refusal(unit_memorization.main, arguments)
    assert not (run / "units").exists()


def test_scores_of_encoders_that_were_trained_again_are_refused(run_copy, refusal):
    path, run = run_copy
    for role in ("candidate", "independent"):
        file = run / "seed_0" / role / "encoder.pt"
        record = read_checkpoint(file)
        record["weights"]["layers.0.weight"] *= 2
        save_checkpoint(file, record)
    line = refusal(unit_memorization.main, ["--config", path, "--run", str(run)])
    assert "encoders" in line and "run memorization_scores.py again" in line


def test_a_full_disk_under_the_temporary_files_of_medians_is_named(monkeypatch):
    def file_on_full_disk():
        return open("/dev/full", "w+b", buffering=0)

    monkeypatch.setattr("tempfile.TemporaryFile", file_on_full_disk)
    stored = StoredActivations(2)
    with pytest.raises(WrongUse, match=r"units.center: median: .* \(No space left on device\); .*"):
        stored.add(np.ones((3, 2), dtype=np.float32))
