"""What the table of a probe holds."""

import json

import pytest
from conftest import fake_images, flat_pixels

from memorization.machine.files import json_text
from memorization.measuring.probing import ProbeSummary
from memorization.measuring.representations import state_adaptation


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
