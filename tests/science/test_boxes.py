import itertools

import numpy as np
import pytest

from memorization.measuring.boxes import (
    largest_empty_rectangle,
)


def slow_area(boxes, size):
    """Area of the largest rectangle of whole pixels that meets no box, by trying all."""
    free = np.ones((size, size), dtype=bool)
    for xmin, ymin, xmax, ymax in boxes:
        x, y = np.arange(size), np.arange(size)
        free[np.ix_((y < ymax) & (y + 1 > ymin), (x < xmax) & (x + 1 > xmin))] = False
    pairs = list(itertools.combinations(range(size + 1), 2))
    return max(
        (bottom - top) * (right - left)
        for top, bottom in pairs
        for left, right in pairs
        if free[top:bottom, left:right].all()
    )


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


def slow_rectangle(boxes, size):
    """The largest rectangle of whole pixels, by trying all: the furthest left, then the least far
    to the right, then the uppermost.
    """
    free = np.ones((size, size), dtype=int)
    for xmin, ymin, xmax, ymax in np.asarray(boxes):
        x, y = np.arange(size), np.arange(size)
        free[np.ix_((y < ymax) & (y + 1 > ymin), (x < xmax) & (x + 1 > xmin))] = 0
    best = (0, 0, 0, 0)
    for left, right in itertools.combinations(range(size + 1), 2):
        for top, bottom in itertools.combinations(range(size + 1), 2):
            area = (bottom - top) * (right - left)
            if area > best[2] * best[3] and free[top:bottom, left:right].sum() == area:
                best = top, left, bottom - top, right - left
    return best


@pytest.mark.parametrize("seed", range(20))
def test_of_equally_large_rectangles_the_same_is_always_taken(seed):
    generator = np.random.default_rng(seed)
    corners = generator.integers(-2, 9, (generator.integers(1, 7), 2))
    boxes = np.concatenate(
        [corners, corners + generator.integers(1, 4, corners.shape)], axis=1
    ).astype(float)
    assert largest_empty_rectangle(boxes, 8) == slow_rectangle(boxes, 8)


@pytest.mark.parametrize("count", [400, 10_000])
def test_many_boxes_are_no_more_work_than_the_pixels(count):
    """Minutes an image, before; days for 10,000."""
    corners = np.random.default_rng(0).uniform(0, 1000, (count, 2))
    top, left, height, width = largest_empty_rectangle(
        np.concatenate([corners, corners + 3], axis=1), 1024
    )
    assert height * width >= 1024 * 20  # below or beside all of them
    x, y = corners.T
    assert ((x >= left + width) | (x + 3 <= left) | (y >= top + height) | (y + 3 <= top)).all()


def test_no_rectangle_is_left_where_a_box_covers_all():
    assert largest_empty_rectangle([[-5.0, -5, 50, 50]], 10)[2:] == (0, 0)
    # outside of the square
    assert largest_empty_rectangle([[20.0, 0, 30, 10]], 10) == (0, 0, 10, 10)
