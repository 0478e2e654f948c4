"""Views and settings that a method cannot be trained with."""

import inspect

import pytest
from conftest import METHODS, FlatPixels, make_mae, masked_view, two_views, write_experiment

import train_mocov3
import train_simsiam
from memorization.data.augmentations import View
from models.barlowtwins import BarlowTwins, BarlowTwinsSettings
from models.encoders import encoder_settings, make_encoder
from models.mae import MAE
from models.simclr import SimCLR
from models.vicreg import VICReg, VICRegSettings


def refused_line(method, folder, changes, refusal):
    """The line with which the script of a method refuses its tiny experiment with changes, and
    before it writes anything.
    """
    path = write_experiment(folder, METHODS[method].changes | changes)
    line = refusal(METHODS[method].script.main, ["--config", path])
    assert [file.name for file in folder.iterdir()] == ["tiny.yaml"]
    return line


def counts_refused(method):
    """Numbers of views that a method does not take: one more and one less than its number; if it
    takes any number, one, unless its config has one alone, as that of MAE.
    """
    arguments = inspect.getfullargspec(METHODS[method].module.forward)
    count = len(arguments.args) - 1
    if arguments.varargs:
        return [] if sum(recipe["count"] for recipe in METHODS[method].views) == 1 else [1]
    return [number for number in (count - 1, count + 1) if number]


@pytest.mark.parametrize(
    "method, count", [(method, count) for method in METHODS for count in counts_refused(method)]
)
def test_too_few_views_and_too_many_are_refused(method, count, tmp_path, refusal):
    views = [METHODS[method].views[0] | {"count": count}]
    line = refused_line(method, tmp_path, {"augmentation.views": views}, refusal)
    assert line.startswith("error: augmentation.views: ") and "views" in line, line


@pytest.mark.parametrize("method", METHODS)
def test_masked_views_of_a_convolutional_network_are_refused(method, tmp_path, refusal):
    views = [recipe | {"mask_ratio": 0.5} for recipe in METHODS[method].views]
    changes = {"augmentation.views": views, "encoder": {"name": "resnet_small"}}
    line = refused_line(method, tmp_path, changes, refusal)
    assert "augmentation.views: mask_ratio is 0.5, but resnet_small sees whole images" in line


@pytest.mark.parametrize("K, words", [
    (None, "mask_ratio above 0"), (16, "hides none of the 16 patches"),
])  # fmt: skip
def test_a_view_that_hides_nothing_is_refused_by_mae(K, words):
    view = masked_view(channels=1, K=K or 16)
    with pytest.raises(ValueError, match=words):
        make_mae()(view if K else View(view.pixels))


def test_an_encoder_that_cannot_leave_out_patches_is_refused_by_mae():
    with pytest.raises(ValueError, match="encoder.name: MAE hides patches"):
        MAE(make_encoder(encoder_settings(name="resnet_small"), 1, 16), 16, 1, 2, True)


def test_heads_that_do_not_divide_the_decoders_width_are_refused():
    with pytest.raises(ValueError, match="decoder_heads: 3"):
        make_mae(decoder_heads=3)


@pytest.mark.parametrize("count", [8, 16])
def test_views_under_unequal_masks_do_not_pass_in_one_batch(count):
    simclr = SimCLR(FlatPixels(), 6, 4, temperature=0.5, head_norm="layer", one_pass=True)
    first, second = masked_view(K=5), masked_view(K=count)
    for other in (second, View(second.pixels)):
        with pytest.raises(ValueError, match="one mask ratio"):
            simclr(first, other)


@pytest.mark.parametrize("name, settings, method", [
    ("vicreg", VICRegSettings, VICReg), ("barlowtwins", BarlowTwinsSettings, BarlowTwins),
])  # fmt: skip
def test_a_batch_of_one_image_has_no_variance(name, settings, method):
    arguments = settings(name=name, hidden_dim=6, projection_dim=4, head_norm="layer").arguments()
    with pytest.raises(ValueError, match="^training.batch_size: 1, but .* 2 or more images$"):
        method(FlatPixels(), **arguments)(*two_views(B=1))


@pytest.mark.parametrize("script, name, changes, words", [
    (train_simsiam, "simsiam", {"projector_layers": 1}, "method.projector_layers: 1"),
    (train_simsiam, "simsiam", {"projector_layers": 4}, "method.projector_layers: 4"),
    (train_simsiam, "simsiam", {"predictor_dim": 0}, "method.predictor_dim: 0"),
    (train_simsiam, "simsiam", {"constant_predictor_rate": 1}, "constant_predictor_rate: 1"),
    (train_simsiam, "simsiam", {"momentum": 0.9}, "method.momentum"),
    (train_mocov3, "mocov3", {"projector_layers": 4}, "method.projector_layers: 4"),
    (train_mocov3, "mocov3", {"temperature": 0.0}, "method.temperature: 0"),
    (train_mocov3, "mocov3", {"momentum": 1.1}, "method.momentum: 1.1"),
    (train_mocov3, "mocov3", {"kept": "teacher"}, "method.kept: 'teacher'"),
    (train_mocov3, "mocov3", {"freeze_patch_embedding": True},
     "method.freeze_patch_embedding: True needs a vision transformer"),
])  # fmt: skip
def test_settings_of_simsiam_and_mocov3_that_do_not_fit_are_refused(
    script, name, changes, words, write_config, refusal, tmp_path
):
    path = write_config({"method": {"name": name} | changes})
    assert words in refusal(script.main, ["--config", path])
    assert not (tmp_path / "run").exists()
