"""Files that are large and made of very small things."""

import struct

import numpy as np
import pytest
from hostile import (
    SECONDS,
    boxes_read,
    little_memory,
    npy,
    pickled,
    scores_read,
    unzipped,
    within,
    zipped,
)

from memorization.checkpoint import (
    read_checkpoint,
)
from memorization.config import read_run_config
from memorization.data.subsets import load_subsets
from memorization.errors import WrongUse
from memorization.training import read_log


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
