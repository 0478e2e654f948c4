"""Too few images are refused; subsets that differ in more than membership are warned of, with the
remedy.
"""

import os
import shutil
import warnings

import numpy as np
import pytest
from conftest import draw_few, four_classes_config, with_twins, write_experiment

import memorization_scores
import train_simclr
from memorization.config import read_config
from memorization.data.confounders import warn_of_confounders
from memorization.data.subsets import Subsets, SubsetSettings
from memorization.errors import Caution, WrongUse
from models.simclr import SimCLRSettings


@pytest.mark.parametrize("settings", [{"shared": 1019}, {"external": 257}])
def test_too_few_images_are_refused(settings):
    with pytest.raises(WrongUse, match="only"):
        draw_few(**settings)


def order_of(path):
    return read_config("", ["--config", path], SimCLRSettings).subsets.order


def test_a_folder_is_shuffled_unless_an_order_is_given(four_classes, capsys):
    assert (
        order_of(four_classes_config(four_classes)) == "shuffled"
        and "subsets.order is not given" in capsys.readouterr().out
    )
    assert (
        order_of(four_classes_config(four_classes, {"subsets.order": "file"})) == "file"
        and capsys.readouterr().out == ""
    )
    assert order_of(write_experiment(four_classes, {})) == "file" and capsys.readouterr().out == ""


def test_a_run_that_was_begun_in_file_order_goes_on_in_it(four_classes):
    path = four_classes_config(four_classes, {"subsets.order": "file"})
    with pytest.warns(Caution, match="classes hardly overlap"):
        train_simclr.main(["--config", path])
    path = four_classes_config(four_classes)
    assert order_of(path) == "file"
    with pytest.warns(Caution, match="classes hardly overlap"):
        train_simclr.main(["--config", path, "--seeds", "0", "1"])


def test_training_and_scoring_warn_of_subsets_of_other_classes_with_the_remedy(four_classes):
    path = four_classes_config(four_classes, {"subsets.order": "file"})
    for script in (train_simclr, memorization_scores):
        with pytest.warns(
            Caution, match="candidate and independent .100% differ.*set subsets.order to shuffled"
        ):
            script.main(["--config", path])


def test_training_and_scoring_warn_of_copies_of_files(four_classes):
    for i in range(20):
        os.link(
            four_classes / "images/train/a" / f"{i:02d}.png",
            four_classes / "images/train/a" / f"copy_{i:02d}.png",
        )
    for i in range(8):
        shutil.copy(
            four_classes / "images/train/b" / f"{i:02d}.png",
            four_classes / "images/val/b" / f"{i:02d}.png",
        )
    path = four_classes_config(four_classes, {"subsets.shared": 40})
    for script in (train_simclr, memorization_scores):
        pairs = ".* of shared in candidate.* of candidate in independent.* in external"
        with pytest.warns(Caution, match=f"the same image{pairs}"):
            script.main(["--config", path])


def test_subsets_that_differ_in_membership_alone_give_no_warning(four_classes):
    path = four_classes_config(four_classes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_simclr.main(["--config", path])


def test_one_line_warns_of_twins():
    subsets = Subsets(*np.split(np.arange(30), 3), np.arange(10))
    settings = SubsetSettings(shared=10, candidate=10, independent=10, external=10)
    words = "the same image .equal pixels. stands in two subsets: 1 of shared in candidate"
    with pytest.warns(Caution, match=words):
        warn_of_confounders(subsets, with_twins([(0, 10)]), settings)
