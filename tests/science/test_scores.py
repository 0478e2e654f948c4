import itertools
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import foreign_encoder, last_written, noise_images, read_table, score, table_with
from scipy import stats

import train_simclr
from memorization.checkpoint import load_pair, read_checkpoint, save_checkpoint
from memorization.config import read_config
from memorization.data.augmentations import Draw, augment
from memorization.data.catalogue import DataSettings
from memorization.data.images import Split, open_images
from memorization.data.recipes import ViewRecipe
from memorization.data.subsets import SUBSETS, load_subsets
from memorization.measuring.score_tables import rows_to_score, score_rows
from memorization.measuring.scores import Scoring, score_images

SCALES = ("score", "score_range", "score_ratio")
OTHER_RECIPES = [{"size": 16, "rotate": [90]}, {"size": 16, "crop_scale": [0.3, 0.6]}, {"size": 8}]
NOISY_HALF = {"size": 16, "mask_ratio": 0.5, "noise": 0.1}


@pytest.fixture(scope="module")
def images():
    return open_images(DataSettings(name="fake", size=16))


def arrays_of(folder):
    with np.load(folder / "scores.npz") as arrays:
        return dict(arrays)


def training_recipes(pair):
    return [ViewRecipe(**recipe) for recipe in pair.f.record["config"]["augmentation"]["views"]]


def draw_views(split, index, recipes, normalization, draw, count=4):
    """Views of one image, one by one, by the recipes in turn."""
    in_turn, index = itertools.cycle(recipes), torch.tensor([index])
    return [augment(split, index, next(in_turn), normalization, draw, v) for v in range(count)]


def mean_distance(vectors):
    """The alignment loss of one image, written out: the mean over all pairs of views."""
    return torch.pdist(torch.stack(vectors).double()).mean().item()


@pytest.mark.parametrize("subset, row", [("candidate", 40), ("external", 100)])
@pytest.mark.parametrize("recipes", ["training", OTHER_RECIPES])
def test_scores_equal_the_definition_written_out(subset, row, recipes, run_copy, images):
    """By the recipes of full size in turn."""
    table_with(run_copy, "--scores.augmentation", str(recipes))
    by_training, (_, run), split = recipes == "training", run_copy, SUBSETS[subset]
    folder = run / "scores" if by_training else next((run / "scores").glob("augmentation_*"))
    arrays, pair = arrays_of(folder), load_pair(run, seed=1)
    assert arrays["subset"][row] == subset and arrays["split"][row] == split
    recipes = training_recipes(pair) if by_training else [ViewRecipe(**r) for r in recipes[:2]]
    assert all(recipe.size == 16 for recipe in recipes)
    source, index, draw = getattr(images, split), arrays["index"][row], Draw(1, "scoring")
    views = draw_views(source, index, recipes, images.normalization, draw)
    for encoder, name in ((pair.f.network, "L_f"), (pair.g.network, "L_g")):
        vectors = [F.normalize(encoder(view.pixels), dim=1)[0] for view in views]
        assert arrays[name][1, row] == pytest.approx(mean_distance(vectors), abs=1e-6)


