from types import SimpleNamespace

import pydantic
import pytest
import torch
import torchvision

from memorization.optimizers import default_parameter_groups, make_optimizer
from memorization.settings import TrainingSettings
from models.convnext import ConvNeXtSettings
from models.encoders import ENCODERS, EncoderSettings, encoder_settings, make_encoder
from models.simclr import SimCLR, SimCLRSettings

FROM_TORCHVISION = ["resnet18", "resnet34", "resnet50", "wide_resnet50_2", "convnext_tiny"]


class Section(pydantic.BaseModel):
    encoder: EncoderSettings


def test_the_config_offers_the_encoders_that_there_are():
    assert {name: type(Section(encoder={"name": name}).encoder) for name in ENCODERS} == ENCODERS
    with pytest.raises(pydantic.ValidationError, match="resnet19"):
        Section(encoder={"name": "resnet19"})


def test_the_first_encoders_record_the_settings_of_all_of_them_and_later_ones_their_own():
    defaults = {"stem": "small", "width": 32, "depth": 4, "patch": 4}
    defaults |= {"positions": "sincos", "pooling": "mean"}
    small = encoder_settings("resnet_small", width=8)
    assert list(small.model_dump().items()) == list(
        ({"name": "resnet_small"} | defaults | {"width": 8}).items()
    )
    for name in ("resnet18", "vit_tiny"):
        assert encoder_settings(name).model_dump() == {"name": name} | defaults
        assert encoder_settings(**{"name": name} | defaults) == encoder_settings(name)
    assert encoder_settings("convnext_tiny").model_dump() == {
        "name": "convnext_tiny",
        "stem": "small",
    }


def test_patches_can_be_hidden_from_encoders_that_have_patches():
    with_patches = {name for name in ENCODERS if encoder_settings(name).sees_patches}
    assert with_patches == {"vit_mini", "vit_tiny", "vit_small", "vit_base"}
    assert encoder_settings("vit_tiny", patch=2).patch_size == 2
    assert encoder_settings("resnet18").patch_size is None


def cheap_settings(name):
    """The settings of an encoder with which an image of 64 pixels costs least."""
    takes = ENCODERS[name].model_fields
    cheap = {"stem": "standard", "patch": 32, "depth": 1}
    return encoder_settings(name, **{key: cheap[key] for key in cheap if key in takes})


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_trains_a_step(name):
    torch.manual_seed(0)
    encoder = make_encoder(cheap_settings(name), 3, 64)
    method = SimCLR(encoder, **SimCLRSettings(name="simclr").arguments())
    settings = TrainingSettings(epochs=1, batch_size=2, optimizer="sgd", learning_rate=1.0)
    optimizer = make_optimizer(method, settings)
    views = [SimpleNamespace(pixels=torch.rand(2, 3, 64, 64), visible=None) for _ in range(2)]
    before = encoder.eval()(views[0].pixels).detach()
    assert before.shape == (2, encoder.dim)
    loss = method.train()(*views)
    loss.backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    optimizer.step()
    after = encoder.eval()(views[0].pixels).detach()
    assert loss.isfinite() and after.isfinite().all() and not torch.equal(before, after)


@pytest.mark.parametrize("name, stem, channels, size, dim, positions", [
    ("resnet_small", None, 1, 28, 128, 16),
    ("resnet18", "small", 3, 32, 512, 16),
    ("resnet34", "standard", 3, 64, 512, 4),
    ("resnet50", "small", 1, 16, 2048, 4),
    ("resnet50", "standard", 1, 64, 2048, 4),
    ("wide_resnet50_2", "small", 3, 16, 2048, 4),
    ("wide_resnet50_2", "standard", 1, 64, 2048, 4),
])  # fmt: skip
def test_representation_is_the_mean_of_the_tokens(name, stem, channels, size, dim, positions):
    settings = encoder_settings(name, **({} if stem is None else {"stem": stem}))
    encoder = make_encoder(settings, channels, size).eval()
    pixels = torch.rand(2, channels, size, size)
    with torch.no_grad():
        representation, tokens = encoder(pixels), encoder.tokens(pixels)
    assert representation.shape == (2, dim) and encoder.dim == dim
    assert tokens.shape == (2, positions, dim)
    assert torch.allclose(representation, tokens.mean(1), atol=1e-5)


