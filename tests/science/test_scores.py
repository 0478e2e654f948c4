import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CROPS, foreign_encoder, noise_images, read_table, score, table_with

import train_simclr
from examples import score_any_encoder
from memorization.checkpoint import load_pair, read_checkpoint, save_checkpoint
from memorization.config import read_config
from memorization.data.augmentations import Draw, augment
from memorization.data.catalogue import DataSettings
from memorization.data.images import Split, open_images
from memorization.data.recipes import ViewRecipe
from memorization.data.subsets import load_subsets
from memorization.measuring.score_tables import rows_to_score, score_rows
from memorization.measuring.scores import Scoring, score_images
from memorization.significance import cohens_d


@pytest.mark.parametrize(
    "subset, row, split", [("candidate", 40, "train"), ("external", 100, "test")]
)
@pytest.mark.parametrize(
    "recipes",
    [
        "training",
        [{"size": 16, "rotate": [90]}, {"size": 16, "crop_scale": [0.3, 0.6]}, {"size": 8}],
    ],
)
def test_scores_equal_the_definition_written_out(subset, row, split, recipes, run_copy):
    """One image, one seed: the views drawn again, one by one, the recipes of full size in turn, and
    the mean distance over all pairs.
    """
    path, run = run_copy
    score(path, "--run", str(run), "--scores.augmentation", str(recipes))
    folder = (
        run / "scores" if recipes == "training" else next((run / "scores").glob("augmentation_*"))
    )
    with np.load(folder / "scores.npz") as arrays:
        arrays = dict(arrays)
    assert arrays["subset"][row] == subset and arrays["split"][row] == split
    pair = load_pair(run, seed=1)
    f, g = pair.f.network, pair.g.network
    if recipes == "training":
        recipes = pair.f.record["config"]["augmentation"]["views"]
    recipes = [ViewRecipe(**recipe) for recipe in recipes if recipe["size"] == 16]
    images = open_images(DataSettings(name="fake", size=16))
    source, index = getattr(images, split), torch.tensor([arrays["index"][row]])
    views = [
        augment(
            source,
            index,
            recipes[v % len(recipes)],
            images.normalization,
            Draw(1, "scoring"),
            view=v,
        )
        for v in range(4)
    ]
    for encoder, name in ((f, "L_f"), (g, "L_g")):
        z = [F.normalize(encoder(view.pixels), dim=1)[0] for view in views]
        expected = np.mean(
            [torch.dist(z[i], z[j]).item() for i in range(4) for j in range(i + 1, 4)]
        )
        assert arrays[name][1, row] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("representation", ["pooled", "tokens"])
