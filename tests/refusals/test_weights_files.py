"""Files of weights that are broken, made to do harm, or that do not fit."""

import json
import pickle
import struct
import tarfile
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import Executes
from hostile import SECONDS, fuzz, hostile_checkpoints, npy, unzipped, within, zipped
from torch import nn

from memorization.errors import Broken, WrongUse
from memorization.fingerprints import checksum
from memorization.imports import pickles, weights_file
from memorization.imports.weights import match_weights, select_weights, strip_prefixes
from memorization.imports.weights_file import file_checksum, read_weights_file

LEGACY = {"_use_new_zipfile_serialization": False}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def save(path, content, **how):
    torch.save(content, path, **how)
    return path


def safetensors(tensors):
    """The bytes of a file of float32 tensors."""
    header, content = {"__metadata__": {"format": "pt"}}, b""
    for key, value in tensors.items():
        begin, content = len(content), content + value.numpy().tobytes()
        place = [begin, len(content)]
        header[key] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": place}
    return with_header(header, content)


def with_header(header, content):
    header = json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + content


# --- files ----------------------------------------------------------------------------------------


def read_and_match(path):
    """A checksum of the weights that a network takes from a file."""
    try:
        weights = select_weights(read_weights_file(path), None)
        return checksum(match_weights(weights, network(), ["optimizer"]))
    except Broken:
        raise
    except WrongUse as refusal:
        raise WrongUse(f"{path}: {refusal}") from None


def test_a_zip_file_of_torch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"model": network().state_dict(), "args": Namespace(lr=1), "epoch": 3}
    path = save(tmp_path / "weights.pth", content)
    # those that are read, and whose weights are then missed: no weights of ours are in any of them
    fuzz(path, lambda: read_and_match(path), hostile_checkpoints(path.read_bytes()))
    assert not (tmp_path / "executed").exists()


def is_checksum(value):
    return len(value) == 64


def test_a_file_of_torch_before_1_6(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "weights.pth", {"model": network().state_dict()}, **LEGACY)
    executing = save(tmp_path / "hostile.pth", {"value": Executes()}, **LEGACY).read_bytes()
    fuzz(path, lambda: read_and_match(path), [executing], valid=is_checksum)
    assert not (tmp_path / "executed").exists()


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
WRONG_ENTRIES = [
    ENTRY | change
    for change in (
        {"shape": [3]}, {"shape": [-2]}, {"shape": [-1, -2]}, {"shape": [2**62, 4]}, {"shape": 2},
        {"shape": [2.0]}, {"shape": [1] * 40 + [2]}, {"data_offsets": [0, 9]}, {"dtype": []},
        {"data_offsets": [8, 0]}, {"data_offsets": [0]}, {"data_offsets": [4, 12]},
        {"data_offsets": [0, 10**15]}, {"data_offsets": None}, {"data_offsets": ["0", "8"]},
        {"dtype": "F64"}, {"dtype": "F16"},
    )
]  # fmt: skip
HOSTILE_SAFETENSORS = [
    *(with_header({"0.weight": entry}, bytes(8)) for entry in (*WRONG_ENTRIES, None, [], 3)),
    with_header({"0.weight": ENTRY, "0.bias": ENTRY}, bytes(8)),  # twice the same bytes
    with_header({"0.weight": ENTRY | {"data_offsets": [8, 16]}}, bytes(16)),
    with_header({"0.weight": ENTRY}, bytes(9)),
    struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 10**5) + b"{" + b'"a":{' * 10**4,
    struct.pack("<Q", 4) + b'{"a"', struct.pack("<Q", 2) + b"{}x",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(HOSTILE_SAFETENSORS)))
def test_a_header_of_safetensors_that_is_wrong_is_refused(number, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(HOSTILE_SAFETENSORS[number])
    with pytest.raises(Broken, match="weights.safetensors: not a whole file of weights"):
        read_weights_file(path)


def test_a_file_of_safetensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    weights = network().state_dict()
    del weights["1.num_batches_tracked"]
    path.write_bytes(safetensors(weights))
    fuzz(path, lambda: read_and_match(path), HOSTILE_SAFETENSORS, valid=is_checksum)


def rebuilt(*arguments, storage=b"FloatStorage", count=4):
    """A zip file of torch.save of one tensor with these arguments (offset, shape, stride)."""
    identity = b"ctorch\n" + storage + b"\n" + text(b"0") + text(b"cpu") + pickle_of(count)
    parts = b"(" + text(b"storage") + identity + b"tQ" + b"".join(map(pickle_of, arguments))
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + parts + b"tR"
    members = {"a/data.pkl": b"\x80\x02" + call + b".", "a/data/0": bytes(16)}
    return zipped(members)


def test_bytes_that_are_no_bool_become_one(tmp_path):
    path = tmp_path / "weights.safetensors"
    entry = {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]}
    path.write_bytes(with_header({"mask": entry}, bytes([0, 1, 2])))
    assert read_weights_file(path)["mask"].view(torch.uint8).tolist() == [0, 1, 1]