@pytest.mark.parametrize("representation", ["pooled", "tokens"])
@pytest.mark.parametrize("recipe", ["training", NOISY_HALF, {"size": 16, "rotate": [0, 90]}])
def test_scores_of_a_masked_autoencoder_equal_the_definition_written_out(
    representation, recipe, masked_run, tmp_path, images
):
    """Tokens are compared only at patches that both views see."""
    path, run = masked_run[0], shutil.copytree(masked_run[1], tmp_path / "run")
    by_training = recipe == "training"
    options = [] if by_training else ["--scores.augmentation", f"[{recipe}]"]
    score(path, "--run", str(run), "--scores.representation", representation, *options)
    folder, pair, row = last_written(run, "scores.npz"), load_pair(run, seed=0), 40
    assert (folder == run / "scores") == (by_training and representation == "pooled")
    settings = json.loads((folder / "summary.json").read_text())["settings"]
    assert by_training or recipe.items() <= settings["augmentation"][0].items()
    recipes = training_recipes(pair) if by_training else [ViewRecipe(**recipe)]
    arrays, draw = arrays_of(folder), Draw(0, "scoring", patch=2)
    views = draw_views(images.train, arrays["index"][row], recipes, images.normalization, draw)
    visible = [set(range(64) if v.visible is None else v.visible[0].tolist()) for v in views]
    assert {len(patches) for patches in visible} == {64 - int(64 * recipes[0].mask_ratio)}

    def vector(encoder, v, places):
        """What an encoder makes of view v, restricted to some patches."""
        if representation == "pooled":
            return F.normalize(encoder(views[v].pixels, views[v].visible), dim=1)[0]
        tokens = encoder.tokens(views[v].pixels, views[v].visible)[0]
        kept = [0] + [1 + i for i, place in enumerate(sorted(visible[v])) if place in places]
        return F.normalize(tokens[kept].flatten(), dim=0)

    for encoder, name in ((pair.f.network, "L_f"), (pair.g.network, "L_g")):
        distances = []
        for i, j in itertools.combinations(range(4), 2):
            one, other = (vector(encoder, v, visible[i] & visible[j]) for v in (i, j))
            distances.append(torch.dist(one, other).item())
        loss = arrays[name][0, row]
        assert loss == pytest.approx(np.mean(distances), abs=1e-6) and loss > 0


def test_the_scales_follow_from_the_raw_losses(scored_run):
    folder = scored_run[1] / "scores"
    table, arrays = read_table(folder)[1], arrays_of(folder)
    losses_f, losses_g = arrays["L_f"], arrays["L_g"]  # (2, N)
    assert losses_f.shape == (2, 120) and losses_f.min() > 0
    assert np.array_equal(table["alignment_loss_f"], losses_f.mean(0))
    assert np.array_equal(table["alignment_loss_g"], losses_g.mean(0))
    assert np.array_equal(table["score"], table["alignment_loss_g"] - table["alignment_loss_f"])
    assert np.ptp(table["score_range"]) == pytest.approx(1)
    assert np.allclose(table["score_range"], table["score"] / np.ptp(table["score"]))
    scores = losses_g - losses_f
    assert np.allclose(table["score_ratio"], (scores / (losses_g + losses_f)).mean(0))
    for name in SUBSETS:
        rows = table["subset"] == name
        pooled = np.sqrt(scores[:, rows].var(0, ddof=1).mean() / 2)
        assert np.allclose(table["stderr"][rows], pooled)


def test_with_one_seed_the_error_of_views_is_the_jackknifes_and_that_of_the_score_larger(run_copy):
    table = table_with(run_copy, "--seeds", "1")
    jackknife = arrays_of(run_copy[1] / "scores/seeds_1")["jackknife"]
    assert np.array_equal(table["stderr_views"], jackknife[0]) and jackknife.min() > 0
    external = np.abs(table["score"][table["subset"] == "external"])
    assert np.allclose(table["stderr"], 1.4826 * np.median(external))
    assert table["stderr"].min() > np.median(jackknife)


def test_the_offset_of_a_pair_and_the_contrasts_that_are_free_of_it(scored_run):
    folder = scored_run[1] / "scores"
    summary, table = json.loads((folder / "summary.json").read_text()), read_table(folder)[1]
    means = {name: table["score"][table["subset"] == name].mean() for name in SUBSETS}
    assert summary["offset_on_unseen_images"] == pytest.approx(means["external"])
    contrasts = summary["free_of_the_offset"]
    half = contrasts["(candidate - independent) / 2"]["value"]
    assert half == pytest.approx((means["candidate"] - means["independent"]) / 2)
    low, high = contrasts["candidate - external"]["interval_95"]
    assert low < contrasts["candidate - external"]["value"] < high
    over_seeds = summary["over_seeds"]["means"]["candidate"]
    assert np.mean(over_seeds) == pytest.approx(means["candidate"])


def test_per_subset_takes_the_same_images_whatever_else_is_scored(scored_run, run_copy):
    whole = read_table(scored_run[1] / "scores")[1]
    few = table_with(run_copy, "--scores.per_subset", "10")
    assert few["subset"].tolist() == [name for name in SUBSETS for _ in range(10)]
    position = {key: i for i, key in enumerate(zip(whole["subset"], whole["index"]))}
    rows = [position[key] for key in zip(few["subset"], few["index"])]
    # by hash, not the first in the file
    assert few["index"].tolist() != [*range(10), *range(32, 42), *range(56, 66), *range(10)]
    assert np.abs(few["score"] - whole["score"][rows]).max() < 1e-6
    assert set(few["index"]) >= set(table_with(run_copy, "--scores.per_subset", "5")["index"])


