"""What cannot be asked for labels: one line, and nothing is written."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
import yaml
from conftest import (
    ASKED,
    CPU,
    break_file,
    fake_images,
    folder_config,
    nan_weights,
    queries_of_shades,
    run_out_of_memory,
    small_classifier,
    write_experiment,
)

import dejavu
import train_simclr
from memorization.checkpoint import read_checkpoint, save_checkpoint
from memorization.data.augmentations import View
from memorization.data.catalogue import DataSettings
from memorization.data.images import Split, open_images
from memorization.data.subsets import Subsets, load_subsets
from memorization.encoder import Encoder
from memorization.errors import WrongUse
from memorization.measuring import attacks, crop_classifier
from memorization.measuring.attacks import check_labels, open_attack_sets, public_images
from memorization.measuring.crop_classifier import train_classifier
from memorization.measuring.deja_vu import DejaVuSettings, PublicSet, encode_public
from memorization.neighbors import nearest_neighbors


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
    without = replace(images, test=replace(images.test, labels=images.test.labels * 0 - 1))
    with pytest.raises(WrongUse, match="dejavu: fake has no labelled test image"):
        public_images(without, subsets, settings, torch.device("cpu"))


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


def test_a_collapsed_encoder_is_refused_by_name():
    class Constant(nn.Module):
        def forward(self, pixels):
            return torch.full((len(pixels), 3), 0.1)

    f = Encoder("f", Constant(), 1, 8, ([0.0], [1.0]))
    pixels = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8)
    images = Split("test", pixels, torch.arange(40) % 4)
    public = PublicSet(images, torch.arange(40), torch.empty(0), tuple("abcd"))
    with pytest.raises(WrongUse, match="f: all images are represented alike"):
        encode_public(f, public, lambda rows: View(pixels[rows] / 255), False)


def test_a_classifier_that_diverges_is_refused(monkeypatch):
    def probabilities(network, queries, view):
        return torch.full((len(queries.rows), 3), torch.nan)

    monkeypatch.setattr(crop_classifier, "_probabilities", probabilities)
    training, held_out = queries_of_shades(range(60, 120)), queries_of_shades(range(60, 69))
    with pytest.raises(WrongUse, match="diverged"):
        train_classifier(small_classifier(), training, held_out, 3, 0, CPU)


def test_more_neighbours_than_the_bank_holds_are_refused():
    assert nearest_neighbors(torch.zeros(1, 2), torch.eye(2), 2)[0].tolist() == [[0, 1]]
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"{k} neighbours are wanted of 2"):
            nearest_neighbors(torch.zeros(1, 2), torch.eye(2), k)


def test_boxes_that_leave_no_part_of_any_image_are_refused(tmp_path, refusal):
    path, boxes = folder_config(tmp_path), tmp_path / "boxes.csv"
    train_simclr.main(["--config", path])
    subsets = load_subsets(tmp_path / "run/subsets.npz")
    attacked = [*subsets.candidate.tolist(), *subsets.independent.tolist()]
    lines = [f"{index},0,0,90,90" for index in attacked]
    boxes.write_text("\n".join(["index,xmin,ymin,xmax,ymax", *lines]))
    options = ["--dejavu.query", "boxes", "--dejavu.boxes", str(boxes), "--dejavu.k", "5"]
    assert "leaves no part of 16 images" in refusal(dejavu.main, ["--config", path, *options])


def test_a_classifier_of_crops_needs_images_that_f_did_not_see():
    nobody, images = np.empty(0, dtype=np.int64), fake_images(16)
    subsets = Subsets(nobody, np.arange(24), nobody, np.arange(40))
    settings = DejaVuSettings(reference="crops", k=5)
    with pytest.raises(WrongUse, match="dejavu.reference: crops trains its classifier on indep"):
        open_attack_sets(images, subsets, settings, CPU)
