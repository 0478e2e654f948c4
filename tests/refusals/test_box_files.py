"""Files of boxes as other programs write them, broken ones, and those of other images."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import meets_no_box

from memorization.data.images import Split
from memorization.encoder import Encoder
from memorization.errors import WrongUse
from memorization.measuring.boxes import (
    CLIPPED,
    EMPTY,
    NONE_LEFT,
    OUTSIDE,
    SWAPPED,
    boxes_of,
    largest_empty_rectangle,
)
from memorization.measuring.deja_vu import DejaVuSettings
from memorization.measuring.queries import make_queries

XML = "<annotation><filename>x</filename>{}</annotation>"


BOX = (
    "<object><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def split_of(count, files=None, geometry=None):
    row_of = None if geometry is None else torch.arange(count)
    return Split(
        "train",
        torch.zeros(count, 3, 10, 10, dtype=torch.uint8),
        torch.zeros(count),
        row_of,
        files,
        geometry,
    )


def test_boxes_of_a_csv_file_land_in_the_prepared_square(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("index,xmin,ymin,xmax,ymax\n1,20,4,40,20\n1,0,0,5,5\n0,1,2,3,4\n")
    # scale, x offset, y offset; of images of 40 x 40 and 40 x 20 pixels
    geometry = np.array([[0.25, 0, 0], [0.5, 5, 0]])
    found = boxes_of(split_of(2, geometry=geometry), torch.tensor([1]), path)
    assert list(found) == [1] and found[1].tolist() == [[5, 2, 15, 10], [-5, 0, -2.5, 2.5]]
    elsewhere = replace(split_of(2, geometry=geometry), row_of=torch.tensor([1, 0]))
    # image 1 stands in row 0
    assert boxes_of(elsewhere, torch.tensor([1]), path)[1].tolist() == [
        [5, 1, 10, 5],
        [0, 0, 1.25, 1.25],
    ]
    with pytest.raises(WrongUse, match="names training images"):
        boxes_of(replace(split_of(2), name="test"), torch.tensor([0]), path)
    # images that were not resized
    assert boxes_of(split_of(3), torch.tensor([0, 2]), path)[0].tolist() == [[1, 2, 3, 4]]


def test_boxes_of_imagenets_xml_files_are_found_by_the_name_of_the_image(tmp_path):
    (tmp_path / "n01").mkdir()
    (tmp_path / "n01/a.xml").write_text(XML.format(BOX.format(1, 2, 3, 4) + BOX.format(5, 6, 7, 8)))
    (tmp_path / "b.xml").write_text(XML.format(BOX.format(1, 1, 2, 2)))
    files = ("/images/train/n01/a.JPEG", "/images/train/n02/b.JPEG", "/images/train/n02/c.JPEG")
    found = boxes_of(split_of(3, files), torch.arange(3), tmp_path)
    assert {index: boxes.tolist() for index, boxes in found.items()} == {
        0: [[1, 2, 3, 4], [5, 6, 7, 8]],
        1: [[1, 1, 2, 2]],
    }


@pytest.mark.parametrize("content, words", [
    ("index,xmin,ymin,xmax\n", ["columns are"]),
    ("index,xmin,ymin,xmax,ymax\n0,1,2,x,4\n", ["could not convert", "'x'"]),
    ("index,xmin,ymin,xmax,ymax\n0,1,2,3\n", ["line 2", "missing"]),
    ("index,xmin,ymin,xmax,ymax\n0,1,2,3,4\n1,,2,3,4\n", ["line 3", "is no box", "xmin: missing"]),
    ("index,xmin,ymin,xmax,ymax\n0,1,2,3,4\n ,1,2,3,4\n", ["line 3", "index: missing"]),
    ("index,xmin,ymin,xmax,ymax\r\n0,1,2,3,4\r\n1,1,2,3,4,5\r\n",
     ["line 3", "6 of 5 values", "too many"]),
    ("index,xmin,ymin,xmax,ymax\n0.5,1,2,3,4\n", ["line 2", "image 0.5", "there are 2"]),
    ("index,xmin,ymin,xmax,ymax\n0,1_0,2,3,4\n", ["line 2", "'1_0'"]),
    ("index,xmin,ymin,xmax,ymax\n0,١,2,3,4\n", ["line 2", "'١'"]),
    ("index,xmin,ymin,xmax,ymax\n0,1,2,3,4\n0,\"1\n,2", ["line 4"]),
    ("index;xmin;ymin;xmax;ymax\n0;1,5;2;3;4\n",
     ["line 1", "columns are", "commas, not semicolons"]),
    ("label,index,xmin,ymin,xmax,ymax\n0,0,1,2,3,4\n", ["line 1", "columns are"]),
    ("", ["line 1", "columns are []"]),
    ("index,xmin,ymin,xmax,ymax\n0,nan,2,3,4\n", ["line 2", "is no box"]),
    ("index,xmin,ymin,xmax,ymax\n9,1,2,3,4\n", ["line 2", "image 9", "there are 2"]),
])  # fmt: skip
def test_a_broken_csv_file_is_refused(content, words, tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text(content)
    with pytest.raises(WrongUse) as refusal:
        boxes_of(split_of(2), torch.arange(2), path)
    assert all(word in str(refusal.value) for word in ["dejavu.boxes", str(path), *words]), (
        refusal.value
    )


HEAD = b"index,xmin,ymin,xmax,ymax\n"


@pytest.mark.parametrize("content", [
    b"\xef\xbb\xbf" + HEAD + b"1,1,2,3,4\n",
    HEAD + b"1.0,1.0,2.0,3.0,4.0\n",
    HEAD.replace(b"\n", b"\r\n") + b"1,1,2,3,4\r\n",
    b" ymax,xmin , ymin,xmax,index\n4, 1 ,2,3,1\n",
    HEAD + b"\n1,1,2,3,4\n\n",
    HEAD + b"1,1e0,2,3,4",
    HEAD + b'"1","1","2","3","4"\n',
])  # fmt: skip
def test_a_table_as_a_spreadsheet_or_pandas_writes_it_is_read(content, tmp_path):
    (tmp_path / "boxes.csv").write_bytes(content)
    found = boxes_of(split_of(2), torch.arange(2), tmp_path / "boxes.csv")
    assert {index: boxes.tolist() for index, boxes in found.items()} == {1: [[1, 2, 3, 4]]}


def test_a_table_in_another_encoding_is_refused_with_its_line(tmp_path):
    path = tmp_path / "boxes.csv"
    for content, line in (
        (HEAD + b"0,1,2,3,4\n0,1,2,3,4\xe9\n", 3),
        (HEAD.decode().encode("utf-16"), 1),
    ):
        path.write_bytes(content)
        with pytest.raises(
            WrongUse,
            match=f"boxes.csv cannot be read .line {line}: not UTF-8; save it as CSV UTF-8",
        ):
            boxes_of(split_of(2), torch.arange(2), path)


def test_boxes_are_swapped_clipped_or_dropped_and_counted(tmp_path):
    """Two images of 10 x 10 pixels."""
    rows = [
        "0,8,9,1,2",
        "0,-5,-5,2,2",
        "0,5,5,99,99",
        "0,10,0,20,5",
        "0,3,3,3,9",
        "1,-9,0,0,5",
        "1,50,50,60,60",
    ]
    (tmp_path / "boxes.csv").write_text("\n".join(["index,xmin,ymin,xmax,ymax", *rows]))
    counts = Counter()
    found = boxes_of(split_of(2), torch.arange(2), tmp_path / "boxes.csv", counts)
    assert {index: boxes.tolist() for index, boxes in found.items()} == {
        0: [[1, 2, 8, 9], [0, 0, 2, 2], [5, 5, 10, 10]]
    }
    assert counts == {SWAPPED: 1, CLIPPED: 2, OUTSIDE: 3, EMPTY: 1, NONE_LEFT: 1}


def test_a_box_outside_of_the_square_but_inside_of_the_image_leaves_the_whole_square(tmp_path):
    (tmp_path / "boxes.csv").write_text("index,xmin,ymin,xmax,ymax\n0,0,0,9,20\n")
    counts = Counter()
    found = boxes_of(
        split_of(1, geometry=np.array([[0.5, 5.0, 0.0]])),
        torch.arange(1),
        tmp_path / "boxes.csv",
        counts,
    )
    assert found[0].tolist() == [[-5, 0, -0.5, 10]] and +counts == {}
    assert largest_empty_rectangle(found[0], 10) == (0, 0, 10, 10)


SIZE = "<size><width>{}</width><height>{}</height></size>"


def split_of_an_image(width, height, size=10):
    """A Split of one image of so many original pixels."""
    side = min(width, height)
    scale = size / side
    geometry = np.array([[scale, (width - side) / 2 * scale, (height - side) / 2 * scale]])
    return split_of(1, ("/images/a.png",), geometry)


@pytest.mark.parametrize("stated, own", [
    ((500, 375), (500, 375)), ((500, 375), (1000, 750)), ((500, 375), (250, 188)),
    ((500, 375), (133, 100)), ((1024, 683), (500, 333)), ((333, 500), (71, 107)),
    ((48, 40), (48, 40)),
])  # fmt: skip
def test_boxes_are_relative_to_the_size_that_their_file_states(stated, own, tmp_path):
    """The left half, whatever the ratio; resizing an image may have rounded a side."""
    width, height = stated
    (tmp_path / "a.xml").write_text(
        XML.format(SIZE.format(*stated) + BOX.format(0, 0, width / 2, height))
    )
    counts, split = Counter(), split_of_an_image(*own)
    (boxes,) = boxes_of(split, torch.arange(1), tmp_path, counts).values()
    scale, left, top = split.geometry[0]
    assert np.allclose((boxes + [left, top, left, top]) / scale, [[0, 0, own[0] / 2, own[1]]])
    assert +counts == {}


@pytest.mark.parametrize(
    "stated", [(375, 500), (500, 500), (500, 300), (0, 0), (-500, -375), ("nan", 375), ("", 375)]
)
def test_a_file_that_states_the_size_of_another_image_is_refused(stated, tmp_path):
    (tmp_path / "a.xml").write_text(XML.format(SIZE.format(*stated) + BOX.format(0, 0, 5, 5)))
    with pytest.raises(WrongUse, match="a.xml cannot be read .*(its <size> is|width: )"):
        boxes_of(split_of_an_image(500, 375), torch.arange(1), tmp_path)


@pytest.mark.parametrize(
    "content", ["", "<annotation>", XML.format(BOX.format(3, 2, "", 4)), XML.format("<bndbox/>")]
)
def test_a_broken_xml_file_is_refused(content, tmp_path):
    (tmp_path / "a.xml").write_text(content)
    with pytest.raises(WrongUse, match="a.xml cannot be read"):
        boxes_of(split_of(1, ("/images/a.png",)), torch.tensor([0]), tmp_path)


def test_missing_files_and_images_without_names_are_refused(tmp_path):
    with pytest.raises(WrongUse, match="absent.csv cannot be read"):
        boxes_of(split_of(1), torch.tensor([0]), tmp_path / "absent.csv")
    with pytest.raises(WrongUse, match="named after image files"):
        boxes_of(replace(split_of(1), files=None), torch.tensor([0]), tmp_path)


def queries_between_boxes(rows, folder):
    """Queries by a file with boxes of image 4, and with a box outside of image 3."""
    path = folder / "boxes.csv"
    path.write_text("index,xmin,ymin,xmax,ymax\n4,4,0,0,8\n3,90,0,99,8\n")
    encoder = Encoder("f", nn.Identity(), 3, 10, ([0.0] * 3, [1.0] * 3))
    settings = DejaVuSettings(query="boxes", boxes=str(path))
    return make_queries(split_of(6), torch.tensor(rows), encoder, settings, [], seed=0)


def test_an_image_whose_boxes_lie_outside_of_it_is_not_shown_whole(tmp_path):
    outside = queries_between_boxes([4, 3], tmp_path)
    assert outside.rows.tolist() == [4]
    assert outside.dropped["no box that lies in the image"] == 1
    assert outside.boxes["boxes lay outside of their image and were dropped"] == 1


def test_boxes_of_none_of_the_images_are_refused(tmp_path):
    with pytest.raises(WrongUse, match="leaves no part of 1 images"):
        queries_between_boxes([1], tmp_path)


@pytest.mark.parametrize("count", [400, 10_000])
def test_many_boxes_are_no_more_work_than_the_pixels(count):
    """Minutes an image, before; days for 10,000."""
    corners = np.random.default_rng(0).uniform(0, 1000, (count, 2))
    boxes = np.hstack([corners, corners + 3])
    rectangle = largest_empty_rectangle(boxes, 1024)
    assert rectangle[2] * rectangle[3] >= 1024 * 20  # below or beside all of them
    assert meets_no_box(rectangle, boxes)
