import dataclasses
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import METHODS, write_experiment

import memorization.training.loop as training
import train_simclr
from memorization.checkpoint import read_checkpoint, save_checkpoint
from memorization.config import read_config
from memorization.data.augmentations import View
from memorization.data.images import open_images
from memorization.data.subsets import ROLES, draw_subsets, load_subsets
from memorization.errors import Caution, WrongUse
from models.encoders import make_encoder
from models.simclr import SimCLR, SimCLRSettings


def train(path, *options, method="simclr"):
    METHODS[method][0].main(["--config", path, *options])


class Watch:
    """Records every training step of every encoder: its views' source indices, views, learning
    rates, and its optimizer's parameters.
    """

    def __init__(self, monkeypatch):
        self.runs = []
        views, step, make = training.training_views, training.train_step, training.make_optimizer

        def watched_optimizer(method, settings):
            optimizer = make(method, settings)
            initial = {name: value.detach().clone() for name, value in method.state_dict().items()}
            recorded = {"indices": [], "views": [], "visible": [], "rates": []}
            self.runs.append(
                {"method": method, "optimizer": optimizer, "initial": initial, **recorded}
            )
            return optimizer

        def watched_views(images, indices, *rest):
            self.runs[-1]["indices"].append(indices)
            return views(images, indices, *rest)

        def watched_step(method, optimizer, step_views, *rest, **named):
            self.runs[-1]["views"].append([view.pixels for view in step_views])
            self.runs[-1]["visible"].append([view.visible for view in step_views])
            self.runs[-1]["rates"].append([group["lr"] for group in optimizer.param_groups])
            return step(method, optimizer, step_views, *rest, **named)

        for name, function in (
            ("make_optimizer", watched_optimizer),
            ("training_views", watched_views),
            ("train_step", watched_step),
        ):
            monkeypatch.setattr(training, name, function)


@pytest.fixture(scope="module")
def watched_pair(tmp_path_factory):
    """What was recorded of f and of g, and their subsets."""
    folder = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as monkeypatch:
        watch = Watch(monkeypatch)
        train(write_experiment(folder))
    return *watch.runs, load_subsets(folder / "run" / "subsets.npz")


def test_f_and_g_start_from_the_same_weights_and_both_change(watched_pair):
    f, g, _ = watched_pair
    for name, initial in f["initial"].items():
        assert torch.equal(initial, g["initial"][name])
    for run in (f, g):
        for name, parameter in run["method"].named_parameters():
            assert not torch.equal(parameter, run["initial"][name]), f"{name} was not trained"
    weights = [run["method"].state_dict()["encoder.layers.0.weight"] for run in (f, g)]
    assert not torch.equal(*weights)


def test_each_optimizer_holds_its_own_models_parameters(watched_pair):
    f, g, _ = watched_pair
    for run in (f, g):
        held = {id(p) for group in run["optimizer"].param_groups for p in group["params"]}
        assert held == {id(p) for p in run["method"].parameters()}
    assert not {id(p) for p in f["method"].parameters()} & {id(p) for p in g["method"].parameters()}


def test_f_and_g_take_the_same_steps_at_the_same_rates(watched_pair):
    f, g, _ = watched_pair
    assert len(f["rates"]) == len(g["rates"]) == 3 * (56 // 16)
    assert f["rates"] == g["rates"] and f["rates"][0][0] == 0.01 > f["rates"][-1][0]


def test_shared_images_meet_the_same_views_in_the_same_slots(watched_pair):
    f, g, subsets = watched_pair
    shared = set(subsets.shared.tolist())
    partner = dict(zip(subsets.candidate.tolist(), subsets.independent.tolist()))
    met = 0
    for step in range(len(f["indices"])):
        for slot, (one, other) in enumerate(
            zip(f["indices"][step].tolist(), g["indices"][step].tolist())
        ):
            # the j-th independent stands where the j-th candidate stands
            assert other == partner.get(one, one)
            if one in shared:
                met += 1
                assert all(
                    torch.equal(a[slot], b[slot])
                    for a, b in zip(f["views"][step], g["views"][step])
                )
            else:
                assert not torch.equal(f["views"][step][0][slot], g["views"][step][0][slot])
    assert met > 50


def test_shared_images_meet_the_same_masks_and_no_two_epochs_do(
    write_config, tmp_path, monkeypatch
):
    watch = Watch(monkeypatch)
    train(write_config(METHODS["mae"][2]), method="mae")
    f, g = watch.runs
    shared, masks = set(load_subsets(tmp_path / "run/subsets.npz").shared.tolist()), {}
    for step in range(len(f["indices"])):
        for slot, one in enumerate(f["indices"][step].tolist()):
            mask = f["visible"][step][0][slot]
            masks.setdefault(one, set()).add(tuple(mask.tolist()))
            assert torch.equal(mask, g["visible"][step][0][slot]) == (one in shared)
    assert max(len(drawn) for drawn in masks.values()) == 3  # epochs


def test_an_epoch_meets_every_image_at_most_once_and_no_two_epochs_are_alike(watched_pair):
    f, _, subsets = watched_pair
    epochs = [torch.cat(f["indices"][3 * e : 3 * e + 3]).tolist() for e in range(3)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 48 and set(epoch) <= set(
            subsets.training_set("candidate").tolist()
        )
    assert epochs[0] != epochs[1] != epochs[2]
    assert not torch.equal(f["views"][0][0], f["views"][0][1])  # the two views of a step differ


def trained_bytes(run):
    return {role: (run / "seed_0" / role / "encoder.pt").read_bytes() for role in ROLES}


def log_without_times(run, role="candidate"):
    lines = [
        json.loads(line) for line in (run / "seed_0" / role / "log.jsonl").read_text().splitlines()
    ]
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "images_per_second")}
        for line in lines
    ]


