"""What an encoder gives of each of its layers, by name, while its forward pass stays as it is."""

import threading

import pytest
import torch
import torch.nn.functional as F

from models.encoders import encoder_settings, make_encoder
from models.layers import choose_layers, editing, watching

OWN = {
    "resnet_small": {"width": 8},
    "resnet18": {},
    "resnet50": {"stem": "standard"},
    "convnext_tiny": {},
    "vit_mini": {"width": 32, "depth": 2},
    "vit_tiny": {"pooling": "class", "positions": "learned"},
}
IN_A_BLOCK = ["attention", "attention_sum", "gelu", "mlp"]


def make(name, size=16, **settings):
    torch.manual_seed(0)
    encoder = make_encoder(encoder_settings(name, **OWN[name], **settings), 3, size).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after some training
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return encoder


def pixels_of(count, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", OWN)
def test_the_last_layer_is_the_tokens_and_the_forward_pass_is_unchanged(name):
    encoder, pixels = make(name), pixels_of(3)
    before = encoder(pixels), encoder.tokens(pixels)
    outputs = encoder.layers(pixels)
    # in another order of small sums: a vision transformer gives tokens of 16 images at a time
    assert torch.equal(list(outputs.values())[-1], before[1])
    assert torch.equal(encoder(pixels), before[0])
    assert torch.equal(encoder.tokens(pixels), before[1])
    for output in outputs.values():
        assert output.ndim == 3 and len(output) == 3
    if name != "convnext_tiny":  # which has a norm after its pooling
        assert torch.equal(encoder.pool(outputs[list(outputs)[-1]]), before[0])


def test_the_layers_of_a_resnet_have_the_names_that_people_know():
    first = ["conv1", "bn1", "relu"]
    block = ["conv1", "bn1", "relu", "conv2", "bn2"]
    expected = first + [
        f"layer{stage}.{number}{part}"
        for stage in range(1, 5)
        for number in range(2)
        for part in [*(f".{name}" for name in block), ""]
    ]
    assert list(make("resnet18").layers(pixels_of(1))) == expected
    bottleneck = ["conv1", "bn1", "relu", "conv2", "bn2", "relu_1", "conv3", "bn3"]
    names = list(make("resnet50", size=32).layers(pixels_of(1, 32)))
    assert names[:4] == [*first, "maxpool"]
    assert [name.removeprefix("layer1.0.") for name in names[4:12]] == bottleneck
    assert names[12] == "layer1.0" and names[-1] == "layer4.2"
    assert list(make("resnet_small").layers(pixels_of(1)))[3:9] == [
        *(f"layer1.0.{name}" for name in block),
        "layer1.0",
    ]


def test_the_layers_of_a_resnet_are_those_of_its_modules_one_by_one():
    encoder, pixels = make("resnet18"), pixels_of(2)
    outputs = encoder.layers(pixels)

    def as_map(name):
        output = outputs[name]
        side = int(output.shape[1] ** 0.5)
        return output.transpose(1, 2).unflatten(2, (side, side))

    conv1, bn1, relu, _, stage1, stage2, *_ = encoder.layers.children()
    x = conv1(pixels)
    assert torch.equal(as_map("conv1"), x)
    assert torch.equal(as_map("bn1"), bn1(x))
    assert torch.equal(as_map("relu"), F.relu(bn1(x)))
    x = stage1(F.relu(bn1(x)))
    assert torch.equal(as_map("layer1.1"), x)
    block = stage2[0]
    y = block.bn1(block.conv1(x))
    assert torch.equal(as_map("layer2.0.bn1"), y)
    assert torch.equal(as_map("layer2.0.relu"), F.relu(y))
    y = block.bn2(block.conv2(F.relu(y)))
    assert torch.equal(as_map("layer2.0.bn2"), y)
    assert torch.equal(as_map("layer2.0"), F.relu(y + block.downsample(x)))


def test_the_layers_of_a_vision_transformer_are_those_of_its_formula():
    encoder, pixels = make("vit_mini"), pixels_of(2)
    visible = torch.tensor([[0, 3, 5], [7, 2, 1]])
    for mask in (None, visible):
        outputs = encoder.layers(pixels, mask)
        names = [
            f"blocks.{n}{part}" for n in range(2) for part in [*(f".{p}" for p in IN_A_BLOCK), ""]
        ]
        assert list(outputs) == ["embedding", *names, "norm"]
        x = outputs["embedding"]
        for n, block in enumerate(encoder.blocks):
            attention = block.attention(block.norm1(x))
            assert torch.equal(outputs[f"blocks.{n}.attention"], attention)
            assert torch.equal(outputs[f"blocks.{n}.attention_sum"], x + attention)
            x = x + attention
            gelu = F.gelu(block.linear1(block.norm2(x)))
            assert torch.equal(outputs[f"blocks.{n}.gelu"], gelu)
            assert torch.equal(outputs[f"blocks.{n}.mlp"], block.linear2(gelu))
            x = x + block.linear2(gelu)
            assert torch.equal(outputs[f"blocks.{n}"], x)
        assert torch.equal(outputs["norm"], encoder.tokens(pixels, mask))


@pytest.mark.parametrize("name", OWN)
def test_layers_do_not_depend_on_the_other_images_of_a_batch(name):
    """Also not on how many there are: a vision transformer gives tokens of 16 at a time."""
    encoder, pixels = make(name), pixels_of(20)
    together, alone = encoder.layers(pixels), encoder.layers(pixels[18:19])
    for layer, output in together.items():
        assert torch.allclose(output[18:19], alone[layer], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OWN)
def test_layers_that_are_looked_at_are_left_in_the_mode_that_they_were_in(name):
    encoder = make(name).train()
    for module in list(encoder.modules())[3::3]:
        module.training = False
    modes = [module.training for module in encoder.modules()]
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert encoder.find_layers(pixels_of(2))
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize("name", OWN)
def test_layers_that_activate_are_those_after_a_non_linearity(name):
    encoder = make(name)
    layers = encoder.find_layers(pixels_of(1))
    activate = [layer.name for layer in layers if layer.activates]
    if "vit" in name:
        assert activate == [f"blocks.{n}.gelu" for n in range(len(encoder.blocks))]
    elif "resnet" in name:
        outputs = encoder.layers(pixels_of(2))
        for layer in layers:
            has_negatives = outputs[layer.name].min() < 0
            assert layer.activates != has_negatives or layer.name == "maxpool"
    else:
        assert len(activate) == 18  # a GELU in each block


def test_watching_gives_each_thread_its_own_outputs():
    encoder = make("resnet_small")
    layers = encoder.find_layers(pixels_of(1))
    parts = [pixels_of(4)[n : n + 1] for n in range(4)]
    seen = [[] for _ in parts]
    start = threading.Barrier(len(parts))

    def work(number):
        start.wait()
        for _ in range(20):
            seen[number].clear()
            visit = lambda layer, output: seen[number].append((layer.name, output.clone()))  # noqa: E731
            with torch.no_grad():
                watch(parts[number], None, visit)

    with watching(encoder, layers) as watch:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(parts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for part, outputs in zip(parts, seen):
        expected = encoder.layers(part)
        assert [name for name, _ in outputs] == list(expected)
        assert all(torch.equal(output, expected[name]) for name, output in outputs)
    assert not any(module._forward_hooks for module in encoder.modules())


def test_a_pass_that_fails_leaves_nothing_behind():
    encoder = make("resnet_small")
    with watching(encoder, encoder.find_layers(pixels_of(1))) as watch:
        with pytest.raises(ZeroDivisionError):
            watch(pixels_of(2), None, lambda layer, output: 1 / 0)
        names = []
        watch(pixels_of(2), None, lambda layer, output: names.append(layer.name))
        assert names == list(encoder.layers(pixels_of(2)))


@pytest.mark.parametrize("name", OWN)
def test_an_edited_layer_changes_all_that_comes_after_it_and_nothing_before(name):
    encoder, pixels = make(name), pixels_of(2)
    plain, layers = encoder.layers(pixels), encoder.find_layers(pixels)
    names = [layer.name for layer in layers]
    middle = names.index([layer.name for layer in layers if layer.activates][1])

    def cut(layer, output):
        return output * (torch.arange(output.shape[2]) % 2)

    with editing(layers[middle : middle + 1], cut):
        edited = encoder.layers(pixels)
    for name in names[:middle]:
        assert torch.equal(edited[name], plain[name])
    assert edited[names[middle]][:, :, ::2].count_nonzero() == 0
    assert torch.equal(edited[names[middle]][:, :, 1::2], plain[names[middle]][:, :, 1::2])
    assert not torch.equal(edited[names[-1]], plain[names[-1]])
    assert torch.equal(encoder.tokens(pixels), plain[names[-1]])  # afterwards it is whole again


def test_a_residual_sum_cannot_be_edited_as_only_the_norm_would_see_it():
    layers = make("vit_mini").find_layers(pixels_of(1))
    (total, _) = (layer for layer in layers if layer.name.endswith("attention_sum"))
    with pytest.raises(ValueError, match=r"^blocks\.0\.attention_sum: no module gives it"):
        with editing([total], lambda layer, output: output):
            pass


def test_a_layer_that_does_not_exist_is_named_with_the_nearest():
    layers = make("vit_mini").find_layers(pixels_of(1))
    chosen = choose_layers(layers, ["norm", "blocks.1.mlp"], "layers.names")
    assert [layer.name for layer in chosen] == ["blocks.1.mlp", "norm"]
    with pytest.raises(ValueError, match=r"^layers.names: blocks.1.mpl: .* blocks.1.mlp"):
        choose_layers(layers, ["blocks.1.mpl"], "layers.names")
