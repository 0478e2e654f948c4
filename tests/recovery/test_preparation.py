"""Images in files are decoded once, into maps that every later run opens: what is interrupted goes
on, what is damaged is one line.
"""

import errno
import functools
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import random_bytes
from PIL import Image

from memorization.data import decoding, prepared_maps, unfinished_maps
from memorization.data import images as data
from memorization.data.catalogue import DataSettings
from memorization.data.images import open_images
from memorization.errors import Interrupted, WrongUse


@pytest.fixture
def folder(tmp_path):
    """Six training images of changing shape in two classes, and two test images."""
    for place, count in {"train/cat": 4, "train/dog": 2, "val/cat": 1, "val/dog": 1}.items():
        (tmp_path / place).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(random_bytes(20 + 3 * i, 30 - 4 * i, 3, seed=i)).save(
                tmp_path / place / f"{i}.png"
            )
    return tmp_path


def opened_folder(folder, size=8):
    prepared = str(folder / "prepared")
    settings = DataSettings(name="image_folder", root=str(folder), size=size, prepared=prepared)
    return open_images(settings)


def maps_of_train(folder):
    return [
        path
        for path in (folder / "prepared").glob("train*.npy")
        if not path.name.endswith(".geometry.npy")
    ]


def count_decoding(monkeypatch, interrupt_at=None):
    """A list that collects the paths that are decoded from now on; KeyboardInterrupt at the given
    one.
    """
    decoded, decode_image = [], decoding.decode_image

    def counted(path, size):
        if len(decoded) == interrupt_at:
            raise KeyboardInterrupt
        decoded.append(path)
        return decode_image(path, size)

    monkeypatch.setattr(decoding, "decode_image", counted)
    return decoded


def test_a_folder_is_listed_when_it_is_opened_and_nothing_is_decoded(folder, monkeypatch):
    decoded = count_decoding(monkeypatch)
    images = opened_folder(folder)
    assert images.train.labels.tolist() == [0, 0, 0, 0, 1, 1] and images.test.labels.tolist() == [
        0,
        1,
    ]
    assert (images.classes, images.channels, images.train.size) == (("cat", "dog"), 3, 8)
    assert decoded == [] and not (folder / "prepared").exists()
    with pytest.raises(AssertionError, match="not prepared"):
        images.train.gather(torch.tensor([0]))


def test_prepared_images_are_the_resized_centre_squares(folder):
    images = opened_folder(folder).prepare([5, 1], [0])
    path = folder / "train/dog/1.png"  # index 5, 26 wide and 23 high
    expected = Image.open(path).resize((8, 8), Image.Resampling.BILINEAR, box=(1.5, 0, 24.5, 23))
    expected = torch.from_numpy(np.array(expected)).permute(2, 0, 1)
    assert torch.equal(images.train.gather(torch.tensor([5, 1, 5]))[2], expected)
    assert images.train.row_of.tolist() == [
        -1,
        0,
        -1,
        -1,
        -1,
        1,
    ] and images.test.row_of.tolist() == [0, -1]


