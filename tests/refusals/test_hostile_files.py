"""Files that are broken or made to do harm: each reader gives its one line, or what the intact file
gives. FUZZ: real processes a kind.
"""

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from argparse import Namespace
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import write_experiment
from PIL import Image

import linear_probing_train
import memorization_scores
import remove_samples
import train_simclr
from memorization.checkpoint import (
    load_trained,
    read_checkpoint,
    read_progress,
    restore,
    save_checkpoint,
)
from memorization.config import read_config, read_run_config
from memorization.data.catalogue import DataSettings
from memorization.data.images import Split, open_images
from memorization.data.subsets import load_subsets, save_subsets
from memorization.errors import Broken, WrongUse
from memorization.fingerprints import checksum
from memorization.machine.archives import read_arrays
from memorization.measuring.boxes import boxes_of
from memorization.measuring.removal_curve import read_accuracy
from memorization.measuring.representations import read_representations
from memorization.optimizers import make_optimizer
from memorization.run import open_run
from memorization.training import read_log, run_files
from models.encoders import make_encoder
from models.simclr import SimCLR, SimCLRSettings

FILES = 200  # mutated files of each kind, in this process
PROCESSES = int(os.environ.get("FUZZ", 1))  # of three for each kind
SECONDS = 60  # for one file, in this process; a busy machine is slow
MOST_MEMORY = 2**30  # bytes above those of an undisturbed process

# --- broken by chance -----------------------------------------------------------------------------


def mutated(content, chance):
    """Bytes broken by chance: cut off, flipped, overwritten, with bytes put in, taken out or
    zeroed, or with an end of something else.
    """
    content = bytearray(content)
    kind, at = chance.randrange(7), chance.randrange(len(content))
    if kind == 0:
        return bytes(content[:at])
    if kind == 1:
        for _ in range(chance.choice([1, 1, 10])):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif kind == 2:
        content[at : at + 8] = chance.randbytes(len(content[at : at + 8]))
    elif kind == 3:
        content[at:at] = chance.randbytes(chance.randint(1, 64))
    elif kind == 4:
        del content[at : at + chance.randint(1, 64)]
    elif kind == 5:
        content[at : at + 512] = bytes(len(content[at : at + 512]))
    else:
        content[at:] = chance.randbytes(len(content) - at)
    return bytes(content)


class Hang(BaseException):
    """A reader took too long."""


@contextmanager
def within(seconds):
    def end(*_):
        raise Hang

    previous = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def little_memory():
    """Fail where this process comes to need more than MOST_MEMORY above what it has."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = peak()
    yield
    assert peak() - before < MOST_MEMORY


def peak(process="self"):
    """The most memory that a process has had, in bytes."""
    (line,) = (
        line
        for line in Path(f"/proc/{process}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


def fuzz(path, read, hostile, valid=None):
    """Read FILES mutated files in the place of an intact one. hostile: bytes that must be refused,
    as they are made on purpose.

    valid: result -> whether it may come of another file, for files without a checksum, which are
    right whenever they can be read.
    """
    intact, result, chance = path.read_bytes(), read(), random.Random(path.name)
    assert read() == result
    refused = 0
    with little_memory():
        for number in range(FILES):
            content = hostile[number] if number < len(hostile) else mutated(intact, chance)
            path.write_bytes(content)
            try:
                with within(SECONDS):
                    found = read()
            except Hang:
                pytest.fail(f"file {number} took more than {SECONDS} s")
            except WrongUse as refusal:
                assert "\n" not in str(refusal) and (
                    str(path) in str(refusal) or str(path.parent) in str(refusal)
                ), refusal
                refused += 1
            else:
                assert number >= len(hostile), f"hostile file {number} was read: {str(found)[:200]}"
                assert found == result or (valid and valid(found)), (
                    f"mutation {number}: {str(found)[:200]}"
                )
        path.write_bytes(intact)
    assert refused > FILES / 4
    print(f"{path.name}: {refused} of {FILES} refused")


@pytest.fixture
def run(scored_run, tmp_path):
    shutil.copytree(scored_run[1], tmp_path / "run")
    return tmp_path / "run"


# --- made to do harm: zip files -------------------------------------------------------------------


def zipped(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def unzipped(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def claiming(content, shape, dtype="<i8"):
    """An .npy file with another header."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + content[128:]


