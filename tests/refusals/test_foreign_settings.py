"""Encoders of other libraries and of one's own code: what does not fit ends in one line."""

import json
import sys

import pydantic
import pytest
import torch
from conftest import EXPERIMENT, random_pixels

import train_simclr
from models.encoders import encoder_settings


def refusal(name, channels=3, size=32, **settings):
    """What making an encoder with these settings ends with, one line."""
    with pytest.raises(ValueError) as refused:
        settings = encoder_settings(name, **settings)
        settings.check()
        settings.make(channels, size)
    return str(refused.value)


@pytest.mark.parametrize("settings, size, words", [
    ({"model": "resnet19"}, 32, ["encoder.model: resnet19", "no such classifier", "resnet18"]),
    ({"model": "fcn_resnet50"}, 32, ["no such classifier", "resnet50"]),
    ({"model": "inception_v3"}, 32, ["does not take images of 32 x 32 pixels"]),
    ({"model": "maxvit_t"}, 64, ["does not take images of 64 x 64", "not divisible"]),
    ({"model": "vit_b_16"}, 40, ["vit_b_16", "40"]),
    ({"model": "convnext_tiny"}, 30, ["patches of 4 pixels do not divide 30"]),
    ({"model": "resnet18", "output": "class"}, 32, ["encoder.output: class", "no class token"]),
])  # fmt: skip
def test_what_torchvision_does_not_have_or_take(settings, size, words):
    message = refusal("torchvision", size=size, **settings)
    assert all(word in message for word in words) and "\n" not in message


@pytest.mark.parametrize("settings, size, words", [
    ({"model": "resnet19"}, 32, ["encoder.model: resnet19", "no such model", "resnet18"]),
    ({"model": "hf-hub:timm/resnet18.a1_in1k"}, 32, ["no such model"]),
    ({"model": "local-dir:/tmp"}, 32, ["no such model"]),
    ({"model": "resnet18.nothing"}, 32, ["tag (nothing)"]),
    ({"model": "vit_tiny_patch16_224"}, 28, ["patches of 16 pixels do not divide 28"]),
    ({"model": "swin_tiny_patch4_window7_224"}, 30, ["patches of 4 pixels do not divide 30"]),
    ({"model": "mixer_s32_224"}, 48, ["patches of 32 pixels do not divide 48"]),
    ({"model": "crossvit_tiny_240"}, 48, ["does not take images of 48 x 48 pixels"]),
    ({"model": "resnet10t", "output": "class"}, 32, ["no class token"]),
    ({"model": "coat_tiny", "output": "mean"}, 32, ["encoder.output: mean", "has no tokens"]),
    ({"model": "volo_d1_224", "output": "mean"}, 32, ["not known which tokens"]),
])  # fmt: skip
def test_what_timm_does_not_have_or_take(settings, size, words):
    pytest.importorskip("timm")
    message = refusal("timm", size=size, **settings)
    assert all(word in message for word in words) and "\n" not in message


def test_a_name_of_timm_with_a_scheme_downloads_nothing(monkeypatch):
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("it would download"))
    refusal("timm", model="hf-hub:timm/resnet18.a1_in1k")


TINY = {
    "model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "patch_size": 8,
}  # fmt: skip


@pytest.mark.parametrize("changes, output, words", [
    ({}, "pooled", ["encoder.output: pooled", "pooler with weights of its own", "take class"]),
    ({"model_type": "ijepa"}, "pooled", ["has no pooling"]),
    ({"model_type": "ijepa"}, "class", ["no class token"]),
    ({"model_type": "bert"}, "class", ["'bert'", "none of vit"]),
    ({"model_type": None}, "class", ["none of vit"]),
    ({"patch_size": 5}, "class", ["patches of 5 pixels do not divide 32"]),
    ({"hidden_size": "wide"}, "class", ["encoder.folder: vit"]),
])  # fmt: skip
def test_what_a_folder_of_transformers_does_not_have(changes, output, words, tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(TINY | changes))
    message = refusal("transformers", folder=str(tmp_path), output=output)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("content, words", [
    (None, "config.json: there is no such file"),
    ("{", "config.json: Expecting property name"),
    ("[]", "config.json holds no mapping"),
    ('{"model_type": "vit", "layer_norm_eps": NaN}', "NaN is no number"),
    ("[" * 100_000, "config.json: "),
    ('{"model_type": "vit"' + " " * 2**20 + "}", "more than 1048576 bytes"),
    (json.dumps({str(i): i for i in range(300)}), "more than 200 keys"),
])  # fmt: skip
def test_a_folder_without_a_config_is_refused(content, words, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert words in refusal("transformers", folder=str(tmp_path))


def test_a_folder_that_differs_from_its_record_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    recorded = encoder_settings("transformers", folder=str(tmp_path), output="class")
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"qkv_bias": False}))
    changed = {"folder": str(tmp_path), "architecture": recorded.architecture}
    assert "not of the architecture that was recorded" in refusal("transformers", **changed)
    (tmp_path / "config.json").unlink()
    assert encoder_settings("transformers", **changed).architecture == recorded.architecture


