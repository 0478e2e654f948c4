"""Encoders that lightly and timm trained and Lightning's form of file keeps are imported, with a
manifest that says what each saw, and scored. Needs the packages of requirements-optional.txt.
"""

import csv
import json
from argparse import Namespace

import numpy as np
import pytest
import torch
import yaml
from conftest import write_experiment
from PIL import Image

import import_encoders
import membership_inference
import memorization_scores
from memorization.checkpoint import load_encoder

timm = pytest.importorskip("timm")
lightly_loss = pytest.importorskip("lightly.loss")
heads = pytest.importorskip("lightly.models.modules.heads")

SIZE, MODEL, STEPS = 32, "test_resnet", 40
COUNTS = {"shared": 0, "candidate": 24, "independent": 24, "external": 64}


class SimCLR(torch.nn.Module):
    """As in lightly's tutorial."""

    def __init__(self):
        super().__init__()
        self.backbone = timm.create_model(MODEL, num_classes=0)
        dim = self.backbone.num_features
        self.projection_head = heads.SimCLRProjectionHead(dim, dim, 32)

    def forward(self, pixels):
        return self.projection_head(self.backbone(pixels))


def train_elsewhere(pixels, normalization, path):
    """Train a SimCLR on images (N, 3, S, S) in [0, 1], and save it. Returns its backbone."""
    torch.manual_seed(0)
    model, criterion = SimCLR(), lightly_loss.NTXentLoss(temperature=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalization)
    for _ in range(STEPS):
        views = [(flip_and_shift(pixels) - mean) / std for _ in range(2)]
        loss = criterion(*map(model, views))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    content = {"epoch": STEPS, "state_dict": model.state_dict(), "hparams": Namespace(lr=0.003)}
    torch.save(content, path)
    return model.backbone.eval()


def flip_and_shift(pixels):
    flipped = torch.where(torch.rand(len(pixels), 1, 1, 1) < 0.5, pixels.flip(3), pixels)
    shift = torch.randint(-4, 5, (2,)).tolist()
    brightness = 0.6 + 0.8 * torch.rand(len(pixels), 1, 1, 1)
    return (flipped.roll(shift, (2, 3)) * brightness).clamp(0, 1)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder of images, a manifest that says which of them each encoder saw, two files of
    weights and a config. Returns the config's path and the two backbones.
    """
    folder, chance = tmp_path_factory.mktemp("elsewhere"), np.random.default_rng(0)
    pixels, rows = {}, [["path", "subset", "label"]]
    for subset, count in COUNTS.items():
        coarse = chance.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        pixels[subset] = coarse.repeat(4, axis=1).repeat(4, axis=2)
        for i, image in enumerate(pixels[subset]):
            rows.append([f"{subset}_{i}.png", subset, i % 4])
            Image.fromarray(image).save(folder / rows[-1][0])
    with open(folder / "seen.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    normalization = timm.get_pretrained_cfg(MODEL).mean, timm.get_pretrained_cfg(MODEL).std
    weights, sources = {}, {}
    for role in ("candidate", "independent"):
        seen = torch.from_numpy(pixels[role]).permute(0, 3, 1, 2) / 255
        sources[role] = train_elsewhere(seen, normalization, folder / f"{role}.ckpt")
        weights[role] = {"weights": str(folder / f"{role}.ckpt"), "at": "state_dict"}
        weights[role] |= {"strip": ["backbone."], "unused": ["projection_head."]}
    recipe = {"count": 2, "size": SIZE, "crop_scale": [0.6, 1.0], "flip": 0.5, "jitter": 0.8}
    path = write_experiment(folder, {
        "method": None, "training": None,
        "data": {"name": "manifest", "manifest": str(folder / "seen.csv"), "root": str(folder),
                 "prepared": str(folder / "prepared"), "size": SIZE},
        "subsets": {"order": "manifest"},
        "augmentation": {"views": [recipe]},
        "encoder": {"name": "timm", "model": MODEL, "output": "pooled"},
        "import": weights | {"size": SIZE, "mean": "from_model", "std": "from_model"},
    })  # fmt: skip
    import_encoders.main(["--config", path])
    return path, folder / "run", sources


def test_its_outputs_are_those_of_its_source(elsewhere):
    _, run, sources = elsewhere
    pixels = torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for role, source in sources.items():
            encoder = load_encoder(run / f"seed_0/{role}/encoder.pt")
            assert torch.allclose(encoder.network(pixels), source(pixels), atol=1e-6)


def test_mean_and_std_of_the_library_are_in_the_record(elsewhere):
    _, run, _ = elsewhere
    config = yaml.safe_load((run / "config.yaml").read_text())
    known = timm.get_pretrained_cfg(MODEL)
    assert config["import"]["mean"] == list(known.mean)
    assert load_encoder(run / "seed_0/candidate/encoder.pt").normalization[1] == list(known.std)


def test_what_each_saw_is_memorized(elsewhere):
    path, run, _ = elsewhere
    memorization_scores.main(["--config", path, "--scores.views", "8"])
    (file,) = run.glob("scores/**/summary.json")
    summary = json.loads(file.read_text())
    assert summary["import"]["candidate"]["at"] == "state_dict"
    means = {name: values["raw"]["mean"] for name, values in summary["subsets"].items()}
    assert means["candidate"] > means["independent"] + 0.01  # free of the offset of the pair
    membership_inference.main(["--config", path, "--membership.views", "4"])
    (other,) = run.glob("membership/**/membership.csv")
    for path in (file.parent / "scores.csv", other):
        with open(path, newline="") as table:
            rows = list(csv.DictReader(table))
        assert rows[0]["file"].startswith("candidate_")
