"""Networks of other libraries as encoders: they represent as the library itself does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision.models as tv
from conftest import random_pixels
from torch import nn

import memorization_scores
import train_simclr
from memorization.checkpoint import load_encoder
from memorization.machine.threads import encode_in_parts
from models.encoders import encoder_settings
from models.foreign import ForeignEncoder, TokenEncoder

ROOT = Path(__file__).parents[2]
# A network of every kind that timm has: maps of features in either order of axes, tokens with and
# without a class token or registers, hidden layers of classifiers.
OF_TIMM = [
    "resnet10t", "convnext_atto", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224", "mobilenetv3_small_050", "efficientnet_b0", "mixer_s32_224",
    "eva02_tiny_patch14_224", "regnetx_002", "xcit_nano_12_p8_224", "mambaout_femto", "levit_128s",
    "nextvit_small", "naflexvit_base_patch16_gap", "densenet121", "visformer_tiny", "pvt_v2_b0",
]  # fmt: skip
# (model, whether its representation is the mean of its tokens)
OF_TORCHVISION = [
    ("resnet18", True), ("wide_resnet50_2", True), ("regnet_y_400mf", True), ("swin_t", True),
    ("densenet121", True), ("efficientnet_b0", True), ("shufflenet_v2_x0_5", True),
    ("mnasnet0_5", True), ("squeezenet1_1", True), ("mobilenet_v2", True), ("googlenet", True),
    ("mobilenet_v3_small", False), ("convnext_tiny", False), ("vgg11_bn", False),
    ("alexnet", False), ("vit_b_32", False),
]  # fmt: skip
TINY = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8, "hidden_dropout_prob": 0.5,
    "attention_probs_dropout_prob": 0.5,
}  # fmt: skip
OF_TRANSFORMERS = {
    "vit": TINY, "deit": TINY, "beit": TINY | {"drop_path_rate": 0.5}, "ijepa": TINY,
    "dinov2_with_registers": TINY | {"drop_path_rate": 0.5},
    "clip_vision_model": TINY | {"attention_dropout": 0.5},
    "swin": {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1],
             "num_heads": [2, 2], "window_size": 4, "drop_path_rate": 0.5},
    "convnext": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "drop_path_rate": 0.5},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
               "layer_type": "basic"},
}  # fmt: skip


def make(name, channels, size, **settings):
    torch.manual_seed(0)
    return encoder_settings(name, **settings).make(channels, size)


def fix_norms(encoder):
    """Put an encoder in training mode, but for the batch norms, which see the batch there."""
    for module in encoder.train().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def assert_no_chance(encoder, pixels):
    expected = encoder.eval()(pixels)
    fix_norms(encoder)
    assert (encoder(pixels) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("model", OF_TIMM)
@torch.no_grad()
def test_a_network_of_timm_represents_as_timm_does(model):
    timm = pytest.importorskip("timm")
    size = 56 if "patch14" in model else 64
    encoder = make("timm", 1, size, model=model).eval()
    sizes = (
        {} if encoder.network.pretrained_cfg["fixed_input_size"] is False else {"img_size": size}
    )
    network = timm.create_model(model, num_classes=7, in_chans=1, **sizes).eval()
    lack = network.load_state_dict(encoder.network.state_dict(), strict=False)
    assert not lack.unexpected_keys and all("head" in key or "classif" in key or "fc" in key
                                            for key in lack.missing_keys), lack  # fmt: skip
    pixels = random_pixels(2, 1, size)
    features = network.forward_features(pixels)
    expected = network.forward_head(features, pre_logits=True)
    if expected.ndim == 2 and "distilled" not in model:
        assert torch.allclose(encoder(pixels), expected, atol=1e-6)
    assert encoder(pixels).shape == (2, encoder.dim)
    channels = next(i for i in (1, 2, 3)[: features.ndim - 1][::-1]
                    if features.shape[i] == network.num_features)  # fmt: skip
    tokens = features.movedim(channels, -1).flatten(1, -2)
    assert torch.allclose(encoder.tokens(pixels), tokens, atol=1e-6)
    assert_no_chance(encoder, pixels)


@pytest.mark.parametrize("model, is_mean", OF_TORCHVISION)
@torch.no_grad()
def test_a_network_of_torchvision_represents_what_its_last_linear_layer_sees(model, is_mean):
    encoder = make("torchvision", 3, 64, model=model).eval()
    sizes = {"image_size": 64} if model.startswith("vit") else {}
    network = tv.get_model(model, weights=None, num_classes=7, **sizes).eval()
    network.load_state_dict(encoder.network.state_dict(), strict=False)
    seen = []
    kind = nn.Conv2d if model.startswith("squeezenet") else nn.Linear
    last = [module for module in network.modules() if isinstance(module, kind)][-1]
    last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    pixels = random_pixels(2, 3, 64)
    network(pixels)
    expected = seen[0].relu().mean((2, 3)) if kind is nn.Conv2d else seen[0]
    assert torch.allclose(encoder(pixels), expected, atol=1e-6)
    kept = network.state_dict().keys() - encoder.network.state_dict().keys()
    assert all(key.startswith(("fc.", "classifier", "head", "aux")) for key in kept)
    means = encoder.tokens(pixels).mean(1)
    if is_mean:
        assert torch.allclose(means, expected, atol=1e-5)
    else:
        assert means.shape != expected.shape or not torch.allclose(means, expected, atol=1e-2)
    assert_no_chance(encoder, pixels)


def test_stochastic_depth_of_torchvision_is_off():
    assert tv.convnext_tiny(weights=None).features[7][2].stochastic_depth.p == 0.1
    encoder = make("torchvision", 3, 32, model="convnext_tiny")
    assert encoder.network.features[7][2].stochastic_depth.p == 0


@torch.no_grad()
def test_the_class_token_and_the_patches_of_torchvisions_transformer():
    of_class = make("torchvision", 3, 64, model="vit_b_32", output="class").eval()
    pooled, mean, flat = (
        make("torchvision", 3, 64, model="vit_b_32", output=output).eval()
        for output in ("pooled", "mean", "tokens")
    )
    pixels = random_pixels(2, 3, 64)
    tokens = of_class.tokens(pixels)
    assert tokens.shape == (2, 1 + 4, 768)
    assert torch.allclose(of_class(pixels), pooled(pixels), atol=1e-5)
    assert torch.allclose(mean(pixels), tokens[:, 1:].mean(1), atol=1e-5)
    assert torch.allclose(flat(pixels), tokens.flatten(1), atol=1e-5) and flat.dim == 5 * 768


def test_gray_images_replace_the_first_convolution_of_torchvision_alone():
    gray, rgb = (make("torchvision", channels, 32, model="resnet18") for channels in (1, 3))
    weights, of_rgb = gray.network.state_dict(), rgb.network.state_dict()
    assert weights.keys() == of_rgb.keys()
    assert torch.equal(weights.pop("conv1.weight"), of_rgb["conv1.weight"][:, :1])
    assert all(torch.equal(weight, of_rgb[name]) for name, weight in weights.items())


@pytest.mark.parametrize("kind", OF_TRANSFORMERS)
@torch.no_grad()
def test_a_folder_of_transformers_is_the_network_that_was_saved(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    safetensors = pytest.importorskip("safetensors.torch")
    config = transformers.CONFIG_MAPPING[kind](**OF_TRANSFORMERS[kind])
    network = transformers.AutoModel.from_config(config).eval()
    network.save_pretrained(tmp_path)
    output = "mean" if kind in ("swin", "convnext", "resnet", "ijepa") else "class"
    encoder = make("transformers", 3, 32, folder=str(tmp_path), output=output).eval()
    names = encoder.names_in_files
    weights = {
        names.get(name, name): weight
        for name, weight in safetensors.load_file(tmp_path / "model.safetensors").items()
        if not name.startswith("pooler.")
    }
    encoder.network.load_state_dict(weights)
    pixels = random_pixels(2, 3, 32)
    tokens = network(pixel_values=pixels).last_hidden_state
    tokens = tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens
    assert torch.allclose(encoder.tokens(pixels), tokens, atol=1e-6)
    expected = tokens[:, 0] if output == "class" else tokens.mean(1)
    assert torch.allclose(encoder(pixels), expected, atol=1e-6)
    assert_no_chance(encoder, pixels)
    rates = [value for key, value in encoder.network.config.to_dict().items() if "drop" in key]
    assert not any(rates)


@torch.no_grad()
def test_the_patches_of_a_transformer_with_registers_are_behind_them():
    pytest.importorskip("transformers")
    kind = {"model_type": "dinov2_with_registers", "num_register_tokens": 3}
    architecture = OF_TRANSFORMERS["dinov2_with_registers"] | kind
    encoder = make("transformers", 3, 32, architecture=architecture, output="mean").eval()
    tokens = encoder.tokens(pixels := random_pixels(2, 3, 32))
    assert tokens.shape == (2, 1 + 3 + 16, 32)
    assert torch.allclose(encoder(pixels), tokens[:, 4:].mean(1), atol=1e-6)


@torch.no_grad()
def test_a_masked_autoencoder_of_transformers_sees_whole_images():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(**TINY | {"mask_ratio": 0.0})
    network = transformers.ViTMAEModel(config).eval()
    architecture = TINY | {"model_type": "vit_mae"}
    encoder = make("transformers", 3, 32, architecture=architecture, output="tokens").eval()
    names = encoder.names_in_files
    in_files = transformers.core_model_loading.revert_weight_conversion(
        network, network.state_dict()
    )
    encoder.network.load_state_dict({names.get(k, k): v for k, v in in_files.items()})
    pixels, order = random_pixels(2, 3, 32), torch.arange(16.0).expand(2, -1)
    expected = network(pixel_values=pixels, noise=order).last_hidden_state
    assert torch.allclose(encoder.tokens(pixels), expected, atol=1e-6)


CODE = """
import torch.nn as nn

