"""Views and settings that a method cannot be trained with."""

import pytest
from conftest import FlatPixels, make_mae, masked_view, two_views

from memorization.data.augmentations import View
from models.barlowtwins import BarlowTwins, BarlowTwinsSettings
from models.encoders import encoder_settings, make_encoder
from models.mae import MAE
from models.simclr import SimCLR
from models.vicreg import VICReg, VICRegSettings


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
