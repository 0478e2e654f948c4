"""Weights that other people's programs trained and saved give here the outputs that they gave
there. Those of timm, lightly and Lightning are made by them if they are installed.
"""

import copy
import re
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

from memorization.imports.weights import (
    match_weights,
    place_of_weights,
    places_of_twins,
    select_weights,
    strip_prefixes,
)
from memorization.imports.weights_file import read_weights_file

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def residual_network():
    """Two blocks of torchvision's ResNets, (B, 16)."""
    shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), BasicBlock(8, 8), BasicBlock(8, 16, 2, shortcut),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def transformer():
    network = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32)
    network.heads = nn.Identity()
    return network


class Module(nn.Module):
    """A module with parts of these names."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def trained(make_network):
    """(network, optimizer) after two steps, which change weights and running means."""
    network = make_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        network(IMAGES).square().mean().backward()
        optimizer.step()
    return network.eval(), optimizer


def parallel(module):
    return nn.DataParallel(module).state_dict()  # keys begin with module.


def head(width=8):
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, 4))


def dino(network, optimizer):
    student = Module(backbone=make_other(network), head=head())
    teacher = Module(backbone=network, head=head())
    content = {
        "student": parallel(student), "teacher": teacher.state_dict(), "epoch": 3,
        "optimizer": optimizer.state_dict(), "args": Namespace(arch="vit_tiny", lr=0.1),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }  # fmt: skip
    return content, "teacher", ["backbone."], ["head."]


def make_other(network):
    """A network of the same shape with other weights."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    return other


def moco_v2(network, optimizer):
    module = Module(encoder_q=network, encoder_k=make_other(network))
    module.register_buffer("queue", torch.rand(4, 16))
    module.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
    content = {"epoch": 9, "arch": "resnet50", "state_dict": parallel(module)}
    content["optimizer"] = optimizer.state_dict()
    return content, "state_dict", ["module.", "encoder_q."], ["encoder_k.", "queue"]


def moco_v3(network, optimizer):
    module = Module(base_encoder=network, momentum_encoder=make_other(network), predictor=head())
    content = {"epoch": 9, "state_dict": parallel(module), "optimizer": optimizer.state_dict()}
    content["scaler"] = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3}
    unused = ["momentum_encoder.", "predictor."]
    return content, "state_dict", ["module.", "base_encoder."], unused


def simsiam(network, optimizer):
    module = Module(encoder=network, predictor=head())
    content = {"epoch": 9, "state_dict": parallel(module), "optimizer": optimizer.state_dict()}
    return content, None, ["module.", "encoder."], ["predictor."]


def vicreg(network, optimizer):
    return network.state_dict(), None, [], []


def mae(network, optimizer):
    module = copy.deepcopy(network)
    module.mask_token = nn.Parameter(torch.zeros(1, 1, 16))
    module.decoder_embed, module.decoder_norm = nn.Linear(16, 8), nn.LayerNorm(8)
    content = {
        "model": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 799,
        "scaler": {"scale": 65536.0}, "args": Namespace(mask_ratio=0.75, output_dir="./out"),
    }  # fmt: skip
    return content, "model", [], ["decoder_", "mask_token"]


def i_jepa(network, optimizer):
    content = {
        "encoder": parallel(make_other(network)), "predictor": parallel(head()),
        "opt": optimizer.state_dict(), "scaler": None, "target_encoder": parallel(network),
        "epoch": 300, "loss": 0.1, "batch_size": 2048, "world_size": 16, "lr": 0.001,
    }  # fmt: skip
    return content, "target_encoder", ["module."], []


def solo_learn(network, optimizer):
    module = Module(backbone=network, classifier=nn.Linear(8, 10), projector=head())
    content = {
        "epoch": 3, "global_step": 30, "pytorch-lightning_version": "2.1.2",
        "state_dict": module.state_dict(), "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(1.0)}},
        "optimizer_states": [optimizer.state_dict()], "lr_schedulers": [{"last_epoch": 3}],
        "hyper_parameters": {"backbone": {"name": "resnet18"}, "args": Namespace(lr=0.1)},
    }  # fmt: skip
    return content, "state_dict", ["backbone."], ["classifier.", "projector."]