def test_the_same_command_gives_the_same_bytes(write_config, tmp_path):
    path = write_config()
    for run in ("a", "b"):
        train(path, "--run", str(tmp_path / run))
    assert trained_bytes(tmp_path / "a") == trained_bytes(tmp_path / "b")
    assert (
        trained_bytes(tmp_path / "a")["candidate"] != trained_bytes(tmp_path / "a")["independent"]
    )
    train(path, "--run", str(tmp_path / "c"), "--seeds", "1")
    other = read_checkpoint(tmp_path / "c/seed_1/candidate/encoder.pt")["weights"]
    assert not torch.equal(
        other["layers.0.weight"],
        read_checkpoint(tmp_path / "a/seed_0/candidate/encoder.pt")["weights"]["layers.0.weight"],
    )


@pytest.mark.parametrize(
    "method, optimizer",
    [("simclr", "sgd"), ("simclr", "adamw"), ("simclr", "lars"), ("byol", "sgd"), ("mae", "adamw")],
)
def test_an_interrupted_run_goes_on_and_ends_bit_identical(
    method, optimizer, write_config, tmp_path, monkeypatch, capsys
):
    """Interrupted in the middle of an epoch, of f and then of g, with a save before every step."""
    changes = {
        "training.optimizer": optimizer,
        "training.knn_every": 1,
        "training.checkpoint_minutes": 1e-9,
    }
    path = write_config(METHODS[method][2] | changes)
    train(path, "--run", str(tmp_path / "whole"), method=method)

    step, steps = training.train_step, []

    def interrupted_step(*arguments, **named):
        steps.append(None)
        if len(steps) in (6, 14):
            raise KeyboardInterrupt
        return step(*arguments, **named)

    monkeypatch.setattr(training, "train_step", interrupted_step)
    for _ in range(2):
        with pytest.raises(SystemExit, match="130"):
            train(path, method=method)
    train(path, method=method)
    assert len(steps) == 2 * 9 + 2
    printed = capsys.readouterr().out
    assert (
        "candidate: going on after step 5" in printed
        and "independent: going on after step 3" in printed
    )
    assert trained_bytes(tmp_path / "run") == trained_bytes(tmp_path / "whole")
    for role in ROLES:
        assert log_without_times(tmp_path / "run", role) == log_without_times(
            tmp_path / "whole", role
        )


def test_a_finished_run_says_so_and_does_nothing(write_config, tmp_path, capsys, monkeypatch):
    path = write_config()
    train(path)
    before = trained_bytes(tmp_path / "run")
    monkeypatch.setattr(training, "train_step", None)  # would be called
    capsys.readouterr()
    train(path)
    assert capsys.readouterr().out.count("finished already") == 2
    assert trained_bytes(tmp_path / "run") == before


def test_another_encoder_in_the_place_of_a_finished_one_is_refused(write_config, tmp_path, refusal):
    path = write_config({"training.epochs": 1})
    train(path)
    folder = tmp_path / "run/seed_0"
    shutil.copy(folder / "candidate/encoder.pt", folder / "independent/encoder.pt")
    assert "role is 'candidate', but 'independent' belongs here" in refusal(
        train_simclr.main, ["--config", path]
    )


def test_a_run_folder_of_other_images_is_refused(write_config, tmp_path, refusal, monkeypatch):
    path = write_config({"training.epochs": 1})
    train(path)
    before = (tmp_path / "run/subsets.npz").read_bytes()

    def changed(settings):
        images = open_images(settings)
        images.train.pixels[0, 0, 0, 0] ^= 1
        return images

    monkeypatch.setattr(train_simclr, "open_images", changed)
    assert "drawn from other images" in refusal(train_simclr.main, ["--config", path])
    assert (tmp_path / "run/subsets.npz").read_bytes() == before


def test_rates_are_scaled_by_the_batch_and_warmed_up_over_epochs(write_config, monkeypatch):
    watch = Watch(monkeypatch)
    train(write_config({"training.base_batch_size": 8, "training.warmup_epochs": 1}))
    rates = [rate for rate, *_ in watch.runs[0]["rates"]]
    # 0.01 x 16 / 8, over the 3 steps of one epoch
    assert rates[:4] == pytest.approx([0.02 / 3, 0.04 / 3, 0.02, 0.02])
    assert rates[-1] == pytest.approx(0.02 * 0.5 * (1 + math.cos(math.pi * 5 / 6)))