def npy(values, allow_pickle=False):
    file = io.BytesIO()
    np.save(file, values, allow_pickle=allow_pickle)
    return file.getvalue()


def hostile_arrays(intact):
    """An .npy file with claims and types that it must not have."""
    nested = b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 8999 + b"\n"
    return [
        *(claiming(intact, shape) for shape in [(10**12,), (2**62, 4), (-1, -4), (0, 10**12),
            (2**32, 2**32), ()]),
        *(claiming(intact, (1,), dtype) for dtype in ["<U0", "|O", "<U100000000", "|V8", "<c16",
            "|S8"]),
        claiming(intact, (10**12,), "<U0"), nested, npy(np.array([Executes()], object), True), b"",
        b"\x93NUMPY\x01\x00",
    ]  # fmt: skip


def hostile_archives(intact, name):
    """.npz files with a member that is compressed, missing, twice there, or another array than it
    should be.
    """
    members = unzipped(intact)
    bomb = members | {name: claiming(bytes(2**26), (2**23,))}
    file = io.BytesIO(intact)
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning):
        archive.writestr(name, members[name])
    return [
        *(zipped(members | {name: member}) for member in hostile_arrays(members[name])),
        zipped(bomb, zipfile.ZIP_DEFLATED), zipped(members, zipfile.ZIP_LZMA), file.getvalue(),
        zipped({key: member for key, member in members.items() if key != name}), zipped({}),
    ]  # fmt: skip


# --- made to do harm: checkpoints -----------------------------------------------------------------


class Executes:
    def __reduce__(self):
        return os.system, ("touch executed",)


class Allocates:
    def __reduce__(self):
        return bytearray, (2**34,)


def pickled(value):
    file = io.BytesIO()
    torch.save({"format": "memorization checkpoint 1", "checksum": "0" * 64, "value": value}, file)
    return file.getvalue()


def hostile_checkpoints(intact):
    """Checkpoints that execute, that claim more than they hold, or whose parts hold each other."""
    endless = []
    endless.append(endless)
    laughs, deep = [1], []
    for _ in range(60):
        laughs, deep = [laughs] * 10, [deep]
    storage = unzipped(pickled(torch.zeros(1000)))
    (name,) = (name for name in storage if name.endswith("data.pkl"))
    assert storage[name].count(b"M\xe8\x03") == 2
    storage[name] = storage[name].replace(b"M\xe8\x03", b"\x8a\x06" + (2**40).to_bytes(6, "little"))
    values = [
        Executes(), Allocates(), endless, laughs, deep, torch.zeros(1).expand(2**40),
        [torch.zeros(2**18)[None]] * 10**4, 10**5000,
        ["x" * 10**5] * 10**4, (1, 2), {1, 2}, torch.zeros(2, requires_grad=True),
        torch.zeros(9).to_sparse(), {("a", "b"): 1},
        torch.zeros(9, device="meta"), np.zeros(3),
    ]  # fmt: skip
    return [
        *map(pickled, values), zipped(storage), zipped(unzipped(intact), zipfile.ZIP_DEFLATED),
        zipped({"archive/data.pkl": b"\x80\x02" + b"(" * 10**5}),
        zipped({"a/data.pkl": b"", "b/data.pkl": b""}), pickled(1)[:-1],
        b"\x80\x02cos\nsystem\n(X\x0e\x00\x00\x00touch executedtR.",
    ]  # fmt: skip


def resaved(path, changes):
    """The bytes of a checkpoint with each of some changes, and a checksum that fits. changes: (keys
    that lead to a value, the value).
    """
    contents = []
    for keys, value in changes:
        record = read_checkpoint(path)
        *sections, last = keys
        section = record
        for key in sections:
            section = section[key]
        section[last] = value(section[last]) if callable(value) else value
        save_checkpoint(path.with_name("changed.pt"), record)
        contents.append(path.with_name("changed.pt").read_bytes())
    return contents


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


def test_a_zip_file_whose_members_claim_more_than_it_has_is_refused(tmp_path):
    path, whole = (
        tmp_path / "a.npz",
        bytearray(zipped({"a.npy": npy(np.arange(5)), "b.npy": npy(np.arange(5))})),
    )
    path.write_bytes(whole)
    assert read_arrays(path)["b"].tolist() == [0, 1, 2, 3, 4]
    # of a.npy in the directory at the end: as it is stored, and as it was
    sizes = whole.index(b"PK\x01\x02") + 20
    whole[sizes : sizes + 8] = struct.pack("<II", len(whole), len(whole))
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=f"claim more than its {len(whole)} bytes"):
        read_arrays(path)


