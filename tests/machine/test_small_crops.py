"""Runs that were trained with small crops are measured with views of full size alone."""

import pytest
from conftest import ASKED, QUICK_PROBE, write_experiment

import dejavu
import linear_probing_train
import memorization_scores
import train_dino
from models.resnet import ConvolutionalEncoder

CROPS = {
    "method": {"name": "dino", "hidden_dim": 8, "projection_dim": 8, "prototypes": 8},
    "augmentation.views": [
        {"count": 2, "size": 8, "crop_scale": [0.1, 0.4]},
        {"size": 16, "crop_scale": [0.4, 1.0]},
        {"size": 16, "crop_scale": [0.4, 1.0], "solarize": 0.5},
    ],
    "training.epochs": 1,
}


@pytest.fixture
def met(monkeypatch):
    """The sizes of images that encoders met, a set."""
    sizes, forward = set(), ConvolutionalEncoder.forward

    def watched(encoder, pixels, visible=None):
        sizes.add(pixels.shape[-1])
        return forward(encoder, pixels, visible)

    monkeypatch.setattr(ConvolutionalEncoder, "forward", watched)
    return sizes


def test_scores_deja_vu_and_probes_see_no_small_crops(tmp_path, met):
    path = write_experiment(tmp_path, CROPS)
    train_dino.main(["--config", path])
    assert met == {8, 16}
    for script, options in (
        (memorization_scores, []), (dejavu, ASKED), (linear_probing_train, QUICK_PROBE),
    ):  # fmt: skip
        met.clear()
        script.main(["--config", path, *options])
        assert met == {16}, script.__name__
