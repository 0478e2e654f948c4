import pydantic
import pytest
import torch

from models.encoders import ENCODERS, EncoderSettings, encoder_settings, make_encoder


class Section(pydantic.BaseModel):
    encoder: EncoderSettings


def test_the_config_offers_the_encoders_that_there_are():
    assert {name: type(Section(encoder={"name": name}).encoder) for name in ENCODERS} == ENCODERS
    with pytest.raises(pydantic.ValidationError, match="resnet19"):
        Section(encoder={"name": "resnet19"})


@pytest.mark.parametrize("name, stem, channels, size, dim, positions", [
    ("resnet_small", "small", 1, 28, 128, 16),
    ("resnet18", "small", 3, 32, 512, 16),
    ("resnet34", "standard", 3, 64, 512, 4),
    ("resnet50", "small", 1, 16, 2048, 4),
    ("resnet50", "standard", 1, 64, 2048, 4),
])  # fmt: skip
def test_representation_is_the_mean_of_the_tokens(name, stem, channels, size, dim, positions):
    encoder = make_encoder(encoder_settings(name=name, stem=stem), channels, size).eval()
    pixels = torch.rand(2, channels, size, size)
    with torch.no_grad():
        representation, tokens = encoder(pixels), encoder.tokens(pixels)
    assert representation.shape == (2, dim) and encoder.dim == dim
    assert tokens.shape == (2, positions, dim)
    assert torch.allclose(representation, tokens.mean(1), atol=1e-5)


def test_the_small_stem_keeps_the_size_and_the_standard_one_quarters_it():
    small, standard = (
        make_encoder(encoder_settings(name="resnet18", stem=stem), 3, 32)
        for stem in ("small", "standard")
    )
    pixels = torch.rand(1, 3, 32, 32)
    assert small.layers[:4](pixels).shape[2:] == (32, 32) and standard.layers[:4](pixels).shape[
        2:
    ] == (8, 8)


def test_a_resnet_refuses_a_mask():
    encoder = make_encoder(encoder_settings(name="resnet_small"), 1, 28)
    with pytest.raises(ValueError, match="mask"):
        encoder(torch.rand(1, 1, 28, 28), visible=torch.tensor([[0]]))


def test_batch_norms_that_are_trained_see_the_whole_batch_even_without_a_gradient():
    """Such as those of a momentum encoder."""
    torch.manual_seed(0)
    encoder, pixels = (
        make_encoder(encoder_settings(name="resnet_small", width=8), 1, 28),
        torch.rand(150, 1, 28, 28),
    )
    with torch.no_grad():
        without = encoder(pixels)
    assert torch.allclose(without, encoder(pixels), atol=1e-5)
