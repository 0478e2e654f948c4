"""A folder of images: each real file once, in the order of torchvision's ImageFolder; what is
passed over is counted.
"""

import hashlib
import os
import unicodedata

import pytest
from PIL import Image
from torchvision import datasets

from memorization.data.catalogue import DataSettings
from memorization.data.image_folder import list_image_folder
from memorization.errors import Caution, WrongUse


@pytest.fixture
def root(tmp_path):
    """Two classes with three training and two test images each, some of them in a folder of their
    own.
    """
    for place in ("train/cat/0.png", "train/cat/more/1.JPG", "train/cat/z.png", "train/dog/0.png",
        "train/dog/a.b/1.png", "train/dog/2.png",
                  "val/cat/0.png", "val/cat/1.png", "val/dog/0.png", "val/dog/1.png"):  # fmt: skip
        path = tmp_path / "data" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(path, "png")
    (tmp_path / "data/train/cat/notes.txt").write_text("no image")
    return tmp_path / "data"


def files(root, split="train"):
    return list(list_image_folder(root)[1][split].files)


def test_the_listing_is_that_of_torchvision(root, capsys):
    expected = datasets.ImageFolder(root / "train")
    classes, listings = list_image_folder(root)
    assert classes == tuple(expected.classes)
    assert list(zip(listings["train"].files, listings["train"].labels)) == expected.samples
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("target", [".", "..", "../..", "../../.."])
def test_a_link_back_is_not_followed(root, target, capsys):
    before = files(root)
    os.symlink(target, root / "train/cat/again")
    os.symlink(".", root / "train/again")  # is no class
    assert files(root) == before
    assert "2 links back" in capsys.readouterr().out


def test_a_file_that_is_also_linked_to_is_listed_once_and_in_its_own_class(root, capsys):
    before = list_image_folder(root)
    os.symlink("../dog/2.png", root / "train/cat/2.png")
    os.symlink("../dog", root / "train/cat/dogs")
    os.symlink("0.png", root / "train/dog/00.png")
    assert list_image_folder(root) == before
    assert "3 links to what is listed anyway" in capsys.readouterr().out


def test_classes_and_files_outside_are_reached_by_links(root, tmp_path):
    before = [os.path.relpath(file, root) for file in files(root)]
    (root / "train/dog").rename(tmp_path / "dogs")
    os.symlink(tmp_path / "dogs", root / "train/dog")
    (root / "train/cat/z.png").rename(tmp_path / "z.png")
    os.symlink(tmp_path / "z.png", root / "train/cat/z.png")
    assert [os.path.relpath(file, root) for file in files(root)] == before


def test_test_images_that_are_all_training_images_are_refused(root):
    (root / "val").rename(root / "other")
    os.symlink("train", root / "val")
    with pytest.raises(
        WrongUse, match="6 of the 6 images in .*val are the same files as images in .*train"
    ):
        list_image_folder(root)


def test_a_warning_names_a_test_image_that_is_a_training_image(root):
    (root / "val/cat/0.png").unlink()
    os.symlink(root / "train/cat/0.png", root / "val/cat/0.png")
    with pytest.warns(Caution, match="1 of the 4 images in .*val are the same files"):
        list_image_folder(root)


def test_hidden_files_and_folders_are_passed_over_and_counted(root, capsys):
    before = list_image_folder(root)
    for place in ("train/.ipynb_checkpoints", "train/cat/.ipynb_checkpoints", "val/.cache"):
        (root / place).mkdir()
        Image.new("RGB", (9, 9)).save(root / place / "0-checkpoint.png")
    (root / "train/dog/._0.png").write_bytes(bytes(4096))  # of macOS
    assert list_image_folder(root) == before
    assert (
        "passed over in" in (line := capsys.readouterr().out)
        and "4 hidden files or folders" in line
        and line.count("\n") == 1
    )


def test_images_with_endings_that_are_not_read_are_counted_once(root, capsys):
    before = list_image_folder(root)
    for name in ("0.gif", "1.JFIF", "notes.txt"):
        (root / "train/cat" / name).write_bytes(b"")
    os.symlink(root / "train/cat/0.gif", root / "train/dog/link.gif")
    assert list_image_folder(root) == before
    assert "3 images with endings that are not read" in capsys.readouterr().out


