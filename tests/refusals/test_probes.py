"""What cannot be probed: one line that says why."""

from dataclasses import replace

import pytest
import torch
import torch.nn as nn
from conftest import CPU, QUICK_PROBE, clouds, fake_images, flat_pixels, run_out_of_memory

import linear_probing_train
from memorization.errors import WrongUse
from memorization.measuring.linear_classifier import fit_probe
from memorization.measuring.probing import ProbeSettings, probed_rows
from memorization.measuring.representations import Examples, stored_examples


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_dataset_without_labels_is_refused(split):
    images = fake_images()
    getattr(images, split).labels.fill_(-1)
    with pytest.raises(WrongUse, match=f"fake has no labelled {split} image"):
        probed_rows(images, ProbeSettings())


def test_one_class_tells_nothing():
    images = fake_images()
    images.train.labels.clamp_(-1, 0)
    message = "the 1024 labelled training images of fake are of one class: nothing to tell"
    with pytest.raises(WrongUse, match=message):
        probed_rows(images, ProbeSettings())


def test_fewer_than_ten_images_are_refused():
    images = fake_images()
    images.train.labels[9:] = -1
    with pytest.raises(WrongUse, match="fake has 9 labelled training images; a probe needs 10"):
        probed_rows(images, ProbeSettings())


def test_a_collapsed_encoder_and_a_diverged_layer_are_refused():
    train = clouds(500)
    with pytest.raises(WrongUse, match="represented alike"):
        fit_probe(Examples(torch.ones(500, 8), train.labels), 4, ProbeSettings(), seed=0)
    grid = {"learning_rates": [1e4], "weight_decays": [1e30]}
    diverging = ProbeSettings(optimizer="sgd", epochs=5, warmup_epochs=1, **grid)
    with pytest.raises(WrongUse, match="diverged at 10000.0"):
        fit_probe(train, 4, diverging, seed=0)


def test_a_folder_without_the_probed_data_is_not_made(probed_run, refusal, no_network, tmp_path):
    path, run = probed_run
    before = sorted(run.rglob("*"))
    options = ["--probe.datasets", "cifar10", "--data.root", str(tmp_path / "nowhere")]
    line = refusal(linear_probing_train.main, ["--config", path, "--run", str(run), *options])
    assert f"looked for in {tmp_path}/nowhere" in line
    assert not (tmp_path / "nowhere").exists() and sorted(run.rglob("*")) == before


class Broken(nn.Module):
    def forward(self, pixels):
        return pixels.flatten(1) / 0


def test_representations_that_are_not_finite_stop_the_probe(tmp_path):
    encoder, images = replace(flat_pixels(), network=Broken()), fake_images()
    with pytest.raises(WrongUse, match="flat pixels: its representations are not finite"):
        stored_examples(encoder, images.train, torch.arange(5), tmp_path, CPU)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what, options, named", [
    ("probe", [], "probe.train_images: 300"),
    ("fine_tune", ["--probe.fine_tune", "true"], "probe.fine_tune_batch_size: 256"),
])  # fmt: skip
def test_probes_beyond_the_memory_name_the_setting_to_lower(
    what, options, named, probed_run, refusal, monkeypatch
):
    path, run = probed_run
    monkeypatch.setattr(linear_probing_train, what, run_out_of_memory)
    options = ["--config", path, "--run", str(run), *QUICK_PROBE, *options]
    line = refusal(linear_probing_train.main, options)
    assert line == f"error: {named} needs more than the GPU's memory has left; lower it\n"
