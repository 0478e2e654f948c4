"""The settings of encoders: which there are, and what does not fit them."""

import pydantic
import pytest
import torch
from conftest import OF_OTHERS, make_vit, random_pixels

from models.convnext import ConvNeXtSettings
from models.encoders import ENCODERS, EncoderSettings, encoder_settings, make_encoder
from models.vit import sincos_positions


class Section(pydantic.BaseModel):
    encoder: EncoderSettings


def test_the_config_offers_the_encoders_that_there_are():
    for name, settings in ENCODERS.items():
        section = Section(encoder={"name": name} | OF_OTHERS.get(name, {}))
        assert type(section.encoder) is settings
    with pytest.raises(pydantic.ValidationError, match="resnet19"):
        Section(encoder={"name": "resnet19"})


def test_patches_can_be_hidden_from_encoders_that_have_patches():
    with_patches = {
        name for name in ENCODERS if encoder_settings(name, **OF_OTHERS.get(name, {})).sees_patches
    }
    assert with_patches == {"vit_mini", "vit_tiny", "vit_small", "vit_base"}
    assert encoder_settings("vit_tiny", patch=2).patch_size == 2
    assert encoder_settings("resnet18").patch_size is None


@pytest.mark.parametrize("changes, size, words", [
    ({"patch": 5}, 16, "encoder.patch: 5 does not divide"),
    ({"width": 40}, 16, "encoder.width: 40"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(changes, size, words):
    with pytest.raises(ValueError, match=words):
        make_vit(1, size, **changes)


@pytest.mark.parametrize("patch, size", [(2, 28), (4, 32), (8, 96), (16, 48)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_that_the_patch_divides_fits(patch, size, channels):
    tokens = make_vit(channels, size, patch=patch, depth=2).tokens(random_pixels(2, channels, size))
    assert tokens.shape == (2, 1 + (size // patch) ** 2, 32)


@pytest.mark.parametrize("height, width", [(18, 18), (8, 6), (6, 8)])
def test_another_size_that_the_patch_does_not_divide_is_refused(height, width):
    with pytest.raises(ValueError, match="encoder.patch: 4 does not divide"):
        make_vit(1)(torch.zeros(1, 1, height, width))


def test_fixed_positions_need_a_width_that_4_divides():
    with pytest.raises(ValueError, match="6 given"):
        sincos_positions(6, 2)


def test_convnext_refuses_images_that_its_stem_makes_too_small():
    with pytest.raises(ValueError, match="encoder.stem: standard takes images of at least 32"):
        ConvNeXtSettings(name="convnext_tiny", stem="standard").make(3, 28)


@pytest.mark.parametrize("name", ["resnet_small", "convnext_tiny"])
def test_a_convolutional_network_refuses_a_mask(name):
    encoder = make_encoder(encoder_settings(name), 1, 28)
    with pytest.raises(ValueError, match="mask"):
        encoder(torch.rand(1, 1, 28, 28), visible=torch.tensor([[0]]))
