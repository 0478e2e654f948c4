"""The files that scripts write: names, columns, folders and pictures."""

import csv
import dataclasses
import io
import json
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.io
import torch
import yaml
from conftest import (
    ASKED,
    CPU,
    METHODS,
    QUICK_PROBE,
    SCORE_FILES,
    ask,
    log_of,
    make_mae,
    masked_view,
    read_table,
    score,
    table_with,
    train,
    write_images,
)
from torchvision.datasets import FakeData

import dejavu
import linear_probing_train
import memorization
import memorization_scores
from examples import score_any_encoder, write_manifest
from memorization.checkpoint import read_checkpoint, save_checkpoint
from memorization.config import read_config
from memorization.data.catalogue import DataSettings
from memorization.data.confounders import compare_classes
from memorization.data.image_files import decode_image
from memorization.data.images import Split, open_images
from memorization.data.manifest import read_manifest
from memorization.data.subsets import ROLES, SUBSETS, draw_subsets, load_subsets
from memorization.errors import WrongUse
from memorization.measuring.score_tables import ARRAYS, files_of
from memorization.measuring.scores import score_images
from memorization.significance import cohens_d, describe
from memorization.training import loop
from memorization.training.task import Task
from models.encoders import make_encoder
from models.mae import patch_statistics
from models.simclr import SimCLRSettings
from models.vit import patchify

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
    "stderr_views",
    "p",
    "q",
    "score_local",
    "p_local",
    "q_local",
]


def test_the_files_and_columns_are_those_promised(scored_run):
    folder = scored_run[1] / "scores"
    assert sorted(file.name for file in folder.iterdir()) == SCORE_FILES
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