def test_a_class_whose_images_are_all_met_elsewhere_is_none(root, capsys):
    before = list_image_folder(root)
    for split in ("train", "val"):
        os.symlink("cat", root / split / "lion")
    assert list_image_folder(root) == before
    assert "2 links to what is listed anyway" in capsys.readouterr().out


def test_a_class_may_be_in_one_part_alone_which_a_line_says(root, capsys):
    (root / "val/dog").rename(root / "val/bird")
    (root / "train/ant").mkdir()
    classes, listings = list_image_folder(root)
    assert classes == ("bird", "cat", "dog")
    assert listings["train"].labels == (1, 1, 1, 2, 2, 2) and listings["test"].labels == (
        0,
        0,
        1,
        1,
    )
    out = capsys.readouterr().out
    assert "1 of 3 classes have train images alone: 'dog'" in out
    assert "1 of 3 classes have test images alone: 'bird'" in out
    assert "1 folders without an image" in out


def test_images_beside_the_folders_of_classes_are_counted(root, capsys):
    before = list_image_folder(root)
    Image.new("RGB", (9, 9)).save(root / "train/beside.png")
    assert list_image_folder(root) == before
    assert "1 images beside the folders of classes" in capsys.readouterr().out


def test_what_file_managers_leave_behind_is_passed_over_and_counted_on_one_line(root, capsys):
    before = list_image_folder(root)
    for place in (
        "train/.DS_Store",
        "train/cat/Thumbs.db",
        "val/dog/._0.png",
        "val/cat/desktop.ini",
    ):
        (root / place).write_bytes(b"")
    for place in ("train/cat/empty", "train/dog/a/b"):
        (root / place).mkdir(parents=True)
    (root / "train/dog/__MACOSX").mkdir()
    Image.new("RGB", (9, 9)).save(root / "train/dog/__MACOSX/0.png")
    assert list_image_folder(root) == before
    (line,) = capsys.readouterr().out.splitlines()
    assert "5 hidden files or folders, 3 folders without an image" in line


# --- folders without a test part, or without classes ----------------------------------------------


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9)).save(path, "png")


@pytest.fixture
def pets(tmp_path):
    """Forty images of two classes, in one folder, a path."""
    for i in range(40):
        write_image(tmp_path / f"pets/{'cat' if i % 2 else 'dog'}/{i:02d}.PNG")
    return tmp_path / "pets"


def names_in(root, share=None):
    """{split: the names of its images, a set}."""
    return {
        split: set(listing.names) for split, listing in list_image_folder(root, share)[1].items()
    }


def test_of_one_folder_with_classes_a_fifth_is_held_out_by_a_hash_of_the_paths(pets, capsys):
    classes, listings = list_image_folder(pets)
    assert classes == ("cat", "dog")
    for listing in listings.values():
        assert all(
            classes[label] == name.split("/")[0] and file == str(pets / name)
            for file, label, name in zip(listing.files, listing.labels, listing.names)
        )
        assert list(listing.names) == sorted(listing.names)
    names = names_in(pets)
    assert not names["train"] & names["test"] and len(names["train"] | names["test"]) == 40
    for name in names["test"] | names["train"]:
        value = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2**64
        assert (value < 0.2) == (name in names["test"])
    out = capsys.readouterr().out
    assert (
        "the 2 folders in" in out and f"{len(names['test'])} of its 40 images are held out" in out
    )


def test_more_images_and_another_place_move_no_image_to_the_other_set(pets):
    before = names_in(pets)
    for i in range(30):
        write_image(pets / f"cat/more_{i}.png")
    pets.rename(pets.parent / "elsewhere")
    after = names_in(pets.parent / "elsewhere")
    assert before["train"] < after["train"] and before["test"] < after["test"]
    more = names_in(pets.parent / "elsewhere", 0.6)
    assert after["test"] < more["test"]


def test_an_accent_is_hashed_alike_however_the_system_writes_it(tmp_path):
    for form in ("NFC", "NFD"):
        for i in range(60):
            write_image(tmp_path / form / unicodedata.normalize(form, f"caf\u00e9/\u00e9_{i}.png"))
    one, other = (
        {unicodedata.normalize("NFC", name) for name in names_in(tmp_path / form)["test"]}
        for form in ("NFC", "NFD")
    )
    assert one == other and one


