"""fp32, TF32 and bf16: what is computed in which, and how far off it is."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import (
    METHODS,
    SCORE_FILES,
    Places,
    Rows,
    log_without_times,
    read_table,
    score,
    train,
)

from memorization.alignment import encoder_distances
from memorization.checkpoint import read_checkpoint, save_checkpoint
from memorization.data.augmentations import View
from memorization.machine.device import choose_device
from memorization.measuring import score_summary
from models.simclr import SimCLR


def test_bf16_says_how_far_its_scores_are_off(scored_run, run_copy, capsys):
    path, run = run_copy
    score(path, "--run", str(run), "--scores.precision", "bf16")
    text = capsys.readouterr().out
    assert sorted(file.name for file in (run / "scores/bf16").iterdir()) == SCORE_FILES
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
    on_average = f"scores are off by {off.mean():.2g} on average"
    assert f"bf16, against fp32 on 120 images of one seed: {on_average}" in text


@pytest.mark.parametrize("checked, rows", [
    (5, [0, 6, 12, 18, 24, 32, 36, 40, 44, 48, 56, 60, 64, 68, 72, 80, 88, 96, 104, 112]),
    (30, [*range(30), *range(32, 56), *range(56, 80), *range(80, 110)]),
])  # fmt: skip
def test_bf16_is_checked_on_images_from_all_over_every_subset(
    checked, rows, scored_run, run_copy, monkeypatch
):
    path, run = run_copy
    monkeypatch.setattr(score_summary, "CHECKED", checked)
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


@pytest.mark.parametrize("encoder, representation, masked", [
    (lambda pixels, visible=None: pixels.flatten(1), "pooled", False),
    (Rows(), "tokens", False),
    (Places(), "tokens", True),
])  # fmt: skip
def test_representations_of_half_precision_are_compared_in_single(encoder, representation, masked):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, 4, 1, 6, 6, generator=generator).bfloat16()  # of three views
    visible = torch.rand(4, 36, generator=generator).argsort(dim=1)[:, :20] if masked else None
    half, single = (
        encoder_distances(encoder, [View(v, visible) for v in pixels.to(dtype)], representation)
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert half.dtype == torch.float32 and torch.equal(half, single)


def test_float32_is_never_tf32():
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    choose_device("cpu")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_in_bf16(method, write_config, tmp_path):
    changes = {"training.epochs": 1, "training.precision": "bf16"}
    train(write_config(METHODS[method].changes | changes), method=method)
    assert np.isfinite(log_without_times(tmp_path / "run")[0]["loss"])
    assert read_checkpoint(tmp_path / "run/seed_0/candidate/encoder.pt")["precision"] == "bf16"


@pytest.mark.parametrize(
    "precision, dtype", [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_precision_is_that_of_the_setting(precision, dtype, write_config, monkeypatch):
    seen = set()
    project = SimCLR.project

    def watched_project(simclr, pixels, visible):
        z = project(simclr, pixels, visible)
        if z.requires_grad:  # a training step, not the trial before it
            seen.add(z.dtype)
        return z

    monkeypatch.setattr(SimCLR, "project", watched_project)
    train(write_config({"training.epochs": 1, "training.precision": precision}))
    assert seen == {dtype}


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_a_pair_trains_on_a_gpu_in_bf16(method, write_config, tmp_path):
    changes = {"device": "cuda", "training.knn_every": 3}
    train(write_config(METHODS[method].changes | changes), method=method)
    assert np.isfinite(log_without_times(tmp_path / "run")[-1]["loss"])