def test_the_gradient_is_clipped_where_told(write_config, tmp_path, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def watched_step(optimizer):
        gradients = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm().item())
        return step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched_step)
    path = write_config({"training.epochs": 1})
    train(path)
    train(path, "--run", str(tmp_path / "clipped"), "--training.clip_gradient", "0.001")
    assert min(norms[:6]) > 0.01 and max(norms[6:]) == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_in_bf16(method, write_config, tmp_path):
    train(
        write_config(METHODS[method][2] | {"training.epochs": 1, "training.precision": "bf16"}),
        method=method,
    )
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


class Pixels(torch.nn.Module):
    """An encoder whose representation is the image itself."""

    def forward(self, pixels, visible=None):
        return pixels.flatten(1)


def test_knn_accuracy_is_of_external_images_among_the_labelled_ones_of_the_encoders_training_set(
    write_config,
):
    path = write_config(
        {"training.knn_every": 2, "data.size": 8, "augmentation.views": [{"size": 8}]}
    )
    config = read_config("", ["--config", path], method=SimCLRSettings)
    images = dataclasses.replace(
        open_images(config.data), mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4)
    )
    images.train.labels[::3] = -1
    images.train.labels[60:] = 9  # no image of the independents may vote for f
    subsets = draw_subsets(config.subsets, images)
    view = View(torch.rand(8, 3, 8, 8))
    for role in ROLES:
        bank = torch.from_numpy(subsets.training_set(role))
        bank = bank[images.train.labels[bank] >= 0]

        def representations(split, indices):
            pixels = split.pixels[indices].float() / 255
            return (
                (pixels - torch.tensor(images.mean).view(3, 1, 1))
                / torch.tensor(images.std).view(3, 1, 1)
            ).flatten(1)

        queries = representations(images.test, torch.from_numpy(subsets.external))
        similarity = torch.cosine_similarity(
            queries[:, None], representations(images.train, bank)[None], dim=2
        )
        votes = images.train.labels[bank][similarity.topk(20).indices]
        predictions = torch.stack([torch.bincount(row, minlength=10).argmax() for row in votes])
        expected = (
            (predictions == images.test.labels[torch.from_numpy(subsets.external)])
            .float()
            .mean()
            .item()
        )
        measured = training.measure_encoder(Pixels(), view, images, subsets, role, config, epoch=2)
        assert measured["knn_accuracy"] == pytest.approx(expected) and expected > 0
        assert measured["spread"] == pytest.approx(training.spread(view.pixels.flatten(1)).item())
        assert (
            training.measure_encoder(Pixels(), view, images, subsets, role, config, epoch=3)[
                "knn_accuracy"
            ]
            is None
        )


def test_an_encoder_is_kept_with_the_normalization_of_its_images(write_config, tmp_path):
    config = read_config("", ["--config", write_config()], method=SimCLRSettings)
    images = dataclasses.replace(
        open_images(config.data), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
    )
    training.save_encoder(
        tmp_path / "encoder.pt",
        make_encoder(config.encoder, 3, 16),
        {"role": "candidate"},
        images,
        config,
        epoch=7,
    )
    record = read_checkpoint(tmp_path / "encoder.pt")
    assert (record["mean"], record["std"], record["epoch"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], 7)


def test_more_seeds_join_a_finished_run(write_config, tmp_path, capsys):
    path = write_config({"training.epochs": 1})
    train(path)
    train(path, "--seeds", "0", "2")
    assert (tmp_path / "run/seed_2/independent/encoder.pt").exists()
    train(path, "--seeds", "1")
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["seeds"] == [0, 1, 2]


def test_the_run_folder_tells_what_was_done(scored_run):
    _, run = scored_run
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["optimizer"] == "adamw"
    environments = json.loads((run / "environment.json").read_text())
    assert list(environments) == [f"seed_{seed}/{role}" for seed in (0, 1) for role in ROLES]
    [environment] = environments["seed_1/candidate"]
    assert (
        environment["torch"].split("+")[0] == torch.__version__.split("+")[0]
        and environment["threads"] == 1
        and "commit" in environment
    )
    log = [
        json.loads(line) for line in (run / "seed_1/independent/log.jsonl").read_text().splitlines()
    ]
    assert [line["epoch"] for line in log] == [1, 2, 3] and [line["step"] for line in log] == [
        3,
        6,
        9,
    ]
    for line in log:
        assert np.isfinite(line["loss"]) and line["images_per_second"] > 0
        assert 0 < line["spread"] < 1.5 and 0 <= line["knn_accuracy"] <= 1
    assert (run / "seed_1/candidate/encoder_epoch_0002.pt").exists()


