"""Checkpoints that are broken, made to do harm, or of other programs."""

import io
import json
import pickle
import struct
from argparse import Namespace

import numpy as np
import pytest
import torch
from hostile import fuzz, hostile_checkpoints, npy, resaved, zipped

from memorization.checkpoint import (
    load_trained,
    read_checkpoint,
    read_progress,
    restore,
)
from memorization.config import read_run_config
from memorization.errors import Broken, WrongUse
from memorization.fingerprints import checksum
from memorization.optimizers import make_optimizer
from models.encoders import make_encoder
from models.simclr import SimCLR, SimCLRSettings

CHANGES_OF_WEIGHT = [
    lambda w: w[:1],
    lambda w: w * float("nan"),
    lambda w: w.flatten(),
    5,
    "x",
    None,
]


WEIGHT = ("weights", "layers.0.weight")


ENCODER_CHANGES = [
    *(((*WEIGHT,), change) for change in [
        lambda w: w[:1], lambda w: w.double(), lambda w: w.int(), lambda w: w * float("nan"),
        lambda w: w.flatten(), lambda w: w[:0], 5,
    ]),
    *((("config", "encoder", key), value) for key in ("width", "depth",
        "patch") for value in (10**9, -1, "8", None, torch.ones(3))),
    (("config", "encoder"), {"name": "vit_mini", "width": 32 * 10**6, "depth": 10**6}),
    (("config", "encoder"), {"name": "vit_mini", "width": 8192, "depth": 256, "patch": 16}),
    (("config", "encoder", "name"), "resnet_huge"),
    (("config", "augmentation", "views", 0, "size"), 10**9),
    *(((key,), value) for key in ("config", "role", "seed", "subsets", "channels", "size", "mean",
        "std", "weights", "epoch", "precision")
      for value in (10**9, None, torch.ones(3), [float("nan")] * 3, {})),
    (("std",), [0.0, 1.0, 1.0]), (("kind",), "progress"), (("kind",), torch.ones(2)),
    (("weights", "layers.1.num_batches_tracked"), 1),
]  # fmt: skip


def test_an_encoder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = run / "seed_0/candidate/encoder.pt"

    def read():
        encoder = load_trained(run, 0, "candidate")
        return checksum({"weights": encoder.network.state_dict(), **encoder.record})

    fuzz(path, read, hostile_checkpoints(path.read_bytes()) + resaved(path, ENCODER_CHANGES))
    assert not (tmp_path / "executed").exists()


def test_the_progress_of_a_training(run):
    folder = run / "seed_0/candidate"
    path, config = folder / "last.pt", read_run_config(run)
    (folder / "previous.pt").unlink(missing_ok=True)

    def read():
        method = SimCLR(
            make_encoder(config.encoder, 3, 16), **SimCLRSettings(**config.method).arguments()
        )
        optimizer = make_optimizer(method, config.training)
        restore(read_progress(folder), method, optimizer, folder)
        return checksum([method.state_dict(), optimizer.state_dict()])

    state = ("optimizer", "state", 0)
    changes = [
        *((("method", name),
            change) for name in ("encoder.layers.0.weight",) for change in CHANGES_OF_WEIGHT),
        *(((*state, "exp_avg"), change) for change in CHANGES_OF_WEIGHT),
        *((("optimizer", key), value) for key in ("state", "param_groups") for value in (None, [],
            5, torch.ones(2))),
        (("optimizer", "param_groups", 0, "betas"), [0.5, 0.5]),
        (("optimizer", "param_groups", 0, "params"), [10**9]),
        (("optimizer",), None), (("method",), {}),
    ]  # fmt: skip
    fuzz(path, read, hostile_checkpoints(path.read_bytes()) + resaved(path, changes))


def saved(value, **how):
    file = io.BytesIO()
    torch.save(value, file, **how)
    return file.getvalue()


def safetensors(header):
    header = json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


OTHERS = {
    "weights alone": saved(torch.nn.Linear(2, 2).state_dict()),
    "a tensor": saved(torch.ones(2)),
    "a dict of another": saved(
        {"epoch": 3, "model": torch.nn.Linear(2, 2).state_dict(), "optimizer": {"state": {}}}
    ),
    "a whole model": saved(torch.nn.Linear(2, 2)),
    "with its arguments": saved({"args": Namespace(lr=0.1), "state_dict": {}}),
    "with numpy": saved({"best": np.float64(3.0)}),
    "before torch 1.6": saved(
        {"state_dict": torch.nn.Linear(2, 2).state_dict()}, _use_new_zipfile_serialization=False
    ),
    "a pickle": pickle.dumps({"weights": np.ones(3)}),
    "safetensors": safetensors({"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
    "Keras": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "arrays": zipped({"weight.npy": npy(np.ones(3))}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_program_is_called_one(name, tmp_path):
    path = tmp_path / "encoder.pt"
    path.write_bytes(OTHERS[name])
    with pytest.raises(WrongUse, match="encoder.pt: a checkpoint of another program") as refusal:
        read_checkpoint(path)
    assert not isinstance(refusal.value, Broken)  # or a good previous.pt would take its place


def test_a_checkpoint_of_ours_that_was_cut_off_is_broken_and_no_other_programs(run):
    path = run / "seed_0/candidate/encoder.pt"
    whole = path.read_bytes()
    for size in (0, 1, 10, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(Broken, match="encoder.pt: not a whole checkpoint: truncated, broken"):
            read_checkpoint(path)
