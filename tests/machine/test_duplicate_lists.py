"""Training counts duplicates, lists them in duplicates.csv, and draws them into one subset."""

import csv
import dataclasses
import re
import warnings

import numpy as np
import pytest
from conftest import (
    fake_images,
    four_classes_config,
    subsets_of_five,
    train,
    trained_bytes,
    with_twins,
    write_experiment,
)
from PIL import Image
from test_processes import start_together

from memorization.config import read_config
from memorization.data.duplicates import Duplicates
from memorization.data.subsets import SubsetSettings, draw_subsets, load_subsets
from memorization.errors import Caution
from memorization.training import duplicate_check
from memorization.training.duplicate_check import (
    find_among,
    separate_duplicates,
    state_duplicates,
)
from models.simclr import SimCLRSettings

pytestmark = pytest.mark.filterwarnings("ignore::memorization.errors.Caution")


def read_rows(run):
    with open(run / "duplicates.csv", newline="") as file:
        return list(csv.DictReader(file))


def line_of(text):
    (line,) = re.findall("^duplicates: .*$", text, re.MULTILINE)
    return line


def save_paler(path, copy):
    """Save a copy of an image with half of its contrast."""
    pixels = 255 - (255 - np.asarray(Image.open(path))) // 2
    Image.fromarray(pixels).save(copy)


@pytest.fixture
def folder(four_classes):
    """Eighty images to train on, of which one is there twice, and one thrice, twice of it paler;
    five are in the test set again, paler.
    """
    images = four_classes / "images"
    (images / "train/a/again.png").write_bytes((images / "train/b/03.png").read_bytes())
    save_paler(images / "train/a/05.png", images / "train/b/paler.png")
    save_paler(images / "train/a/05.png", images / "train/c/paler.png")
    for i in range(5):
        save_paler(images / "train/c" / f"{i:02d}.png", images / "val/c" / f"paler_{i}.png")
    return four_classes


ALL = {"subsets": {"shared": 3, "candidate": 40, "independent": 40, "external": 37}}


def test_duplicates_of_a_folder_are_counted_on_one_line_and_listed(folder, capsys):
    train(four_classes_config(folder, ALL))
    rows = read_rows(folder / "run")
    assert list(rows[0]) == [
        "group", "kind", "distance", "split", "index", "subset", "label", "file",
    ]  # fmt: skip
    files = {}
    for row in rows:
        name = row["file"].split("images/")[-1]
        files.setdefault(int(row["group"]), set()).add((name, row["kind"], row["split"]))
    paler = "train/b/paler.png", "train/c/paler.png"
    assert sorted(files) == list(range(7))
    assert {("train/a/again.png", "exact", "train"), ("train/b/03.png", "exact", "train")} in (
        files.values()
    )
    kinds = {("train/a/05.png", "near", "train"), *((name, "exact", "train") for name in paler)}
    assert kinds in files.values()
    for i in range(5):
        pair = {(f"train/c/{i:02d}.png", "near", "train"), (f"val/c/paler_{i}.png", "near", "test")}
        assert pair in files.values()
    assert {row["distance"] for row in rows if row["kind"] == "exact"} == {"0.0000"}
    assert all(0 <= float(row["distance"]) < 0.1 for row in rows)
    line = line_of(capsys.readouterr().out)
    assert "15 of 120 images in 7 groups, 4 with the pixels of another one" in line
    assert line.endswith(f"{folder}/run/duplicates.csv") and "groups divided: " in line


@pytest.mark.parametrize("changes, can_be_drawn", [
    ({}, True), ({"order": "balanced"}, False), ({"order": "manifest"}, False),
    ({"file": "subsets.npz"}, False),
])  # fmt: skip
def test_drawing_whole_groups_is_advised_only_if_it_can_be_done(changes, can_be_drawn):
    sizes = dict.fromkeys(("shared", "candidate", "independent", "external"), 2)
    duplicates = Duplicates(np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros(2))
    subsets, of = subsets_of_five(shared=[0], candidate=[1]), np.array(["shared", "candidate"])
    line = state_duplicates(duplicates, of, subsets, SubsetSettings(**sizes | changes))
    assert "groups divided: 1 between shared and candidate" in line
    assert ("separate_duplicates" in line) == can_be_drawn


