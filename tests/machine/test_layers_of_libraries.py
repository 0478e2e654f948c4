"""The layers of networks of timm, torchvision, transformers, and of the user's own code."""

import itertools
from functools import cache

import pytest
import torch
import torch.nn as nn
from conftest import random_pixels

from models.encoders import encoder_settings
from models.layers import editing, watching

TINY_VIT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
TINY_MAPS = {"hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 2, 1]}
OF_TRANSFORMERS = {
    "vit": TINY_VIT,
    "dinov2_with_registers": TINY_VIT,
    "clip_vision_model": TINY_VIT,
    "swin": {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 2],
             "num_heads": [2, 2], "window_size": 4},
    "convnext": TINY_MAPS,
    "resnet": TINY_MAPS | {"embedding_size": 8, "layer_type": "basic"},
}  # fmt: skip
OWN_CODE = """
import torch
import torch.nn as nn
import torchvision.models as tv

def tiny_vit(size):  # torchvision's own are large
    vit = tv.VisionTransformer(size, 8, 2, 2, 32, 64)
    vit.heads = nn.Identity()
    return vit

def tiny_swin():
    swin = tv.SwinTransformer([2, 2], 8, [1, 2], [2, 2], [4, 4])
    swin.head = nn.Identity()
    return swin

class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 4))

    def forward(self, pixels):
        return pixels.mean((2, 3)) @ self.weight

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.relu, self.second = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4)

    def tokens(self, pixels):
        x = self.relu(self.first(pixels.flatten(2).transpose(1, 2)))
        return self.relu(self.second(x)) + 1

    def forward(self, pixels):
        return self.tokens(pixels).mean(1)
"""
NETWORKS = [
    *(("timm", model) for model in (
        "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto", "resnet10t",
        "mobilenetv3_small_050", "xcit_nano_12_p8_224", "mambaout_femto",
    )),
    *(("torchvision", model) for model in ("resnet18", "squeezenet1_1", "mobilenet_v3_small")),
    *(("transformers", kind) for kind in OF_TRANSFORMERS),
    *(("function", name) for name in ("tiny_vit", "tiny_swin", "Twice")),
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """make(library, network) -> (encoder, pixels of three images that it takes, its layers, and
    their outputs), not to be changed.
    """
    path = tmp_path_factory.mktemp("code") / "own.py"
    path.write_text(OWN_CODE)

    @cache
    @torch.no_grad()
    def make_once(library, network):
        size, settings = 64 if library in ("timm", "torchvision") else 32, {"model": network}
        if library in ("timm", "transformers"):
            pytest.importorskip(library)
        if library == "transformers":
            architecture = {"model_type": network, **OF_TRANSFORMERS[network]}
            settings = {"output": "tokens", "architecture": architecture}
        elif library == "function":
            settings = {"file": str(path), "function": network}
        torch.manual_seed(0)
        encoder = encoder_settings(library, **settings).make(3, size).eval()
        draw_equal_weights(encoder)
        pixels = random_pixels(3, 3, size)
        return encoder, pixels, encoder.find_layers(pixels), encoder.layers(pixels)

    return make_once


def draw_equal_weights(encoder):
    """Draw the weights that are all alike at the start, such as those of norms, as after some
    training: else a block may give what it was given.
    """
    for name, weight in encoder.state_dict().items():
        if weight.is_floating_point() and weight.min() == weight.max():
            is_offset = name.endswith(("bias", "mean"))
            weight.uniform_(-0.2, 0.2) if is_offset else weight.uniform_(0.5, 1.5)


@pytest.mark.parametrize("library, network", NETWORKS)
def test_layers_are_named_after_the_modules_in_the_order_of_the_pass(library, network, make):
    encoder, pixels, layers, _ = make(library, network)
    modules, order = dict(encoder.network.named_modules()), []
    handles = [m.register_forward_hook(lambda m, *_: order.append(m)) for m in modules.values()]
    encoder.pass_once(pixels)
    for handle in handles:
        handle.remove()
    latest = -1
    for layer in layers:
        if layer.module is None:
            assert layer is layers[-1] and layer.name == "tokens"
        elif layer.of_input:
            block, _, last = layer.name.rpartition(".")
            is_first = layer.name == "embedding" and order.index(layer.module) > latest
            assert is_first or (
                last == "attention_sum" and layer.module in modules[block].children()
            )
        else:
            name = layer.name.removesuffix(f"_{layer.call}") if layer.call else layer.name
            assert modules[name] is layer.module
            times = [time for time, module in enumerate(order) if module is layer.module]
            assert times[layer.call] > latest and len(times) == layer.calls
            latest = times[layer.call]
    assert len({layer.name for layer in layers}) == len(layers)


@pytest.mark.parametrize("library, network", NETWORKS)
def test_the_last_layer_is_the_tokens_and_forward_is_the_same_to_the_bit(library, network, make):
    encoder, pixels, layers, outputs = make(library, network)
    expected = encoder(pixels)
    *_, last = outputs.values()
    tokens = encoder.tokens(pixels) if hasattr(encoder, "tokens") else expected[:, None]
    assert list(outputs) == [layer.name for layer in layers] and torch.equal(last, tokens)
    with watching(encoder, layers) as watch:
        watch(pixels, None, lambda layer, output: None)
        assert torch.equal(encoder(pixels), expected)
    assert expected.isfinite().all() and expected.std() > 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in encoder.modules())