def dino_v2(network, optimizer):
    student = Module(backbone=make_other(network), dino_head=head())
    module = Module(student=student, teacher=Module(backbone=network, dino_head=head()))
    content = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 9}
    return content, "model", ["teacher.backbone."], ["student.", "teacher."]


def dino_of_lightly(network, optimizer):
    module = Module(
        student_backbone=make_other(network), student_head=head(),
        teacher_backbone=network, teacher_head=head(),
    )  # fmt: skip
    content = {"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    return content, "state_dict", ["teacher_backbone."], ["teacher_head.", "student_"]


LAYOUTS = [
    dino, dino_v2, dino_of_lightly, moco_v2, moco_v3, simsiam, vicreg, mae, i_jepa, solo_learn
]  # fmt: skip


def assert_same_outputs(path, source, network, how):
    """The network gives the source's outputs once it has the weights of a file."""
    at, strip, unused = how
    weights = strip_prefixes(select_weights(read_weights_file(path), at), strip)
    assert (network.eval()(IMAGES) - source.eval()(IMAGES)).abs().max() > 1e-3
    network.load_state_dict(match_weights(weights, network, unused), strict=True)
    with torch.no_grad():
        assert (network.eval()(IMAGES) - source.eval()(IMAGES)).abs().max() < 1e-6


@pytest.mark.parametrize("zipped", (True, False), ids=("zip", "legacy"))
@pytest.mark.parametrize("make_network", (residual_network, transformer))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_laid_out_as_other_programs_do_it(layout, make_network, zipped, tmp_path):
    network, optimizer = trained(make_network)
    content, *how = layout(network, optimizer)
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert_same_outputs(path, network, make_network(), how)


def test_a_student_is_a_right_file_of_other_weights_whose_place_is_known(tmp_path):
    network, optimizer = trained(transformer)
    content, _, strip, unused = dino(network, optimizer)
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    result = read_weights_file(path)
    assert place_of_weights(result, "student") == "student"
    other = transformer()
    weights = strip_prefixes(select_weights(result, "student"), ["module.", *strip])
    other.load_state_dict(match_weights(weights, other, unused), strict=True)
    assert (other.eval()(IMAGES) - network(IMAGES)).abs().max() > 1e-3


@pytest.mark.parametrize("layout, twin", [
    (dino, "'student', module.backbone."), (moco_v2, "'state_dict', module.encoder_k."),
    (moco_v3, "'state_dict', module.momentum_encoder."), (simsiam, None), (mae, None),
])  # fmt: skip
def test_weights_of_the_same_names_and_shapes_are_named(layout, twin, tmp_path):
    network, optimizer = trained(transformer)
    content, at, strip, unused = layout(network, optimizer)
    torch.save(content, tmp_path / "checkpoint.pth")
    result = read_weights_file(tmp_path / "checkpoint.pth")
    weights = strip_prefixes(select_weights(result, at), strip)
    taken = {name: weights[name] for name in network.state_dict()}
    assert places_of_twins(result, taken) == ([] if twin is None else [twin])


def test_nested_blocks_fit_once_the_page_has_renumbered_them(tmp_path, monkeypatch):
    source, network = transformer(), transformer()
    chunks = {
        re.sub(r"layers\.encoder_layer_(\d)\.", r"blocks.1.\1.", key): value
        for key, value in source.state_dict().items()
    }
    monkeypatch.chdir(tmp_path)
    torch.save({"teacher": chunks}, "checkpoint.pth")
    page = (Path(__file__).parents[2] / "docs/imports.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (code,) = (block for block in blocks if "renumbered" in block)
    exec(code, {})
    weights = select_weights(read_weights_file("renumbered.pth"), "teacher")
    named = {
        re.sub(r"blocks\.(\d)\.", r"layers.encoder_layer_\1.", key): value
        for key, value in weights.items()
    }
    assert len(chunks) == len(named)
    network.load_state_dict(match_weights(named, network, []), strict=True)
    assert torch.equal(network.eval()(IMAGES), source.eval()(IMAGES))


# --- files that other programs write --------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16, torch.float64))
def test_files_of_safetensors(dtype, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    network, _ = trained(residual_network)
    network.to(dtype).float()  # rounded
    weights = network.state_dict()
    stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights.items()}
    path = tmp_path / "model.safetensors"
    safetensors.save_file(
        stored | {"empty": torch.zeros(0, 3), "truth": torch.tensor([True, False])},
        path,
        metadata={"format": "pt"},
    )
    result, reference = read_weights_file(path), safetensors.load_file(path)
    assert result.keys() == reference.keys()
    assert all(torch.equal(result[key], reference[key]) for key in reference)
    assert all(result[key].dtype == reference[key].dtype for key in reference)
    assert_same_outputs(path, network, residual_network(), (None, [], ["empty", "truth"]))


@pytest.mark.parametrize("suffix", ("pth", "safetensors"))
@pytest.mark.parametrize("name", ("test_vit", "test_vit3", "test_resnet", "test_convnext"))
def test_files_of_timm(name, suffix, tmp_path):
    timm = pytest.importorskip("timm")
    arguments = {"num_classes": 0}
    if "vit" in name:
        arguments["img_size"] = 32
    network, _ = trained(lambda: timm.create_model(name, **arguments))
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(network.state_dict(), path)
    else:
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_file(network.state_dict(), path)
    assert_same_outputs(path, network, timm.create_model(name, **arguments), (None, [], []))


def lightning_module(network):
    """lightly's example of SimCLR, on a network of its user, as a module of Lightning."""
    lightly_loss = pytest.importorskip("lightly.loss")
    lightly_modules = pytest.importorskip("lightly.models.modules")
    lightning = pytest.importorskip("pytorch_lightning")

    class SimCLR(lightning.LightningModule):
        def __init__(self, backbone, temperature):
            super().__init__()
            self.save_hyperparameters(ignore="backbone")
            self.save_hyperparameters({"options": Namespace(lr=0.1)})
            self.backbone = backbone
            self.projection_head = lightly_modules.SimCLRProjectionHead(16, 16, 8)
            self.criterion = lightly_loss.NTXentLoss(temperature)

        def training_step(self, batch, number):
            first, second = (self.projection_head(self.backbone(view)) for view in batch)
            return self.criterion(first, second)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return SimCLR(network, 0.5), lightning


def test_a_simclr_that_lightly_and_lightning_trained(tmp_path):
    network = residual_network()
    module, lightning = lightning_module(network)
    saving = lightning.callbacks.ModelCheckpoint(tmp_path, "last", save_last=False)
    trainer = lightning.Trainer(
        max_steps=3, accelerator="cpu", logger=False, callbacks=[saving],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    views = [(image, image.flip(-1)) for image in IMAGES]
    trainer.fit(module, torch.utils.data.DataLoader(views, batch_size=2))
    path = tmp_path / "last.ckpt"
    with pytest.raises(Exception, match="[Ww]eights.only"):  # what torch says of such files
        torch.load(path, weights_only=True)
    content = read_weights_file(path)
    assert content["global_step"] == 3 and place_of_weights(content, None) == "state_dict"
    assert "pytorch_lightning" not in str(content["hyper_parameters"])
    how = ("state_dict", ["backbone."], ["projection_head."])
    assert_same_outputs(path, network, residual_network(), how)


def test_reading_imports_no_module_that_a_file_names(tmp_path):
    (tmp_path / "only_theirs.py").write_text("class Settings:\n    pass\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import only_theirs

        torch.save({"a": only_theirs.Settings(), "m": {"w": torch.ones(2)}}, tmp_path / "a.pth")
        del sys.modules["only_theirs"]
        content = read_weights_file(tmp_path / "a.pth")
        assert content["a"].name == "only_theirs.Settings" and "only_theirs" not in sys.modules
    finally:
        sys.path.remove(str(tmp_path))