def test_external_images_that_nearly_equal_candidates_are_warned_of_with_their_number(folder):
    for i in range(10):  # warned of as exact copies
        copy = folder / "images/val/d" / f"copy_{i}.png"
        copy.write_bytes((folder / "images/train/d" / f"{i:02d}.png").read_bytes())
    path = four_classes_config(folder, {"subsets": ALL["subsets"] | {"external": 47}})
    with pytest.warns(Caution) as caught:
        train(path)
    rows = read_rows(folder / "run")
    groups = {row["group"] for row in rows if row["subset"] == "candidate"}
    external = [row for row in rows if row["subset"] == "external" and row["group"] in groups]
    count = sum(row["kind"] == "near" for row in external)
    assert 1 <= count < len(external)
    words = f"subsets: {count} external images nearly equal a candidate "
    assert [words in str(warning.message) for warning in caught].count(True) == 1


def test_arrays_are_looked_through_only_if_asked_for_and_folders_unless_refused(tmp_path, folder):
    path = write_experiment(tmp_path)
    train(path)
    assert not (tmp_path / "run/duplicates.csv").exists()
    train(path, "--run", str(tmp_path / "on"), "--subsets.find_duplicates", "true")
    assert (tmp_path / "on/duplicates.csv").read_text().count("\n") >= 1
    assert "file" not in (tmp_path / "on/duplicates.csv").read_text().splitlines()[0]
    off = four_classes_config(
        folder, {"subsets.find_duplicates": False, "run": str(tmp_path / "off")}
    )
    train(off)
    assert not (tmp_path / "off/duplicates.csv").exists()
    assert trained_bytes(tmp_path / "on") == trained_bytes(tmp_path / "run")


def test_records_have_the_new_settings_only_if_they_are_used(tmp_path):
    path = write_experiment(tmp_path)
    plain = read_config("", ["--config", path], SimCLRSettings)
    options = ["--subsets.find_duplicates", "false"]
    found = read_config("", ["--config", path, *options], SimCLRSettings)
    options = ["--subsets.separate_duplicates", "true"]
    whole = read_config("", ["--config", path, *options], SimCLRSettings)
    assert not {"find_duplicates", "separate_duplicates"} & set(plain.subsets.model_dump())
    assert plain.trained_part() == found.trained_part()
    assert found.subsets.model_dump()["find_duplicates"] is False
    assert whole.trained_part()["subsets"]["separate_duplicates"] is True


def test_the_same_command_gives_the_same_bytes_and_a_resumed_run_does_not_look_again(
    folder, capsys, monkeypatch
):
    path = four_classes_config(folder, ALL)
    train(path)
    train(path, "--run", str(folder / "again"))
    content = (folder / "run/duplicates.csv").read_bytes()
    assert content == (folder / "again/duplicates.csv").read_bytes()
    (folder / "run/seed_0/independent/encoder.pt").unlink()
    monkeypatch.setattr(duplicate_check, "find_among", None)
    capsys.readouterr()
    train(path)
    assert line_of(capsys.readouterr().out) == f"duplicates: {folder}/run/duplicates.csv lists them"
    (folder / "run/duplicates.csv").unlink()  # as of an earlier version
    train(path)  # finished
    assert not (folder / "run/duplicates.csv").exists()


def without_duplicates(line):
    return "no group is divided" in line


def test_a_folder_is_drawn_so_that_no_group_is_divided(folder, capsys):
    sizes = {"subsets.shared": 40, "subsets.external": 30}
    path = four_classes_config(folder, sizes | {"subsets.separate_duplicates": True})
    train(path)
    assert without_duplicates(line_of(capsys.readouterr().out))
    subsets_of = {}
    for row in read_rows(folder / "run"):
        subsets_of.setdefault(row["group"], set()).add(row["subset"])
    assert subsets_of and all(len(subsets) == 1 for subsets in subsets_of.values())
    subsets = load_subsets(folder / "run/subsets.npz")
    assert [len(part) for part in (subsets.shared, subsets.candidate, subsets.external)] == [
        40, 20, 30,
    ]  # fmt: skip
    (folder / "run/seed_0/independent/encoder.pt").unlink()
    train(path)  # the same subsets are drawn
    path = four_classes_config(folder, sizes)
    with pytest.raises(SystemExit) as ended:
        train(path)
    assert ended.value.code == 2
    assert "subsets.separate_duplicates: None was given" in capsys.readouterr().err


