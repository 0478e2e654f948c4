"""What the table of a probe holds."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CPU, fake_images, flat_pixels

from memorization.fingerprints import checksum
from memorization.machine.files import json_text
from memorization.measuring.probing import ProbeSettings, ProbeSummary, probe
from memorization.measuring.representations import state_adaptation
from memorization.significance import mean_and_spread
from models.encoders import encoder_settings, make_encoder


def test_what_was_done_to_the_images_is_stated():
    images = fake_images()
    assert state_adaptation(flat_pixels(), images) == "as they are"
    adapted = state_adaptation(flat_pixels(channels=1, size=28), images)
    assert adapted == "colours turned gray, resized from 8 to 28 pixels"


def test_f_g_a_random_encoder_and_raw_pixels_stand_in_one_table(probed_run):
    _, run = probed_run
    summary = json.loads((run / "probe/summary.json").read_text())
    pairs = [f"{role} seed {seed}" for seed in (0, 1) for role in ("candidate", "independent")]
    names = [*pairs, "random encoder", "raw pixels"]
    assert [row["encoder"] for row in summary["results"]] == names
    for row in summary["results"]:
        assert (row["dataset"], row["train_images"]) == ("fake", 300)
        assert row["adapted"] == "as they are"
        assert 0 <= row["top_1"]["mean"] <= row["top_5"]["mean"] <= 1 and row["top_1"]["n"] == 2
    of = {row["encoder"]: row["top_1"]["mean"] for row in summary["results"]}
    over_pairs = summary["over_pairs"]["fake"]
    mean = (of[names[0]] + of[names[2]]) / 2
    assert over_pairs["candidate"]["mean"] == pytest.approx(mean)
    assert over_pairs["paired"]["f > g"]["n"] == 2
    # they are not all the same encoder
    assert len({row["top_1"]["mean"] for row in summary["results"]}) > 3
    fingerprints = summary["fingerprints"]
    assert set(fingerprints["encoders"]) == set(names)
    assert fingerprints["data"]["fake"]["train"]["count"] == 1024
    assert summary["trained"]["training"]["epochs"] == 3
    assert (run / "probe/probe.png").stat().st_size > 5000
    text = (run / "probe/summary.json").read_text()
    read = ProbeSummary.parse(text)
    assert json_text(read.plain() | {"files": read.files}) == text


def test_a_probe_reports_what_was_asked_for(tmp_path):
    images, settings = fake_images(), ProbeSettings(epochs=20, warmup_epochs=2, seeds=[0, 1])
    result = probe(flat_pixels(), images, settings, tmp_path, CPU)
    shares = [run["top_1"] for run in result.seeds]
    assert [run["seed"] for run in result.seeds] == [0, 1]
    assert result.top_1.model_dump() == mean_and_spread(shares)
    assert np.mean(shares) > 0.5 and result.top_5.mean >= result.top_1.mean
    confusion = np.array(result.confusion)
    assert confusion.sum() == 2 * 256
    assert np.trace(confusion) / confusion.sum() == pytest.approx(np.mean(shares))
    assert result.per_class == pytest.approx(np.diag(confusion) / confusion.sum(1))
    assert confusion.sum(1).tolist() == (2 * torch.bincount(images.test.labels)).tolist()
    assert 0.2 < result.knn_200 <= 1 and 0.2 < result.knn_20 <= 1
    assert (result.train_images, result.test_images) == (1024, 256)


def test_probing_changes_nothing_of_an_encoder(tmp_path):
    torch.manual_seed(0)
    network = make_encoder(encoder_settings(name="resnet_small", width=8), 3, 8)
    network.eval().requires_grad_(False)
    before = checksum(network.state_dict())
    quick = ProbeSettings(epochs=5, warmup_epochs=1, seeds=[0])
    probe(replace(flat_pixels(), network=network), fake_images(), quick, tmp_path, CPU)
    assert checksum(network.state_dict()) == before and not network.training
