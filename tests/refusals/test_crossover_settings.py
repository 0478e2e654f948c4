"""The sizes of a fixed split and those of a crossover are told apart, and files that do not fit are
refused.
"""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import draw_crossover, draw_few, fake_images, write_experiment

from memorization.config import read_config
from memorization.data.subsets import (
    SubsetSettings,
    check_subsets,
    draw_subsets,
    load_subsets,
    save_subsets,
)
from memorization.errors import WrongUse
from models.simclr import SimCLRSettings

CROSSOVER = {"scheme": "crossover", "shared": 32, "pool": 48, "external": 40}


def read(folder, changes, *options):
    path = write_experiment(folder, changes)
    return read_config("", ["--config", path, *options], SimCLRSettings).subsets


@pytest.mark.parametrize("changes, reason", [
    ({"subsets.pool": 48}, "pool is 48, but scheme: fixed takes candidate and independent alone"),
    ({"subsets.candidate": None}, "candidate is missing: scheme: fixed takes candidate and indep"),
    ({"subsets": CROSSOVER | {"candidate": 24}}, "candidate is 24, but scheme: crossover takes p"),
    ({"subsets": CROSSOVER | {"independent": 24}}, "independent is 24, but scheme: crossover tak"),
    ({"subsets": CROSSOVER | {"pool": None}}, "pool is missing: scheme: crossover takes pool"),
    ({"subsets": CROSSOVER | {"pool": 49}}, "pool is 49, but must be even: it is halved"),
])  # fmt: skip
def test_sizes_of_the_other_scheme_missing_sizes_and_odd_pools_are_refused(
    changes, reason, tmp_path
):
    with pytest.raises(WrongUse, match=f"tiny.yaml: subsets: {reason}"):
        read(tmp_path, changes)


def test_an_option_that_breaks_the_rule_is_named(tmp_path):
    with pytest.raises(WrongUse, match="command line: --subsets.pool 47: subsets: pool is 47"):
        read(tmp_path, {"subsets": CROSSOVER}, "--subsets.pool", "47")
    with pytest.raises(WrongUse, match="command line: --subsets.candidate 24: subsets: cand"):
        read(tmp_path, {"subsets": CROSSOVER}, "--subsets.candidate", "24")


def test_the_command_line_can_change_the_scheme(tmp_path):
    sizes = "--subsets.pool 48 --subsets.candidate null --subsets.independent null".split()
    subsets = read(tmp_path, {}, "--subsets.scheme", "crossover", *sizes)
    assert (subsets.pool, subsets.candidate, subsets.independent) == (48, None, None)


def test_a_pool_larger_than_the_data_set_is_refused():
    with pytest.raises(WrongUse, match="shared . pool is 2004, but the train set has only 1024"):
        draw_crossover(pool=2000)


def test_balanced_needs_labels():
    images = fake_images()
    train = dataclasses.replace(images.train, labels=torch.full((len(images.train),), -1))
    settings = SubsetSettings(shared=0, candidate=4, independent=4, external=4, order="balanced")
    with pytest.raises(WrongUse, match="subsets.order: 'balanced' needs labels, but fake has none"):
        draw_subsets(settings, dataclasses.replace(images, train=train))


def test_a_subset_file_of_the_other_scheme_is_refused(tmp_path):
    file = tmp_path / "subsets.npz"
    fixed = {"shared": 0, "candidate": 4, "independent": 4, "external": 4, "file": str(file)}
    crossover = {"scheme": "crossover", "shared": 0, "pool": 8, "external": 4, "file": str(file)}
    for subsets, given in ((draw_crossover(), fixed), (draw_few(), crossover)):
        save_subsets(dataclasses.replace(subsets, data=fake_images().fingerprint), file)
        with pytest.raises(WrongUse, match=f"subsets.file: .*scheme is '{subsets.scheme}', but"):
            draw_subsets(SubsetSettings(**given), fake_images())


def changed_file(path, **arrays):
    """Write the file of a crossover with the halves of two seeds, and change arrays of it."""
    save_subsets(draw_crossover(), path, seeds=[0, 1])
    with np.load(path) as file:
        np.savez(path, **{**file, **arrays})
    return path


def test_a_changed_file_of_a_crossover_is_refused(tmp_path):
    subsets, path = draw_crossover(), tmp_path / "subsets.npz"
    one, other = subsets.of_seed(1).candidate, subsets.of_seed(1).independent
    for changes, reason in (
        ({"seed_1_candidate": other, "seed_1_independent": one}, "seed_1_candidate is not what"),
        ({"seed_0_independent": other[:-1]}, "seed_0_independent is not what seed 0 draws"),
        ({f"seed_{2**63 - 1}_candidate": one}, f"is not what seed {2**63 - 1} draws"),
        ({"pool": np.roll(subsets.candidate, 1)}, "its fingerprint does not fit"),
        ({"scheme": "fixed"}, "not a whole file of subsets"),
        ({"scheme": "both"}, "its fingerprint does not fit"),
    ):
        with pytest.raises(WrongUse, match=reason):
            load_subsets(changed_file(path, **changes))
    odd = dataclasses.replace(subsets, candidate=subsets.candidate[1:])
    with pytest.raises(WrongUse, match="11 images in the pool, which is halved"):
        check_subsets(odd)
