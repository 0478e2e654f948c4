"""What layer_memorization.py refuses in one line, before anything is written."""

import shutil

import pytest
from conftest import (
    CROPS,
    fake_images,
    foreign_encoder,
    made_up_split,
    subsets_of_five,
)

import layer_memorization
from memorization.checkpoint import read_checkpoint, save_checkpoint
from memorization.encoder import Pair
from memorization.errors import WrongUse
from memorization.measuring.layer_tables import rows_to_measure
from memorization.measuring.layers import LayerSettings, watch_pair
from memorization.measuring.scores import Scoring


@pytest.mark.parametrize("options, message", [
    ("--layers.names conv2", "layers.names: conv2: the encoder has no such layer; did you"),
    ("--layers.names conv1 layer9", "layers.names: layer9: the encoder has no such layer; did you"),
    ("--layers.names ../x", "layers.names: ../x: the encoder has no such layer"),
    ("--layers.names conv1 conv1", "each value may stand once"),
    ("--layers.names []", "layers.names: [] is not allowed"),
    ("--layers.images 9", "layers.images: 9 is not allowed"),
    ("--layers.images 2", "layers.images: 2 is not allowed"),
    ("--layers.representation mean", "layers.representation: 'mean' is not allowed"),
    ("--layers.batch_size 0", "layers.batch_size: 0 is not allowed"),
    ("--layers.image 10", "layers.image"),
    ("--checkpoint epoch_0001", "--checkpoint: 'epoch_0001' is not allowed"),
])  # fmt: skip
def test_settings_that_do_not_fit(options, message, run_copy, refusal):
    path, run = run_copy
    before = sorted(run.rglob("*"))
    arguments = ["--config", path, "--run", str(run), *options.split()]
    assert message in refusal(layer_memorization.main, arguments)
    assert sorted(run.rglob("*")) == before


def test_the_nearest_layers_are_suggested(run_copy, refusal):
    path, run = run_copy
    options = ["--run", str(run), "--layers.names", "layer3.0.rellu"]
    line = refusal(layer_memorization.main, ["--config", path, *options])
    assert "did you mean layer3.0.relu" in line


def test_a_result_of_other_settings_is_not_replaced(run_copy, refusal, no_pictures):
    path, run = run_copy
    arguments = ["--config", path, "--run", str(run), "--layers.images", "10"]
    layer_memorization.main(arguments)
    (run / "layers/images_10").rename(run / "layers/images_11")
    line = refusal(layer_memorization.main, [*arguments[:-1], "11"])
    assert "holds another result: layers.images is 10, but 11 belongs here" in line


def test_scores_of_other_encoders_do_not_choose_images(run_copy, refusal):
    path, run = run_copy
    encoder = run / "seed_0/candidate/encoder.pt"
    record = read_checkpoint(encoder)
    record["weights"]["layers.0.weight"] *= 1.1
    save_checkpoint(encoder, record)
    before = sorted(run.rglob("*"))
    line = refusal(layer_memorization.main, ["--config", path, "--run", str(run)])
    assert "encoders" in line and "run memorization_scores.py again" in line
    assert sorted(run.rglob("*")) == before


def test_a_layer_that_overflows_is_named(run_copy, refusal):
    path, run = run_copy
    shutil.rmtree(run / "scores")
    encoder = run / "seed_0/candidate/encoder.pt"
    record = read_checkpoint(encoder)
    record["weights"]["layers.3.conv2.weight"] *= 1e38
    save_checkpoint(encoder, record)
    line = refusal(layer_memorization.main, ["--config", path, "--run", str(run)])
    assert "seed_0/candidate: layer layer1.0.conv2: what comes out is not finite" in line
    assert not (run / "layers").exists()


def test_views_without_chance_are_refused(run_copy, refusal):
    path, run = run_copy
    options = ["--run", str(run), "--scores.augmentation", "[{size: 16}]"]
    line = refusal(layer_memorization.main, ["--config", path, *options])
    assert "seed_0/candidate: all views are represented alike: the recipe has no chance" in line
    assert not (run / "layers").exists()


def test_layers_before_all_chance_are_refused(masked_run, tmp_path, refusal):
    path, run = masked_run[0], shutil.copytree(masked_run[1], tmp_path / "run")
    # views differ in their masks alone, and are compared where both are visible
    options = ["--run", str(run), "--layers.names", "embedding"]
    line = refusal(layer_memorization.main, ["--config", path, *options])
    assert "layers.names: seed_0/candidate: all views are alike at embedding" in line
    assert not (run / "layers").exists()


def test_an_encoder_without_layers_is_refused():
    encoder = foreign_encoder("plain", 0)
    with pytest.raises(WrongUse, match="layers: plain: its network has no layers that can be"):
        watch_pair(Pair(encoder, encoder, 0), LayerSettings(), made_up_split(12, 3, 16), CROPS,
                   Scoring())  # fmt: skip
    encoder.network.find_layers = lambda pixels, visible=None: []
    with pytest.raises(WrongUse, match="layers: plain: its network has no layers that can be"):
        watch_pair(Pair(encoder, encoder, 0), LayerSettings(), made_up_split(12, 3, 16), CROPS,
                   Scoring())  # fmt: skip


def test_subsets_of_too_few_images_are_left_out_in_one_line(capsys):
    images = fake_images()
    subsets = subsets_of_five(shared=[0], candidate=range(2, 12), external=range(10))
    rows = rows_to_measure(subsets, images, LayerSettings())
    assert set(rows["subset"]) == {"candidate", "external"}
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"layers: {name}: left out: 1 images are too few for a mean"
                       for name in ("shared", "independent")]  # fmt: skip


@pytest.mark.parametrize("candidates, external, message", [
    (1, 40, "there are 1 candidate images"),
    (9, 40, "there are 9 candidate images"),
    (40, 2, "there are 2 external images"),
])  # fmt: skip
def test_too_few_candidates_or_external_images_are_refused(candidates, external, message):
    subsets = subsets_of_five(candidate=range(candidates), external=range(external))
    with pytest.raises(WrongUse, match=f"layers: {message}, and a mean over fewer than 10"):
        rows_to_measure(subsets, fake_images(), LayerSettings())