def test_subsets(run):
    path = run / "subsets.npz"
    subsets = load_subsets(path)
    contents = []
    for changes in (
        {"shared": subsets.shared - 1}, {"external": subsets.external + 10**12},
        {"candidate": subsets.candidate[:-1]},
        {"candidate": subsets.shared[: len(subsets.candidate)]}, {"role": "both"},
        {"data": {"name": "fake"}}, {"data": []},
    ):  # fmt: skip
        save_subsets(type(subsets)(**{**vars(subsets), **changes}), path.with_name("changed.npz"))
        contents.append(path.with_name("changed.npz").read_bytes())

    def read():
        found = load_subsets(path)
        return found.fingerprint, found.role, found.parents

    fuzz(
        path,
        read,
        hostile_archives(path.read_bytes(), "shared.npy")
        + hostile_archives(path.read_bytes(), "data.npy")
        + contents,
    )


def scores_read(run):
    opened = open_run("", ["--config", str(run / "config.yaml"), "--run", str(run)])
    found = opened.candidate_scores()
    return [
        found.seeds,
        *(getattr(found, name).tolist() for name in ("index", "label", "losses_f", "losses_g")),
    ]


def test_scores(run):
    path = run / "scores/scores.npz"
    members = unzipped(path.read_bytes())
    arrays = dict(np.load(path))
    changes = [
        ("L_f", arrays["L_f"] * np.nan), ("L_f", arrays["L_f"][:1]),
        ("L_f", arrays["L_f"].astype("U9")), ("index", -arrays["index"] - 1),
        ("index", arrays["index"] * 0 + arrays["index"][40]),
        ("index", arrays["index"].astype(float)), ("index", np.array(1)),
        ("subset", arrays["subset"] + "x"), ("label", arrays["label"][:, None]),
        ("L_g", arrays["L_g"].astype(complex)),
    ]  # fmt: skip
    contents = [zipped(members | {f"{name}.npy": npy(values)}) for name, values in changes]
    fuzz(path, lambda: scores_read(run), hostile_archives(path.read_bytes(), "L_f.npy") + contents)
    for content in contents:  # also where the summary vouches for them
        path.write_bytes(content)
        summary = json.loads((run / "scores/summary.json").read_text())
        summary["fingerprints"]["scores"] = hashlib.sha256(content).hexdigest()
        (run / "scores/summary.json").write_text(json.dumps(summary))
        with pytest.raises(WrongUse, match=str(run / "scores")):
            scores_read(run)


HOSTILE_JSON = [
    b"[" * 10**5, b'{"a":' * 10**5, b"1" * 10**5, b"NaN", b"", b"\xff", b"null", b"[]", b"1e999",
    b'"x"', b"{}"
]  # fmt: skip


def test_the_summary_of_scores(run):
    path = run / "scores/summary.json"
    summary = json.loads(path.read_text())
    changes = [
        {"seeds": [0, 0]}, {"seeds": [1, 0]}, {"seeds": "01"}, {"seeds": [0.0, 1.0]},
        {"seeds": [0, 10**400]},
        {"seeds": list(range(10**4))},
        {"fingerprints": []}, {"checkpoint": "encoder"}, {"checkpoint": {"name": "../encoder"}},
        {"checkpoint": {"name": 5}},
    ]  # fmt: skip
    contents = [json.dumps(summary | change).encode() for change in changes]
    fuzz(path, lambda: scores_read(run), HOSTILE_JSON + contents)


# --- text: without a checksum, another text that can be read is another value ---------------------

LAUGHS = "\n".join(
    [
        "a0: &a0 [x, x]",
        *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 40)),
    ]
)
HOSTILE_YAML = [
    LAUGHS.encode(), b"[" * 10**4, b"a: " * 10**4, b"a: &a [*a]", b"a: &a {b: *a}",
    b"!!python/object/apply:os.system ['touch executed']",
    b"a: !!python/name:os.system", b"", b"\x00", b"a: " + b"1" * 10**4, b"a: 2001-99-99",
    b"? [a, b]\n: 1", b"x" * 10**7, b"[1]",
    b"a: !!binary '='", b'"a\\nb": 1', b"? {a: 1}\n: 1", b"<<: 1", b"a: !!int x", b"a: !!float ''",
    b"a: !!timestamp x",
]  # fmt: skip