def test_the_summary_holds_the_statistics_promised(scored_run):
    folder = scored_run[1] / "scores"
    summary, table = json.loads((folder / "summary.json").read_text()), read_table(folder)[1]
    of = {name: table["score"][table["subset"] == name] for name in SUBSETS}
    for name, values in of.items():
        rows, scales = table["subset"] == name, ("score", "score_range", "score_ratio")
        raw, by_range, by_ratio = (describe(table[scale][rows]) for scale in scales)
        raw["top_tenth_mean"] = np.sort(values)[-(len(values) // 10) :].mean()
        expected = {"raw": raw, "range": by_range, "ratio": by_ratio}
        found = summary["subsets"][name]
        assert found == {scale: pytest.approx(expected[scale]) for scale in expected}
    tests = summary["given_this_pair"]
    of_candidates = {"candidate > shared", "candidate > external", "candidate > independent"}
    of_others = {"external > independent", "shared > independent"}
    assert set(tests["welch"]) == of_candidates | of_others
    effect = cohens_d(of["candidate"], of["external"])
    assert tests["welch"]["candidate > external"]["d"] == pytest.approx(effect)
    alternatives = ["two-sided", "greater", "less", "two-sided"]
    assert [tests["against_zero"][name]["alternative"] for name in SUBSETS] == alternatives
    assert set(tests["against_zero"]) == set(SUBSETS)
    for name, values in of.items():
        t = values.mean() / (values.std(ddof=1) / len(values) ** 0.5)
        assert tests["against_zero"][name]["t"] == pytest.approx(t)
    assert summary["over_seeds"]["paired"]["candidate > independent"]["n"] == 2


def test_the_summary_says_of_what_the_scores_are(scored_run):
    _, run = scored_run
    summary = json.loads((run / "scores/summary.json").read_text())
    assert summary["fingerprints"]["subsets"] == load_subsets(run / "subsets.npz").fingerprint
    assert summary["settings"]["views"] == 4 and summary["seeds"] == [0, 1]
    assert summary["images_per_second"] > 0
    counts = [list(of_subset.values()) for of_subset in summary["class_counts"].values()]
    assert summary["class_test"] == pytest.approx(compare_classes(counts))


def test_disjoint_halves_are_scored_without_shared_images(write_config, tmp_path):
    path = write_config({"subsets.shared": 0, "training.epochs": 1, "scores.views": 3})
    train(path)
    score(path)
    summary = json.loads((tmp_path / "run/scores/summary.json").read_text())
    assert list(summary["subsets"]) == ["candidate", "independent", "external"]
    assert not any("shared" in name for name in summary["given_this_pair"]["welch"])


def test_the_example_scores_every_image_of_a_folder(tmp_path, capsys):
    write_images(tmp_path, 6, seed=0)
    (tmp_path / ".hidden.png").write_bytes(b"no image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/7.png").write_bytes(b"no image")
    scores = score_any_encoder.main(tmp_path)
    assert scores.score.shape == (6,) and scores.score.any()
    lines = capsys.readouterr().out.splitlines()
    ranked = sorted(scores.score, reverse=True)
    assert [line.split()[0] for line in lines] == [f"{score:+.4f}" for score in ranked]
    assert {line.split()[-1] for line in lines} == set(map(str, tmp_path.glob("class*/*.png")))
    assert len(Path(score_any_encoder.__file__).read_text().splitlines()) <= 40


def test_a_folder_without_images_or_with_a_broken_one_is_refused(tmp_path):
    with pytest.raises(WrongUse, match="no image files here"):
        Split.from_folder(tmp_path, 8)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(WrongUse, match="broken.png: cannot be read as an image"):
        Split.from_folder(tmp_path, 8)


def test_the_example_of_a_manifest_writes_one_that_is_read(tmp_path):
    write_manifest.main(tmp_path)
    train, test, classes = read_manifest(tmp_path / "images.csv", tmp_path)
    assert classes == tuple(map(str, range(10))) and len(train.files) + len(test.files) == 100
    image, label = FakeData(size=100, image_size=(3, 32, 32), num_classes=10)[7]
    listing = train if "0000007.png" in train.names else test
    place = listing.names.index("0000007.png")
    assert listing.labels[place] == label
    assert np.array_equal(
        decode_image(listing.files[place], 32).pixels, np.asarray(image).transpose(2, 0, 1)
    )


def test_scores_csv_has_the_names_of_files_as_they_are_and_last(scored_run):
    _, table = read_table(scored_run[1] / "scores")
    assert "file" not in table  # the images are in no files
    names = np.array(['a,"b".png', "caf\udce9/1.png", "a\nb.png"], dtype=object)
    columns = {name: np.array([1, 2, 3]) for name in {*COLUMNS, *ARRAYS}}
    files = files_of(columns | {"file": names})
    with io.TextIOWrapper(
        io.BytesIO(files["scores.csv"]), newline="", errors="surrogateescape"
    ) as text:
        rows = list(csv.reader(text))
    assert rows[0][-1] == "file" and [row[-1] for row in rows[1:]] == names.tolist()
    without = files_of(columns)
    assert all(files[name] == without[name] for name in ("scores.npz", "scores.mat"))


def test_the_matlab_file_holds_the_same(scored_run):
    folder = scored_run[1] / "scores"
    matlab, (_, table) = (
        scipy.io.loadmat(folder / "scores.mat", squeeze_me=True),
        read_table(folder),
    )
    assert np.array_equal(matlab["score"], table["score"])
    assert matlab["subset"].tolist() == table["subset"].tolist()


def test_tokens_and_other_augmentations_land_in_folders_of_their_own(run_copy):
    path, run = run_copy
    before = (run / "scores/scores.csv").read_bytes()
    score(path, "--run", str(run), "--scores.representation", "tokens")
    recipe = "[{size: 16, noise: 0.2}]"
    score(path, "--run", str(run), "--scores.augmentation", recipe)
    folders = sorted(folder for folder in (run / "scores").iterdir() if folder.is_dir())
    assert [folder.name.split("_")[0] for folder in folders] == ["augmentation", "tokens"]
    for folder in folders:
        assert sorted(file.name for file in folder.iterdir()) == SCORE_FILES
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
        [*SCORE_FILES, "epoch_0002", "training_curve.png"]
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
    q = table["q_local"][candidates]
    column = "score" if np.isnan(q).mean() > 0.1 else "score_local"
    best = candidates[np.nanargmax(table[column][candidates])]
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


def test_what_people_import_is_there():
    for name in memorization.__all__:
        assert getattr(memorization, name) is not None
    assert memorization.score_images is score_images


def test_every_checkpoint_is_asked_and_the_curve_drawn(run_copy):
    path, run = run_copy
    dejavu.main(["--config", path, "--run", str(run), *ASKED, "--checkpoint", "all"])
    epochs = [
        json.loads((folder / "summary.json").read_text())["checkpoint"]
        for folder in (run / "dejavu/epoch_0002", run / "dejavu")
    ]
    assert epochs == [{"name": "epoch_0002", "epoch": 2}, {"name": "encoder", "epoch": 3}]
    assert (run / "dejavu/training_curve.png").exists()


@pytest.mark.parametrize("query", ["corner", "center_masked", "whole"])
def test_another_query_has_a_folder_of_its_own(query, run_copy):
    path, run = run_copy
    _, summary = ask(path, run, "--dejavu.query", query)
    assert (
        summary["query"] == query
        and (run / "dejavu" / query / "dejavu.csv").exists()
        and not (run / "dejavu/dejavu.csv").exists()
    )


def test_another_encoder_is_probed_into_a_folder_of_its_own(probed_copy, tmp_path):
    path, run = probed_copy
    foreign = tmp_path / "foreign.pt"
    record = read_checkpoint(run / "seed_0/candidate/encoder_epoch_0002.pt")
    save_checkpoint(foreign, record)
    options = ["--encoder", str(foreign), *QUICK_PROBE]
    linear_probing_train.main(["--config", path, "--run", str(run), *options])
    (folder,) = (run / "probe").glob("encoder_*")
    summary = json.loads((folder / "summary.json").read_text())
    names = [str(foreign), "random encoder", "raw pixels"]
    assert [row["encoder"] for row in summary["results"]] == names


def test_fine_tuned_encoders_are_named_so(probed_copy):
    path, run = probed_copy
    options = ["--probe.fine_tune", "true", "--probe.fine_tune_epochs", "1", "--seeds", "0"]
    linear_probing_train.main(["--config", path, "--run", str(run), *QUICK_PROBE, *options])
    folder = run / "probe/fine_tuned_fine_tune_epochs_1_seeds_0"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["kind"] == "all weights trained"
    names = ["candidate seed 0", "independent seed 0", "random encoder"]
    assert [row["encoder"] for row in summary["results"]] == names
    assert summary["over_pairs"] == {}


def test_the_run_folder_tells_what_was_done(scored_run):
    _, run = scored_run
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["optimizer"] == "adamw"
    environments = json.loads((run / "environment.json").read_text())
    assert list(environments) == [f"seed_{seed}/{role}" for seed in (0, 1) for role in ROLES]
    [environment] = environments["seed_1/candidate"]
    assert environment["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert environment["threads"] == 1 and "commit" in environment
    log = log_of(run, "independent", seed=1)
    assert [line["epoch"] for line in log] == [1, 2, 3]
    assert [line["step"] for line in log] == [3, 6, 9]
    for line in log:
        assert np.isfinite(line["loss"]) and line["images_per_second"] > 0
        assert 0 < line["spread"] < 1.5 and 0 <= line["knn_accuracy"] <= 1
    assert (run / "seed_1/candidate/encoder_epoch_0002.pt").exists()


def test_an_encoder_is_kept_with_the_normalization_of_its_images(write_config, tmp_path):
    config = read_config("", ["--config", write_config()], method=SimCLRSettings)
    normalization = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    images = dataclasses.replace(open_images(config.data), **normalization)
    subsets = draw_subsets(config.subsets, images)
    task = Task(config, images, subsets, CPU, tmp_path, 0, "candidate")
    task.save_encoder("encoder.pt", make_encoder(config.encoder, 3, 16), epoch=7)
    record = read_checkpoint(tmp_path / "seed_0/candidate/encoder.pt")
    assert (record["mean"], record["std"], record["epoch"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], 7)


def test_a_masked_autoencoder_draws_what_it_sees(write_config, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(loop, "draw_pictures", lambda *arguments: drawn.append(arguments))
    train(write_config(METHODS["mae"].changes | {"training.pictures_every": 2}), method="mae")
    assert [path.name for _, _, path in drawn] == 2 * ["pictures_epoch_0002.png"]
    shapes = {title: tuple(pixels.shape) for title, pixels in drawn[0][0].items()}
    assert shapes == dict.fromkeys(("original", "masked", "reconstruction"), (8, 3, 16, 16))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("normalize", [True, False])
def test_pictures_show_the_original_what_was_seen_and_the_reconstruction(channels, normalize):
    mae, view = make_mae(channels, normalize_pixels=normalize), masked_view(12, channels)
    pictures = mae.pictures([view])
    assert list(pictures) == ["original", "masked", "reconstruction"]
    assert torch.equal(pictures["original"], view.pixels[:8])
    original, masked, reconstruction = (patchify(pixels, 4) for pixels in pictures.values())
    seen = torch.zeros(8, 16).scatter_(1, view.visible[:8], 1.0).bool()
    assert torch.equal(masked[seen], original[seen]) and not masked[~seen].any()
    predicted = mae.reconstruct(view.pixels[:8], view.visible[:8])
    if normalize:
        mean, std = patch_statistics(original)
        predicted = predicted * std + mean
    assert torch.equal(reconstruction[seen], original[seen])
    assert torch.allclose(reconstruction[~seen], predicted[~seen])


def test_the_reliability_of_a_ranking_and_what_more_seeds_give_are_printed(run_copy, capsys):
    path, run = run_copy
    score(path, "--run", str(run))
    printed = capsys.readouterr().out
    summary = json.loads((run / "scores/summary.json").read_text())
    headline = summary["single_images"]["headline"]
    reliability = summary["reliability_local" if headline == "score_local" else "reliability"]
    assert f"single images are ranked by {headline}" in printed
    of_both = [reliability[name]["predicted"] for name in ("candidate", "external")]
    line = next(line for line in printed.splitlines() if "reliability of the mean" in line)
    assert line.split()[-2:] == [f"{value:.2f}" for value in of_both]
    low, high = reliability["candidate"]["predicted_interval_95"]
    assert f"{low:.2f} to {high:.2f}" in printed and low <= of_both[0] + 1e-9 and of_both[0] <= 1
    memorization_scores.main(["--config", path, "--run", str(run), "--plan"])
    plan = capsys.readouterr().out
    assert f"mean {headline} of a candidate, measured with 2 seeds" in plan and "8 views" in plan
    assert ("reliability 0.8 takes" in plan) == (of_both[0] > 0)


def test_without_local_scores_the_raw_ones_rank_and_no_share_is_printed(run_copy, capsys):
    path, run = run_copy
    score(path, "--run", str(run), "--scores.per_subset", "2")  # an offset takes 3 external images
    printed = capsys.readouterr().out
    assert "score_local: none" in printed and "single images are ranked by score\n" in printed
    assert "nan" not in printed.split("single images")[1].split("how well")[0]


def test_a_plan_of_one_seed_is_refused(run_copy, capsys):
    path, run = run_copy
    score(path, "--run", str(run), "--seeds", "0")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        memorization_scores.main(["--config", path, "--run", str(run), "--seeds", "0", "--plan"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "--plan: the scores of" in line and "are of one seed" in line
