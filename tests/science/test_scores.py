import csv
import json
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.io
import torch
import torch.nn.functional as F
from conftest import METHODS, write_experiment

import memorization
import memorization_scores
import train_mae
import train_simclr
from examples import score_any_encoder
from memorization.checkpoint import load_pair, read_checkpoint, save_checkpoint
from memorization.config import read_config
from memorization.data.augmentations import Draw, augment
from memorization.data.catalogue import DataSettings
from memorization.data.images import Split, open_images
from memorization.data.recipes import ViewRecipe
from memorization.data.subsets import load_subsets
from memorization.encoder import Encoder
from memorization.errors import WrongUse
from memorization.machine.device import choose_device
from memorization.measuring import score_tables, scores
from memorization.measuring.score_tables import rows_to_score, score_rows
from memorization.measuring.scores import Scoring, score_images
from memorization.run import Run, open_run
from memorization.significance import cohens_d

COLUMNS = [
    "index",
    "split",
    "subset",
    "label",
    "alignment_loss_f",
    "alignment_loss_g",
    "score",
    "score_range",
    "score_ratio",
    "stderr",
]
FILES = [
    "gallery.png",
    "histogram.png",
    "scatter.png",
    "scores.csv",
    "scores.mat",
    "scores.npz",
    "summary.json",
]


def score(path, *options):
    memorization_scores.main(["--config", path, *options])


def read_table(folder):
    with open(folder / "scores.csv", newline="") as file:
        rows = list(csv.reader(file))
    columns = dict(zip(rows[0], zip(*rows[1:])))
    text = ("split", "subset")
    return rows[0], {
        name: np.array(values) if name in text else np.array(values, dtype=float)
        for name, values in columns.items()
    }


def test_the_files_and_columns_are_those_promised(scored_run):
    folder = scored_run[1] / "scores"
    assert sorted(file.name for file in folder.iterdir()) == FILES
    header, table = read_table(folder)
    assert header == COLUMNS
    subsets = load_subsets(scored_run[1] / "subsets.npz")
    assert table["subset"].tolist() == 32 * ["shared"] + 24 * ["candidate"] + 24 * [
        "independent"
    ] + 40 * ["external"]
    assert table["split"].tolist() == 80 * ["train"] + 40 * ["test"]
    assert table["index"].tolist() == [*subsets.train.tolist(), *subsets.external.tolist()]
    images = open_images(DataSettings(name="fake", size=16))
    assert table["label"][:80].tolist() == images.train.labels[:80].tolist()


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


@pytest.fixture(scope="module")
def masked_run(tmp_path_factory):
    """(config path, run folder) of a tiny pair trained by MAE and scored. Not to be changed."""
    folder = tmp_path_factory.mktemp("masked")
    mask = {
        "encoder.patch": 2,
        "encoder.width": 64,
        "augmentation.views": [{"size": 16, "mask_ratio": 0.75}],
    }
    path = write_experiment(folder, METHODS["mae"][2] | mask)
    train_mae.main(["--config", path])
    score(path)
    return path, folder / "run"


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


def test_batch_size_does_not_change_a_score_under_a_mask(masked_run, tmp_path):
    path, run = masked_run[0], shutil.copytree(masked_run[1], tmp_path / "run")
    for representation in ("pooled", "tokens"):
        tables = []
        for size in ("256", "7"):
            score(
                path,
                "--run",
                str(run),
                "--scores.representation",
                representation,
                "--scores.batch_size",
                size,
            )
            tables.append(
                read_table(run / "scores" / ("" if representation == "pooled" else "tokens"))[1]
            )
        assert (
            np.abs(tables[0]["score"] - tables[1]["score"]).max() < 1e-6
            and tables[0]["score"].any()
        )


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


def test_the_matlab_file_holds_the_same(scored_run):
    folder = scored_run[1] / "scores"
    matlab, (_, table) = (
        scipy.io.loadmat(folder / "scores.mat", squeeze_me=True),
        read_table(folder),
    )
    assert np.array_equal(matlab["score"], table["score"])
    assert matlab["subset"].tolist() == table["subset"].tolist()


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


