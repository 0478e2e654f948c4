import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import OF_OTHERS, random_pixels

from memorization.data.augmentations import View
from memorization.optimizers import make_optimizer, split_group
from memorization.settings import TrainingSettings
from models.encoders import ENCODERS, encoder_settings, make_encoder
from models.simclr import SimCLR, SimCLRSettings

FROM_TORCHVISION = ["resnet18", "resnet34", "resnet50", "wide_resnet50_2", "convnext_tiny"]


def cheap_settings(name):
    """The settings of an encoder with which an image of 64 pixels costs least."""
    if name in OF_OTHERS:
        if name in ("timm", "transformers"):
            pytest.importorskip(name)
        return encoder_settings(name, **OF_OTHERS[name])
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
    views = [View(random_pixels(2, 3, 64, seed)) for seed in range(2)]
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
    ("resnet18", "small", 3, 32, 512, 16), ("resnet34", "standard", 3, 64, 512, 4),
    ("resnet50", "small", 1, 16, 2048, 4), ("resnet50", "standard", 1, 64, 2048, 4),
    ("wide_resnet50_2", "small", 3, 16, 2048, 4), ("wide_resnet50_2", "standard", 1, 64, 2048, 4),
    ("convnext_tiny", "small", 3, 32, 768, 16), ("convnext_tiny", "small", 1, 28, 768, 9),
    ("convnext_tiny", "standard", 3, 64, 768, 4),
])  # fmt: skip
@torch.no_grad()
def test_a_representation_is_the_mean_of_the_tokens_normed_by_convnext(
    name, stem, channels, size, dim, positions
):
    settings = encoder_settings(name, **({} if stem is None else {"stem": stem}))
    encoder = make_encoder(settings, channels, size).eval()
    pixels = random_pixels(2, channels, size)
    representation, tokens = encoder(pixels), encoder.tokens(pixels)
    assert representation.shape == (2, dim) and encoder.dim == dim
    assert tokens.shape == (2, positions, dim)
    expected = tokens.mean(1)
    if name == "convnext_tiny":
        expected = F.layer_norm(expected, (dim,), eps=1e-6)
    assert torch.allclose(representation, expected, atol=1e-5)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", FROM_TORCHVISION)
def test_an_encoder_from_torchvision_has_its_weights_but_those_of_the_classifier(name):
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None)
        encoder = make_encoder(encoder_settings(name, stem="standard"), 3, 64)
    *_, classifier = (m for m in network.modules() if isinstance(m, torch.nn.Linear))
    expected = count(network) - count(classifier)
    sizes = {"wide_resnet50_2": 66_834_240, "convnext_tiny": 27_820_128, "resnet50": 23_508_032}
    assert count(encoder) == expected == sizes.get(name, expected)


@torch.no_grad()
def test_convnext_computes_what_torchvision_pools():
    torch.manual_seed(0)
    network = torchvision.models.convnext_tiny(weights=None, layer_scale=0.5).eval()
    network.classifier[2] = torch.nn.Identity()
    encoder = make_encoder(encoder_settings("convnext_tiny", stem="standard"), 3, 64).eval()
    weights = {}
    for name, weight in network.state_dict().items():
        name = name.replace("features.", "layers.").replace("classifier.0.", "norm.")
        weights[name] = weight.flatten() if name.endswith("layer_scale") else weight
    encoder.load_state_dict(weights)
    pixels = random_pixels(2, 3, 64)
    expected = network(pixels)
    assert torch.allclose(encoder(pixels), expected, atol=1e-4)
    assert torch.allclose(encoder.train()(pixels), expected, atol=1e-4)  # no stochastic depth


def test_the_layer_scales_of_convnext_are_neither_decayed_nor_adapted():
    with torch.device("meta"):
        encoder = make_encoder(encoder_settings("convnext_tiny"), 3, 32)
    groups = split_group({"params": encoder.parameters()}, "lars")
    plain = {id(parameter) for parameter in groups[1]["params"]}
    scales = [weight for name, weight in encoder.named_parameters() if "layer_scale" in name]
    assert len(scales) == 18 and all(id(scale) in plain for scale in scales)
    assert groups[1]["weight_decay"] == 0 and groups[1]["adapt"] is False


def test_the_small_stem_keeps_the_size_and_the_standard_one_quarters_it():
    for stem, size in (("small", 32), ("standard", 8)):
        encoder = make_encoder(encoder_settings("resnet18", stem=stem), 3, 32)
        outputs = encoder.layers(random_pixels(2, 3, 32))
        assert outputs["layer1.0.conv1"].shape[1] == size**2


def test_batch_norms_that_are_trained_see_the_whole_batch_even_without_a_gradient():
    """Such as those of a momentum encoder."""
    torch.manual_seed(0)
    encoder = make_encoder(encoder_settings("resnet_small", width=8), 1, 28)
    pixels = random_pixels(150, 1, 28)
    with torch.no_grad():
        without = encoder(pixels)
    assert torch.allclose(without, encoder(pixels), atol=1e-5)
