"""Subsets that differ in more than membership: images that stand in two of them, and classes that
hardly overlap.
"""

import dataclasses
import json
import os
import shutil
import warnings

import numpy as np
import pytest
from conftest import write_experiment
from PIL import Image

import memorization_scores
import train_simclr
from memorization.config import read_config, read_run_config
from memorization.data.catalogue import DataSettings
from memorization.data.confounders import count_twins, find_distant_classes, warn_of_confounders
from memorization.data.images import open_images
from memorization.data.subsets import Subsets, SubsetSettings, draw_subsets, load_subsets
from memorization.errors import Caution, WrongUse
from models.simclr import SimCLRSettings

FAKE = open_images(DataSettings(name="fake", size=8))


def subsets_of(shared, candidate, independent, external):
    return Subsets(
        *(
            np.array(indices, dtype=np.int64)
            for indices in (shared, candidate, independent, external)
        )
    )


def with_twins(pairs, test_pairs=()):
    """The fake images, with the pixels of some training images put in the place of others."""
    train, test = FAKE.train.pixels.clone(), FAKE.test.pixels.clone()
    for one, other in pairs:
        train[other] = train[one]
    for one, other in test_pairs:
        test[other] = train[one]
    splits = {
        "train": dataclasses.replace(FAKE.train, pixels=train),
        "test": dataclasses.replace(FAKE.test, pixels=test),
    }
    return dataclasses.replace(FAKE, **splits)


def test_images_with_the_same_pixels_in_two_subsets_are_counted_for_every_pair():
    images = with_twins([(0, 10), (1, 20), (10, 21), (2, 3)], [(11, 0), (11, 1), (22, 2)])
    subsets = subsets_of(range(10), range(10, 20), range(20, 30), range(3))
    expected = {  # 2 and 3 are both shared
        ("shared", "candidate"): 1, ("shared", "independent"): 2, ("candidate", "independent"): 1,
        ("candidate", "external"): 1, ("independent", "external"): 1,
    }  # fmt: skip
    assert count_twins(subsets, images) == expected
    assert count_twins(subsets, FAKE) == {}


def test_one_line_warns_of_twins():
    images, subsets = (
        with_twins([(0, 10)]),
        subsets_of(range(10), range(10, 20), range(20, 30), range(10)),
    )
    settings = SubsetSettings(shared=10, candidate=10, independent=10, external=10)
    with pytest.warns(
        Caution,
        match="the same image .equal pixels. stands in two subsets: 1 of shared in candidate",
    ):
        warn_of_confounders(subsets, images, settings)


def of_classes(**labels):
    """(Subsets, Images) with these labels, of as many images as there are."""
    train = np.concatenate([labels[name] for name in ("shared", "candidate", "independent")])
    counts = np.cumsum([0, *(len(labels[name]) for name in ("shared", "candidate", "independent"))])
    splits = {
        "train": dataclasses.replace(FAKE.train, labels=_tensor(train)),
        "test": dataclasses.replace(FAKE.test, labels=_tensor(labels["external"])),
    }
    indices = [np.arange(start, stop) for start, stop in zip(counts, counts[1:])] + [
        np.arange(len(labels["external"]))
    ]
    return Subsets(*indices), dataclasses.replace(FAKE, **splits)


def _tensor(labels):
    import torch

    return torch.tensor(labels, dtype=torch.int64)


def test_classes_that_do_not_overlap_are_found_and_those_of_random_draws_are_not():
    mixed = np.arange(100) % 10
    ordered = of_classes(
        shared=mixed, candidate=mixed // 2, independent=5 + mixed // 2, external=mixed
    )
    found = find_distant_classes(*ordered)
    assert found["candidate", "independent"] == 1 and ("shared", "external") not in found
    chance = np.random.default_rng(0)
    for size in (2, 5, 20, 100):  # a few images of ten classes differ by chance
        for _ in range(20):
            draws = {
                name: chance.integers(0, 10, size)
                for name in ("shared", "candidate", "independent", "external")
            }
            assert find_distant_classes(*of_classes(**draws)) == {}


def test_classes_that_mostly_overlap_are_not_found_although_chance_hardly_makes_them_so():
    more, less = np.repeat([0, 1], [700, 300]), np.repeat([0, 1], [300, 700])
    mixed = np.repeat([0, 1], [500, 500])
    parts = of_classes(shared=mixed, candidate=more, independent=less, external=mixed)
    assert find_distant_classes(*parts) == {}


def test_images_without_labels_and_empty_subsets_have_no_classes():
    none = np.full(20, -1)
    assert (
        find_distant_classes(
            *of_classes(shared=[], candidate=none, independent=none, external=np.zeros(20))
        )
        == {}
    )