@pytest.mark.parametrize("library, network", NETWORKS)
def test_layers_are_those_of_a_network_that_works_nowhere_in_place(library, network, make):
    encoder, pixels, _, outputs = make(library, network)
    modules = [module for module in encoder.modules() if getattr(module, "inplace", False)]
    for module in modules:
        module.inplace = False
    plain = encoder.layers(pixels)
    for module in modules:
        module.inplace = True
    assert list(plain) == list(outputs)
    assert [name for name in plain if not torch.equal(plain[name], outputs[name])] == []


def channels_of(module):
    """How many channels a module says that it gives; None if it does not say."""
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[0]
    names = ("out_channels", "out_features", "num_features")
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


@pytest.mark.parametrize("library, network", NETWORKS)
def test_the_channels_of_a_layer_come_last(library, network, make):
    _, _, layers, outputs = make(library, network)
    known = [layer for layer in layers if channels_of(layer.module) and not layer.of_input]
    for layer in known:
        assert outputs[layer.name].shape[::2] == (3, channels_of(layer.module)), layer.name
    assert len(known) > len(layers) / 5


@pytest.mark.parametrize("library, network, are_first, are_last", [
    ("function", "tiny_swin", ["features.0.0"],
     ["features.0.2", "features.1.0.attn", "features.1.0", "features.1.0.mlp"]),
    ("timm", "mambaout_femto", ["stem.conv1", "stem.act", "stages.0.blocks.0.conv"],
     ["stem.norm1", "stages.0.blocks.0"]),
    ("transformers", "convnext", ["embeddings", "encoder.stages.0.layers.0"],
     ["encoder.stages.0.layers.0.layernorm", "encoder.stages.0.layers.0.act"]),
])  # fmt: skip
def test_maps_are_read_row_by_row_in_either_order_of_their_axes(
    library, network, are_first, are_last, make
):
    """Many modules take both. The sides of a map tell them apart; of a cube, as maps of the last
    network are, the module does, or what was computed before.
    """
    encoder, pixels, _, outputs = make(library, network)
    names = [*are_first, *are_last]
    modules, maps = dict(encoder.network.named_modules()), {}
    handles = [
        modules[name].register_forward_hook(lambda *call, name=name: maps.update({name: call[2]}))
        for name in names
    ]
    encoder(pixels)
    for handle in handles:
        handle.remove()
    assert len(maps) == len(names)
    for name, output in maps.items():
        last = output if name in are_last else output.permute(0, 2, 3, 1)
        side = last.shape[1]
        assert side == last.shape[2] > 4
        assert torch.equal(outputs[name][:, 3 * side + 1], last[:, 3, 1]), name