class Own(nn.Module):
    def __init__(self, channels, size):
        super().__init__()
        self.layer = nn.Linear(channels * size**2, 5)

    def forward(self, pixels):
        return self.layer(pixels.flatten(1))

    def tokens(self, pixels):
        return self(pixels)[:, None]

def make_encoder(channels, size):
    return Own(channels, size)

def without_arguments():
    return Own(3, 8)

def of_size(size, channels=3, depth=4):
    return nn.Flatten() if depth != 4 else Own(channels, size)
"""


@pytest.mark.parametrize("function", ["make_encoder", "without_arguments", "of_size", "Own"])
def test_a_function_of_ones_own_is_called_with_what_it_takes(function, tmp_path):
    (tmp_path / "own.py").write_text(CODE)
    encoder = make("function", 3, 8, file=str(tmp_path / "own.py"), function=function)
    pixels = random_pixels(2, 3, 8)
    assert encoder.dim == 5 and torch.equal(encoder(pixels), encoder.network(pixels))
    assert encoder.tokens(pixels).shape == (2, 1, 5)


def test_weights_that_do_not_reach_the_representation_are_not_trained():
    """Else several processes would wait for their gradients."""
    encoder = make("torchvision", 3, 32, model="convnext_tiny", output="mean")
    frozen = {name for name, weight in encoder.named_parameters() if not weight.requires_grad}
    assert frozen == {"network.classifier.0.weight", "network.classifier.0.bias"}
    assert all(weight.requires_grad for weight in
               make("torchvision", 3, 32, model="convnext_tiny").parameters())  # fmt: skip


def test_another_size_is_taken_only_by_a_network_that_can():
    pixels = random_pixels(2, 3, 64)
    assert make("torchvision", 3, 32, model="resnet18")(pixels).shape == (2, 512)
    with pytest.raises(ValueError, match="vit_b_32: takes images of 32 pixels, not of 64 x 64"):
        make("torchvision", 3, 32, model="vit_b_32")(pixels)


def test_only_a_network_with_tokens_has_tokens(tmp_path):
    (tmp_path / "own.py").write_text(CODE.replace("tokens", "others"))
    encoder = make("function", 3, 8, file=str(tmp_path / "own.py"), function="Own")
    assert type(encoder) is ForeignEncoder and not hasattr(encoder, "tokens")
    assert type(make("torchvision", 3, 32, model="resnet18")) is TokenEncoder


def test_threads_share_a_network():
    encoder = make("torchvision", 3, 32, model="swin_t").eval()
    views = [(random_pixels(40, 3, 32, seed), None) for seed in range(2)]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            of_threads = encode_in_parts(encoder, [_View(*view) for view in views])
            expected = [encoder(pixels) for pixels, _ in views]
    finally:
        torch.set_num_threads(before)
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(of_threads, expected))


class _View(tuple):
    pixels, visible = property(lambda self: self[0]), property(lambda self: self[1])

    def __new__(cls, *parts):
        return super().__new__(cls, parts)


@pytest.mark.parametrize("encoder", [
    {"name": "torchvision", "model": "resnet18"},
    {"name": "timm", "model": "test_resnet"},
    {"name": "function", "file": str(ROOT / "examples/own_encoder.py"),
     "function": "make_encoder"},
    {"name": "transformers", "output": "mean", "folder": "FOLDER"},
], ids=lambda encoder: encoder["name"])  # fmt: skip
def test_a_run_rebuilds_its_encoders_from_their_record(encoder, write_config, tmp_path):
    if encoder["name"] in ("timm", "transformers"):
        pytest.importorskip(encoder["name"])
    if "folder" in encoder:
        encoder = encoder | {"folder": str(tmp_path)}
        architecture = TINY | {"model_type": "vit", "id2label": {"0": "cat"}}
        (tmp_path / "config.json").write_text(json.dumps(architecture))
    size = {"data.size": 32} | {"augmentation.views": [{"count": 2, "size": 32, "flip": 0.5}]}
    slowly = {"training.epochs": 1, "training.learning_rate": 0.001}
    path = write_config({"encoder": encoder, **slowly, **size})
    train_simclr.main(["--config", path])
    if "folder" in encoder:
        (tmp_path / "config.json").unlink()
    memorization_scores.main(["--config", path])
    loaded = load_encoder(tmp_path / "run/seed_0/candidate/encoder.pt")
    assert isinstance(loaded.network, ForeignEncoder)
    recorded = loaded.record["config"]["encoder"]
    assert recorded["name"] == encoder["name"] and "folder" not in recorded
    assert "id2label" not in recorded.get("architecture", {})
    assert loaded.network(random_pixels(2, 3, 32)).shape == (2, loaded.network.dim)


def test_settings_of_other_encoders_are_not_recorded():
    settings = encoder_settings("torchvision", model="resnet18")
    assert settings.model_dump() == {
        "name": "torchvision", "model": "resnet18", "output": "pooled"
    }  # fmt: skip


def test_help_imports_no_optional_package_and_nothing_that_only_measuring_needs():
    code = "import sys, train_simclr\ntry: train_simclr.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'timm', 'transformers', 'safetensors', 'pyarrow'} & set(sys.modules)\n"
    code += "assert not {'scipy.stats', 'scipy.cluster', 'matplotlib.figure'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--encoder.model" in done.stdout, done.stderr