# --- on a folder of images ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Four classes of 20 training and 8 test images."""
    chance = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 8)):
        for name in "abcd":
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = chance.integers(0, 255, (18, 18, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{i:02d}.png")
    return tmp_path


def folder_config(folder, changes=()):
    data = {
        "name": "image_folder",
        "root": str(folder / "images"),
        "prepared": str(folder / "prepared"),
        "size": 16,
    }
    subsets = {"shared": 20, "candidate": 20, "independent": 20, "external": 20}
    return write_experiment(
        folder,
        {
            "data": data,
            "subsets": subsets,
            "training.epochs": 1,
            "scores": {"views": 3},
            **dict(changes),
        },
    )


def order_of(path):
    return read_config("", ["--config", path], SimCLRSettings).subsets.order


def test_a_folder_is_shuffled_unless_an_order_is_given(folder, capsys):
    assert (
        order_of(folder_config(folder)) == "shuffled"
        and "subsets.order is not given" in capsys.readouterr().out
    )
    assert (
        order_of(folder_config(folder, {"subsets.order": "file"})) == "file"
        and capsys.readouterr().out == ""
    )
    assert order_of(write_experiment(folder, {})) == "file" and capsys.readouterr().out == ""


def test_a_run_that_was_begun_in_file_order_goes_on_in_it(folder):
    path = folder_config(folder, {"subsets.order": "file"})
    with pytest.warns(Caution, match="classes hardly overlap"):
        train_simclr.main(["--config", path])
    path = folder_config(folder)
    assert order_of(path) == "file"
    with pytest.warns(Caution, match="classes hardly overlap"):
        train_simclr.main(["--config", path, "--seeds", "0", "1"])


def test_training_and_scoring_warn_of_subsets_of_other_classes_with_the_remedy(folder):
    path = folder_config(folder, {"subsets.order": "file"})
    for script in (train_simclr, memorization_scores):
        with pytest.warns(
            Caution, match="candidate and independent .100% differ.*set subsets.order to shuffled"
        ):
            script.main(["--config", path])


def test_training_and_scoring_warn_of_copies_of_files(folder):
    for i in range(20):
        os.link(
            folder / "images/train/a" / f"{i:02d}.png",
            folder / "images/train/a" / f"copy_{i:02d}.png",
        )
    for i in range(8):
        shutil.copy(
            folder / "images/train/b" / f"{i:02d}.png", folder / "images/val/b" / f"{i:02d}.png"
        )
    path = folder_config(folder, {"subsets.shared": 40})
    for script in (train_simclr, memorization_scores):
        pairs = ".* of shared in candidate.* of candidate in independent.* in external"
        with pytest.warns(Caution, match=f"the same image{pairs}"):
            script.main(["--config", path])


def test_subsets_that_differ_in_membership_alone_give_no_warning(folder):
    path = folder_config(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_simclr.main(["--config", path])


# --- broken images --------------------------------------------------------------------------------


def break_images(folder):
    broken = [
        folder / "images/train/a/03.png",
        folder / "images/train/c/11.png",
        folder / "images/val/b/05.png",
    ]
    for path in broken:
        path.write_bytes(path.read_bytes()[:100])
    return broken


def test_broken_images_are_skipped_counted_and_listed_and_the_sizes_stay(folder, capsys, refusal):
    broken = break_images(folder)
    path = folder_config(folder, {"subsets.shared": 38, "subsets.external": 31})
    line = refusal(train_simclr.main, ["--config", path])
    assert all(str(file) in line for file in broken)
    train_simclr.main(["--config", path, "--data.skip_broken", "true"])
    assert "3 broken images are left out" in capsys.readouterr().out
    skipped = json.loads((folder / "run/skipped_images.json").read_text())
    assert [entry["file"] for split in ("train", "test") for entry in skipped[split]] == list(
        map(str, broken)
    )
    subsets = load_subsets(folder / "run/subsets.npz")
    assert (len(subsets.train), len(subsets.external)) == (78, 31)
    assert not {entry["index"] for entry in skipped["train"]} & set(subsets.train.tolist())
    assert (
        not list((folder / "prepared").glob("*.partial"))
        and len(list((folder / "prepared").glob("train*.json"))) == 1
    )

    train_simclr.main(["--config", path, "--data.skip_broken", "true"])  # finished already
    memorization_scores.main(["--config", path])
    assert read_run_config(folder / "run").data.skip_broken


def test_subsets_without_broken_images_are_those_of_a_folder_without_them(folder):
    broken = break_images(folder)
    settings = SubsetSettings(shared=20, candidate=20, independent=20, external=20)
    data = DataSettings(
        name="image_folder",
        root=str(folder / "images"),
        prepared=str(folder / "prepared"),
        size=16,
        skip_broken=True,
    )
    images = open_images(data)
    faults = images.find_broken(np.arange(80), np.arange(32))
    left = draw_subsets(settings, images.leave_out(faults))
    files = [images.train.files[index] for index in left.train]
    for path in broken:
        path.unlink()
    images = open_images(data)
    assert files == [images.train.files[index] for index in draw_subsets(settings, images).train]


def test_too_few_images_that_are_not_broken_are_refused(folder):
    break_images(folder)
    path = folder_config(folder, {"subsets.shared": 39, "data.skip_broken": True})
    with pytest.raises(SystemExit):
        train_simclr.main(["--config", path])
    assert not (folder / "run").exists()


def test_an_image_that_may_not_be_read_is_not_skipped(folder, monkeypatch):
    def refuse(path, size):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("memorization.data.decoding.decode_image", refuse)
    data = DataSettings(
        name="image_folder",
        root=str(folder / "images"),
        prepared=str(folder / "prepared"),
        size=16,
        skip_broken=True,
    )
    with pytest.raises(WrongUse, match="cannot be read .Permission denied."):
        open_images(data).find_broken(np.arange(3), np.arange(1))
