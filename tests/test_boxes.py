import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from memorization.boxes import boxes_of, largest_empty_rectangle
from memorization.data import Split
from memorization.errors import WrongUse

XML = "<annotation><filename>x</filename>{}</annotation>"
BOX = "<object><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def split_of(count, files=None, geometry=None):
    row_of = None if geometry is None else torch.arange(count)
    return Split("train", torch.zeros(count, 3, 10, 10, dtype=torch.uint8), torch.zeros(count), row_of, files, geometry)


def slow_area(boxes, size):
    """Area of the largest rectangle of whole pixels that meets no box, by trying all."""
    free = np.ones((size, size), dtype=bool)
    for xmin, ymin, xmax, ymax in boxes:
        x, y = np.arange(size), np.arange(size)
        free[np.ix_((y < ymax) & (y + 1 > ymin), (x < xmax) & (x + 1 > xmin))] = False
    pairs = list(itertools.combinations(range(size + 1), 2))
    return max((bottom - top) * (right - left) for top, bottom in pairs for left, right in pairs if free[top:bottom, left:right].all())


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_empty_rectangle_equals_the_best_of_all(seed):
    generator = np.random.default_rng(seed)
    corners = generator.uniform(-2, 12, (generator.integers(1, 6), 2))
    boxes = np.concatenate([corners, corners + generator.uniform(0.1, 6, corners.shape)], axis=1)
    top, left, height, width = largest_empty_rectangle(boxes, 10)
    assert height * width == slow_area(boxes, 10)
    assert 0 <= top <= top + height <= 10 and 0 <= left <= left + width <= 10
    for xmin, ymin, xmax, ymax in boxes:
        assert xmin >= left + width or xmax <= left or ymin >= top + height or ymax <= top


def test_no_rectangle_is_left_where_a_box_covers_all():
    assert largest_empty_rectangle([[-5.0, -5, 50, 50]], 10)[2:] == (0, 0)
    assert largest_empty_rectangle([[20.0, 0, 30, 10]], 10) == (0, 0, 10, 10)  # outside of the square


def test_boxes_of_a_csv_file_land_in_the_prepared_square(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("index,xmin,ymin,xmax,ymax\n1,20,10,40,30\n1,0,0,5,5\n0,1,2,3,4\n")
    geometry = np.array([[1.0, 0, 0], [0.5, 5, 2]])  # scale, x offset, y offset
    found = boxes_of(split_of(2, geometry=geometry), torch.tensor([1]), path)
    assert list(found) == [1] and found[1].tolist() == [[5, 3, 15, 13], [-5, -2, -2.5, 0.5]]
    elsewhere = replace(split_of(2, geometry=geometry), row_of=torch.tensor([1, 0]))
    assert boxes_of(elsewhere, torch.tensor([1]), path)[1].tolist() == [[20, 10, 40, 30], [0, 0, 5, 5]]  # image 1 stands in row 0
    with pytest.raises(WrongUse, match="names training images"):
        boxes_of(replace(split_of(2), name="test"), torch.tensor([0]), path)
    assert boxes_of(split_of(3), torch.tensor([0, 2]), path)[0].tolist() == [[1, 2, 3, 4]]  # images that were not resized


def test_boxes_of_imagenets_xml_files_are_found_by_the_name_of_the_image(tmp_path):
    (tmp_path / "n01").mkdir()
    (tmp_path / "n01/a.xml").write_text(XML.format(BOX.format(1, 2, 3, 4) + BOX.format(5, 6, 7, 8)))
    (tmp_path / "b.xml").write_text(XML.format(BOX.format(1, 1, 2, 2)))
    files = ("/images/train/n01/a.JPEG", "/images/train/n02/b.JPEG", "/images/train/n02/c.JPEG")
    found = boxes_of(split_of(3, files), torch.arange(3), tmp_path)
    assert {index: boxes.tolist() for index, boxes in found.items()} == {0: [[1, 2, 3, 4], [5, 6, 7, 8]], 1: [[1, 1, 2, 2]]}


@pytest.mark.parametrize("content, words", [
    ("index,xmin,ymin,xmax\n", ["columns are"]),
    ("index,xmin,ymin,xmax,ymax\n0,1,2,x,4\n", ["could not convert", "'x'"]),
    ("index,xmin,ymin,xmax,ymax\n0,1,2,3\n", ["line 2", "missing"]),
    ("index,xmin,ymin,xmax,ymax\n0,5,2,3,4\n", ["line 2", "is no box"]),
    ("index,xmin,ymin,xmax,ymax\n0,nan,2,3,4\n", ["line 2", "is no box"]),
    ("index,xmin,ymin,xmax,ymax\n9,1,2,3,4\n", ["line 2", "image 9", "there are 2"]),
])  # fmt: skip
def test_a_broken_csv_file_is_refused(content, words, tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text(content)
    with pytest.raises(WrongUse) as refusal:
        boxes_of(split_of(2), torch.arange(2), path)
    assert all(word in str(refusal.value) for word in ["dejavu.boxes", str(path), *words]), refusal.value


@pytest.mark.parametrize("content", ["", "<annotation>", XML.format(BOX.format(3, 2, 1, 4)), XML.format("<bndbox/>")])
def test_a_broken_xml_file_is_refused(content, tmp_path):
    (tmp_path / "a.xml").write_text(content)
    with pytest.raises(WrongUse, match="a.xml cannot be read"):
        boxes_of(split_of(1, ("/images/a.png",)), torch.tensor([0]), tmp_path)


def test_missing_files_and_images_without_names_are_refused(tmp_path):
    with pytest.raises(WrongUse, match="absent.csv cannot be read"):
        boxes_of(split_of(1), torch.tensor([0]), tmp_path / "absent.csv")
    with pytest.raises(WrongUse, match="named after image files"):
        boxes_of(replace(split_of(1), files=None), torch.tensor([0]), tmp_path)
