import itertools

import numpy as np
import pytest
from conftest import meets_no_box

from memorization.measuring.boxes import largest_empty_rectangle


def slow_rectangle(boxes, size):
    """The largest rectangle of whole pixels, by trying all: the furthest left, then the least far
    to the right, then the uppermost.
    """
    free, pixel = np.ones((size, size), dtype=bool), np.arange(size)
    for xmin, ymin, xmax, ymax in boxes:
        rows, columns = (pixel < ymax) & (pixel + 1 > ymin), (pixel < xmax) & (pixel + 1 > xmin)
        free[np.ix_(rows, columns)] = False
    best = (0, 0, 0, 0)
    sides = itertools.combinations(range(size + 1), 2)
    for (left, right), (top, bottom) in itertools.product(sides, repeat=2):
        is_larger = (bottom - top) * (right - left) > best[2] * best[3]
        if is_larger and free[top:bottom, left:right].all():
            best = top, left, bottom - top, right - left
    return best


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_empty_rectangle_equals_the_best_of_all(seed):
    generator = np.random.default_rng(seed)
    corners = generator.uniform(-2, 12, (generator.integers(1, 6), 2))
    boxes = np.hstack([corners, corners + generator.uniform(0.1, 6, corners.shape)])
    rectangle = largest_empty_rectangle(boxes, 10)
    assert rectangle == slow_rectangle(boxes, 10) and meets_no_box(rectangle, boxes)


@pytest.mark.parametrize("seed", range(20))
def test_of_equally_large_rectangles_the_same_is_always_taken(seed):
    generator = np.random.default_rng(seed)
    corners = generator.integers(-2, 9, (generator.integers(1, 7), 2))
    boxes = np.hstack([corners, corners + generator.integers(1, 4, corners.shape)]).astype(float)
    assert largest_empty_rectangle(boxes, 8) == slow_rectangle(boxes, 8)


def test_no_rectangle_is_left_if_a_box_covers_all():
    assert largest_empty_rectangle([[-5.0, -5, 50, 50]], 10)[2:] == (0, 0)
    outside = [[20.0, 0, 30, 10]]
    assert largest_empty_rectangle(outside, 10) == (0, 0, 10, 10)