@pytest.mark.parametrize(
    "pattern",
    [
        "{i}.png",  # flat
        "images/{i}.png",  # all in one folder
        "{year}/{month}/{i}.png",  # nested
        "{folder}{i}.png",  # some in folders and some beside them
    ],
)
def test_images_without_folders_of_classes_have_none(tmp_path, pattern, capsys):
    for i in range(40):
        parts = {"year": i % 2, "month": i % 3, "folder": f"f{i % 3}/" if i % 4 else ""}
        write_image(tmp_path / pattern.format(i=i, **parts))
    classes, listings = list_image_folder(tmp_path)
    assert classes == () and "have no classes" in capsys.readouterr().out
    assert set(listings["train"].labels) == set(listings["test"].labels) == {-1}
    assert sum(len(listing.files) for listing in listings.values()) == 40
    assert all(os.path.isfile(tmp_path / name) for name in listings["test"].names)


def test_a_folder_of_train_alone_is_the_only_part(pets):
    (pets.parent / "root").mkdir()
    pets.rename(pets.parent / "root/train")
    classes, listings = list_image_folder(pets.parent / "root")
    assert classes == ("cat", "dog") and len(listings["test"].files) > 0
    assert all(name.startswith("train/") for name in listings["test"].names)
    (pets.parent / "root/valid").mkdir()  # may be meant as the other part
    with pytest.raises(WrongUse, match="root/test is no folder"):
        list_image_folder(pets.parent / "root")


def test_two_parts_may_have_no_classes(tmp_path):
    for i in range(3):
        write_image(tmp_path / f"train/{i}.png")
        write_image(tmp_path / f"test/{i}.png")
    classes, listings = list_image_folder(tmp_path)
    assert classes == () and listings["test"].names == ("test/0.png", "test/1.png", "test/2.png")


def test_two_parts_of_which_one_has_classes_are_refused(root):
    for place in ("val/cat", "val/dog"):
        for file in list((root / place).iterdir()):
            file.rename(root / "val" / f"{file.parent.name}_{file.name}")
        (root / place).rmdir()
    with pytest.raises(WrongUse, match="val holds no folder of a class"):
        list_image_folder(root)


def test_a_share_is_refused_if_there_is_a_test_part(root):
    with pytest.raises(WrongUse, match="data.test_share: 0.3 is not allowed: .*val holds the test"):
        list_image_folder(root, 0.3)


def test_one_image_cannot_be_both_sets(tmp_path):
    write_image(tmp_path / "0.png")
    with pytest.raises(WrongUse, match="of its 1 images are held out .*; both sets need images"):
        list_image_folder(tmp_path)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(WrongUse, match="holds no image; files are images if"):
        list_image_folder(tmp_path)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"name": "fake", "size": 16, "test_share": 0.3}, "test_share is 0.3, but fake has test"),
        ({"name": "image_folder", "size": 16, "test_share": 1.0}, "less than 1"),
        (
            {"name": "image_folder", "size": 16, "manifest": "a.csv"},
            "manifest is 'a.csv', but name",
        ),
    ],
)
def test_settings_of_other_data_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        DataSettings(**settings)


def test_the_usual_share_is_recorded_as_in_earlier_versions_and_another_one_is_recorded():
    usual, other = (
        DataSettings(name="image_folder", size=16, **share) for share in ({}, {"test_share": 0.3})
    )
    assert "test_share" not in usual.model_dump() and other.model_dump()["test_share"] == 0.3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named_with_the_reason(root):
    (root / "train/dog/a.b").chmod(0)
    try:
        with pytest.raises(WrongUse, match="a.b cannot be listed .Permission denied."):
            list_image_folder(root)
    finally:
        (root / "train/dog/a.b").chmod(0o755)


def test_names_that_are_not_utf_8_are_listed(root):
    name = os.fsencode(root / "train/cat") + b"/\xff\x1b[31m.png"
    with open(name, "wb") as file:
        file.write(b"")
    assert os.fsdecode(name) in files(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
def test_the_refusal_names_a_folder_of_images_that_may_not_be_entered(tmp_path):
    (tmp_path / "images").mkdir(mode=0)
    with pytest.raises(WrongUse, match="images/val: cannot be read .Permission denied"):
        list_image_folder(tmp_path / "images")