def laughing(path):
    """A config in which a setting is a list of lists of lists: whoever writes it out never ends."""
    content = yaml.safe_load(path.read_text())
    lines = [
        "method:",
        *(f"  {line}" for line in LAUGHS.splitlines()),
        "encoder: {name: resnet_small, width: *a39}",
    ]
    others = {key: value for key, value in content.items() if key not in ("method", "encoder")}
    return "\n".join([*lines, yaml.safe_dump(others)]).encode()


def changed_yaml(path, changes):
    """The bytes of a YAML file with each of some changes. changes: (dotted key, value)."""
    contents = []
    for key, value in changes:
        *sections, last = key.split(".")
        changed = yaml.safe_load(path.read_text())
        section = changed
        for part in sections:
            section = section[part]
        section[last] = value
        contents.append(yaml.safe_dump(changed).encode())
    return contents


CONFIG_CHANGES = [
    *((f"encoder.{key}", value) for key in ("width", "depth", "patch") for value in (10**9, -1,
        float("nan"), "8", [8], 10**400)),
    ("augmentation.views", [{"size": 10**9}]), ("training.learning_rate", float("inf")),
    ("seeds", [-1]), ("a\nb", 1), ("encoder.x\ny", 1),
]  # fmt: skip


def test_the_config_of_a_run(run):
    path = run / "config.yaml"
    hostile = [*HOSTILE_YAML, laughing(path), *changed_yaml(path, CONFIG_CHANGES)]
    fuzz(
        path,
        lambda: read_run_config(run).model_dump(),
        hostile,
        valid=lambda found: found["encoder"]["width"] <= 1024,
    )


def test_the_config_of_a_script(run, tmp_path):
    path = Path(write_experiment(tmp_path, {"seeds": [0, 1]}))
    hostile = [*HOSTILE_YAML, laughing(path), *changed_yaml(path, CONFIG_CHANGES)]
    trained = read_config("", ["--config", str(path)]).model_dump(
        include={"encoder", "training", "augmentation"}
    )

    def valid(found):  # what was trained cannot be another
        return {section: found[section] for section in trained} == trained

    wrong = []

    def read():
        try:
            return read_config("", ["--config", str(path)]).model_dump()
        # some name a key of the file, or the run folder that it leads to
        except WrongUse as refusal:
            wrong.append(str(refusal))
            raise WrongUse(f"{path}: {refusal}") from None

    fuzz(path, read, hostile, valid)
    assert all(len(line) < 2 * 10**5 for line in wrong)


def boxes_read(path, files=None):
    split = Split("train", torch.zeros(9, 3, 4, 4, dtype=torch.uint8), torch.zeros(9), files=files)
    return {
        index: boxes.tolist() for index, boxes in boxes_of(split, torch.arange(9), path).items()
    }


def are_boxes(found):
    return all(
        np.isfinite(boxes).all() and (np.array(boxes)[:, :2] < np.array(boxes)[:, 2:]).all()
        for boxes in found.values()
        if boxes
    )


def test_boxes_in_a_table(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text(
        "index,xmin,ymin,xmax,ymax\n" + "".join(f"{i},{i},2,{i + 3.5},4\n" for i in range(9))
    )
    head = b"index,xmin,ymin,xmax,ymax\n"
    rows = [
        b"0," + b"1" * 10**7 + b",2,3,4", b'0,"' + b"x" * 10**6, b"0,nan,0,1,1", b"0,0,0,inf,1",
        b"-1,0,0,1,1", b"9,0,0,1,1",
        b"1" * 5000 + b",0,0,1,1", b"0,0,0,1,1,1", b"0,0,0,1", b"\xff", b"0,0\x00,0,1,1",
    ]  # fmt: skip
    fuzz(
        path,
        lambda: boxes_read(path),
        [*(head + row for row in rows), b"", b"x" * 2**27, b"index,index"],
        valid=are_boxes,
    )


def test_boxes_of_an_image(tmp_path):
    path = tmp_path / "a.xml"
    box = (
        "<object><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object>"
    )
    path.write_text(f"<annotation><filename>a</filename>{box * 4}</annotation>")
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 20))
    hostile = [
        (
            f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "ha">{entities}]>'
            "<annotation>&a19;</annotation>"
        ).encode(),
        b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>',
        b'<!DOCTYPE x [<!ENTITY % a SYSTEM "file:///etc/passwd">%a;]><annotation/>',
        "<!DOCTYPE x [<!ENTITY a 'b'>]><annotation/>".encode("utf-16"),
        b"<a>", b"", b"\x00", b"x" * 2**27, b"<a><bndbox/></a>", b"<a/><b/>",
        box.replace("1", "nan").encode(), box.replace("1", "x").encode(),
    ]  # fmt: skip
    fuzz(
        path,
        lambda: boxes_read(tmp_path, [f"/images/c/{'a' if i == 0 else i}.png" for i in range(9)]),
        hostile,
        valid=are_boxes,
    )


