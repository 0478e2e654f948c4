"""The same command gives the same numbers, and does no work twice."""

import json
import shutil
from dataclasses import fields

import torch
from conftest import EVERY_OPERATION, NORMALIZATION, QUICK_PROBE, ask, keys_of, made_up_split, score

import linear_probing_train
from memorization.data.augmentations import Draw, augment, draw_parameters
from memorization.data.randomness import permutation, sample_keys, stream
from memorization.data.recipes import ViewRecipe


def test_numbers_stay_the_same_from_one_version_of_this_code_to_the_next():
    """Or a run could no longer be repeated: neither its subsets nor its views."""
    assert stream(3, "scoring", "test", epoch=2, view=7) == -8746633141207668856
    keys = sample_keys(-8746633141207668856, torch.tensor([0, 5]))
    assert keys.tolist() == [7449964128719275276, 8143096612378531198]
    assert permutation(10, seed=3, purpose="subsets").tolist() == [3, 0, 2, 1, 8, 4, 7, 9, 6, 5]


def test_the_same_arguments_share_all_parameters_whatever_was_drawn_before(one_thread):
    images, recipe = made_up_split(20, 3, 16), ViewRecipe(size=16, **EVERY_OPERATION)
    indices, scoring = torch.arange(20), Draw(0, "scoring", epoch=2)

    def draw_once():
        drawn = draw_parameters(recipe, keys_of(20, 0, "scoring", "test", 2, 3), 16)
        view = augment(images, indices, recipe, NORMALIZATION[3], scoring, view=3)
        return [view.pixels, *(getattr(drawn, field.name) for field in fields(drawn))]

    first = draw_once()
    torch.rand(1)
    state = torch.get_rng_state()
    assert all(map(torch.equal, first, draw_once()))
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not used either


def test_the_same_command_gives_the_same_bytes(scored_run, run_copy):
    path, run = run_copy
    shutil.rmtree(run / "scores")
    score(path, "--run", str(run))
    for name in ("scores.csv", "scores.npz"):
        assert (run / "scores" / name).read_bytes() == (
            scored_run[1] / "scores" / name
        ).read_bytes()


def test_a_repeated_command_gives_the_same_bytes(run_copy):
    path, run = run_copy
    ask(path, run)
    first = (run / "dejavu/dejavu.csv").read_bytes()
    ask(path, run, "--dejavu.memory_gb", "0.0001")
    assert (run / "dejavu/dejavu.csv").read_bytes() == first


def test_the_same_command_gives_the_same_numbers(probed_run, tmp_path):
    path, run = probed_run
    results = json.loads((run / "probe/summary.json").read_text())["results"]
    cached = sorted((run / "probe/representations").iterdir())
    linear_probing_train.main(["--config", path, "--run", str(run), *QUICK_PROBE])
    assert json.loads((run / "probe/summary.json").read_text())["results"] == results
    assert sorted((run / "probe/representations").iterdir()) == cached and len(cached) == 12
