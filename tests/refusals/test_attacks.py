"""What cannot be asked for labels: one line, and nothing is written."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ASKED, break_file, nan_weights, run_out_of_memory, write_experiment

import dejavu
from memorization.checkpoint import read_checkpoint, save_checkpoint
from memorization.data.catalogue import DataSettings
from memorization.data.images import open_images
from memorization.data.subsets import load_subsets
from memorization.errors import WrongUse
from memorization.measuring import attacks
from memorization.measuring.attacks import check_labels, public_images
from memorization.measuring.deja_vu import DejaVuSettings


def test_a_search_beyond_the_memory_names_the_setting_to_lower(run_copy, refusal, monkeypatch):
    path, run = run_copy
    monkeypatch.setattr(attacks, "infer_by_neighbors", run_out_of_memory)
    line = refusal(dejavu.main, ["--config", path, "--run", str(run), "--dejavu.k", "5"])
    assert (
        line
        == "error: dejavu.memory_gb: 0.25 needs more than the GPU's memory has left; lower it\n"
    )


def collapsed_weights(path):
    record = read_checkpoint(path)
    for weight in record["weights"].values():
        weight.zero_()
    save_checkpoint(path, record)


def unscored(damage):
    """The damage to an encoder of a run without scores, which would be refused first, as scores of
    another encoder.
    """

    def damage_unscored(file):
        shutil.rmtree(file.parents[2] / "scores")
        damage(file)

    return damage_unscored


@pytest.mark.parametrize("damage, file, words", [
    (break_file, "seed_0/candidate/encoder.pt",
     ["seed_0/candidate/encoder.pt", "not a whole checkpoint"]),
    (unscored(nan_weights), "seed_1/independent/encoder.pt", ["layers.0.weight is not finite"]),
    (unscored(collapsed_weights), "seed_1/candidate/encoder.pt",
     ["candidate seed 1: all images are represented alike"]),
    (Path.unlink, "seed_1/independent/encoder.pt",
     ["seed_1/independent/encoder.pt", "no such file"]),
])  # fmt: skip
def test_wrong_use_is_one_line_and_nothing_is_written(damage, file, words, run_copy, refusal):
    path, run = run_copy
    damage(run / file)
    line = refusal(dejavu.main, ["--config", path, "--run", str(run), *ASKED])
    assert all(word in line for word in words), line
    assert not (run / "dejavu").exists()


def test_what_was_compared_with_other_scores_is_not_replaced(run_copy, refusal, tmp_path):
    path, run = run_copy
    dejavu.main(["--config", path, "--run", str(run), *ASKED])
    shutil.rmtree(run / "scores")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["scores"]["views"] = 5
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    other = write_experiment(tmp_path, {"scores.views": 5, "seeds": [0, 1]})
    line = refusal(dejavu.main, ["--config", other, *ASKED])
    assert "holds another result: scores.views is 4, but 5 belongs here" in line


def test_images_without_labels_cannot_be_asked_about(run_copy):
    images, subsets = (
        open_images(DataSettings(name="fake", size=16)),
        load_subsets(run_copy[1] / "subsets.npz"),
    )
    settings = DejaVuSettings(k=20)
    public = public_images(images, subsets, settings, torch.device("cpu"))
    check_labels(images, subsets, public, settings)
    labels = images.train.labels.clone()
    labels[subsets.independent[:2]] = -1
    unlabelled = replace(images, train=replace(images.train, labels=labels))
    with pytest.raises(WrongUse, match="2 of 24 independent images have no label"):
        check_labels(unlabelled, subsets, public, settings)


def test_public_images_of_one_class_tell_nothing(run_copy):
    images, subsets = (
        open_images(DataSettings(name="fake", size=16)),
        load_subsets(run_copy[1] / "subsets.npz"),
    )
    images.test.labels.fill_(2)
    public = public_images(images, subsets, DejaVuSettings(k=20), torch.device("cpu"))
    with pytest.raises(
        WrongUse, match="the 256 public images of the test set are of one class: nothing to tell"
    ):
        check_labels(images, subsets, public, DejaVuSettings(k=20))