def test_the_geometry_maps_a_box_of_original_pixels(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        pixels = np.zeros((40, 100, 3), dtype=np.uint8)
        pixels[20:30, 40:60] = 255  # a white box
        Image.fromarray(pixels).save(tmp_path / split / "cat" / "0.png")
    images = opened_folder(tmp_path, size=20).prepare([0], [0])
    scale, x, y = images.train.geometry[0]
    left, top, right, bottom = 40 * scale - x, 20 * scale - y, 60 * scale - x, 30 * scale - y
    assert (left, top, right, bottom) == (5, 10, 15, 15)
    white = (images.train.gather(torch.tensor([0]))[0, 0] > 127).nonzero()
    assert white.min(0).values.tolist() == [top, left] and white.max(0).values.tolist() == [
        bottom - 1,
        right - 1,
    ]


def test_grayscale_and_transparent_images_become_rgb(folder):
    Image.fromarray(random_bytes(20, 30)).save(folder / "train/cat/0.png")
    Image.fromarray(random_bytes(20, 30, 4)).save(folder / "train/cat/1.png")
    images = opened_folder(folder).prepare([0, 1], [0])
    gray, transparent = images.train.gather(torch.tensor([0, 1]))
    assert torch.equal(gray[0], gray[2]) and not torch.equal(transparent[0], transparent[2])


def test_exif_orientation_is_ignored(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    with Image.open(folder / "train/cat/0.png") as image:
        image.save(folder / "train/cat/0.png", exif=exif)
        expected = np.array(image.resize((8, 8), Image.Resampling.BILINEAR, box=(5, 0, 25, 20)))
    images = opened_folder(folder).prepare([0], [0])
    assert torch.equal(images.train.pixels[0], torch.from_numpy(expected).permute(2, 0, 1))


def test_a_broken_image_that_is_not_used_does_no_harm_and_a_used_one_is_named(folder):
    broken = folder / "train/cat/2.png"
    broken.write_bytes(broken.read_bytes()[:200])
    images = opened_folder(folder)
    assert len(images.prepare([0, 1, 3, 4], [0, 1]).train.pixels) == 4
    with pytest.raises(WrongUse, match=f"^{broken}: cannot be decoded"):
        images.prepare([0, 2], [0])


def test_a_deleted_image_is_named(folder):
    images = opened_folder(folder)
    (folder / "train/cat/1.png").unlink()
    with pytest.raises(WrongUse, match=f"^{folder}/train/cat/1.png: cannot be read"):
        images.prepare([0, 1], [0])


def test_a_finished_map_is_neither_decoded_nor_hashed_again(folder, monkeypatch):
    first = opened_folder(folder).prepare([0, 3], [1])
    decoded = count_decoding(monkeypatch)
    monkeypatch.setattr(prepared_maps, "hash_pixels", None)  # nor hashed
    second = opened_folder(folder).prepare([3, 0, 3], [1])
    assert decoded == []
    assert second.fingerprint == first.fingerprint and torch.equal(
        second.train.pixels, first.train.pixels
    )
    assert np.array_equal(second.train.geometry, first.train.geometry)


def test_an_interrupted_preparation_goes_on_where_it_was(folder, monkeypatch):
    monkeypatch.setattr(decoding, "DECODED_AT_ONCE", 2)
    monkeypatch.setattr(
        decoding, "ThreadPoolExecutor", functools.partial(ThreadPoolExecutor, max_workers=1)
    )
    whole = opened_folder(folder).prepare(range(6), [0])
    for path in (folder / "prepared").iterdir():
        path.unlink()

    with monkeypatch.context() as patch:
        decoded = count_decoding(patch, interrupt_at=5)
        with pytest.raises(KeyboardInterrupt):
            opened_folder(folder).prepare(range(6), [0])
    assert len(decoded) == 5 and not maps_of_train(folder)

    decoded = count_decoding(monkeypatch)
    resumed = opened_folder(folder).prepare(range(6), [0])
    # the third chunk
    assert [path for path in decoded if "/train/" in path] == list(resumed.train.files[4:])
    assert torch.equal(resumed.train.pixels, whole.train.pixels) and np.array_equal(
        resumed.train.geometry, whole.train.geometry
    )
    assert resumed.fingerprint == whole.fingerprint and not list(
        (folder / "prepared").glob("*.partial")
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_preparation_once_the_images_under_way_are_kept(
    number, folder, monkeypatch
):
    monkeypatch.setattr(decoding, "DECODED_AT_ONCE", 2)
    # which a job in the background ignores
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    decode, decoded = decoding.decode_image, []

    def signalling(path, size):
        decoded.append(path)
        if len(decoded) == 3:
            os.kill(os.getpid(), number)
        return decode(path, size)

    try:
        with (
            monkeypatch.context() as patch,
            pytest.raises(Interrupted, match="4 of 6 train images are prepared") as stop,
        ):
            patch.setattr(decoding, "decode_image", signalling)
            opened_folder(folder).prepare(range(6), [0])
    finally:
        signal.signal(signal.SIGINT, before)
    assert stop.value.exit_code == 128 + number
    decoded = count_decoding(monkeypatch)
    assert (
        len(opened_folder(folder).prepare(range(6), [0]).train.pixels) == 6
        and len(decoded) == 2 + 1
    )


def test_two_runs_that_start_together_decode_once(folder, monkeypatch):
    decoded = count_decoding(monkeypatch)
    images = opened_folder(folder)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda run: images.prepare(range(6), [0]), range(2))
    assert sorted(decoded) == sorted([*images.train.files, images.test.files[0]])
    assert first.fingerprint == second.fingerprint


def test_a_record_of_finished_rows_is_not_believed_without_its_partial_map(folder, monkeypatch):
    whole = opened_folder(folder).prepare(range(6), [0])
    (map_path,) = maps_of_train(folder)
    map_path.with_suffix(".json").write_text(json.dumps({"finished": 4}))
    map_path.unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        count_decoding(patch, interrupt_at=0)
        opened_folder(folder).prepare(range(6), [0])
    assert torch.equal(
        opened_folder(folder).prepare(range(6), [0]).train.pixels, whole.train.pixels
    )


def test_a_changed_file_other_indices_and_another_size_give_new_maps(folder):
    first = opened_folder(folder).prepare([0, 1], [0])
    Image.fromarray(random_bytes(25, 25, 3, seed=9)).save(folder / "train/cat/1.png")
    changed = opened_folder(folder).prepare([0, 1], [0])
    assert not torch.equal(changed.train.pixels[1], first.train.pixels[1])
    assert (
        changed.fingerprint["train"] != first.fingerprint["train"]
        and changed.fingerprint["test"] == first.fingerprint["test"]
    )
    opened_folder(folder).prepare([0, 2], [0])
    opened_folder(folder, size=6).prepare([0, 1], [0])
    assert len(maps_of_train(folder)) == 4


def test_the_same_files_under_other_indices_have_another_fingerprint(folder):
    before = opened_folder(folder).prepare([1, 2], [0])
    (folder / "train/cat/0.png").unlink()
    after = opened_folder(folder).prepare([0, 1], [0])
    assert torch.equal(after.train.pixels, before.train.pixels)
    assert (
        after.fingerprint["train"]["sha256"]
        != before.fingerprint["train"]["sha256"]
        == data._sha256(before.train)
    )


def test_a_map_gets_its_name_only_after_its_record_is_written(folder, monkeypatch):
    def interrupt(file, selection):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(unfinished_maps, "hash_pixels", interrupt)
        opened_folder(folder).prepare([0, 1], [0])
    decoded = count_decoding(monkeypatch)
    assert len(opened_folder(folder).prepare([0, 1], [0]).train.pixels) == 2
    # the training images were decoded before the interruption
    assert decoded == [f"{folder}/val/cat/0.png"]


def test_a_truncated_map_is_wrong_use(folder):
    opened_folder(folder).prepare([0, 1], [0])
    (map_path,) = maps_of_train(folder)
    map_path.write_bytes(map_path.read_bytes()[:-1])
    with pytest.raises(WrongUse, match=f"{map_path}.*delete"):
        opened_folder(folder).prepare([0, 1], [0])


def interrupt_hashing(file, selection):
    raise KeyboardInterrupt


def break_images(folder, *names):
    for name in names:
        path = folder / name
        path.write_bytes(path.read_bytes()[:200])


def test_all_broken_images_are_told_together_and_the_others_are_kept(folder, monkeypatch):
    whole = opened_folder(folder).prepare(range(6), [0, 1])
    broken = ["train/cat/2.png", "train/dog/1.png", "val/dog/0.png"]
    contents = {name: (folder / name).read_bytes() for name in broken}
    for path in (folder / "prepared").iterdir():
        path.unlink()
    break_images(folder, *broken)
    for _ in range(2):
        with pytest.raises(WrongUse) as refusal:
            opened_folder(folder).prepare(range(6), [0, 1])
        assert all(
            str(folder / name) in str(refusal.value) for name in broken
        ) and "skip_broken" in str(refusal.value)

    for name, content in contents.items():
        (folder / name).write_bytes(content)
    decoded = count_decoding(monkeypatch)
    repaired = opened_folder(folder).prepare(range(6), [0, 1])
    assert sorted(decoded) == [str(folder / name) for name in broken]
    assert repaired.fingerprint == whole.fingerprint and np.array_equal(
        repaired.train.geometry, whole.train.geometry
    )
    assert not list((folder / "prepared").glob("*.partial"))


def test_of_many_broken_images_some_are_named_and_all_are_listed(folder):
    broken = [f"train/cat/{i}.png" for i in range(4)] + ["train/dog/0.png", "train/dog/1.png"]
    break_images(folder, *broken)
    with pytest.raises(
        WrongUse, match="so are 5 more of the 7 images: .* and others; .*/broken_images.json lists"
    ):
        opened_folder(folder).prepare(range(6), [0])
    listed = json.loads((folder / "prepared/broken_images.json").read_text())["images"]
    assert sorted(file for file, _ in listed.values()) == [str(folder / name) for name in broken]


@pytest.mark.parametrize("gone", ["train/cat/0.png", "train/cat/2.png", "train/dog/1.png"])
def test_a_deleted_image_costs_no_decoding_of_the_others(folder, gone, monkeypatch):
    break_images(folder, gone)
    with pytest.raises(WrongUse):
        opened_folder(folder).prepare(range(6), [0])
    (folder / gone).unlink()
    decoded = count_decoding(monkeypatch)
    shorter = opened_folder(folder).prepare(range(5), [0])
    assert (
        decoded == []
        and not list((folder / "prepared").glob("*.partial"))
        and len(maps_of_train(folder)) == 1
    )
    for path in (folder / "prepared").iterdir():
        path.unlink()
    anew = opened_folder(folder).prepare(range(5), [0])
    assert shorter.fingerprint == anew.fingerprint and np.array_equal(
        shorter.train.geometry, anew.train.geometry
    )


@pytest.mark.parametrize("added", ["train/cat/00.png", "train/cat/9.png", "train/dog/9.png"])
def test_an_image_that_is_added_is_decoded_alone(folder, added, monkeypatch):
    opened_folder(folder).prepare(range(6), [0])
    Image.fromarray(random_bytes(20, 20, 3, seed=7)).save(folder / added)
    decoded = count_decoding(monkeypatch)
    longer = opened_folder(folder).prepare(range(7), [0])
    assert decoded == [str(folder / added)]
    for path in (folder / "prepared").iterdir():
        path.unlink()
    anew = opened_folder(folder).prepare(range(7), [0])
    assert longer.fingerprint == anew.fingerprint and np.array_equal(
        longer.train.geometry, anew.train.geometry
    )
    assert torch.equal(longer.train.pixels, anew.train.pixels)


@pytest.mark.parametrize(
    "before, after",
    [([0, 1, 2, 3], [1, 3, 4, 5]), ([2, 3, 4, 5], [0, 2, 4]), ([0, 4], range(6)), (range(6), [5])],
)
def test_an_unfinished_map_of_other_images_is_taken_over(folder, before, after, monkeypatch):
    monkeypatch.setattr(decoding, "DECODED_AT_ONCE", 1)
    monkeypatch.setattr(
        decoding, "ThreadPoolExecutor", functools.partial(ThreadPoolExecutor, max_workers=1)
    )
    anew = opened_folder(folder).prepare(after, [0])
    for path in (folder / "prepared").iterdir():
        path.unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(unfinished_maps, "hash_pixels", interrupt_hashing)
        opened_folder(folder).prepare(before, [0])
    decoded = count_decoding(monkeypatch)
    images = opened_folder(folder)
    found = images.prepare(after, [0])
    assert [file for file in decoded if "/train/" in file] == [
        images.train.files[i] for i in sorted(set(after) - set(before))
    ]
    assert found.fingerprint == anew.fingerprint and np.array_equal(
        found.train.geometry, anew.train.geometry
    )
    assert not list((folder / "prepared").glob("*.partial")) and len(maps_of_train(folder)) == 1


def test_a_refusal_tells_where_decoded_images_are_kept_and_nothing_is_kept_without_any(folder):
    break_images(folder, "train/cat/2.png", "val/cat/0.png")
    unfinished = folder / "prepared/train_8.partial"
    with pytest.raises(WrongUse) as refusal:
        opened_folder(folder).prepare(range(6), [0])
    assert str(refusal.value).endswith(f"what was decoded is kept in {unfinished} (1.3 kB)")
    assert list((folder / "prepared").glob("*.partial")) == [unfinished]


def test_of_each_split_and_size_there_is_one_unfinished_map(folder):
    break_images(folder, "train/cat/2.png")
    for indices in (range(6), [0, 2], [1, 2, 5]):
        with pytest.raises(WrongUse):
            opened_folder(folder).prepare(indices, [0])
        (unfinished,) = (folder / "prepared").glob("*.partial")
        assert unfinished.stat().st_size == 128 + len(indices) * 3 * 8 * 8


def test_a_disk_too_full_for_more_images_keeps_those_that_are_decoded(folder, monkeypatch):
    break_images(folder, "train/cat/2.png")
    with pytest.raises(WrongUse, match="cannot be decoded"):
        opened_folder(folder).prepare([0, 1, 2], [0])

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(WrongUse, match="No space left"):
        patch.setattr(os, "posix_fallocate", refuse, raising=False)
        opened_folder(folder).prepare([0, 1, 3, 4, 5], [0])
    decoded = count_decoding(monkeypatch)
    images = opened_folder(folder).prepare([0, 1, 3, 4, 5], [0])
    assert decoded == list(images.train.files[3:6])


@pytest.mark.parametrize("call", ["_write_at", "write_atomically"])
@pytest.mark.parametrize("number", range(6))
def test_a_preparation_that_dies_while_images_change_places_is_not_believed(
    number, call, folder, monkeypatch
):
    break_images(folder, "train/cat/2.png")
    with pytest.raises(WrongUse):
        opened_folder(folder).prepare([2, 3, 4, 5], [0])
    real, calls = getattr(unfinished_maps, call), []

    def die(*arguments):
        calls.append(arguments)
        if len(calls) > number:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(unfinished_maps, call, die)
        # as if the process were killed
        patch.setattr(unfinished_maps.UnfinishedMap, "discard", lambda self: None)
        with suppress(KeyboardInterrupt):
            opened_folder(folder).prepare([3, 4, 5], [0])
    found = opened_folder(folder).prepare([3, 4, 5], [0])
    for path in (folder / "prepared").iterdir():
        path.unlink()
    assert found.fingerprint == opened_folder(folder).prepare([3, 4, 5], [0]).fingerprint


def test_finished_maps_are_opened_without_a_lock(folder, monkeypatch):
    first = opened_folder(folder).prepare([0, 1], [0])
    monkeypatch.setattr(decoding, "sole_process", None)  # would be called
    assert opened_folder(folder).prepare([0, 1], [0]).fingerprint == first.fingerprint


@pytest.mark.parametrize("lacking", ["the call", "the file system"])
def test_a_map_is_made_without_fallocate_too(folder, lacking, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if lacking == "the call":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)  # as on macOS
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    assert len(opened_folder(folder).prepare(range(6), [0]).train.pixels) == 6


@pytest.mark.parametrize(
    "module, call", [(os, "posix_fallocate"), (unfinished_maps, "_write_at"), (os, "fsync")]
)
def test_a_full_disk_is_one_line_and_its_room_is_given_back(folder, module, call, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, call, refuse, raising=call != "posix_fallocate")  # not on macOS
        with pytest.raises(
            WrongUse,
            match="cannot be written .No space left on device.: it needs (1.3 kB|592 bytes)",
        ):
            opened_folder(folder).prepare(range(6), [0])
    left = sum(
        path.stat().st_size for path in (folder / "prepared").iterdir() if path.suffix == ".partial"
    )
    assert left == 0 or call == "fsync"  # there the images are decoded, and the room is theirs
    assert len(opened_folder(folder).prepare(range(6), [0]).train.pixels) == 6


def test_a_map_is_read_without_memory_maps(folder, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENODEV, "No such device")

    expected = opened_folder(folder).prepare(range(6), [0])
    monkeypatch.setattr(prepared_maps, "open_memmap", refuse)
    assert torch.equal(
        opened_folder(folder).prepare(range(6), [0]).train.pixels, expected.train.pixels
    )


def test_a_map_that_may_not_be_read_is_no_reason_to_delete_it(folder, monkeypatch):
    opened_folder(folder).prepare(range(6), [0])

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(prepared_maps, "open_memmap", refuse)
    with pytest.raises(WrongUse, match="cannot be read .Permission denied.") as refusal:
        opened_folder(folder).prepare(range(6), [0])
    assert "delete" not in str(refusal.value)


def test_an_unfinished_map_is_never_written_through_a_link(folder):
    opened_folder(folder).prepare(range(6), [0])
    (map_path,) = maps_of_train(folder)
    for path in (folder / "prepared").iterdir():
        path.unlink()
    (folder / "mine").write_text("precious")
    unfinished = folder / "prepared/train_8.partial"
    for path in (map_path, unfinished):
        for suffix in (".partial", ".geometry.npy", ".json"):
            path.with_suffix(suffix).symlink_to(folder / "mine")
    assert len(opened_folder(folder).prepare(range(6), [0]).train.pixels) == 6
    assert (folder / "mine").read_text() == "precious"


def test_what_the_pixels_leave_out_is_counted_on_the_screen(folder, capsys):
    for i in range(2):
        Image.fromarray(random_bytes(20, 30, 4)).save(folder / f"train/cat/{i}.png")
    opened_folder(folder).prepare(range(6), [0])
    assert (
        "prepared train images: 2 with an alpha channel or a transparent colour, which is dropped"
        in capsys.readouterr().out
    )


def test_too_many_open_files_are_no_fault_of_an_image(folder, monkeypatch):
    def refuse(path, size):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(decoding, "decode_image", refuse)
    with pytest.raises(WrongUse, match="0.png: cannot be read .Too many open files.$"):
        opened_folder(folder).prepare(range(6), [0])


def test_pixels_of_a_map_have_the_digests_that_pixels_in_memory_have(folder):
    images = opened_folder(folder).prepare([1, 3, 5], [0])
    in_memory = replace(images.train, digests=None)  # as in a map of an earlier version
    assert np.array_equal(images.train.digests_of([5, 1]), in_memory.digests_of([5, 1]))
    one, other, twin = images.train.digests_of([1, 3, 5])  # the last has the pixels of the first
    assert np.array_equal(one, twin) and not np.array_equal(one, other)


def test_no_map_is_begun_that_the_disk_cannot_hold(folder, monkeypatch):
    monkeypatch.setattr(
        unfinished_maps.shutil, "disk_usage", lambda path: SimpleNamespace(free=100)
    )
    with pytest.raises(
        WrongUse, match="384 bytes are needed for the train images, but 100 bytes are free"
    ):
        opened_folder(folder).prepare([0, 1], [0])
    assert not list((folder / "prepared").glob("*.partial"))


def test_a_missing_part_is_named(folder):
    (folder / "val").rename(folder / "validation")
    with pytest.raises(WrongUse, match=f"{folder}/test is no folder"):
        opened_folder(folder)


def test_a_part_without_images_is_named(folder):
    for place in ("val/dog/0.png", "val/cat/0.png"):
        (folder / place).unlink()
    with pytest.raises(WrongUse, match=f"image_folder: {folder}/val holds no image; files are"):
        opened_folder(folder)


def test_the_fingerprint_of_a_folder_depends_on_which_images_are_prepared(folder):
    for i in range(4):
        Image.new("RGB", (9, 9)).save(folder / f"train/cat/{i}.png")  # the same image four times
    images = opened_folder(folder)
    one, other = images.prepare([0, 1], [0]), images.prepare([0, 2], [0])
    assert (
        torch.equal(one.train.pixels, other.train.pixels)
        and one.fingerprint["train"] != other.fingerprint["train"]
    )
