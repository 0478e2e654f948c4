"""Files of arrays that are broken or made to do harm."""

import hashlib
import json
import struct

import numpy as np
import pytest
from hostile import fuzz, hostile_archives, hostile_arrays, npy, scores_read, unzipped, zipped

from memorization.data.subsets import load_subsets, save_subsets
from memorization.errors import WrongUse
from memorization.machine.archives import read_arrays
from memorization.measuring.representations import read_representations


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
    for content in contents:  # also if the summary vouches for them
        path.write_bytes(content)
        summary = json.loads((run / "scores/summary.json").read_text())
        summary["fingerprints"]["scores"] = hashlib.sha256(content).hexdigest()
        (run / "scores/summary.json").write_text(json.dumps(summary))
        with pytest.raises(WrongUse, match=str(run / "scores")):
            scores_read(run)


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