@pytest.mark.parametrize(
    "recipe",
    ["training", {"size": 16, "mask_ratio": 0.5, "noise": 0.1}, {"size": 16, "rotate": [0, 90]}],
)
def test_scores_of_a_masked_autoencoder_equal_the_definition_written_out(
    representation, recipe, masked_run, tmp_path
):
    """Under the training mask by construction, or under another recipe, which the result records;
    tokens only where both views see.
    """
    path, run = tmp_path / "tiny.yaml", shutil.copytree(masked_run[1], tmp_path / "run")
    shutil.copy(masked_run[0], path)
    explicit = [] if recipe == "training" else ["--scores.augmentation", f"[{recipe}]"]
    score(str(path), "--run", str(run), "--scores.representation", representation, *explicit)
    folder = max(
        (run / "scores").rglob("scores.npz"), key=lambda file: file.stat().st_mtime_ns
    ).parent
    assert (folder == run / "scores") == (recipe == "training" and representation == "pooled")
    settings = json.loads((folder / "summary.json").read_text())["settings"]
    if recipe != "training":
        assert recipe.items() <= settings["augmentation"][0].items()
    pair = load_pair(run, seed=0)
    f, g = pair.f.network, pair.g.network
    drawn = ViewRecipe(
        **pair.f.record["config"]["augmentation"]["views"][0] if recipe == "training" else recipe
    )
    images, row = open_images(DataSettings(name="fake", size=16)), 40
    with np.load(folder / "scores.npz") as arrays:
        index, losses = (
            torch.tensor([arrays["index"][row]]),
            (arrays["L_f"][0, row], arrays["L_g"][0, row]),
        )
    views = [
        augment(
            images.train,
            index,
            drawn,
            images.normalization,
            Draw(0, "scoring", patch=2),
            view=v,
        )
        for v in range(4)
    ]
    visible = [
        set(range(64)) if view.visible is None else set(view.visible[0].tolist()) for view in views
    ]
    assert {len(patches) for patches in visible} == {64 - int(64 * drawn.mask_ratio)}

    def vector(encoder, v, places):
        """What an encoder makes of view v, restricted to some patches."""
        if representation == "pooled":
            return F.normalize(encoder(views[v].pixels, views[v].visible), dim=1)[0]
        tokens = encoder.tokens(views[v].pixels, views[v].visible)[0]
        kept = [0] + [1 + i for i, place in enumerate(sorted(visible[v])) if place in places]
        return F.normalize(tokens[kept].flatten(), dim=0)

    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    for encoder, loss in zip((f, g), losses):
        distances = [
            torch.dist(*(vector(encoder, v, visible[i] & visible[j]) for v in (i, j))).item()
            for i, j in pairs
        ]
        assert loss == pytest.approx(np.mean(distances), abs=1e-6) and loss > 0


def test_the_scales_follow_from_the_raw_losses(scored_run):
    _, run = scored_run
    _, table = read_table(run / "scores")
    with np.load(run / "scores/scores.npz") as arrays:
        losses_f, losses_g = arrays["L_f"], arrays["L_g"]  # (2, N)
    assert losses_f.shape == (2, 120) and losses_f.min() > 0
    assert np.array_equal(table["alignment_loss_f"], losses_f.mean(0)) and np.array_equal(
        table["alignment_loss_g"], losses_g.mean(0)
    )
    assert np.array_equal(table["score"], table["alignment_loss_g"] - table["alignment_loss_f"])
    assert np.ptp(table["score_range"]) == pytest.approx(1)
    assert np.allclose(table["score_range"], table["score"] / np.ptp(table["score"]))
    assert np.allclose(
        table["score_ratio"], ((losses_g - losses_f) / (losses_g + losses_f)).mean(0)
    )
    assert np.allclose(table["stderr"], (losses_g - losses_f).std(0, ddof=1) / np.sqrt(2))


def test_with_one_seed_the_error_is_the_jackknifes(run_copy):
    path, run = run_copy
    score(path, "--run", str(run), "--seeds", "1")
    folder = run / "scores/seeds_1"
    with np.load(folder / "scores.npz") as arrays:
        assert (
            np.array_equal(read_table(folder)[1]["stderr"], arrays["jackknife"][0])
            and arrays["jackknife"].min() > 0
        )