@pytest.mark.parametrize("library, network, before, block, attention", [
    ("timm", "vit_tiny_patch16_224", "blocks.0", "blocks.1", "attn"),
    ("timm", "swin_tiny_patch4_window7_224", "layers.2.blocks.0", "layers.2.blocks.1", "attn"),
    ("function", "tiny_swin", "features.3.0", "features.3.1", "attn"),
    ("function", "tiny_vit", "encoder.layers.encoder_layer_0",
     "encoder.layers.encoder_layer_1", "self_attention"),
    ("transformers", "vit", "layers.0", "layers.1", "attention"),
    ("transformers", "dinov2_with_registers", "encoder.layer.0", "encoder.layer.1", "layer_scale1"),
    ("transformers", "clip_vision_model", "encoder.layers.0", "encoder.layers.1", "self_attn"),
])  # fmt: skip
def test_a_residual_sum_is_what_went_in_and_the_attention(
    library, network, before, block, attention, make
):
    *_, outputs = make(library, network)
    perceptron = "layer_scale2" if attention == "layer_scale1" else "mlp"
    total = outputs[before] + outputs[f"{block}.{attention}"]
    assert torch.equal(outputs[f"{block}.attention_sum"], total)
    assert torch.equal(outputs[block], total + outputs[f"{block}.{perceptron}"])
    names = list(outputs)
    parts = (attention, "attention_sum", perceptron)
    places = [names.index(f"{block}.{part}") for part in parts]
    assert sorted(places) == places


@pytest.mark.parametrize("library, network, block, attention", [
    ("timm", "vit_tiny_patch16_224", "blocks.0", "attn"),
    ("function", "tiny_vit", "encoder.layers.encoder_layer_0", "self_attention"),
])  # fmt: skip
def test_what_enters_the_first_block_of_a_transformer_is_a_layer(
    library, network, block, attention, make
):
    encoder, pixels, layers, outputs = make(library, network)
    names = list(outputs)
    assert names.index("embedding") < names.index(f"{block}.{attention}")
    total = outputs["embedding"] + outputs[f"{block}.{attention}"]
    assert torch.equal(outputs[f"{block}.attention_sum"], total)
    first = [layer for layer in layers if layer.name == "embedding"]
    with pytest.raises(ValueError, match="^embedding: no module gives it"):
        with editing(first, lambda layer, output: output):
            encoder(pixels)


def test_there_is_a_residual_sum_only_if_the_first_norm_after_an_attention_takes_it(make):
    *_, outputs = make("timm", "swinv2_tiny_window8_256")  # norm of the attention, then the sum
    assert "layers.0.blocks.0.norm1" in outputs and "layers.2.blocks.0.attn" in outputs
    assert not any("attention_sum" in name for name in outputs)
    encoder, *_, outputs = make("timm", "xcit_nano_12_p8_224")  # two norms follow an attention
    norm = encoder.network.blocks[1].norm3
    assert torch.equal(outputs["blocks.1.norm3"], norm(outputs["blocks.1.attention_sum"]))
    encoder, *_, outputs = make("timm", "swin_tiny_patch4_window7_224")  # attention to windows
    norm = encoder.network.layers[0].blocks[1].norm2
    assert "layers.0.blocks.1.attn" not in outputs
    expected = norm(outputs["layers.0.blocks.1.attention_sum"])
    assert torch.equal(outputs["layers.0.blocks.1.norm2"], expected)