def test_the_same_command_gives_the_same_bytes(scored_run, run_copy):
    path, run = run_copy
    shutil.rmtree(run / "scores")
    score(path, "--run", str(run))
    for name in ("scores.csv", "scores.npz"):
        assert (run / "scores" / name).read_bytes() == (
            scored_run[1] / "scores" / name
        ).read_bytes()


def table_with(run_copy, *options):
    """The table of the folder that was written last."""
    path, run = run_copy
    score(path, "--run", str(run), *options)
    return read_table(
        max(run.rglob("scores.csv"), key=lambda file: file.stat().st_mtime_ns).parent
    )[1]


def test_batch_size_does_not_change_a_score(scored_run, run_copy):
    whole = read_table(scored_run[1] / "scores")[1]
    for size in ("1", "7"):
        table = table_with(run_copy, "--scores.batch_size", size)
        for column in ("alignment_loss_f", "alignment_loss_g", "score"):
            assert np.abs(table[column] - whole[column]).max() < 1e-6


def test_an_image_of_one_colour_alone_in_its_batch_is_scored(run_copy, monkeypatch):
    """All its views are alike under some recipes, which says nothing of the encoder."""
    path, run = run_copy
    images = open_images(DataSettings(name="fake", size=16))
    images.train.pixels[33] = 128  # S_C begins at 32
    monkeypatch.setattr(Run, "images", images)
    recipe = "[{size: 16, crop_scale: [0.3, 1.0]}]"
    tables = []
    for size in ("1", "256"):
        options = ["--scores.augmentation", recipe, "--scores.batch_size", size, "--seeds", "0"]
        score(path, "--run", str(run), *options)
        (folder,) = (run / "scores").glob("augmentation_*")
        tables.append(read_table(folder)[1])
    assert tables[0]["alignment_loss_f"][33] < 1e-3 < tables[0]["alignment_loss_f"].max()
    assert np.abs(tables[0]["score"] - tables[1]["score"]).max() < 1e-6


def test_the_number_of_threads_does_not_change_a_score(scored_run, run_copy):
    one = read_table(scored_run[1] / "scores")[1]
    before = torch.get_num_threads()
    try:
        several = table_with(run_copy, "--threads", "3")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    for column in ("alignment_loss_f", "alignment_loss_g", "score"):
        assert np.abs(several[column] - one[column]).max() < 1e-6


def test_bf16_says_how_far_its_scores_are_off(scored_run, run_copy, capsys):
    path, run = run_copy
    score(path, "--run", str(run), "--scores.precision", "bf16")
    text = capsys.readouterr().out
    assert sorted(file.name for file in (run / "scores/bf16").iterdir()) == FILES
    rough, exact = (
        dict(np.load(folder / "scores.npz"))
        for folder in (run / "scores/bf16", scored_run[1] / "scores")
    )
    # all images, as few as they are, and the first seed
    off = (rough["L_g"] - rough["L_f"])[0] - (exact["L_g"] - exact["L_f"])[0]
    error = json.loads((run / "scores/bf16/summary.json").read_text())["error_of_precision"]
    assert error["against"] == "fp32" and error["seed"] == 0
    found = error["score_error"]
    assert (
        found["n"] == 120
        and found["mean"] == pytest.approx(off.mean())
        and found["std"] == pytest.approx(off.std(ddof=1))
    )
    assert found["largest"] == pytest.approx(np.abs(off).max())
    assert error["standard_error_of_scores"] == pytest.approx(np.median(exact["jackknife"][0]))
    assert (
        0 < np.abs(off).max() < 0.3 * error["standard_error_of_scores"]
        and error["rank_correlation"] > 0.99
    )
    mean = f"scores are off by {off.mean():.2g} on average"
    assert f"bf16, against fp32 on 120 images of one seed: {mean}" in text


