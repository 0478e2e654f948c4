"""A run, or encoders, that cannot be scored: one line, and nothing is lost."""

import numpy as np
import pytest
import torch
from conftest import (
    CROPS,
    break_file,
    foreign_encoder,
    nan_weights,
    noise_images,
    run_out_of_memory,
)

import memorization_scores
from memorization.alignment import alignment_loss, jackknife_error, mean_over_pairs, represent
from memorization.data.augmentations import View
from memorization.data.images import Split
from memorization.errors import WrongUse
from memorization.measuring import scores
from memorization.measuring.scores import score_images


def test_a_batch_beyond_the_memory_names_the_setting_to_lower(run_copy, refusal, monkeypatch):
    monkeypatch.setattr(scores, "score_batch", run_out_of_memory)
    path, run = run_copy
    line = refusal(memorization_scores.main, ["--config", path, "--run", str(run)])
    assert "scores.batch_size: 256 needs more than the GPU's memory has left; lower it" in line


@pytest.mark.parametrize("changes, words", [
    ({"size": 32}, "size is 16 of f, but 32 of g"),
    ({"normalization": ((0.5,) * 3, (0.5,) * 3)}, "std.0 is 0.25 of f, but 0.5 of g"),
    ({"channels": 1}, "g: takes images of 1 channels, but the images have 3"),
    ({"network": torch.nn.Flatten().train()}, "g: is in training mode"),
])  # fmt: skip
def test_encoders_that_do_not_fit_each_other_or_the_images_are_refused(changes, words):
    f, g = foreign_encoder("f", 0), foreign_encoder("g", 1, **changes)
    with pytest.raises(WrongUse, match=words):
        score_images(f, g, Split.from_array(noise_images()), range(12), CROPS)


@pytest.mark.parametrize("array", [np.zeros((4, 8, 8, 3)), np.zeros((4, 8, 9, 3), np.uint8)])
def test_an_array_of_no_square_uint8_images_is_refused(array):
    with pytest.raises(WrongUse, match="but uint8 of shape .N, S, S, C. is needed"):
        Split.from_array(array)


def test_tokens_of_masked_views_are_no_vectors():
    view = View(torch.zeros(1, 1, 2, 2), torch.tensor([[0]]))
    with pytest.raises(ValueError, match="masked_token_distances"):
        represent(torch.nn.Identity(), [view], "tokens")


def test_the_alignment_loss_of_one_view_is_refused():
    for measure, of_one_view in ((alignment_loss, (1, 1, 4)), (mean_over_pairs, (1, 1, 1))):
        with pytest.raises(ValueError, match="at least 2"):
            measure(torch.zeros(of_one_view))


def test_the_jackknife_of_two_views_is_refused():
    with pytest.raises(ValueError, match="at least 3"):
        jackknife_error(torch.zeros(2, 2, 2), torch.zeros(2, 2, 2))


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