def test_a_log(run):
    path = run / "seed_0/candidate/log.jsonl"
    line = json.loads(path.read_text().splitlines()[0])
    changes = [
        {"loss": None},
        {"loss": "x"},
        {"loss": 1},
        {"epoch": 2},
        {"knn_accuracy": "x"},
        {"spread": [1.0]},
        {"loss": 1e999},
    ]
    contents = [json.dumps(line | change).encode() for change in changes]

    def valid(lines):
        return [line["epoch"] for line in lines] == list(range(1, len(lines) + 1)) and np.isfinite(
            [line["loss"] for line in lines]
        ).all()

    fuzz(
        path,
        lambda: read_log(path),
        [content for content in HOSTILE_JSON if content] + contents,
        valid,
    )


def test_the_environment_of_a_run(run, monkeypatch):
    path = run / "environment.json"
    monkeypatch.setattr(run_files, "describe_machine", lambda device: {})

    def read():  # and written again, with the machine of one encoder put in
        run_files.note_machine(run, "seed_0/candidate", None, is_resumed=True)
        return json.loads(path.read_text())

    fuzz(
        path,
        read,
        [content for content in HOSTILE_JSON if content != b"{}"],
        valid=lambda found: found["seed_0/candidate"][-1] == {},
    )


def test_a_kept_probe(tmp_path):
    path = tmp_path / "probe.json"
    path.write_text(
        json.dumps(
            {
                "top_1": {"mean": 0.4375, "std": None, "n": 1},
                "top_5": {"mean": 0.875, "std": None, "n": 1},
            }
        )
    )
    changes = [{"top_1": {"mean": mean}} for mean in ("x", None, 2.0, -1.0, [0.5], True)]
    fuzz(
        path,
        lambda: read_accuracy(path),
        HOSTILE_JSON + [json.dumps(change).encode() for change in changes],
        valid=lambda x: 0 <= x <= 1,
    )


# --- arrays: maps of prepared images, and kept representations ------------------------------------


def test_kept_representations(tmp_path):
    path = tmp_path / "kept.npy"

    def with_digest(content):
        return content + hashlib.sha256(content).digest()

    path.write_bytes(
        with_digest(npy(np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)))
    )

    def read():
        try:
            return read_representations(path, 50).tolist()
        except ValueError as error:  # `stored_examples` names the path
            raise WrongUse(f"{path}: {error}") from None

    others = [
        npy(np.full((50, 8), value, dtype))
        for value, dtype in ((np.nan, "f4"), (1, "f8"), (1, "i8"))
    ] + [npy(np.ones((49, 8), "f4"))]
    fuzz(
        path,
        read,
        [with_digest(content) for content in hostile_arrays(npy(np.ones((50, 8), "f4"))) + others]
        + [b"", b"x"],
    )


@pytest.fixture
def folder(tmp_path):
    """A folder of eight images of 30 x 20 pixels, prepared."""
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    for place in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / place).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(pixels + i).save(tmp_path / place / f"{i}.png")
    prepared_images(tmp_path)
    return tmp_path


def prepared_images(folder):
    settings = DataSettings(
        name="image_folder", root=str(folder), prepared=str(folder / "prepared"), size=8
    )
    images = open_images(settings).prepare(range(4), range(1))
    return images.fingerprint["train"], images.train.pixels.tolist(), images.train.geometry.tolist()