@pytest.mark.parametrize("checked, rows", [
    (5, [0, 6, 12, 18, 24, 32, 36, 40, 44, 48, 56, 60, 64, 68, 72, 80, 88, 96, 104, 112]),
    (30, [*range(30), *range(32, 56), *range(56, 80), *range(80, 110)]),
])  # fmt: skip
def test_bf16_is_checked_on_images_from_all_over_every_subset(
    checked, rows, scored_run, run_copy, monkeypatch
):
    path, run = run_copy
    monkeypatch.setattr(score_tables, "CHECKED", checked)
    score(path, "--run", str(run), "--scores.precision", "bf16", "--seeds", "0")
    folder = run / "scores/bf16_seeds_0"
    error = json.loads((folder / "summary.json").read_text())["error_of_precision"]["score_error"]
    rough, exact = (
        dict(np.load(folder / "scores.npz")) for folder in (folder, scored_run[1] / "scores")
    )
    off = ((rough["L_g"] - rough["L_f"])[0] - (exact["L_g"] - exact["L_f"])[0])[rows]
    assert (
        error["n"] == len(rows)
        and error["mean"] == pytest.approx(off.mean())
        and error["largest"] == pytest.approx(np.abs(off).max())
    )


@pytest.mark.filterwarnings("error")
def test_bf16_of_an_encoder_against_itself_has_no_rank_correlation(run_copy):
    path, run = run_copy
    for seed in (0, 1):
        shutil.copytree(
            run / f"seed_{seed}/candidate", run / f"seed_{seed}/independent", dirs_exist_ok=True
        )
        file = run / f"seed_{seed}/independent/encoder.pt"
        save_checkpoint(file, read_checkpoint(file) | {"role": "independent"})
    score(path, "--run", str(run), "--scores.precision", "bf16")
    error = json.loads((run / "scores/bf16/summary.json").read_text())["error_of_precision"]
    assert error["rank_correlation"] is None and error["score_error"]["largest"] == 0


def test_scores_of_before_there_were_two_precisions_are_read_as_fp32(run_copy):
    path, run = run_copy
    opened = open_run("", ["--config", path, "--run", str(run)])
    expected = opened.candidate_scores().score
    summary = json.loads((run / "scores/summary.json").read_text())
    del summary["settings"]["precision"]
    (run / "scores/summary.json").write_text(json.dumps(summary))
    assert np.array_equal(opened.candidate_scores().score, expected)


def test_scores_in_fp32_have_no_error_of_precision(scored_run):
    assert (
        json.loads((scored_run[1] / "scores/summary.json").read_text())["error_of_precision"]
        is None
    )


@pytest.mark.parametrize("representation", ["pooled", "tokens"])
def test_masked_views_are_scored_in_bf16(representation, masked_run, tmp_path):
    run = shutil.copytree(masked_run[1], tmp_path / "run")
    arguments = [masked_run[0], "--run", str(run), "--scores.representation", representation]
    score(*arguments)
    score(*arguments, "--scores.precision", "bf16")
    names = ("", "bf16") if representation == "pooled" else ("tokens", "tokens_bf16")
    exact, rough = (read_table(run / "scores" / name)[1]["alignment_loss_f"] for name in names)
    assert 0 < np.abs(rough - exact).max() < 0.01


def test_a_long_scoring_is_estimated(run_copy, monkeypatch, capsys):
    path, run = run_copy
    score(path, "--run", str(run))
    assert "on the disk" not in capsys.readouterr().out
    monkeypatch.setattr(memorization_scores, "LONG", 0)
    before = (run / "scores/scores.npz").read_bytes()
    score(path, "--run", str(run))
    line = next(line for line in capsys.readouterr().out.splitlines() if "on the disk" in line)
    assert line.startswith("  scoring 240 images by 4 views through two encoders: about 0:00:0")
    assert (run / "scores/scores.npz").read_bytes() == before
    written = sum(
        (run / "scores" / name).stat().st_size
        for name in ("scores.csv", "scores.npz", "scores.mat")
    )
    assert memorization_scores.BYTES_A_ROW * 120 == pytest.approx(written, rel=0.5)


