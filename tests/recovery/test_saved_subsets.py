"""Subsets come back from their file as they were, or are refused."""

import dataclasses

import numpy as np
import pytest
from conftest import draw_few, fake_images, subsets_of_five

from memorization.data.subsets import check_pair, load_subsets, save_subsets
from memorization.errors import WrongUse


def test_subsets_survive_saving(tmp_path):
    subsets = dataclasses.replace(draw_few(order="shuffled"), data=fake_images().fingerprint)
    save_subsets(subsets, tmp_path / "subsets.npz")
    loaded = load_subsets(tmp_path / "subsets.npz")
    assert loaded.fingerprint == subsets.fingerprint and loaded.data == fake_images().fingerprint
    assert all(
        np.array_equal(getattr(loaded, name), getattr(subsets, name))
        for name in ("shared", "candidate", "independent", "external")
    )


def test_the_fingerprint_tells_which_subset_an_image_is_in_and_of_which_data():
    subsets = subsets_of_five()
    swapped = subsets_of_five(candidate=[3], independent=[2])
    moved = subsets_of_five(shared=[0], candidate=[1, 2])
    other_data = dataclasses.replace(subsets, data={"name": "other"})
    assert len({each.fingerprint for each in (subsets, swapped, moved, other_data)}) == 4


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        save_subsets(draw_few(), tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("subsets, reason", [
    (subsets_of_five(candidate=[1]), "train image 1 stands in the subsets more than once"),
    (subsets_of_five(independent=[2]), "train image 2 stands in the subsets more than once"),
    (subsets_of_five(external=[5, 5]), "test image 5 stands in the subsets more than once"),
])  # fmt: skip
def test_overlapping_subsets_are_refused(subsets, reason, tmp_path):
    save_subsets(subsets, tmp_path / "subsets.npz")
    with pytest.raises(WrongUse, match=reason):
        load_subsets(tmp_path / "subsets.npz")


def test_a_pair_is_not_trained_on_unequal_subsets(tmp_path):
    unequal = dataclasses.replace(subsets_of_five(candidate=[2, 4]), data=fake_images().fingerprint)
    save_subsets(unequal, tmp_path / "subsets.npz")
    subsets = load_subsets(tmp_path / "subsets.npz")  # encoders of others may have seen such ones
    with pytest.raises(WrongUse, match="2 candidates, but 1 independents"):
        check_pair(subsets)


def test_a_changed_or_broken_file_is_refused(tmp_path):
    path = tmp_path / "subsets.npz"
    save_subsets(subsets_of_five(), path)
    content = path.read_bytes()
    with np.load(path) as file:
        np.savez(path, **{**file, "shared": np.array([0, 9])})
    with pytest.raises(WrongUse, match="fingerprint"):
        load_subsets(path)
    for broken in (content[:100], content[: len(content) // 2], b"", b"no archive"):
        path.write_bytes(broken)
        with pytest.raises(WrongUse, match="subsets.npz"):
            load_subsets(path)
    with pytest.raises(WrongUse, match="no such file"):
        load_subsets(tmp_path / "absent.npz")