@pytest.mark.parametrize("library, network", NETWORKS)
def test_units_that_are_cut_are_0_and_change_what_comes_after_them_alone(library, network, make):
    encoder, pixels, layers, outputs = make(library, network)
    activating = [layer for layer in layers if layer.activates]
    layer = activating[len(activating) // 2]
    with editing([layer], lambda layer, output: output * (torch.arange(output.shape[2]) % 2)):
        edited = encoder.layers(pixels)
    names = list(outputs)
    before = names[: names.index(layer.name)]
    assert [name for name in before if not torch.equal(edited[name], outputs[name])] == []
    assert edited[layer.name][:, :, ::2].count_nonzero() == 0
    assert torch.equal(edited[layer.name][:, :, 1::2], outputs[layer.name][:, :, 1::2])
    assert not torch.equal(edited[names[-1]], outputs[names[-1]])


@pytest.mark.parametrize("library, network", NETWORKS)
def test_no_layer_is_another_one_again_and_none_only_passes_on(library, network, make):
    _, _, layers, outputs = make(library, network)
    kinds = {type(layer.module).__name__.lower() for layer in layers}
    assert not any("drop" in kind or kind in ("identity", "stochasticdepth") for kind in kinds)
    varying = {name: output for name, output in outputs.items() if output.std() > 0}
    for (one, first), (other, second) in itertools.combinations(varying.items(), 2):
        is_same = first.shape == second.shape and torch.equal(first, second)
        assert not is_same, f"{one} is {other}"


def test_shortcuts_are_no_layers(make):
    for library, network, shortcut in (
        ("torchvision", "resnet18", "layer2.0.downsample"),
        ("torchvision", "regnet_y_400mf", "trunk_output.block1.block1-0.proj"),
        ("transformers", "resnet", "encoder.stages.1.layers.0.shortcut"),
    ):
        encoder, _, layers, _ = make(library, network)
        names = [layer.name for layer in layers]
        assert encoder.network.get_submodule(shortcut) and shortcut.rpartition(".")[0] in names
        assert not any(name.startswith(shortcut) for name in names)


def test_the_layers_of_a_block_of_a_vision_transformer_of_each_library(make):
    def parts(library, network, block):
        *_, outputs = make(library, network)
        return [name.removeprefix(block) for name in outputs if name.startswith(block)]

    assert parts("timm", "vit_tiny_patch16_224", "blocks.2") == [
        ".norm1", ".attn", ".attention_sum", ".norm2", ".mlp.act", ".mlp", "",
    ]  # fmt: skip
    assert parts("function", "tiny_vit", "encoder.layers.encoder_layer_1") == [
        ".ln_1", ".self_attention", ".attention_sum", ".ln_2", ".mlp.1", ".mlp", "",
    ]  # fmt: skip
    assert parts("transformers", "vit", "layers.1") == [
        ".layernorm_before", ".attention", ".attention_sum", ".layernorm_after",
        ".mlp.activation_fn", ".mlp", "",
    ]  # fmt: skip


@pytest.mark.parametrize("kind, last", [
    ("clip_vision_model", "encoder.layers.1"), ("swin", "layernorm"),
    ("convnext", "encoder.stages.3.layers.0"),
])  # fmt: skip
def test_what_a_library_pools_after_the_tokens_is_no_layer(kind, last, make):
    _, _, layers, _ = make("transformers", kind)
    assert layers[-1].name == last


def test_layers_that_activate_come_out_of_a_non_linearity(make):
    def activating(library, network):
        return [layer.name for layer in make(library, network)[2] if layer.activates]

    names, outputs = activating("torchvision", "resnet18"), make("torchvision", "resnet18")[3]
    assert names[:4] == ["relu", "layer1.0.relu", "layer1.0", "layer1.1.relu"] and len(names) == 17
    assert all((outputs[name] >= 0).all() for name in names)
    blocks = [f"encoder.layers.encoder_layer_{n}.mlp.1" for n in range(2)]
    assert activating("function", "tiny_vit") == blocks
    # timm's norms may have their non-linearity inside
    assert activating("timm", "mobilenetv3_small_050")[:2] == ["bn1", "blocks.0.0.bn1"]


def test_a_network_without_modules_inside_has_no_layers(make):
    _, _, layers, outputs = make("function", "Whole")
    assert layers == [] and outputs == {}


def test_a_module_that_is_called_twice_is_two_layers_and_tokens_of_no_module_are_the_last(make):
    encoder, pixels, _, outputs = make("function", "Twice")
    network = encoder.network
    assert list(outputs) == ["first", "relu", "second", "relu_1", "tokens"]
    first = network.first(pixels.flatten(2).transpose(1, 2))
    assert torch.equal(outputs["relu"], first.relu())
    assert torch.equal(outputs["relu_1"], network.second(first.relu()).relu())
    assert torch.equal(outputs["tokens"], encoder.tokens(pixels))


@pytest.mark.parametrize("output", ["class", "mean"])
def test_a_layer_is_pooled_as_the_output_says(output):
    pytest.importorskip("timm")
    settings = encoder_settings("timm", model="vit_tiny_patch16_224", output=output)
    torch.manual_seed(0)
    encoder, pixels = settings.make(3, 64).eval(), random_pixels(2, 3, 64)
    outputs = encoder.layers(pixels)
    assert torch.equal(encoder.pool(outputs["norm"]), encoder(pixels))
    # there is no class token yet
    assert outputs["patch_embed"].shape[1] == 16
    assert torch.equal(encoder.pool(outputs["patch_embed"]), outputs["patch_embed"].mean(1))