@pytest.mark.parametrize("stem, channels, size, positions", [
    ("small", 3, 32, 16), ("small", 1, 28, 9), ("standard", 3, 64, 4),
])  # fmt: skip
def test_a_representation_of_convnext_is_the_mean_of_the_tokens_under_a_layer_norm(
    stem, channels, size, positions
):
    encoder = make_encoder(encoder_settings("convnext_tiny", stem=stem), channels, size).eval()
    pixels = torch.rand(2, channels, size, size)
    with torch.no_grad():
        representation, tokens = encoder(pixels), encoder.tokens(pixels)
    assert representation.shape == (2, 768) and encoder.dim == 768
    assert tokens.shape == (2, positions, 768)
    normalized = torch.nn.functional.layer_norm(tokens.mean(1), (768,), eps=1e-6)
    assert torch.allclose(representation, normalized, atol=1e-4)


@pytest.mark.parametrize("name", FROM_TORCHVISION)
def test_an_encoder_from_torchvision_has_its_weights_but_those_of_the_classifier(name):
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None)
        encoder = make_encoder(encoder_settings(name, stem="standard"), 3, 64)
    classifier = [m for m in network.modules() if isinstance(m, torch.nn.Linear)][-1]
    expected = count(network) - count(classifier)
    assert count(encoder) == expected
    sizes = {"wide_resnet50_2": 66_834_240, "convnext_tiny": 27_820_128, "resnet50": 23_508_032}
    assert count(encoder) == sizes.get(name, expected)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_convnext_computes_what_torchvision_pools():
    torch.manual_seed(0)
    network = torchvision.models.convnext_tiny(weights=None, layer_scale=0.5).eval()
    network.classifier[2] = torch.nn.Identity()
    encoder = make_encoder(encoder_settings("convnext_tiny", stem="standard"), 3, 64).eval()
    weights = {
        name.replace("features.", "layers.").replace("classifier.0.", "norm."): weight.flatten()
        if name.endswith("layer_scale")
        else weight
        for name, weight in network.state_dict().items()
    }
    encoder.load_state_dict(weights)
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(pixels)
        assert torch.allclose(encoder(pixels), expected, atol=1e-4)
        assert torch.allclose(encoder.train()(pixels), expected, atol=1e-4)  # no stochastic depth


def test_the_layer_scales_of_convnext_are_neither_decayed_nor_adapted():
    with torch.device("meta"):
        encoder = make_encoder(encoder_settings("convnext_tiny"), 3, 32)
    groups = default_parameter_groups(encoder, SimpleNamespace(optimizer="lars"))
    plain = {id(parameter) for parameter in groups[1]["params"]}
    scales = [weight for name, weight in encoder.named_parameters() if "layer_scale" in name]
    assert len(scales) == 18 and all(id(scale) in plain for scale in scales)
    assert groups[1]["weight_decay"] == 0 and groups[1]["adapt"] is False


def test_convnext_refuses_images_that_its_stem_makes_too_small():
    with pytest.raises(ValueError, match="encoder.stem: standard takes images of at least 32"):
        ConvNeXtSettings(name="convnext_tiny", stem="standard").make(3, 28)


def test_the_small_stem_keeps_the_size_and_the_standard_one_quarters_it():
    small, standard = (
        make_encoder(encoder_settings("resnet18", stem=stem), 3, 32)
        for stem in ("small", "standard")
    )
    pixels = torch.rand(1, 3, 32, 32)
    assert small.layers[:4](pixels).shape[2:] == (32, 32)
    assert standard.layers[:4](pixels).shape[2:] == (8, 8)


@pytest.mark.parametrize("name", ["resnet_small", "convnext_tiny"])
def test_a_convolutional_network_refuses_a_mask(name):
    encoder = make_encoder(encoder_settings(name), 1, 28)
    with pytest.raises(ValueError, match="mask"):
        encoder(torch.rand(1, 1, 28, 28), visible=torch.tensor([[0]]))


def test_batch_norms_that_are_trained_see_the_whole_batch_even_without_a_gradient():
    """Such as those of a momentum encoder."""
    torch.manual_seed(0)
    encoder = make_encoder(encoder_settings("resnet_small", width=8), 1, 28)
    pixels = torch.rand(150, 1, 28, 28)
    with torch.no_grad():
        without = encoder(pixels)
    assert torch.allclose(without, encoder(pixels), atol=1e-5)