def test_the_summary_holds_the_statistics_promised(scored_run):
    _, run = scored_run
    summary = json.loads((run / "scores/summary.json").read_text())
    _, table = read_table(run / "scores")
    of = {
        name: table["score"][table["subset"] == name]
        for name in ("shared", "candidate", "independent", "external")
    }
    for name, values in of.items():
        raw = summary["subsets"][name]["raw"]
        assert (raw["n"], raw["mean"], raw["std"]) == (
            len(values),
            pytest.approx(values.mean()),
            pytest.approx(values.std(ddof=1)),
        )
        assert raw["top_tenth_mean"] == pytest.approx(
            np.sort(values)[-(len(values) // 10) :].mean()
        )
        assert summary["subsets"][name]["range"]["mean"] == pytest.approx(
            table["score_range"][table["subset"] == name].mean()
        )
        assert summary["subsets"][name]["ratio"]["mean"] == pytest.approx(
            table["score_ratio"][table["subset"] == name].mean()
        )
    welch = summary["given_this_pair"]["welch"]
    assert {
        "candidate > shared",
        "candidate > external",
        "external > independent",
        "shared > independent",
    } <= set(welch)
    assert welch["candidate > external"]["d"] == pytest.approx(
        cohens_d(of["candidate"], of["external"])
    )
    against_zero = summary["given_this_pair"]["against_zero"]
    alternatives = {
        "shared": "two-sided",
        "candidate": "greater",
        "independent": "less",
        "external": "two-sided",
    }
    assert {name: test["alternative"] for name, test in against_zero.items()} == alternatives
    assert all(
        test["t"] == pytest.approx(of[name].mean() / (of[name].std(ddof=1) / len(of[name]) ** 0.5))
        for name, test in against_zero.items()
    )
    assert summary["offset_on_unseen_images"] == pytest.approx(of["external"].mean())
    contrasts = summary["free_of_the_offset"]
    assert contrasts["(candidate - independent) / 2"]["value"] == pytest.approx(
        (of["candidate"].mean() - of["independent"].mean()) / 2
    )
    low, high = contrasts["candidate - external"]["interval_95"]
    assert low < contrasts["candidate - external"]["value"] < high
    assert summary["over_seeds"]["paired"]["candidate > independent"]["n"] == 2
    assert np.mean(summary["over_seeds"]["means"]["candidate"]) == pytest.approx(
        of["candidate"].mean()
    )
    assert summary["fingerprints"]["subsets"] == load_subsets(run / "subsets.npz").fingerprint
    assert (
        summary["settings"]["views"] == 4
        and summary["seeds"] == [0, 1]
        and summary["images_per_second"] > 0
    )


def test_per_subset_takes_the_same_images_whatever_else_is_scored(scored_run, run_copy):
    whole, few = (
        read_table(scored_run[1] / "scores")[1],
        table_with(run_copy, "--scores.per_subset", "10"),
    )
    assert few["subset"].tolist() == sum(
        ([name] * 10 for name in ("shared", "candidate", "independent", "external")), []
    )
    position = {key: i for i, key in enumerate(zip(whole["subset"], whole["index"]))}
    rows = [position[key] for key in zip(few["subset"], few["index"])]
    # by hash, not the first in the file
    assert few["index"].tolist() != [*range(10), *range(32, 42), *range(56, 66), *range(10)]
    assert np.abs(few["score"] - whole["score"][rows]).max() < 1e-6
    assert set(few["index"]) >= set(table_with(run_copy, "--scores.per_subset", "5")["index"])


def put(run, source, target):
    """Put one encoder's weights in the place of another's, under that one's name."""
    record = read_checkpoint(run / source)
    role, seed = target.split("/")[1], int(target.split("/")[0].removeprefix("seed_"))
    save_checkpoint(run / target, record | {"role": role, "seed": seed})


def test_f_against_f_scores_exactly_zero(run_copy):
    path, run = run_copy
    put(run, "seed_0/candidate/encoder.pt", "seed_0/independent/encoder.pt")
    table = table_with(run_copy, "--seeds", "0")
    for column in ("score", "score_range", "score_ratio", "stderr"):
        assert (table[column] == 0).all()
    assert (table["alignment_loss_f"] > 0).all()


def test_swapping_f_and_g_flips_every_sign_exactly(run_copy):
    before = table_with(run_copy, "--seeds", "0")
    _, run = run_copy
    g = read_checkpoint(run / "seed_0/independent/encoder.pt")
    put(run, "seed_0/candidate/encoder.pt", "seed_0/independent/encoder.pt")
    save_checkpoint(run / "seed_0/candidate/encoder.pt", g | {"role": "candidate"})
    after = table_with(run_copy, "--seeds", "0")
    for column in ("score", "score_range", "score_ratio"):
        assert np.array_equal(after[column], -before[column]) and before[column].any()
    assert np.array_equal(after["stderr"], before["stderr"])


def test_two_random_halves_of_the_external_images_agree(write_config, tmp_path):
    path = write_config({"subsets.external": 256})
    train_simclr.main(["--config", path])
    score(path)
    table = read_table(tmp_path / "run/scores")[1]
    external = table["score"][table["subset"] == "external"]
    order = np.random.default_rng(0).permutation(256)
    one, other = external[order[:128]], external[order[128:]]
    error = np.sqrt(one.var(ddof=1) / 128 + other.var(ddof=1) / 128)
    assert 0 < abs(one.mean() - other.mean()) < 4 * error


def test_jackknife_errors_predict_scores_with_fresh_views(scored_run):
    """Real encoders, fresh views by another seed of the views: z of the repeated scores has
    standard deviation 1.
    """
    path, run = scored_run
    config = read_config("", ["--config", path, "--scores.views", "10"])
    subsets = load_subsets(run / "subsets.npz")
    images = open_images(config.data)
    pair = load_pair(run, seed=0)
    rows, recipes = rows_to_score(subsets, images, 20), config.augmentation.views
    repeats = [
        score_rows(pair, images, rows, recipes, config.scores.scoring(seed))
        for seed in range(100, 120)
    ]
    repeated = np.stack([repeat.score for repeat in repeats])  # (repeats, N)
    errors = np.sqrt(np.mean([repeat.error**2 for repeat in repeats], axis=0))
    z = (repeated - repeated.mean(0)) / errors * np.sqrt(20 / 19)
    assert z.std() == pytest.approx(1, abs=0.15)


def test_disjoint_halves_are_scored_without_shared_images(write_config, tmp_path):
    path = write_config({"subsets.shared": 0, "training.epochs": 1, "scores.views": 3})
    train_simclr.main(["--config", path])
    score(path)
    summary = json.loads((tmp_path / "run/scores/summary.json").read_text())
    assert list(summary["subsets"]) == ["candidate", "independent", "external"]
    assert not any("shared" in name for name in summary["given_this_pair"]["welch"])


# --- encoders of any origin -----------------------------------------------------------------------


def test_images_of_an_array_are_scored_by_encoders_of_any_origin():
    """One image: the views drawn again, and the mean distance over all pairs."""
    images, f, g = (
        Split.from_array(noise_images()),
        foreign_encoder("f", 0),
        foreign_encoder("g", 1),
    )
    found = score_images(f, g, images, [7, 3], CROPS, Scoring(views=3, seed=5))
    index, draw = torch.tensor([3]), Draw(5, "scoring")
    views = [augment(images, index, CROPS[0], f.normalization, draw, view=v) for v in range(3)]
    for encoder, losses in ((f, found.loss_f), (g, found.loss_g)):
        z = [F.normalize(encoder.network(view.pixels), dim=1)[0] for view in views]
        distances = [torch.dist(z[i], z[j]).item() for i, j in ((0, 1), (0, 2), (1, 2))]
        assert losses[1] == pytest.approx(np.mean(distances), abs=1e-6)
    assert np.array_equal(found.score, found.loss_g - found.loss_f)
    assert found.error.shape == (2,) and (found.error > 0).all()


def test_scores_of_images_are_those_of_the_script(scored_run):
    _, run = scored_run
    pair = load_pair(run, seed=1)
    images = open_images(DataSettings(name="fake", size=16))
    recipes = [ViewRecipe(**r) for r in pair.f.record["config"]["augmentation"]["views"]]
    with np.load(run / "scores/scores.npz") as arrays:
        candidates = arrays["subset"] == "candidate"
        indices, losses = arrays["index"][candidates], arrays["L_f"][1, candidates]
    found = score_images(*pair, images.train, indices, recipes, Scoring(views=4, seed=1))
    assert np.abs(found.loss_f - losses).max() < 1e-6


def test_the_example_scores_every_image(capsys):
    scores = score_any_encoder.main()
    assert scores.score.shape == (64,) and scores.score.any()
    assert capsys.readouterr().out.count("image ") == 6