def test_a_run_that_goes_on_elsewhere_says_so_and_names_both_machines(
    write_config, tmp_path, monkeypatch, capsys
):
    path = write_config({"training.checkpoint_minutes": 1e-9})
    step, steps = training.train_step, []

    def interrupted_step(*arguments, **named):
        steps.append(None)
        if len(steps) in (2, 5, 8):
            raise KeyboardInterrupt
        return step(*arguments, **named)

    def train_on(**machine):
        monkeypatch.setattr(training, "describe_machine", lambda device: machine)
        with pytest.raises(SystemExit, match="130"):
            train(path)

    monkeypatch.setattr(training, "train_step", interrupted_step)
    train_on(torch="2.14", threads=1)
    train_on(torch="2.14", threads=1)  # the same one: no new entry, no word
    assert "resumed with" not in capsys.readouterr().out
    train_on(torch="2.15", threads=1)
    assert (
        "resumed with torch '2.15' (was '2.14'): its bytes may differ from"
        in capsys.readouterr().out
    )
    machines = json.loads((tmp_path / "run/environment.json").read_text())
    assert machines == {
        "seed_0/candidate": [{"torch": "2.14", "threads": 1}, {"torch": "2.15", "threads": 1}]
    }


def test_an_encoder_trained_anew_names_its_own_machine_alone_and_older_files_are_read(
    tmp_path, monkeypatch
):
    path = tmp_path / "environment.json"
    # as older runs wrote it
    path.write_text(
        json.dumps({"seed_0/candidate": {"threads": 2}, "seed_0/independent": {"threads": 2}})
    )
    monkeypatch.setattr(training, "describe_machine", lambda device: {"threads": 3})
    training._note_environment(tmp_path, "seed_0/candidate", None, resumed=False)
    training._note_environment(tmp_path, "seed_0/independent", None, resumed=True)
    machines = json.loads(path.read_text())
    assert machines == {
        "seed_0/candidate": [{"threads": 3}],
        "seed_0/independent": [{"threads": 2}, {"threads": 3}],
    }


