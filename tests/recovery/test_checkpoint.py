import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Executes

from memorization import checkpoint
from memorization.checkpoint import (
    load_encoder,
    load_pair,
    read_checkpoint,
    read_progress,
    restore,
    save_checkpoint,
    save_progress,
)
from memorization.errors import Broken, Caution, WrongUse
from memorization.optimizers import OPTIMIZERS, make_optimizer
from memorization.settings import TrainingSettings
from models.encoders import encoder_settings

CONTENT = {
    "numbers": [1, 2.5, None],
    "weights": {
        "w": torch.arange(6.0).view(2, 3),
        "half": torch.ones(3).bfloat16(),
        "n": torch.tensor(7),
    },
}


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    save_checkpoint(tmp_path / "c.pt", CONTENT)
    read = read_checkpoint(tmp_path / "c.pt")
    assert read["numbers"] == CONTENT["numbers"]
    for name, tensor in CONTENT["weights"].items():
        assert (
            torch.equal(read["weights"][name], tensor)
            and read["weights"][name].dtype == tensor.dtype
        )


def test_equal_contents_give_equal_bytes(tmp_path):
    for name in ("a.pt", "b.pt"):
        save_checkpoint(tmp_path / name, CONTENT)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(keep, tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, CONTENT)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(WrongUse, match="c.pt"):
        read_checkpoint(path)