def put(run, record, role):
    """Put the weights of a record in the place of an encoder of seed 0, under its role."""
    save_checkpoint(run / f"seed_0/{role}/encoder.pt", record | {"role": role})


def test_f_against_f_scores_exactly_zero(run_copy):
    _, run = run_copy
    put(run, read_checkpoint(run / "seed_0/candidate/encoder.pt"), "independent")
    table = table_with(run_copy, "--seeds", "0")
    assert not any(table[column].any() for column in (*SCALES, "stderr"))
    assert (table["alignment_loss_f"] > 0).all()


def test_swapping_f_and_g_flips_every_sign_exactly(run_copy):
    before, (_, run) = table_with(run_copy, "--seeds", "0"), run_copy
    roles = ("candidate", "independent")
    f, g = (read_checkpoint(run / f"seed_0/{role}/encoder.pt") for role in roles)
    put(run, f, "independent")
    put(run, g, "candidate")
    after = table_with(run_copy, "--seeds", "0")
    for column in SCALES:
        assert np.array_equal(after[column], -before[column]) and before[column].any()
    assert np.array_equal(after["stderr"], before["stderr"])


def test_two_random_halves_of_the_external_images_agree(write_config, tmp_path):
    path = write_config({"subsets.external": 256})
    train_simclr.main(["--config", path])
    score(path)
    table = read_table(tmp_path / "run/scores")[1]
    external = table["score"][table["subset"] == "external"]
    one, other = np.random.default_rng(0).permutation(external).reshape(2, 128)
    assert 0 < abs(one.mean() - other.mean()) < 4 * np.hypot(stats.sem(one), stats.sem(other))


def test_jackknife_errors_predict_scores_with_fresh_views(scored_run):
    """z of scores that are repeated with other seeds of the views has standard deviation 1."""
    path, run = scored_run
    config = read_config("", ["--config", path, "--scores.views", "10"])
    images, pair = open_images(config.data), load_pair(run, seed=0)
    rows = rows_to_score(load_subsets(run / "subsets.npz"), images, 20)
    recipes, scorings = config.augmentation.views, map(config.scores.scoring, range(100, 120))
    repeats = [score_rows(pair, images, rows, recipes, scoring) for scoring in scorings]
    repeated = np.stack([repeat.score for repeat in repeats])  # (repeats, N)
    errors = np.sqrt(np.mean([repeat.error**2 for repeat in repeats], axis=0))
    z = (repeated - repeated.mean(0)) / errors * np.sqrt(20 / 19)
    assert z.std() == pytest.approx(1, abs=0.15)


def test_images_of_an_array_are_scored_by_encoders_of_any_origin():
    images, recipes = Split.from_array(noise_images()), [ViewRecipe(size=16, crop_scale=[0.3, 1.0])]
    f, g = (foreign_encoder(name, seed) for seed, name in enumerate("fg"))
    found = score_images(f, g, images, [7, 3], recipes, Scoring(views=3, seed=5))
    views = draw_views(images, 3, recipes, f.normalization, Draw(5, "scoring"), count=3)
    for encoder, losses in ((f, found.loss_f), (g, found.loss_g)):
        vectors = [F.normalize(encoder.network(view.pixels), dim=1)[0] for view in views]
        assert losses[1] == pytest.approx(mean_distance(vectors), abs=1e-6)
    assert np.array_equal(found.score, found.loss_g - found.loss_f)
    assert found.error.shape == (2,) and (found.error > 0).all()


def test_scores_of_images_are_those_of_the_script(scored_run, images):
    _, run = scored_run
    pair, arrays = load_pair(run, seed=1), arrays_of(run / "scores")
    candidates, scoring = arrays["subset"] == "candidate", Scoring(views=4, seed=1)
    indices, recipes = arrays["index"][candidates], training_recipes(pair)
    found = score_images(*pair, images.train, indices, recipes, scoring)
    assert np.abs(found.loss_f - arrays["L_f"][1, candidates]).max() < 1e-6
