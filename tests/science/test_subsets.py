import dataclasses

import numpy as np
import pytest

from memorization.data.catalogue import DataSettings
from memorization.data.images import open_images
from memorization.data.subsets import (
    Subsets,
    SubsetSettings,
    draw_subsets,
    load_subsets,
    save_subsets,
)
from memorization.errors import WrongUse

IMAGES = open_images(DataSettings(name="fake", size=8))


def draw(**settings):
    counts = {"shared": 6, "candidate": 3, "independent": 3, "external": 4}
    return draw_subsets(SubsetSettings(**(counts | settings)), IMAGES)


def made(**arrays):
    parts = {"shared": [0, 1], "candidate": [2], "independent": [3], "external": [0]} | arrays
    return Subsets(
        **{name: np.array(indices, dtype=np.int64) for name, indices in parts.items()},
        data={"name": "made"},
    )


def test_file_order_takes_shared_then_candidate_then_independent():
    subsets = draw()
    assert subsets.shared.tolist() == [0, 1, 2, 3, 4, 5]
    assert subsets.candidate.tolist() == [6, 7, 8] and subsets.independent.tolist() == [9, 10, 11]
    assert subsets.external.tolist() == [0, 1, 2, 3]  # of the test set
    assert subsets.training_set("candidate").tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert subsets.training_set("independent").tolist() == [0, 1, 2, 3, 4, 5, 9, 10, 11]


def test_shuffled_subsets_are_disjoint_repeatable_and_follow_their_seed():
    one, again, other = (
        draw(order="shuffled"),
        draw(order="shuffled"),
        draw(order="shuffled", seed=1),
    )
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert len(set(one.train.tolist())) == 12
    assert max(one.train) > 100 and max(one.external) > 10  # from all over the data set


def test_training_and_test_images_are_shuffled_differently():
    subsets = draw(order="shuffled", shared=0, candidate=100, independent=100, external=200)
    assert [i for i in subsets.train if i < 256] != subsets.external.tolist()


def test_the_fingerprint_tells_which_subset_an_image_is_in_and_of_which_data():
    subsets = made()
    swapped = made(candidate=[3], independent=[2])
    other_data = Subsets(
        subsets.shared,
        subsets.candidate,
        subsets.independent,
        subsets.external,
        data={"name": "other"},
    )
    moved = made(shared=[0], candidate=[1, 2])
    assert (
        len({subsets.fingerprint, swapped.fingerprint, other_data.fingerprint, moved.fingerprint})
        == 4
    )


def test_disjoint_halves_share_nothing():
    subsets = draw(shared=0)
    assert subsets.training_set("candidate").tolist() == [0, 1, 2] and subsets.training_set(
        "independent"
    ).tolist() == [3, 4, 5]


@pytest.mark.parametrize("settings", [{"shared": 1019}, {"external": 257}])
def test_too_few_images_are_refused(settings):
    with pytest.raises(WrongUse, match="only"):
        draw(**settings)


def test_subsets_survive_saving(tmp_path):
    subsets = dataclasses.replace(draw(order="shuffled"), data=IMAGES.fingerprint)
    save_subsets(subsets, tmp_path / "subsets.npz")
    loaded = load_subsets(tmp_path / "subsets.npz")
    assert loaded.fingerprint == subsets.fingerprint and loaded.data == IMAGES.fingerprint
    assert all(
        np.array_equal(getattr(loaded, name), getattr(subsets, name))
        for name in ("shared", "candidate", "independent", "external")
    )


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        save_subsets(draw(), tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("subsets, reason", [
    (made(candidate=[1]), "train image 1 stands in the subsets more than once"),
    (made(independent=[2]), "train image 2 stands in the subsets more than once"),
    (made(external=[5, 5]), "test image 5 stands in the subsets more than once"),
    (made(candidate=[2, 4]), "2 candidates, but 1 independents"),
])  # fmt: skip
def test_overlapping_or_unequal_subsets_are_refused(subsets, reason, tmp_path):
    save_subsets(subsets, tmp_path / "subsets.npz")
    with pytest.raises(WrongUse, match=reason):
        load_subsets(tmp_path / "subsets.npz")


def test_a_changed_or_broken_file_is_refused(tmp_path):
    path = tmp_path / "subsets.npz"
    save_subsets(made(), path)
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
