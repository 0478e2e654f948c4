"""A crossover: every seed halves the pool anew, and what an image is like stands on both sides."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import draw_crossover, draw_few, fake_images, score, train, write_experiment

import memorization_scores
from memorization.checkpoint import read_checkpoint
from memorization.config import read_config
from memorization.data.images import open_images
from memorization.data.subsets import (
    ROLES,
    SubsetSettings,
    draw_subsets,
    load_subsets,
    save_subsets,
)
from memorization.training.task import Task
from models.simclr import SimCLRSettings

CROSSOVER = {"scheme": "crossover", "shared": 32, "pool": 48, "external": 40, "order": "shuffled"}
QUICK = {"subsets": CROSSOVER, "seeds": [0, 1], "training.epochs": 1, "scores.views": 3}


def halves_of(subsets, seed):
    """The images that f and g of a seed have each alone, two sets."""
    of_seed = subsets.of_seed(seed)
    return set(of_seed.candidate.tolist()), set(of_seed.independent.tolist())


def classes_in(indices, labels):
    return np.bincount(labels[indices] + 1, minlength=12)


def test_the_pool_follows_the_shared_images_in_the_order_of_the_fixed_scheme():
    subsets = draw_crossover()
    assert subsets.shared.tolist() == [0, 1, 2, 3] and len(subsets.independent) == 0
    assert sorted(subsets.candidate.tolist()) == list(range(4, 16))
    assert sorted(subsets.train.tolist()) == list(range(16))
    fixed = draw_few(shared=4, candidate=6, independent=6, order="shuffled", seed=3)
    shuffled = draw_crossover(order="shuffled", seed=3)
    assert set(shuffled.candidate) == {*fixed.candidate, *fixed.independent}


@pytest.mark.parametrize("order", ["file", "shuffled", "balanced"])
def test_in_every_seed_each_image_of_the_pool_is_in_one_training_set_and_shared_ones_in_both(order):
    subsets = draw_crossover(order=order)
    for seed in range(20):
        f, g = (subsets.of_seed(seed).training_set(role) for role in ROLES)
        assert f[:4].tolist() == g[:4].tolist() == subsets.shared.tolist()
        assert len(f) == len(g) == 10 and not set(f[4:]) & set(g[4:])
        assert {*f[4:], *g[4:]} == set(subsets.candidate)


def test_halves_of_different_seeds_are_independent():
    subsets, count = draw_crossover(shared=0, pool=1000), 500
    of_seeds = [halves_of(subsets, seed)[0] for seed in range(12)]
    common = [len(one & other) for one, other in combinations(of_seeds, 2)]
    # The number of equal tosses of 500 coins: its mean is 250, and its variance 125.
    assert np.mean(common) == pytest.approx(count / 2, abs=4 * (125 / len(common)) ** 0.5)
    assert np.var(common) == pytest.approx(125, rel=0.7)
    first_half = set(subsets.candidate[::2].tolist())
    assert len(of_seeds[0] & first_half) == pytest.approx(250, abs=4 * 125**0.5)


def test_over_many_seeds_each_image_is_in_f_as_often_as_in_g():
    subsets = draw_crossover()
    times = sum(np.isin(subsets.candidate, subsets.of_seed(s).candidate) for s in range(1000))
    assert np.abs(times - 500).max() < 4.5 * 250**0.5


def test_a_seed_draws_its_halves_whatever_other_seeds_there_are(tmp_path):
    subsets, path = draw_crossover(), tmp_path / "subsets.npz"
    for seeds in ([], [7], [3, 7, 2**63 - 1]):
        save_subsets(subsets, path, seeds)
        loaded = load_subsets(path)
        assert loaded.fingerprint == subsets.fingerprint and loaded.scheme == "crossover"
        assert halves_of(loaded, 7) == halves_of(subsets, 7)
        names = {f"seed_{seed}_{role}" for seed in seeds for role in ROLES}
        with np.load(path) as file:
            assert {name for name in file if name.startswith("seed_")} == names
            for name in names:
                seed, role = int(name.split("_")[1]), name.split("_")[2]
                assert file[name].tolist() == getattr(subsets.of_seed(seed), role).tolist()


def test_a_pool_and_a_fixed_split_of_the_same_images_have_different_fingerprints():
    subsets = draw_crossover()
    assert dataclasses.replace(subsets, scheme="fixed").fingerprint != subsets.fingerprint
    swapped = dataclasses.replace(subsets, candidate=subsets.candidate[::-1].copy())
    assert swapped.fingerprint != subsets.fingerprint


def test_scores_of_the_pool_are_signed_by_who_has_the_image():
    subsets = draw_crossover()
    for seed in range(5):
        f, g = halves_of(subsets, seed)
        some = np.sort(subsets.candidate)[1::2]  # not all need be scored
        expected = [1 if index in f else -1 for index in some]
        assert subsets.signs("candidate", some, seed).tolist() == expected


def test_images_that_nobody_or_both_have_are_halved_as_if_they_were_a_pool():
    subsets = draw_crossover(shared=200, external=201)
    for name in ("shared", "external"):
        indices = getattr(subsets, name)
        signs = np.stack([subsets.signs(name, indices, seed) for seed in range(50)])
        assert np.abs(signs.sum(axis=1)).max() <= 1  # the offset of a pair cancels
        assert np.abs(signs.mean(axis=0)).max() < 4.5 / 50**0.5  # neither half is always the same
        some = indices[::3]
        assert np.array_equal(subsets.signs(name, some, 7), signs[7, ::3])


def test_in_a_fixed_split_f_counts_for_every_image_and_seeds_do_not_matter():
    subsets = draw_few()
    assert subsets.of_seed(5) is subsets
    assert subsets.signs("independent", subsets.independent, 5).tolist() == [1, 1, 1]


def test_balanced_halves_have_as_many_images_of_each_class_in_every_seed():
    images = fake_images()
    labels = images.train.labels.numpy().copy()
    labels[::5] = -1
    train_split = dataclasses.replace(images.train, labels=torch.from_numpy(labels))
    images = dataclasses.replace(images, train=train_split)
    sizes = {"shared": 50, "external": 4, "order": "balanced", "seed": 1}
    fixed = draw_subsets(SubsetSettings(candidate=101, independent=101, **sizes), images)
    pool = draw_subsets(SubsetSettings(scheme="crossover", pool=202, **sizes), images)
    assert set(pool.candidate) == {*fixed.candidate, *fixed.independent}
    for subsets in (fixed, *map(pool.of_seed, range(10))):
        f, g = (classes_in(getattr(subsets, role), labels) for role in ROLES)
        is_odd = classes_in(pool.candidate, labels) % 2
        assert is_odd.any() and np.array_equal(np.abs(f - g), is_odd)
    shuffled = draw_subsets(
        SubsetSettings(scheme="crossover", pool=202, **sizes | {"order": "shuffled"}), images
    )
    assert np.array_equal(shuffled.shared, pool.shared) and set(shuffled.candidate) == set(
        pool.candidate
    )


@pytest.fixture(scope="module")
def crossover_run(tmp_path_factory):
    """(config path, run folder) of a tiny crossover of two seeds, trained. Not to be changed."""
    folder = tmp_path_factory.mktemp("crossover")
    path = write_experiment(folder, QUICK)
    train(path)
    return path, folder / "run"


def test_encoders_of_a_seed_are_trained_on_their_halves(crossover_run):
    path, run = crossover_run
    config = read_config("", ["--config", path], SimCLRSettings)
    subsets, images = load_subsets(run / "subsets.npz"), open_images(config.data)
    with np.load(run / "subsets.npz") as file:
        for seed in (0, 1):
            for role in ROLES:
                task = Task(config, images, subsets, torch.device("cpu"), run, seed, role)
                own = np.concatenate([file["shared"], file[f"seed_{seed}_{role}"]])
                assert task.training_set.tolist() == own.tolist() and len(own) == 56
                task.check_encoder()


def test_a_seed_of_a_crossover_equals_a_fixed_split_into_its_halves(crossover_run, tmp_path):
    _, run = crossover_run
    file = tmp_path / "halves.npz"
    save_subsets(load_subsets(run / "subsets.npz").of_seed(1), file)
    fixed = {"shared": 32, "candidate": 24, "independent": 24, "external": 40, "file": str(file)}
    train(write_experiment(tmp_path, QUICK | {"subsets": fixed, "seeds": [1]}))
    for role in ROLES:
        place = f"seed_1/{role}/encoder.pt"
        one, other = (read_checkpoint(folder / place) for folder in (run, tmp_path / "run"))
        assert one["weights"].keys() == other["weights"].keys()
        for name, weight in one["weights"].items():
            assert torch.equal(weight, other["weights"][name]), name


def test_scores_do_not_depend_on_the_order_in_which_seeds_were_trained(
    crossover_run, tmp_path, monkeypatch
):
    for name in ("draw_histogram", "draw_scatter", "draw_gallery"):
        monkeypatch.setattr(memorization_scores, name, lambda *_: None)
    path, run = crossover_run
    other_path = write_experiment(tmp_path, QUICK)
    for seed in ("1", "0"):
        train(other_path, "--seeds", seed)
    for config in (path, other_path):
        score(config)
    for name in ("subsets.npz", "scores/scores.csv", "scores/scores.npz"):
        assert (run / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name