def test_no_code_and_no_settings_of_the_library_itself_are_taken_from_a_folder(tmp_path):
    pytest.importorskip("transformers")
    traps = {
        "auto_map": {"AutoModel": "evil.Evil"}, "_attn_implementation": "kernels-community/evil",
        "attn_implementation": "kernels-community/evil", "dtype": "float16", "return_dict": False,
        "quantization_config": {"quant_method": "evil"},
    }  # fmt: skip
    (tmp_path / "evil.py").write_text("raise SystemExit('it was run')")
    (tmp_path / "config.json").write_text(json.dumps(TINY | traps))
    settings = encoder_settings("transformers", folder=str(tmp_path), output="class")
    encoder = settings.make(3, 32)
    assert encoder(random_pixels(2, 3, 32)).dtype == torch.float32
    assert encoder.network.config._attn_implementation == "sdpa"


BROKEN = """
import torch.nn as nn

def breaks(channels, size):
    pixels = channels * size
    return nn.Linear(pixels)

def needs(width): return nn.Flatten()
def nothing(): return None
def maps(): return nn.Conv2d(3, 4, 3)
def one(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
constant = 3
"""


@pytest.mark.parametrize("function, words", [
    ("breaks", ["encoder.file", "line 6: TypeError: "]),
    ("needs", ["encoder.function: needs of", "needs width", "channels and size"]),
    ("nothing", ["returns NoneType, but a torch module is needed"]),
    ("maps", ["gives shape (2, 4, 30, 30) for two images"]),
    ("constant", ["encoder.function: constant", "no such function", "breaks, needs"]),
    ("absent", ["encoder.function: absent", "no such function"]),
])  # fmt: skip
def test_a_function_that_makes_no_encoder_is_refused(function, words, tmp_path):
    (tmp_path / "own.py").write_text(BROKEN)
    message = refusal("function", file=str(tmp_path / "own.py"), function=function)
    assert all(word in message for word in words) and "\n" not in message, message


@pytest.mark.parametrize("code, words", [
    ("def f(:", "line 1: SyntaxError"), ("\nimport nothing", "line 2: ModuleNotFoundError"),
    ("raise SystemExit(3)", "line 1: SystemExit: 3"), ("x = '\0'", "SyntaxError"),
])  # fmt: skip
def test_code_that_fails_is_named_with_its_line(code, words, tmp_path):
    (tmp_path / "own.py").write_text(code)
    assert words in refusal("function", file=str(tmp_path / "own.py"), function="f")


def test_code_that_was_changed_since_it_was_recorded_is_not_run(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(BROKEN)
    recorded = encoder_settings("function", file=str(path), function="maps").model_dump()
    path.write_text("raise SystemExit('it was run')")
    assert "was changed since" in refusal(**recorded)


@pytest.mark.parametrize("place", ["absent.py", "/dev/zero", ".", "a\0b"])
def test_a_file_that_is_none_is_refused(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pydantic.ValidationError, match="file is .*(no such file|null)"):
        encoder_settings("function", file=place, function="f")


@pytest.mark.parametrize("name, settings", [
    ("timm", {"model": "resnet18"}), ("transformers", {"architecture": TINY, "output": "class"})
])  # fmt: skip
def test_a_package_that_is_missing_is_named_before_images_are_read(
    name, settings, monkeypatch, write_config, capsys
):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(train_simclr, "open_training_images", lambda *_: pytest.fail("too late"))
    path = write_config({"encoder": {"name": name} | settings})
    with pytest.raises(SystemExit) as ended:
        train_simclr.main(["--config", path])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and len(error.splitlines()) == 1
    assert f"{path}: encoder.name: {name}: the package {name} is missing; pip install -r" in error
    assert "requirements-optional.txt" in error


def test_a_mask_is_refused(write_config, capsys):
    views = EXPERIMENT["augmentation"]["views"][0] | {"mask_ratio": 0.5}
    encoder = {"name": "torchvision", "model": "vit_b_16"}
    path = write_config({"encoder": encoder, "augmentation.views": [views]})
    with pytest.raises(SystemExit):
        train_simclr.main(["--config", path])
    assert "torchvision sees whole images" in capsys.readouterr().err
    encoder = encoder_settings("torchvision", model="resnet18").make(3, 32)
    for call in (encoder, encoder.tokens):
        with pytest.raises(ValueError, match="takes no mask"):
            call(random_pixels(2, 3, 32), torch.zeros(2, 1, dtype=torch.long))