def test_a_flipped_bit_in_a_weight_is_noticed(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, CONTENT)
    content = bytearray(path.read_bytes())
    at = content.index(CONTENT["weights"]["w"].numpy().tobytes())
    content[at + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(WrongUse, match="c.pt"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "foreign", [{"state_dict": {}}, [1, 2], Executes()], ids=["other keys", "a list", "code"]
)
def test_a_foreign_checkpoint_is_refused_and_nothing_in_it_executed(foreign, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(foreign, "foreign.pt")
    with pytest.raises(WrongUse, match="foreign.pt"):
        read_checkpoint("foreign.pt")
    assert not (tmp_path / "executed").exists()


def test_progress_falls_back_on_the_checkpoint_before(tmp_path):
    assert read_progress(tmp_path) is None
    for step in (1, 2):
        save_progress(tmp_path, {"step": step})
    assert read_progress(tmp_path)["step"] == 2
    last = tmp_path / "last.pt"
    last.write_bytes(last.read_bytes()[:200])
    with pytest.warns(Caution, match=str(last)):
        assert read_progress(tmp_path)["step"] == 1
    # the broken one is gone, as between the two renames of a save,
    assert read_progress(tmp_path)["step"] == 1
    save_progress(tmp_path, {"step": 3})  # and does not take the place of the good one
    last.write_bytes(b"")
    with pytest.warns(Caution, match=str(last)):
        assert read_progress(tmp_path)["step"] == 1


def test_a_save_is_durable_once_the_new_names_are_synced(tmp_path, monkeypatch):
    save_progress(tmp_path, {"step": 1})
    synced = []
    monkeypatch.setattr(
        checkpoint,
        "sync_folder",
        lambda folder: synced.append((folder, (folder / "next.pt").exists())),
    )
    save_progress(tmp_path, {"step": 2})
    assert synced == [(tmp_path, False)]


def test_a_checkpoint_is_whole_before_another_makes_room_for_it(tmp_path, monkeypatch):
    for step in (1, 2):
        save_progress(tmp_path, {"step": step})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(WrongUse, match="next.pt: cannot be written .disk full"):
        save_progress(tmp_path, {"step": 3})
    assert [read_checkpoint(tmp_path / name)["step"] for name in ("previous.pt", "last.pt")] == [
        1,
        2,
    ]


def test_a_broken_checkpoint_that_is_all_there_is_is_refused(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"something else")
    with pytest.raises(WrongUse, match="delete it"):
        read_progress(tmp_path)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_an_optimizer_keeps_of_a_weight_comes_back_in_its_layout(optimizer, tmp_path):
    def made():
        method = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        return method, make_optimizer(
            method, TrainingSettings(epochs=1, batch_size=2, optimizer=optimizer, learning_rate=0.1)
        )

    method, before = made()
    method(torch.randn(2, 3, 5, 5)).square().sum().backward()
    before.step()
    save_progress(tmp_path, {"method": method.state_dict(), "optimizer": before.state_dict()})
    same, after = made()
    restore(read_progress(tmp_path), same, after, tmp_path)
    for wanted, found in zip(before.state.values(), after.state.values(), strict=True):
        for name in wanted:
            assert (
                torch.equal(wanted[name], found[name])
                and wanted[name].stride() == found[name].stride()
            )


def test_an_encoder_loads_from_its_file_alone(scored_run, tmp_path):
    _, run = scored_run
    path = run / "seed_0" / "candidate" / "encoder.pt"
    lonely = shutil.copy(path, tmp_path / "encoder.pt")
    encoder = load_encoder(lonely)
    network, record = encoder.network, encoder.record
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert (record["role"], record["seed"], record["epoch"]) == ("candidate", 0, 3)
    assert (encoder.channels, encoder.size, encoder.normalization[0]) == (3, 16, [0.5] * 3)
    weights = read_checkpoint(path)["weights"]
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_a_pair_is_f_and_g_of_one_seed(scored_run):
    _, run = scored_run
    pair = load_pair(run, seed=1)
    f, g = (encoder.network for encoder in pair)
    candidate, independent = (
        load_encoder(run / "seed_1" / role / "encoder.pt").network
        for role in ("candidate", "independent")
    )
    pixels = torch.rand(2, 3, 16, 16)
    assert torch.equal(f(pixels), candidate(pixels)) and torch.equal(g(pixels), independent(pixels))
    assert not torch.equal(f(pixels), g(pixels)) and pair.f.record["seed"] == 1


def test_an_encoder_of_an_earlier_version_is_at_the_defaults_of_the_settings_that_came_since(
    scored_run, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(scored_run[1], run)
    for role in ("candidate", "independent"):
        record = read_checkpoint(run / f"seed_0/{role}/encoder.pt")
        for key in ("patch", "depth", "positions", "pooling"):
            del record["config"]["encoder"][key]
        del record["config"]["augmentation"]["views"][0]["mask_ratio"]
        save_checkpoint(run / f"seed_0/{role}/encoder.pt", record)
    assert load_pair(run, seed=0).f.record["role"] == "candidate"


def test_the_first_encoders_record_the_settings_of_all_of_them_and_later_ones_their_own():
    defaults = {"stem": "small", "width": 32, "depth": 4, "patch": 4}
    defaults |= {"positions": "sincos", "pooling": "mean"}
    small = {"name": "resnet_small"} | defaults | {"width": 8}
    recorded = encoder_settings("resnet_small", width=8).model_dump()
    assert list(recorded.items()) == list(small.items())
    for name in ("resnet18", "vit_tiny"):
        assert encoder_settings(name).model_dump() == {"name": name} | defaults
        assert encoder_settings(**{"name": name} | defaults) == encoder_settings(name)
    later = {"name": "convnext_tiny", "stem": "small"}
    assert encoder_settings("convnext_tiny").model_dump() == later


def test_a_run_folder_may_lie_in_the_home_folder(scored_run, monkeypatch):
    _, run = scored_run
    monkeypatch.setenv("HOME", str(run.parent))
    assert load_pair("~/run", seed=0).f.record["role"] == "candidate"


def test_a_missing_encoder_is_one_line(scored_run):
    with pytest.raises(WrongUse, match="seed_5.*no such file"):
        load_pair(scored_run[1], seed=5)


def two_saves(folder):
    for step in (1, 2):
        save_progress(folder, {"step": step})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def failing_open(code, name):
    """os.open that fails for files of a name, as the system does."""
    opened = os.open

    def fail(path, *arguments, **named):
        if os.fspath(path).endswith(name):
            raise OSError(code, os.strerror(code), os.fspath(path))
        return opened(path, *arguments, **named)

    return fail


@pytest.mark.parametrize(
    "code", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOMEM, errno.ESTALE]
)
def test_a_checkpoint_that_the_system_does_not_give_is_no_broken_one_and_nothing_is_deleted(
    code, tmp_path, monkeypatch
):
    kept = two_saves(tmp_path)
    monkeypatch.setattr(os, "open", failing_open(code, "last.pt"))
    with pytest.raises(
        WrongUse, match=f"last.pt: cannot be read .{os.strerror(code)}.$"
    ) as refusal:
        read_progress(tmp_path)
    assert not isinstance(refusal.value, Broken) and kept == {
        path.name: path.read_bytes() for path in tmp_path.iterdir()
    }
    monkeypatch.undo()
    assert read_progress(tmp_path)["step"] == 2


@pytest.mark.parametrize("error", [
    MemoryError(),
    RuntimeError(f"unable to mmap 9 bytes from file <x>: {os.strerror(errno.ENOMEM)} (12)"),
], ids=["numpy", "torch"])  # fmt: skip
def test_a_checkpoint_for_which_there_is_no_memory_is_no_broken_one(error, tmp_path, monkeypatch):
    kept = two_saves(tmp_path)
    monkeypatch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(WrongUse, match="last.pt: cannot be read .*memory.$"):
        read_progress(tmp_path)
    assert kept == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_what_another_program_wrote_under_the_name_of_a_checkpoint_is_refused_and_left_there(
    tmp_path,
):
    two_saves(tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "last.pt")
    with pytest.raises(WrongUse, match="last.pt: a checkpoint of another program"):
        read_progress(tmp_path)
    assert (tmp_path / "last.pt").exists()


@pytest.mark.parametrize("name", ["last.pt", "previous.pt", "next.pt"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_no_save_takes_the_place_of_what_is_no_file(make, name, tmp_path):
    two_saves(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(WrongUse, match=f"{name}: cannot be written"):
        save_progress(tmp_path, {"step": 3})
    if name == "last.pt":
        with pytest.raises(WrongUse, match="last.pt: cannot be read"):
            read_progress(tmp_path)


def test_a_link_to_nothing_is_not_taken_for_a_training_that_has_to_begin(tmp_path):
    (tmp_path / "last.pt").symlink_to("/mnt/a/disk/that/is/not/mounted/last.pt")
    with pytest.raises(WrongUse, match="last.pt: a link that leads nowhere"):
        read_progress(tmp_path)
