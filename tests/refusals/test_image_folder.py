"""A folder of images: each real file once, in the order of torchvision's ImageFolder; what is
passed over is counted.
"""

import os

import pytest
from PIL import Image
from torchvision import datasets

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


def test_a_class_whose_images_are_all_met_elsewhere_is_named(root):
    for split in ("train", "val"):
        os.symlink("cat", root / split / "lion")
    with pytest.raises(WrongUse, match="no image of its own for 1 of 3 classes .'lion'."):
        list_image_folder(root)


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