def test_no_seed_of_a_crossover_divides_a_group():
    twins = [(i, i + 40) for i in range(30)]
    images = with_twins(twins, [(80 + i, i) for i in range(10)])
    sizes = {"scheme": "crossover", "shared": 10, "pool": 100, "external": 20}
    settings = SubsetSettings(**sizes, separate_duplicates=True)
    plain = draw_subsets(settings, images)
    subsets, grouped = separate_duplicates(plain, images, settings, device=images.train.device)
    assert [len(subsets.shared), len(subsets.candidate), len(subsets.external)] == [10, 100, 20]
    assert not set(subsets.external) & set(range(10)) or not set(subsets.train) & set(range(80, 90))
    divided = {"plain": 0, "separate": 0}
    for name, drawn in (("plain", plain), ("separate", subsets)):
        for seed in range(4):
            of_seed = drawn.of_seed(seed)
            sides = {}
            for side in ("shared", "candidate", "independent"):
                sides |= dict.fromkeys(getattr(of_seed, side).tolist(), side)
            divided[name] += sum(
                one in sides and other in sides and sides[one] != sides[other]
                for one, other in twins
            )
    assert divided["plain"] > 20 and divided["separate"] == 0
    of = duplicate_check._names_of_subsets(subsets)
    found = find_among(subsets, grouped, images.train.device)
    assert duplicate_check._count_divided(found, of, subsets) == {}
    found = find_among(plain, images, images.train.device)
    counts = duplicate_check._count_divided(found, of, plain)
    assert counts["between halves of the pool"] > 10 and counts["between pool and external"] > 0


def test_groups_of_a_manifest_are_kept_whole_beside_those_of_duplicates():
    images = with_twins([(0, 31)])
    groups = np.arange(len(images.train) + len(images.test))
    groups[[31, 32]] = 7000  # a patient of two images, the first of which is there twice
    groups = {"train": groups[: len(images.train)], "test": groups[len(images.train) :]}
    splits = {
        split: dataclasses.replace(getattr(images, split), groups=groups[split]) for split in groups
    }
    images = dataclasses.replace(images, **splits)
    settings = SubsetSettings(
        shared=20, candidate=20, independent=20, external=10, separate_duplicates=True
    )
    subsets = draw_subsets(settings, images)
    subsets, grouped = separate_duplicates(subsets, images, settings, images.train.device)
    assert len({int(grouped.train.groups[i]) for i in (0, 31, 32)}) == 1
    homes = [
        name
        for name in ("shared", "candidate", "independent")
        if set(getattr(subsets, name)) & {0, 31, 32}
    ]
    assert len(homes) <= 1


def test_without_duplicates_nothing_is_drawn_anew():
    images = fake_images()
    pixels = np.random.default_rng(0).integers(0, 256, tuple(images.train.pixels.shape))
    train_split = dataclasses.replace(
        images.train, pixels=images.train.pixels.new_tensor(pixels.astype(np.uint8))
    )
    images = dataclasses.replace(images, train=train_split)
    settings = SubsetSettings(
        shared=20, candidate=20, independent=20, external=2, separate_duplicates=True
    )
    plain = draw_subsets(settings, images)
    subsets, same = separate_duplicates(plain, images, settings, images.train.device)
    assert subsets is plain and same is images


def test_a_file_of_subsets_is_not_drawn_anew_and_the_screen_says_so(folder, capsys):
    """As where an image belongs was decided before; remove_samples.py trains so again."""
    whole = {"subsets.shared": 40, "subsets.external": 30, "subsets.separate_duplicates": True}
    path = four_classes_config(folder, whole)
    train(path)
    line = "subsets.separate_duplicates: true has no effect: subsets.file says"
    assert line not in capsys.readouterr().out
    subsets = folder / "run/subsets.npz"
    train(path, "--run", str(folder / "again"), "--subsets.file", str(subsets))
    assert capsys.readouterr().out.count(line) == 1
    ones, others = load_subsets(subsets), load_subsets(folder / "again/subsets.npz")
    assert ones.fingerprint == others.fingerprint


def test_two_processes_list_and_draw_what_one_does(folder):
    options = ["--subsets.separate_duplicates", "true"]
    changes = {
        "encoder": {"name": "vit_mini", "width": 32, "depth": 1},
        "method": {"name": "simclr", "hidden_dim": 8, "projection_dim": 8, "head_norm": "layer"},
    }
    path = four_classes_config(folder, changes)
    train(path, *options)
    options += ["--config", path, "--run", str(folder / "two")]
    first, second = start_together("train_simclr.py", *options)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert len(re.findall("^duplicates: ", first.stdout + second.stdout, re.MULTILINE)) == 1
    for name in ("duplicates.csv",):
        assert (folder / "run" / name).read_bytes() == (folder / "two" / name).read_bytes()
    one, two = (load_subsets(folder / run / "subsets.npz") for run in ("run", "two"))
    assert one.fingerprint == two.fingerprint


def test_a_pair_in_one_subset_is_no_reason_for_a_warning(four_classes, capsys):
    changes = {"subsets.shared": 40}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(four_classes_config(four_classes, changes))
    assert line_of(capsys.readouterr().out) == (
        f"duplicates: none among 100 images: {four_classes}/run/duplicates.csv"
    )
    assert read_rows(four_classes / "run") == []