# of every method, what it needs beyond the tiny experiment, and by how much its loss falls
LEARNING = {
    "simclr": ({"encoder.width": 16, "training.learning_rate": 0.003, "method.temperature": 0.2, "method.projection_dim": 32}, 0.2),
    "byol": ({"encoder.width": 16, "training.learning_rate": 0.003, "method.hidden_dim": 64, "method.projection_dim": 32}, 0.5),
    "mae": (
        {
            "encoder.width": 64, "encoder.patch": 8, "augmentation.views": [{"size": 16, "mask_ratio": 0.25}], "method.decoder_dim": 32,
            "training.learning_rate": 0.003, "training.batch_size": 32, "training.epochs": 40,
        },
        0.2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_on_a_few_hundred_images_and_does_not_collapse(
    method, write_config, tmp_path
):
    changes, fall = LEARNING[method]
    sizes = {
        "subsets.shared": 192,
        "subsets.candidate": 64,
        "subsets.independent": 64,
        "training.batch_size": 64,
        "training.epochs": 8,
    }
    train(
        write_config(METHODS[method][2] | sizes | {"training.knn_every": 1} | changes),
        method=method,
    )
    log = log_without_times(tmp_path / "run")
    assert log[-1]["loss"] < log[0]["loss"] - fall
    assert log[-1]["spread"] > 0.5  # 1 is the most, and 0 a collapse
    assert log[-1]["knn_accuracy"] > 0.3  # of ten classes


def test_spread_is_0_for_a_point_and_1_for_all_directions():
    assert training.spread(torch.ones(8, 5)).item() == pytest.approx(0, abs=1e-6)
    directions = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert training.spread(directions).item() == pytest.approx(1, abs=0.02)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    write_config, tmp_path, refusal, monkeypatch
):
    path = write_config({"training.checkpoint_minutes": 1e-9})
    step, steps = training.train_step, []

    def diverging_step(*arguments, **named):
        steps.append(None)
        return step(*arguments, **named) * (float("nan") if len(steps) == 5 else 1)

    monkeypatch.setattr(training, "train_step", diverging_step)
    line = refusal(train_simclr.main, ["--config", path])
    folder = tmp_path / "run/seed_0/candidate"
    assert (
        str(folder) in line
        and "step 5" in line
        and "learning rate 0.00586824" in line
        and "last good checkpoint: last.pt" in line
    )
    assert read_checkpoint(folder / "last.pt")["step"] == 4


def test_weights_that_are_not_finite_stop_the_run_before_they_are_kept(
    write_config, tmp_path, refusal, monkeypatch
):
    step, steps = training.train_step, []

    def poisoning_step(method, *rest, **named):
        loss = step(method, *rest, **named)
        steps.append(None)
        if len(steps) == 9:  # the last step of f: its loss was finite
            next(method.encoder.parameters()).data.fill_(float("nan"))
        return loss

    monkeypatch.setattr(training, "train_step", poisoning_step)
    line = refusal(train_simclr.main, ["--config", write_config()])
    assert "a weight after step 9 is not finite" in line and "last good checkpoint: none" in line
    assert not list((tmp_path / "run").rglob("*.pt"))


def test_a_representation_that_is_not_finite_stops_the_run(
    write_config, tmp_path, refusal, monkeypatch
):
    monkeypatch.setattr(
        training, "spread", lambda representations: representations.sum() * float("inf")
    )
    line = refusal(
        train_simclr.main, ["--config", write_config({"training.checkpoint_minutes": 1e-9})]
    )
    assert (
        "a representation after step 3 is not finite (learning rate 0.00883022)" in line
        and "last good checkpoint: last.pt" in line
    )
    assert not (tmp_path / "run/seed_0/candidate/log.jsonl").read_text()


def test_a_collapse_is_warned_of_once(write_config, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "spread", lambda representations: torch.tensor(0.005))
    with pytest.warns(Caution) as warned:
        train(write_config())
    assert [str(warning.message) for warning in warned] == [
        f"{tmp_path}/run/seed_0/{role}: collapsed after epoch 1: spread 0.005"
        for role in ("candidate", "independent")
    ]


def broken(how, content):
    """The bytes of a checkpoint, broken."""
    if how == "bit-flipped":
        content = bytearray(content)
        content[len(content) // 2] ^= 16
    return {"truncated": content[: len(content) // 2], "bit-flipped": bytes(content), "empty": b""}[
        how
    ]


@pytest.mark.parametrize("how", ["truncated", "bit-flipped", "empty"])
def test_a_broken_last_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(
    how, write_config, tmp_path, capsys
):
    path = write_config({"training.checkpoint_minutes": 1e-9})
    train(path)
    folder = tmp_path / "run/seed_0/candidate"
    whole, last = (folder / "encoder.pt").read_bytes(), folder / "last.pt"
    before = read_checkpoint(folder / "previous.pt")["step"]
    last.write_bytes(broken(how, last.read_bytes()))
    (folder / "encoder.pt").unlink()
    with pytest.warns(Caution, match=f"{last}: .*; going on from {folder}/previous.pt"):
        train(path)
    assert f"candidate: going on after step {before}" in capsys.readouterr().out
    assert (folder / "encoder.pt").read_bytes() == whole


def test_a_long_training_is_estimated_from_steps_that_change_nothing(
    write_config, tmp_path, monkeypatch, capsys
):
    train(write_config({"run": str(tmp_path / "short")}))
    assert "on the disk" not in capsys.readouterr().out
    monkeypatch.setattr(training, "LONG", 18)
    path = write_config({"training.checkpoint_epochs": [1]})
    train(path)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "on the disk" in line]
    words = re.fullmatch(
        r"  18 steps for 2 encoders: about 0:00:0\d, (.*) [MG]B of memory, (.*) MB on the disk",
        line,
    )
    written = [path for path in (tmp_path / "run").rglob("*.pt")]
    left_behind = (
        sum(path.stat().st_size for path in written)
        + 3 * (tmp_path / "run/seed_0/candidate/last.pt").stat().st_size
    )
    assert float(words[1]) > 0 and float(words[2]) == pytest.approx(left_behind / 1e6, rel=0.4)
    for role in ROLES:
        name = f"seed_0/{role}/encoder.pt"
        assert (tmp_path / "short" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()

    # of three epochs two are left, and the other encoder's three
    folder = tmp_path / "run/seed_0/candidate"
    shutil.rmtree(tmp_path / "run/seed_0/independent")
    (folder / "encoder.pt").unlink()
    (folder / "log.jsonl").write_text(
        (folder / "log.jsonl").read_text().splitlines(keepends=True)[0]
    )
    save_checkpoint(
        folder / "last.pt", read_checkpoint(folder / "last.pt") | {"step": 3, "losses": []}
    )
    monkeypatch.setattr(training, "LONG", 15)
    train(path)
    assert "  15 steps for 2 encoders: about" in capsys.readouterr().out
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    shutil.rmtree(tmp_path / "run/seed_0/independent")
    monkeypatch.setattr(training, "LONG", 9)
    with pytest.warns(Caution, match="[kM]B will be written, but 1.0 kB are free"):
        train(path)


def test_a_batch_beyond_the_memory_names_the_setting_to_lower(
    write_config, tmp_path, refusal, monkeypatch
):
    def hungry(*arguments, **named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(training, "train_step", hungry)
    line = refusal(train_simclr.main, ["--config", write_config()])
    assert (
        line
        == "error: training.batch_size: 16 needs more than the GPU's memory has left; lower it\n"
    )


def test_checkpoints_are_saved_every_so_many_minutes(write_config, monkeypatch):
    now, saved = [0.0], []
    step, save = training.train_step, training.save_progress

    def step_of_40_seconds(*arguments, **named):
        now[0] += 40
        return step(*arguments, **named)

    def watched_save(folder, content):
        saved.append((folder.name, content["step"]))
        save(folder, content)

    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(training, "train_step", step_of_40_seconds)
    monkeypatch.setattr(training, "save_progress", watched_save)
    # more than 150 seconds: after every fourth step, and at the end
    train(write_config({"training.checkpoint_minutes": 2.5}))
    assert saved == [(role, step) for role in ROLES for step in (4, 8, 9)]


def test_a_run_folder_that_is_a_file_is_refused(write_config, tmp_path, refusal):
    (tmp_path / "file").write_text("text")
    for run in (tmp_path / "file", tmp_path / "file" / "below"):
        assert f"{tmp_path}/file is a file" in refusal(
            train_simclr.main, ["--config", write_config(), "--run", str(run)]
        )


def test_nothing_is_prepared_for_a_config_that_is_refused(write_config, refusal, monkeypatch):
    monkeypatch.setattr("memorization.data.images.Images.prepare", None)  # would be called
    assert "training.batch_size" in refusal(
        train_simclr.main, ["--config", write_config({"training.batch_size": 57})]
    )


@pytest.mark.parametrize("split, unlabelled, who", [
    ("train", slice(None), "the candidate encoder"),
    # as in STL-10, whose labelled images come first
    ("train", slice(24, None), "the independent encoder"),
    ("test", slice(None), "external image"),
])  # fmt: skip
def test_labels_are_needed_for_a_knn_accuracy(
    split, unlabelled, who, write_config, refusal, tmp_path, monkeypatch
):
    def partly_unlabelled(settings):
        images = open_images(settings)
        getattr(images, split).labels[unlabelled] = -1
        return images

    monkeypatch.setattr(train_simclr, "open_images", partly_unlabelled)
    line = refusal(
        train_simclr.main,
        ["--config", write_config({"training.knn_every": 1, "subsets.shared": 0})],
    )
    assert "training.knn_every" in line and "labels" in line and who in line
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore::memorization.errors.Caution")
def test_images_of_one_class_have_no_knn_accuracy(write_config, capsys, tmp_path, monkeypatch):
    """It would be 100 %."""

    def of_one_class(settings):
        images = open_images(settings)
        images.train.labels[:56] = 3  # those of f
        return images

    monkeypatch.setattr(train_simclr, "open_images", of_one_class)
    train_simclr.main(["--config", write_config({"training.knn_every": 1, "training.epochs": 1})])
    of = {}
    for role in ("candidate", "independent"):
        (line,) = (tmp_path / "run/seed_0" / role / "log.jsonl").read_text().splitlines()
        of[role] = json.loads(line)["knn_accuracy"]
    assert of["candidate"] is None and 0 <= of["independent"] < 1


def test_progress_of_another_training_is_refused(write_config, refusal, tmp_path):
    train(write_config({"training.epochs": 1}))
    folder = tmp_path / "run/seed_0"
    (folder / "independent/encoder.pt").unlink()
    (folder / "candidate/last.pt").replace(folder / "independent/last.pt")
    line = refusal(train_simclr.main, ["--config", write_config({"training.epochs": 1})])
    assert "role is 'candidate'" in line and "'independent' belongs here" in line


def test_unequal_subsets_never_train(write_config, monkeypatch):
    """The rule of the pair is asserted where a pair is trained, not only where its config is read."""
    config = read_config("", ["--config", write_config()], method=SimCLRSettings)
    images = open_images(config.data)
    draw = training.draw_subsets

    def unequal(*arguments):
        subsets = draw(*arguments)
        return dataclasses.replace(subsets, candidate=subsets.candidate[1:])

    monkeypatch.setattr(training, "draw_subsets", unequal)
    with pytest.raises(WrongUse, match="equally many"):
        training.train_pair(
            lambda: SimCLR(make_encoder(config.encoder, 3, 16), **config.method.arguments()),
            images,
            config,
        )


class Hooked(SimCLR):
    """A method that uses every optional part of the contract."""

    calls = []

    def parameter_groups(self):
        return [
            {"params": self.encoder.parameters(), "lr_scale": 0.5},
            {"params": self.projector.parameters()},
        ]

    def before_step(self, progress, optimizer):
        assert all(p.grad is not None for p in self.parameters())
        assert [group.get("lr_scale") for group in optimizer.param_groups] == [0.5, None]
        self.calls.append(("before", progress))

    def after_step(self, progress):
        self.calls.append(("after", progress))

    def pictures(self, views):
        return {"first view": views[0].pixels[:4], "second view": views[1].pixels[:4]}


def test_the_loop_calls_the_optional_parts_of_a_method(write_config, monkeypatch):
    path = write_config({"training.epochs": 1, "training.pictures_every": 1})
    config = read_config("", ["--config", path], method=SimCLRSettings)
    watch = Watch(monkeypatch)
    training.train_pair(
        lambda: Hooked(make_encoder(config.encoder, 3, 16), **config.method.arguments()),
        open_images(config.data),
        config,
    )
    assert Hooked.calls == 2 * [
        (when, step / 3) for step in range(3) for when in ("before", "after")
    ]
    assert watch.runs[0]["rates"][0] == [0.005, 0.01]
    assert (config.folder / "seed_0/candidate/pictures_epoch_0001.png").stat().st_size > 1000


def test_a_masked_autoencoder_draws_what_it_sees(write_config, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        training,
        "draw_pictures",
        lambda rows, normalization, path: drawn.append((path.name, rows, normalization)),
    )
    train(write_config(METHODS["mae"][2] | {"training.pictures_every": 2}), method="mae")
    assert [name for name, *_ in drawn] == 2 * ["pictures_epoch_0002.png"]
    assert {title: tuple(pixels.shape) for title, pixels in drawn[0][1].items()} == {
        title: (8, 3, 16, 16) for title in ("original", "masked", "reconstruction")
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", METHODS)
def test_a_pair_trains_on_a_gpu_in_bf16(method, write_config, tmp_path):
    train(
        write_config(METHODS[method][2] | {"device": "cuda", "training.knn_every": 3}),
        method=method,
    )
    assert np.isfinite(log_without_times(tmp_path / "run")[-1]["loss"])


# --- the log --------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(write_config, tmp_path):
    """(config path, folder of f) of a tiny training that was stopped within its third epoch, after
    step 7.
    """
    path, folder = write_config(), tmp_path / "run/seed_0/candidate"
    with pytest.MonkeyPatch.context() as monkeypatch:
        step, steps = training.train_step, []

        def stopping(*arguments, **named):
            steps.append(None)
            if len(steps) == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*arguments, **named)

        monkeypatch.setattr(training, "train_step", stopping)
        with pytest.raises(SystemExit):
            train(path)
    assert read_checkpoint(folder / "last.pt")["step"] == 7
    return path, folder


TORN = b'{"epoch": 3, "step": 9, "loss": 1.'


@pytest.mark.parametrize("damage, epochs, warns", [
    (lambda content: content + TORN, [1, 2, 3], False),
    (lambda content: content + bytes(4096), [1, 2, 3], False),
    (lambda content: content + b"\xff\xfe" + content, [1, 2, 3], False),
    (lambda content: content.splitlines()[0] + b"\n" + TORN, [1, 3], True),
    (lambda content: content[:60] + b"?" + content[61:].partition(b"\n")[2], [3], True),
    (lambda content: TORN, [3], True),
    (lambda content: None, [3], True),
])  # fmt: skip
def test_a_torn_or_lost_log_does_not_stop_the_training(damage, epochs, warns, interrupted, capsys):
    path, folder = interrupted
    log = folder / "log.jsonl"
    content = damage(log.read_bytes())
    log.unlink()
    if content is not None:
        log.write_bytes(content)
    if warns:
        with pytest.warns(
            Caution,
            match="of 2 finished epochs are missing or damaged; the training goes on without them",
        ):
            train(path)
    else:
        train(path)
    assert [line["epoch"] for line in training.read_log(log)] == epochs
    noted = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["epoch"] for line in noted if "epoch" in line] == epochs
    gaps = [line["lost_epochs"] for line in noted if "lost_epochs" in line]
    assert sum(last + 1 - first for first, last in gaps) == 3 - len(epochs)


def test_a_log_with_lines_missing_can_be_resumed_again_and_read(interrupted):
    path, folder = interrupted
    log = folder / "log.jsonl"
    log.write_bytes(log.read_bytes().splitlines(keepends=True)[1])
    for _ in range(2):
        with pytest.warns(Caution, match="1 of the lines of [23] finished epochs"):
            train(path)
        (folder / "encoder.pt").unlink()
    log.write_bytes(log.read_bytes() + TORN)
    assert [line["epoch"] for line in training.read_log(log)] == [2, 3]


def test_a_log_that_the_system_does_not_give_is_not_overwritten(interrupted, refusal):
    path, folder = interrupted
    (folder / "log.jsonl").unlink()
    os.mkfifo(folder / "log.jsonl")
    assert "log.jsonl: cannot be read (it is a pipe" in refusal(
        train_simclr.main, ["--config", path]
    )


# --- the files of a run ---------------------------------------------------------------------------


def start_at_once(work, count):
    """Call work(0), work(1), ... in as many processes, all from the same moment on."""
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(count)

    def run(number):
        barrier.wait()
        work(number)

    processes = [fork.Process(target=run, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * count


@pytest.mark.parametrize("is_new", [True, False])
def test_processes_that_start_at_once_lose_nothing_of_each_other(is_new, write_config, tmp_path):
    config = read_config("", ["--config", write_config({"seeds": [100]})], method=SimCLRSettings)
    images = open_images(config.data)
    subsets = dataclasses.replace(draw_subsets(config.subsets, images), data=images.fingerprint)
    if not is_new:
        training._open_run(subsets, config)

    def start(number):
        training._open_run(subsets, config.model_copy(update={"seeds": [number]}))
        for role in ROLES:
            training._note_environment(
                config.folder, f"seed_{number}/{role}", torch.device("cpu"), resumed=False
            )

    start_at_once(start, 8)
    run = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert run["seeds"] == [*range(8), *([] if is_new else [100])]
    noted = json.loads((tmp_path / "run/environment.json").read_text())
    assert set(noted) == {f"seed_{number}/{role}" for number in range(8) for role in ROLES}
    assert load_subsets(tmp_path / "run/subsets.npz").fingerprint == subsets.fingerprint
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.yaml",
        "subsets.npz",
        "environment.json",
    }


def test_of_two_trainings_that_start_at_once_with_different_settings_one_is_refused(
    write_config, tmp_path
):
    config = read_config("", ["--config", write_config()], method=SimCLRSettings)
    images = open_images(config.data)
    subsets = dataclasses.replace(draw_subsets(config.subsets, images), data=images.fingerprint)

    def start(number):
        learning = config.training.model_copy(update={"learning_rate": 0.01 * (number + 1)})
        try:
            training._open_run(
                subsets, config.model_copy(update={"seeds": [number], "training": learning})
            )
            (tmp_path / f"began_{number}").touch()
        except WrongUse as error:
            assert "training.learning_rate" in str(error)

    start_at_once(start, 4)
    (began,) = tmp_path.glob("began_*")
    run = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert run["seeds"] == [int(began.name[-1])] and run["training"]["learning_rate"] == 0.01 * (
        run["seeds"][0] + 1
    )


def test_whole_trainings_of_single_seeds_start_at_once_into_one_new_run(write_config, tmp_path):
    path = write_config({"training.epochs": 1})
    command = [sys.executable, train_simclr.__file__, "--config", path, "--seeds"]
    started = [
        subprocess.Popen([*command, str(seed)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for seed in range(2)
    ]
    errors = [process.communicate()[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["seeds"] == [0, 1]
    assert len(json.loads((tmp_path / "run/environment.json").read_text())) == 4
    assert len(list((tmp_path / "run").glob("seed_*/*/encoder.pt"))) == 4
    assert not [
        file for file in (tmp_path / "run").rglob("*") if file.name.endswith((".partial", "lock"))
    ]


def test_more_seeds_leave_the_settings_of_measurements_as_they_are(write_config, tmp_path):
    path = write_config({"training.epochs": 1, "scores.views": 4})
    train(path)
    train(
        write_config({"training.epochs": 1, "scores.views": 7, "training.knn_every": 1}),
        "--seeds",
        "1",
    )
    run = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (run["seeds"], run["scores"]["views"], run["training"]["knn_every"]) == ([0, 1], 4, 0)


def test_a_run_that_has_the_seeds_already_is_only_read(write_config, tmp_path):
    def times():
        return {
            path.name: path.stat().st_mtime_ns
            for path in (tmp_path / "run", *(tmp_path / "run").iterdir())
        }

    train(write_config({"training.epochs": 1}))
    before = times()
    train(write_config({"training.epochs": 1}))
    assert times() == before


def test_a_lost_config_is_written_again_for_the_same_training_alone(
    write_config, tmp_path, refusal
):
    train(write_config({"training.epochs": 1}), "--seeds", "0", "3")
    run = tmp_path / "run"
    (run / "config.yaml").unlink()
    subsets = (run / "subsets.npz").read_bytes()
    for changes, words in (
        (
            {"subsets.seed": 1, "subsets.order": "shuffled"},
            ["subsets.npz: its fingerprint", "config.yaml", "is missing"],
        ),
        (
            {"training.learning_rate": 0.02},
            ["encoder.pt: training.learning_rate is 0.01, but 0.02", "is missing"],
        ),
    ):
        line = refusal(
            train_simclr.main, ["--config", write_config({"training.epochs": 1} | changes)]
        )
        assert all(word in line for word in words), line
        assert not (run / "config.yaml").exists() and (run / "subsets.npz").read_bytes() == subsets
    with pytest.warns(Caution, match="config.yaml was lost; it is written again"):
        train(write_config({"training.epochs": 1}))
    assert yaml.safe_load((run / "config.yaml").read_text())["seeds"] == [0, 3]


def test_lost_subsets_are_drawn_again_if_the_encoders_were_trained_on_them(
    write_config, tmp_path, refusal, monkeypatch
):
    path, run = write_config({"training.epochs": 1}), tmp_path / "run"
    train(path)
    subsets = (run / "subsets.npz").read_bytes()
    (run / "subsets.npz").unlink()

    def changed(settings):
        images = open_images(settings)
        images.train.pixels[0, 0, 0, 0] ^= 1
        return images

    with monkeypatch.context() as patch:
        patch.setattr(train_simclr, "open_images", changed)
        line = refusal(train_simclr.main, ["--config", path])
    assert (
        "candidate/encoder.pt: subsets is" in line
        and "belongs here" in line
        and not (run / "subsets.npz").exists()
    )
    with pytest.warns(Caution, match="subsets.npz was lost; it is written again"):
        train(path)
    assert (run / "subsets.npz").read_bytes() == subsets
