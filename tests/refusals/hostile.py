"""Files broken by chance and made to do harm, and what watches over those who read them."""

import io
import random
import signal
import struct
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Executes

from memorization.checkpoint import (
    read_checkpoint,
    save_checkpoint,
)
from memorization.data.images import Split
from memorization.errors import WrongUse
from memorization.measuring.boxes import boxes_of
from memorization.run import open_run

FILES = 200  # mutated files of each kind, in this process
SECONDS = 60  # for one file, in this process; a busy machine is slow
MOST_MEMORY = 2**30  # bytes above those of an undisturbed process


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
    """Fail if this process comes to need more than MOST_MEMORY above what it has."""
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


def scores_read(run):
    opened = open_run("", ["--config", str(run / "config.yaml"), "--run", str(run)])
    found = opened.candidate_scores()
    return [
        found.seeds,
        *(getattr(found, name).tolist() for name in ("index", "label", "losses_f", "losses_g")),
    ]


HOSTILE_JSON = [
    b"[" * 10**5, b'{"a":' * 10**5, b"1" * 10**5, b"NaN", b"", b"\xff", b"null", b"[]", b"1e999",
    b'"x"', b"{}"
]  # fmt: skip


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


def boxes_read(path, files=None):
    split = Split("train", torch.zeros(9, 3, 4, 4, dtype=torch.uint8), torch.zeros(9), files=files)
    return {
        index: boxes.tolist() for index, boxes in boxes_of(split, torch.arange(9), path).items()
    }