@pytest.mark.parametrize("suffix", [".npy", ".geometry.npy", ".json"])
def test_a_map_of_prepared_images(suffix, folder):
    (path,) = (
        path
        for path in (folder / "prepared").glob(f"train*{suffix}")
        if path.name.count(".") == suffix.count(".")
    )
    hostile = HOSTILE_JSON if suffix == ".json" else hostile_arrays(path.read_bytes())
    fuzz(path, lambda: prepared_images(folder), hostile)


def test_an_image(folder):
    path = folder / "train/cat/0.png"
    large = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(large, "png")  # 0.8 GB once it is decoded and converted

    def read():
        for kept in (folder / "prepared").iterdir():
            kept.unlink()
        return np.shape(prepared_images(folder)[1])

    fuzz(
        path,
        read,
        [large.getvalue(), b"", b"GIF89a", b"\x89PNG\r\n\x1a\n"],
        valid=lambda shape: shape == (4, 3, 8, 8),
    )


# --- large, and made of very small things ---------------------------------------------------------


def with_pickle(content):
    """A file of torch.save with another pickle."""
    members = unzipped(pickled(1))
    (name,) = (name for name in members if name.endswith("data.pkl"))
    return zipped(members | {name: content})


def many_members(count):
    """A zip file with so many empty members; the directory at its end alone."""
    entry = (
        struct.pack(
            "<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0
        )
        + b"a"
    )
    return entry * count + struct.pack(
        "<4s4H2LH", b"PK\5\6", 0, 0, count % 65536, count % 65536, count * len(entry), 0, 0
    )


def npz_with_text(intact, name, text):
    return zipped(unzipped(intact) | {name: npy(np.array(text))})