def test_a_batch_beyond_the_memory_names_the_setting_to_lower(run_copy, refusal, monkeypatch):
    def hungry(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(scores, "score_batch", hungry)
    path, run = run_copy
    line = refusal(memorization_scores.main, ["--config", path, "--run", str(run)])
    assert "scores.batch_size: 256 needs more than the GPU's memory has left; lower it" in line


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


def test_tokens_and_other_augmentations_land_in_folders_of_their_own(run_copy):
    path, run = run_copy
    before = (run / "scores/scores.csv").read_bytes()
    score(path, "--run", str(run), "--scores.representation", "tokens")
    recipe = "[{size: 16, noise: 0.2}]"
    score(path, "--run", str(run), "--scores.augmentation", recipe)
    folders = sorted(folder for folder in (run / "scores").iterdir() if folder.is_dir())
    assert [folder.name.split("_")[0] for folder in folders] == ["augmentation", "tokens"]
    for folder in folders:
        assert sorted(file.name for file in folder.iterdir()) == FILES
    noise = json.loads((folders[0] / "summary.json").read_text())["settings"]["augmentation"][0]
    assert noise["noise"] == 0.2 and noise["crop_scale"] is None
    assert (run / "scores/scores.csv").read_bytes() == before
    tables = [read_table(folder)[1]["score"].tolist() for folder in (run / "scores", *folders)]
    assert tables[0] != tables[1] != tables[2] != tables[0]


def test_all_checkpoints_give_the_score_over_training(run_copy):
    path, run = run_copy
    # a file of the user's own, which is no checkpoint of ours
    for role in ("candidate", "independent"):
        shutil.copy(run / f"seed_0/{role}/encoder.pt", run / f"seed_0/{role}/encoder_epoch_best.pt")
    score(path, "--run", str(run), "--checkpoint", "all")
    assert sorted(file.name for file in (run / "scores").iterdir()) == sorted(
        [*FILES, "epoch_0002", "training_curve.png"]
    )
    epoch = json.loads((run / "scores/epoch_0002/summary.json").read_text())["checkpoint"]["epoch"]
    assert (
        epoch == 2
        and read_table(run / "scores/epoch_0002")[1]["score"].tolist()
        != read_table(run / "scores")[1]["score"].tolist()
    )
    for picture in run.glob("scores/**/*.png"):
        pixels = plt.imread(picture)
        # neither empty nor all ink
        assert min(pixels.shape[:2]) > 300 and 0.01 < (pixels[..., :3].min(-1) < 0.9).mean() < 0.9


def test_the_gallery_shows_the_images(run_copy, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.imshow", lambda axes, pixels, **_: shown.append(np.asarray(pixels))
    )
    table = table_with(run_copy)
    images = open_images(DataSettings(name="fake", size=16))
    candidates = np.flatnonzero(table["subset"] == "candidate")
    best = candidates[table["score"][candidates].argmax()]
    expected = images.train.pixels[int(table["index"][best])].permute(1, 2, 0).numpy()
    assert len(shown) == 24 and np.array_equal(shown[0], expected)


def test_the_scatter_has_f_across_and_g_up(run_copy, monkeypatch):
    shown = {}
    monkeypatch.setattr(
        "matplotlib.axes.Axes.scatter",
        lambda axes, x, y, label, **_: shown.update({label.split()[0]: (x, y)}),
    )
    table = table_with(run_copy)
    for subset in ("shared", "candidate", "independent", "external"):
        rows = table["subset"] == subset
        assert np.array_equal(shown[subset][0], table["alignment_loss_f"][rows])
        assert np.array_equal(shown[subset][1], table["alignment_loss_g"][rows])


def test_disjoint_halves_are_scored_without_shared_images(write_config, tmp_path):
    path = write_config({"subsets.shared": 0, "training.epochs": 1, "scores.views": 3})
    train_simclr.main(["--config", path])
    score(path)
    summary = json.loads((tmp_path / "run/scores/summary.json").read_text())
    assert list(summary["subsets"]) == ["candidate", "independent", "external"]
    assert not any("shared" in name for name in summary["given_this_pair"]["welch"])


def test_float32_is_never_tf32():
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    choose_device("cpu")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


# --- encoders of any origin -----------------------------------------------------------------------


def foreign_encoder(name, seed, **changes):
    """An Encoder of a network that takes pixels alone, as networks of other programs do."""
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 8)).eval()
    return Encoder(**{"name": name, "network": network, "channels": 3, "size": 16,
                      "normalization": ((0.5,) * 3, (0.25,) * 3)} | changes)  # fmt: skip


RECIPES = [ViewRecipe(size=16, crop_scale=[0.3, 1.0])]