def test_numbers_that_do_not_begin_where_their_type_may_are_copied(tmp_path):
    for length in range(1, 9):
        path = tmp_path / ("x" * length)
        save(path, {"x" * length: torch.ones(3, dtype=torch.float64)}, **LEGACY)
        (tensor,) = read_weights_file(path).values()
        assert tensor.data_ptr() % 8 == 0 and tensor.tolist() == [1, 1, 1]


def pickle_of(value):
    return pickle.dumps(value, 2)[2:-1]


def test_a_tensor_that_is_not_in_its_bytes_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(rebuilt(1, (3,), (1,), False, None))
    assert torch.equal(read_weights_file(path), torch.zeros(3))
    path.write_bytes(rebuilt(0, (2**30,), (0,)))  # one number, expanded
    assert read_weights_file(path).shape == (2**30,)
    for content in (
        rebuilt(0, (5,), (1,)), rebuilt(1, (4,), (1,)), rebuilt(0, (2, 2), (3, 1)),
        rebuilt(-1, (4,), (1,)), rebuilt(3, (4,), (-1,)), rebuilt(0, (-4,), (1,)),
        rebuilt(0, (2**50,), (0,)), rebuilt(0, (2**30, 2**30), (0, 0)), rebuilt(0, (4,), ()),
        rebuilt(0, (4.0,), (1,)), rebuilt("0", (4,), (1,)), rebuilt(0, 4, 1), rebuilt(0),
        rebuilt(0, (1,) * 40, (1,) * 40), rebuilt(0, (4,), (1,), count=5),
        rebuilt(0, (4,), (1,), count=-4), rebuilt(0, (4,), (1,), count=None),
        rebuilt(0, (4,), (1,), storage=b"DoubleStorage"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(Broken, match="weights.pth: not a whole file of weights"):
            read_weights_file(path)


def text(value):
    """The part of a pickle that is a text."""
    return b"X" + struct.pack("<I", len(value)) + value


TOUCH = text(b"touch executed")
EXECUTING = {
    "a call": b"cos\nsystem\n(" + TOUCH + b"tR",
    "eval": b"cbuiltins\neval\n(" + text(b"open('executed', 'w').close()") + b"tR",
    "a name on the stack": text(b"os") + text(b"system") + b"\x93" + TOUCH + b"\x85R",
    "an instance": b"(" + TOUCH + b"ios\nsystem\n",
    "an object": b"(cos\nsystem\n" + TOUCH + b"o",
    "a call by another": b"cbuiltins\nlist\n(cbuiltins\nmap\n(cos\nsystem\n(" + TOUCH + b"ltRtR",
}  # fmt: skip


@pytest.mark.parametrize("name", EXECUTING)
def test_what_a_file_would_execute_is_not_executed_and_its_weights_are_read(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "weights.pth", {"model": {"weight": torch.ones(2)}, "x": 1})
    members = unzipped(path.read_bytes())
    assert members["weights/data.pkl"].count(b"K\x01u.") == 1
    members["weights/data.pkl"] = members["weights/data.pkl"].replace(
        b"K\x01u.", EXECUTING[name] + b"u."
    )
    path.write_bytes(zipped(members))
    content = read_weights_file(path)
    assert not (tmp_path / "executed").exists()
    assert torch.equal(select_weights(content, None)["weight"], torch.ones(2))
    assert type(content["x"]).__name__ == "Opaque"
    torch.load(path, weights_only=False)
    assert (tmp_path / "executed").exists()  # what it would execute is right


def test_the_memo_of_a_pickle_takes_no_more_memory_than_its_entries(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(zipped({"a/data.pkl": b"\x80\x02Nr\xff\xff\xff\xff."}))
    assert read_weights_file(path) is None


def test_pickles_of_too_many_parts_or_whose_parts_hold_each_other_are_refused(
    tmp_path, monkeypatch
):
    path, endless, deep = tmp_path / "weights.pth", {}, []
    endless["model"] = [endless]
    for _ in range(200):
        deep = [deep]
    for value, words in ((endless, "its parts hold each other"), (deep, "nested too deeply")):
        for how in ({}, LEGACY):
            with pytest.raises(Broken, match=words):
                read_weights_file(save(path, value, **how))
    monkeypatch.setattr(pickles, "MOST_PARTS", 10**4)
    pairs = b"\x80\x02](" + b"K\x01K\x02\x86" * 1000 + b"eq\x000"
    copies = b"ccollections\nOrderedDict\nh\x00\x85R" * 20  # each is a dict of these pairs
    for content in (b"\x80\x02(" + b"N" * 10**4 + b"l.", pairs + copies + b"."):
        path.write_bytes(zipped({"a/data.pkl": content}))
        with pytest.raises(Broken, match="more than 10000 parts beside its tensors"):
            read_weights_file(path)


def test_what_lies_beside_the_tensors_is_bounded(tmp_path, monkeypatch):
    path = save(tmp_path / "weights.pth", {"names": "x" * 10**4, "weight": torch.ones(2)})
    read_weights_file(path)
    monkeypatch.setattr(weights_file, "MOST_PICKLED", 9000)
    with pytest.raises(Broken, match="[0-9]+ bytes beside its tensors"):
        read_weights_file(path)
    path.write_bytes(safetensors({"x" * 10**4: torch.ones(2)}))
    with pytest.raises(Broken, match="a header of 1[0-9]+ bytes in a file of"):
        read_weights_file(path)


def test_one_dict_in_many_places_is_looked_through_once():
    laughs = {"weight": torch.ones(2)}
    for _ in range(60):
        laughs = {str(i): laughs for i in range(10)}
    with within(SECONDS), pytest.raises(WrongUse, match="at: weights lie in several places"):
        select_weights(laughs, None)


def test_bytes_behind_the_tensors_are_refused(tmp_path):
    path, weights = tmp_path / "weights.pth", {"weight": torch.ones(300)}
    for content in (save(path, weights, **LEGACY).read_bytes(), safetensors(weights)):
        path.write_bytes(content + bytes(8))
        with pytest.raises(Broken, match="bytes, and its tensors end at"):
            read_weights_file(path)


def tar(path):
    with tarfile.open(path, "w") as file:
        file.add(__file__, "storages")
    return path.read_bytes()


OTHERS = {
    "an empty file": b"",
    "a text, not weights: it begins with '<!DOCTYPE html>'": b"<!DOCTYPE html>\n<html>" * 99,
    "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "gzip": b"\x1f\x8b\x08" + bytes(100),
    "a zip file, but not one of torch.save": zipped({"weight.npy": npy(np.ones(3))}),
    "a pickle that torch.save did not write": pickle.dumps({"weight": np.ones(3)}),
    "it begins with b'\\\\x00\\\\x01": bytes(range(256)),
    "TorchScript": zipped({"a/data.pkl": b"\x80\x02N.", "a/constants.pkl": b"\x80\x02N."}),
    "another byte order": zipped({"a/data.pkl": b"\x80\x02N.", "a/byteorder": b"big"}),
}


@pytest.mark.parametrize("words", OTHERS)
def test_a_file_of_another_kind_is_called_what_it_is(words, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(OTHERS[words])
    with pytest.raises(WrongUse, match=f"weights.pth: .*{words}") as refusal:
        read_weights_file(path)
    assert not isinstance(refusal.value, Broken)


def test_folders_tar_files_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    for read in (read_weights_file, file_checksum):
        with pytest.raises(WrongUse, match="weights.pth: no such file"):
            read(path)
    with pytest.raises(WrongUse, match="a folder; a file of weights is expected"):
        read_weights_file(tmp_path)
    tar(path)
    with pytest.raises(WrongUse, match="a tar file, as torch.save wrote before torch 0.1.10"):
        read_weights_file(path)


@pytest.mark.parametrize("how", ({}, LEGACY, None))
def test_a_file_that_was_cut_off_is_broken(how, tmp_path):
    path, weights = tmp_path / "weights.pth", {"weight": torch.ones(300)}
    if how is None:
        path.write_bytes(safetensors(weights))
    else:
        save(path, weights, **how)
    whole = path.read_bytes()
    for size in (100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(Broken, match="weights.pth: not a whole file of weights"):
            read_weights_file(path)


def test_a_number_that_changed_in_a_zip_file_is_found(tmp_path):
    path = save(tmp_path / "weights.pth", {"weight": torch.full((300,), 7.0)})
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<f", 7.0), struct.pack("<f", 8.0), 1))
    with pytest.raises(Broken, match="the checksum of its member data/0 does not fit"):
        read_weights_file(path)


def test_a_zip_file_that_torch_wrote_without_checksums_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "weights.pth", {"weight": torch.ones(3)})
    finally:
        torch.serialization.set_crc32_options(before)
    with zipfile.ZipFile(path) as archive:
        assert {member.CRC for member in archive.infolist()} <= {0} | {
            member.CRC for member in archive.infolist() if member.filename.endswith("_id")
        }
    assert torch.equal(read_weights_file(path)["weight"], torch.ones(3))


# --- selecting and matching -----------------------------------------------------------------------


def with_prefix(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


def test_the_place_of_weights_is_asked_for_with_a_list_of_what_is_there():
    weights = network().state_dict()
    content = {
        "student": weights, "teacher": weights, "dino_loss": {"center": torch.ones(2)},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "args": {"lr": 1}, "epoch": 3,
    }  # fmt: skip
    listed = r"'student' \(9\), 'teacher' \(9\), 'dino_loss' \(1\) \(numbers of tensors\)"
    with pytest.raises(WrongUse, match=f"at: weights lie in several places; name one: {listed}$"):
        select_weights(content, None)
    for at in ("model", "args", "epoch", "teacher.x", "", ".", "optimizer.state"):
        with pytest.raises(WrongUse, match=f"at: '{at}' holds no tensors; tensors are in {listed}"):
            select_weights(content, at)
    content["model"], content["model.a"] = {"a": {"x": torch.ones(1)}}, {"x": torch.ones(1)}
    with pytest.raises(WrongUse, match="at: 'model.a' leads to several places"):
        select_weights(content, "model.a")
    content = {"model.a": 3, "model": {"a": {"x": torch.ones(1)}}}
    for at in ("model.a", None):
        assert select_weights(content, at) == {"x": torch.ones(1)}
    content["model.a"] = {"x": torch.zeros(1)}
    with pytest.raises(WrongUse, match="at: 'model.a' leads to several places"):
        select_weights(content, None)


def test_a_file_without_weights_is_told_by_what_it_holds(tmp_path):
    path = tmp_path / "weights.pth"
    save(path, nn.Linear(2, 2))
    with pytest.raises(WrongUse, match="holds a torch.nn.modules.linear.Linear, which is not rebu"):
        select_weights(read_weights_file(path), None)
    save(path, {"epoch": 3, "args": Namespace(lr=1), "losses": [1.0]})
    held = r"the file holds epoch \(int\), args \(argparse.Namespace\), losses \(list\)"
    for at, words in ((None, "no weights"), ("model", "at: 'model' holds no tensors")):
        with pytest.raises(WrongUse, match=f"{words}.*{held}"):
            select_weights(read_weights_file(path), at)


def test_tensors_of_a_kind_that_is_not_read_are_named(tmp_path):
    path = tmp_path / "weights.pth"
    sparse = torch.eye(3).to_sparse()
    save(path, {"model": {"weight": torch.ones(2), "sparse.weight": sparse}})
    fault = "'model': sparse.weight in it is a tensor of a kind that is not read .*sparse"
    with pytest.raises(WrongUse, match=fault):
        select_weights(read_weights_file(path), "model")
    path.write_bytes(
        with_header({"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]},
                     "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, bytes(16))
    )  # fmt: skip
    with pytest.raises(WrongUse, match="the top level, '': a in it .*F8_E4M3"):
        select_weights(read_weights_file(path), None)


def test_a_prefix_that_begins_no_key_is_refused():
    weights = with_prefix("module.backbone.", network().state_dict())
    for strip in (["backbone.", "module."], ["backbone.module."], ["module.encoder."], [""]):
        with pytest.raises(WrongUse, match=r"strip: no key begins with .*module\. \(9\)$"):
            strip_prefixes(weights, strip)
    both = with_prefix("a.", {"x": 1}) | with_prefix("b.", {"x": 2})
    with pytest.raises(WrongUse, match="strip: without 'b.', two keys are both x"):
        strip_prefixes(both, ["a.", "b."])


def test_keys_that_do_not_fit_are_named_with_the_prefix_that_would_make_them_fit():
    own = network()
    weights = own.state_dict()
    momentum = with_prefix("module.encoder_k.", weights) | {"module.queue": torch.ones(2)}
    content = with_prefix("module.encoder_q.", weights) | momentum
    with pytest.raises(WrongUse) as refusal:
        match_weights(content, own, [])
    assert str(refusal.value) == (
        "8 of the network's 9 keys are missing: 0.weight, 0.bias, 1.weight, 1.bias, 1.running_mean "
        "and 3 more; 19 of the file's 19 keys are left over: module.encoder_q.0.weight, "
        "module.encoder_q.0.bias, module.encoder_q.1.weight, module.encoder_q.1.bias, "
        "module.encoder_q.1.running_mean and 14 more; "
        "`strip` of module.encoder_q. (8) or module.encoder_k. (8) would find that many of those "
        "missing"
    )
    stripped = strip_prefixes(content, ["module.", "encoder_q."])
    with pytest.raises(WrongUse, match=r"^10 of the file's 19 keys are left over: encoder_k.0.wei"):
        match_weights(stripped, own, [])
    with pytest.raises(WrongUse, match="1 of the file's 19 keys are left over: queue; if the enc"):
        match_weights(stripped, own, ["encoder_k."])
    assert match_weights(stripped, own, ["encoder_k.", "queue"]).keys() == weights.keys()


def test_weights_of_another_network_are_named():
    own = network()
    weights = own.state_dict()
    for key in ("0.weight", "1.running_mean", "3.bias"):
        fewer = {name: value for name, value in weights.items() if name != key}
        with pytest.raises(
            WrongUse, match=f"1 of the network's 9 keys are missing: {key}; the fil"
        ):
            match_weights(fewer, own, [])
    with pytest.raises(WrongUse, match="begin with 0., which the file's have not"):
        match_weights(weights, nn.Sequential(own), [])
    wider = weights | {"3.weight": torch.ones(3, 16), "3.bias": torch.ones(3)}
    shapes = r"2 weights have another shape: 3.weight \(3, 16\) in the file, \(2, 16\) in the netwo"
    with pytest.raises(WrongUse, match=shapes):
        match_weights(wider, own, [])


@pytest.mark.parametrize(
    "value, words",
    (
        (torch.tensor([1.0, torch.nan]), "3.bias: not finite in the file"),
        (torch.tensor([1.0, 1e300], dtype=torch.float64), "too large for torch.float32"),
        (torch.ones(2, dtype=torch.int8), "3.bias: torch.int8 in the file, torch.float32 in the"),
    ),
)
def test_values_that_are_no_weights_are_refused(value, words):
    with pytest.raises(WrongUse, match=words):
        match_weights(network().state_dict() | {"3.bias": value}, network(), [])


class Positions(nn.Module):
    """What a transformer for images of so many pixels has of patches of 4."""

    def __init__(self, size, n_extra):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // 4) ** 2 + n_extra, 8))
        self.patch_embed = nn.Conv2d(3, 8, 4, 4)


@pytest.mark.parametrize("n_extra", (0, 1, 2, 5))
def test_positions_of_another_size_are_refused_with_the_size_that_fits(n_extra):
    shapes = rf"pos_embed \(1, {64 + n_extra}, 8\) in the file, \(1, {16 + n_extra}, 8\) in the "
    size = "; size 32 fits the file, and the network has size 16"
    with pytest.raises(WrongUse, match=f"^1 weight has another shape: {shapes}network{size}$"):
        match_weights(Positions(32, n_extra).state_dict(), Positions(16, n_extra), [])


class Named(nn.Module):
    """A module whose weights have these names."""

    def __init__(self, names):
        super().__init__()
        self.own = dict.fromkeys(names, torch.ones(2))

    def state_dict(self):
        return self.own


def test_keys_without_a_common_prefix_are_told_by_their_beginnings():
    weights = dict.fromkeys(["layer1.0.weight", "layer2.0.weight", "stem"], torch.ones(2))
    own = Named([f"{i}.weight" for i in range(4)])
    words = (
        r"the file's keys begin with layer1. \(1\), layer2. \(1\), stem \(1\), the network's with "
    )
    with pytest.raises(WrongUse, match=words + r"0. \(1\), 1. \(1\), 2. \(1\), 3. \(1\)$"):
        match_weights(weights, own, [])


def test_nested_blocks_are_told_from_others():
    own = Named([f"blocks.{i}.norm.weight" for i in range(4)])
    nested = {f"blocks.{i // 2}.{i}.norm.weight": torch.ones(2) for i in range(4)}
    words = (
        r"the file's blocks are nested in chunks \(blocks.0.0.norm.weight\); docs/imports.md sho"
    )
    with pytest.raises(WrongUse, match=words):
        match_weights(nested, own, [])