MANY = 33 * 2**20  # bytes
LARGE_YAML = [
    b"{" + b",".join(b"k%d: 1" % i for i in range(20_000)) + b"}", b"[],\n" * (MANY // 4),
    b"[" * 2**18, b"a: " + b"9" * 2**17,
]  # fmt: skip
LARGE_JSON = [
    b"[" + b"[]," * (MANY // 3) + b"[]]",
    b"[" + b"{}," * 2**21 + b"{}]",
    b"\n" * 2**25,
    b"{}\n" * 2**23,
]
HEAD = b"index,xmin,ymin,xmax,ymax\n"
LARGE_CSV = [
    HEAD + b"0,0,0,1,1\n" * 2**19 + b"x",
    HEAD * (MANY // len(HEAD) + 1),
    b"\n" * 2**25,
    b"," * 2**25,
    HEAD + b"," * 2**24,
]
LARGE_XML = [
    b"<a>" * 2**20,
    b"<a>" + b"<b/>" * (2**20 - 10),
    b"<a>" * (MANY // 3),
    b"<a>" + b"&lt;" * (2**20 - 9) + b"</b>",
]
LARGE_PICKLES = [
    b"\x80\2]" + b"]" * 2**22 + b".", b"\x80\2" + b"]" * MANY + b".",
    b"\x80\2}(" + b"K\1]" * 2**19 + b"u.", b"\x80\2](" + b"]" * 2**20 + b"e.",
]  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    ["config", "checkpoint", "subsets", "summary", "log", "table of boxes", "boxes of an image"],
)
def test_a_large_file_of_small_things_takes_little_memory(kind, run, tmp_path):
    """Up to 64 MB; some took 5 GiB and minutes."""
    encoder, subsets, table, xml = (
        run / "seed_0/candidate/encoder.pt",
        run / "subsets.npz",
        tmp_path / "b.csv",
        tmp_path / "a.xml",
    )
    small = subsets.read_bytes()
    path, read, contents = {
        "config": (run / "config.yaml", lambda: read_run_config(run), LARGE_YAML),
        "checkpoint": (encoder, lambda: read_checkpoint(encoder),
            [*map(with_pickle, LARGE_PICKLES), many_members(1_300_000)]),
        "subsets": (subsets, lambda: load_subsets(subsets), [
            many_members(1_300_000), many_members(300_000),
            npz_with_text(small, "data.npy", "[" + "[]," * 2**21 + "[]]"),
            npz_with_text(small, "fingerprint.npy", "x" * 2**24),
            npz_with_text(small, "shared.npy", np.arange(2**23)),
        ]),
        "summary": (run / "scores/summary.json", lambda: scores_read(run), LARGE_JSON),
        "log": (run / "seed_0/candidate/log.jsonl",
            lambda: read_log(run / "seed_0/candidate/log.jsonl"), LARGE_JSON),
        "table of boxes": (table, lambda: boxes_read(table), LARGE_CSV),
        "boxes of an image": (xml, lambda: boxes_read(tmp_path, ["/images/c/a.png"] * 9),
            LARGE_XML),
    }[kind]  # fmt: skip
    for number, content in enumerate(contents):
        path.write_bytes(content)
        with little_memory(), within(SECONDS), pytest.raises(WrongUse) as refusal:
            read()
        assert len(str(refusal.value)) <= 1000, number


# --- as real processes ----------------------------------------------------------------------------


def started(script, *arguments):
    """(exit code, lines on stderr, peak of memory in bytes) of a script as a process of its own."""
    memory, begin = 0, time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, script, *arguments], stdout=subprocess.DEVNULL, stderr=errors
        )
        while process.poll() is None:
            with suppress(ValueError, FileNotFoundError):  # it has just ended
                memory = max(memory, peak(process.pid))
            if time.monotonic() - begin > 120:
                process.kill()
            time.sleep(0.01)
        errors.seek(0)
        return process.returncode, errors.read().decode().splitlines(), memory


@pytest.fixture(scope="module")
def undisturbed(scored_run):
    """The peak of memory of scoring the intact run."""
    code, lines, memory = started("memorization_scores.py", "--config", scored_run[0])
    assert code == 0, lines
    return memory


BOXES = b"index,xmin,ymin,xmax,ymax\n0,0,0,5,5\n"
# The file, the script that reads it, and what is put in its place.
REAL = {
    "encoder.pt": ("seed_0/candidate/encoder.pt", "memorization_scores.py", [], lambda path: [
        *resaved(path,
            [(("config", "encoder"), {"name": "vit_mini", "width": 8192, "depth": 256})]),
        *hostile_checkpoints(path.read_bytes())[1::15],
    ]),
    "last.pt": ("seed_1/candidate/last.pt", "train_simclr.py", [], lambda path: [
        hostile_checkpoints(path.read_bytes())[5],
        *resaved(path, [(("losses",), [torch.ones(3)]), (("step",), 10**9)]),
    ]),
    "subsets.npz": ("subsets.npz", "memorization_scores.py", [],
        lambda path: hostile_archives(path.read_bytes(), "shared.npy")),
    "config.yaml": ("config.yaml", "memorization_scores.py", [], lambda path: HOSTILE_YAML),
    "config of the script": ("../tiny.yaml", "memorization_scores.py", [],
        lambda path: HOSTILE_YAML),
    "log.jsonl": ("seed_1/candidate/log.jsonl", "memorization_scores.py", ["--checkpoint", "all"],
        lambda path: HOSTILE_JSON),
    "scores.npz": ("scores/scores.npz", "dejavu.py", ["--dejavu.k", "5"],
        lambda path: hostile_archives(path.read_bytes(), "L_f.npy")),
    "summary.json": ("scores/summary.json", "dejavu.py", ["--dejavu.k", "5"],
        lambda path: HOSTILE_JSON),
    "environment.json": ("environment.json", "train_simclr.py", [], lambda path: HOSTILE_JSON[:-1]),
    "boxes.csv": ("boxes.csv", "dejavu.py",
        ["--dejavu.k", "5", "--dejavu.query", "boxes", "--dejavu.boxes"], lambda path: [
        BOXES + b"1," + b"1" * 10**7 + b",2,3,4", BOXES + b"1,nan,0,1,1", BOXES + b'1,"',
    ]),
}  # fmt: skip


@pytest.mark.parametrize("number", range(PROCESSES))
@pytest.mark.parametrize("kind", REAL)
def test_a_script_refuses_a_hostile_file_in_one_line(kind, number, run, undisturbed, tmp_path):
    name, script, options, hostile = REAL[kind]
    config, path = (
        write_experiment(
            tmp_path, {"seeds": [0, 1], "training.checkpoint_epochs": [2], "training.knn_every": 1}
        ),
        run / name,
    )
    if not path.exists():
        path.write_bytes(BOXES)
        options = [*options, str(path)]
    contents = hostile(path)
    path.write_bytes(
        [contents[0], b"\xff" + path.read_bytes()[1 : path.stat().st_size // 2], contents[-1]][
            number
        ]
    )
    if script == "train_simclr.py":
        (run / "seed_1/candidate/encoder.pt").unlink()
        (run / "seed_1/candidate/previous.pt").unlink(missing_ok=True)
    assert_refused(kind, undisturbed, script, "--config", config, *options)


def assert_refused(kind, undisturbed, script, *arguments):
    """A script refuses in one line, and needs little more memory than an undisturbed process."""
    code, lines, memory = started(script, *arguments)
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    assert memory < undisturbed + MOST_MEMORY
    print(f"{kind}: {(memory - undisturbed) / 2**20:.0f} MiB above an undisturbed process")


@pytest.fixture(scope="module")
def folder_experiment(tmp_path_factory):
    """(config path, folder) of an experiment on a folder of images, with a run, prepared maps, kept
    probes and boxes.
    """
    folder = tmp_path_factory.mktemp("folder")
    chance = np.random.default_rng(0)
    for split, count in (("train", 210), ("val", 20)):
        for i in range(count):
            path = folder / "images" / split / f"c{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(chance.integers(0, 255, (20, 18, 3), dtype=np.uint8)).save(path)
            (folder / "boxes").mkdir(exist_ok=True)
            box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
            (folder / "boxes" / f"{i}.xml").write_text(f"<annotation>{box}</annotation>")
    path = write_experiment(folder, {
        "data": {"name": "image_folder", "size": 16, "root": str(folder / "images"),
            "prepared": str(folder / "prepared")},
        "subsets": {"shared": 0, "candidate": 20, "independent": 20, "external": 10,
            "order": "file"},
        "training.epochs": 1, "dejavu": {"k": 5},
        "probe": {"epochs": 2, "warmup_epochs": 1, "seeds": [0]},
        "removal": {"counts": [4], "policies": ["memorized"]},
    })  # fmt: skip
    train_simclr.main(["--config", path])
    memorization_scores.main(["--config", path])
    linear_probing_train.main(["--config", path])
    remove_samples.main(["--config", path, "--retrain"])
    return path, folder


# As REAL; every file of a name with a star.
REAL_OF_A_FOLDER = {
    "image": ("images/train/c0/0.png", "memorization_scores.py", [], lambda path: [b"GIF89a", b""]),
    "map": ("prepared/train_16_????????????.npy", "memorization_scores.py", [],
        lambda path: hostile_arrays(path.read_bytes())),
    "geometry": ("prepared/train_16_*.geometry.npy", "memorization_scores.py", [],
        lambda path: hostile_arrays(path.read_bytes())),
    "record of a map": ("prepared/train_16_*.json", "memorization_scores.py", [],
        lambda path: HOSTILE_JSON),
    "boxes of an image": ("boxes/*.xml", "dejavu.py",
        ["--dejavu.query", "boxes", "--dejavu.boxes", "boxes"], lambda path: [
        b'<!DOCTYPE x [<!ENTITY a "ha">]><annotation>&a;</annotation>', b"<a><bndbox/></a>",
    ]),
    "kept representations": ("run/probe/representations/*.npy", "linear_probing_train.py", [],
        lambda path: [
            content + hashlib.sha256(content).digest()
            for content in hostile_arrays(path.read_bytes()[:-32])
        ]),
    "kept probe": ("run/removal/probes/*.json", "remove_samples.py", ["--retrain"],
        lambda path: HOSTILE_JSON),
}  # fmt: skip


@pytest.mark.skipif("FUZZ" not in os.environ, reason="takes minutes; part of make faults")
@pytest.mark.parametrize("number", range(PROCESSES))
@pytest.mark.parametrize("kind", REAL_OF_A_FOLDER)
def test_a_script_refuses_a_hostile_file_of_a_folder_in_one_line(
    kind, number, folder_experiment, undisturbed
):
    name, script, options, hostile = REAL_OF_A_FOLDER[kind]
    config, folder = folder_experiment
    intact = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob(name)}
    assert intact
    for path in intact:
        contents = hostile(path)
        path.write_bytes(
            [contents[0], b"\xff" + path.read_bytes()[1 : path.stat().st_size // 2], contents[-1]][
                number
            ]
        )
    try:
        options = [
            str(folder / option) if (folder / option).is_dir() else option for option in options
        ]
        assert_refused(kind, undisturbed, script, "--config", config, *options)
    finally:
        for path, (content, written) in intact.items():
            path.write_bytes(content)
            # a map is one of files as they were when it was made
            os.utime(path, ns=(written, written))