def noise_images(count=12):
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def test_images_of_an_array_are_scored_by_encoders_of_any_origin():
    """One image: the views drawn again, and the mean distance over all pairs."""
    images, f, g = (
        Split.from_array(noise_images()),
        foreign_encoder("f", 0),
        foreign_encoder("g", 1),
    )
    found = score_images(f, g, images, [7, 3], RECIPES, Scoring(views=3, seed=5))
    index, draw = torch.tensor([3]), Draw(5, "scoring")
    views = [augment(images, index, RECIPES[0], f.normalization, draw, view=v) for v in range(3)]
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


@pytest.mark.parametrize("changes, words", [
    ({"size": 32}, "size is 16 of f, but 32 of g"),
    ({"normalization": ((0.5,) * 3, (0.5,) * 3)}, "std.0 is 0.25 of f, but 0.5 of g"),
    ({"channels": 1}, "g: takes images of 1 channels, but the images have 3"),
    ({"network": torch.nn.Flatten().train()}, "g: is in training mode"),
])  # fmt: skip
def test_encoders_that_do_not_fit_each_other_or_the_images_are_refused(changes, words):
    f, g = foreign_encoder("f", 0), foreign_encoder("g", 1, **changes)
    with pytest.raises(WrongUse, match=words):
        score_images(f, g, Split.from_array(noise_images()), range(12), RECIPES)


@pytest.mark.parametrize("array", [np.zeros((4, 8, 8, 3)), np.zeros((4, 8, 9, 3), np.uint8)])
def test_an_array_of_no_square_uint8_images_is_refused(array):
    with pytest.raises(WrongUse, match="but uint8 of shape .N, S, S, C. is needed"):
        Split.from_array(array)


def test_the_example_scores_every_image(capsys):
    scores = score_any_encoder.main()
    assert scores.score.shape == (64,) and scores.score.any()
    assert capsys.readouterr().out.count("image ") == 6


def test_what_people_import_is_there():
    for name in memorization.__all__:
        assert getattr(memorization, name) is not None
    assert memorization.score_images is score_images


# --- wrong use ------------------------------------------------------------------------------------


def break_file(path):
    path.write_bytes(path.read_bytes()[:-100])


def nan_weights(path):
    record = read_checkpoint(path)
    record["weights"]["layers.0.weight"].fill_(float("nan"))
    save_checkpoint(path, record)


DAMAGE = [
    (
        lambda run: break_file(run / "seed_0/candidate/encoder.pt"),
        [],
        ["seed_0/candidate/encoder.pt", "not a whole checkpoint"],
    ),
    (lambda run: break_file(run / "subsets.npz"), [], ["subsets.npz"]),
    (
        lambda run: nan_weights(run / "seed_1/independent/encoder.pt"),
        [],
        ["seed_1/independent", "not finite"],
    ),
    (
        lambda run: (run / "seed_1/independent/encoder.pt").unlink(),
        [],
        ["seed_1/independent/encoder.pt", "no such file"],
    ),
    (
        lambda run: None,
        ["--scores.augmentation", "[{size: 16}]"],
        ["seed_0/candidate", "represented alike"],
    ),
    (
        lambda run: (run / "seed_1/candidate/log.jsonl").unlink(),
        ["--checkpoint", "all"],
        ["log.jsonl is missing"],
    ),
    (
        lambda run: (run / "seed_0/candidate/encoder_epoch_0002.pt").unlink(),
        ["--checkpoint", "all"],
        ["--checkpoint: 'all'", "checkpoint_epochs"],
    ),
]


@pytest.mark.parametrize(
    "damage, options, words",
    DAMAGE,
    ids=lambda value: str(value) if isinstance(value, list) else "",
)
def test_a_run_that_cannot_be_scored_is_one_line_and_nothing_is_lost(
    damage, options, words, run_copy, refusal
):
    path, run = run_copy
    damage(run)
    before = {file: file.read_bytes() for file in (run / "scores").rglob("*") if file.is_file()}
    line = refusal(memorization_scores.main, ["--config", path, "--run", str(run), *options])
    assert all(word in line for word in words), line
    assert {
        file: file.read_bytes() for file in (run / "scores").rglob("*") if file.is_file()
    } == before
