"""Halves of a crossover's seeds join subsets.npz, in any order and from several processes."""

import numpy as np
import pytest
from conftest import train, write_experiment
from test_run_files import prepared, seeds_of, start_at_once

from memorization.data.subsets import ROLES, load_subsets, seeds_in
from memorization.errors import Caution
from memorization.training.run_files import RunFiles

SUBSETS = {"scheme": "crossover", "shared": 16, "pool": 32, "external": 8}
QUICK = {"subsets": SUBSETS, "training.epochs": 1}


def open_for(config, subsets, *seeds):
    RunFiles(config.model_copy(update={"seeds": list(seeds)})).open(subsets)


def test_seeds_that_come_later_in_any_order_extend_the_file(write_config, tmp_path):
    config, subsets = prepared(write_config(QUICK))
    path = tmp_path / "run/subsets.npz"
    for seed in (5, 2, 9):
        open_for(config, subsets, seed)
    content = path.read_bytes()
    assert seeds_in(path) == {2, 5, 9} and seeds_of(tmp_path / "run") == [2, 5, 9]
    assert load_subsets(path).fingerprint == subsets.fingerprint
    open_for(config, subsets, 2, 9)
    assert path.read_bytes() == content
    path.unlink()
    (tmp_path / "run/config.yaml").unlink()
    for seed in (9, 5, 2):
        open_for(config, subsets, seed)
    assert path.read_bytes() == content


def test_processes_that_start_at_once_lose_no_halves_of_each_other(write_config, tmp_path):
    config, subsets = prepared(write_config(QUICK))
    start_at_once(lambda seed: open_for(config, subsets, seed), 8)
    path = tmp_path / "run/subsets.npz"
    assert seeds_in(path) == set(range(8)) == set(seeds_of(tmp_path / "run"))
    with np.load(path) as file:
        for seed in range(8):
            for role in ROLES:
                own = getattr(subsets.of_seed(seed), role)
                assert file[f"seed_{seed}_{role}"].tolist() == own.tolist()


@pytest.mark.parametrize("lost", [["subsets.npz"], ["subsets.npz", "config.yaml"]])
def test_a_lost_file_is_written_again_with_the_halves_of_all_trained_seeds(lost, tmp_path):
    path = write_experiment(tmp_path, QUICK)
    train(path, "--seeds", "1", "--role", "candidate")
    train(path, "--seeds", "0", "--role", "candidate")
    file = tmp_path / "run/subsets.npz"
    content = file.read_bytes()
    for name in lost:
        (tmp_path / "run" / name).unlink()
    with pytest.warns(Caution, match="was lost; it is written again"):
        train(path, "--seeds", "0", "--role", "candidate")
    assert file.read_bytes() == content and seeds_of(tmp_path / "run") == [0, 1]


def test_a_lost_config_costs_no_halves(write_config, tmp_path):
    config, subsets = prepared(write_config(QUICK))
    open_for(config, subsets, 0, 1)
    (tmp_path / "run/config.yaml").unlink()
    open_for(config, subsets, 2)
    assert seeds_in(tmp_path / "run/subsets.npz") == {0, 1, 2}


def test_a_fixed_split_is_written_once_and_holds_no_halves(write_config, tmp_path):
    config, subsets = prepared(write_config())
    open_for(config, subsets, 0)
    path = tmp_path / "run/subsets.npz"
    inode = path.stat().st_ino
    open_for(config, subsets, 1)
    assert path.stat().st_ino == inode
    with np.load(path) as file:
        arrays = ["shared", "candidate", "independent", "external", "data", "fingerprint"]
        assert list(file) == arrays
