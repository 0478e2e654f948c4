"""Groups of images that belong together, such as those of one patient, or the copies of one image:
drawing subsets none of which has a part of a group while another subset has another part.
"""

from bisect import bisect_right
from collections import deque
from typing import NamedTuple

import numpy as np

from memorization.errors import WrongUse


class Sizes(NamedTuple):
    """How many images are to be drawn. pool: S_C and S_I together, an even number."""

    shared: int
    pool: int
    external: int


class GroupedDraw(NamedTuple):
    """Indices of images, int64. shared, external: (n,). pairs: (pool / 2, 2), of S_C and S_I side
    by side. blocks: (pool / 2,), the number of the block of each pair, ascending from 0: the left
    images of a block and its right ones are of different groups, and no group is in two blocks.
    """

    shared: np.ndarray
    pairs: np.ndarray
    blocks: np.ndarray
    external: np.ndarray


def draw_by_groups(order, groups, sizes):
    """The GroupedDraw of images in an order, of exactly these sizes, that divides no group.

    order: {"train": (n,) indices, "test": ...}, in which images are drawn, such as a permutation;
    groups: {"train": (N,) int64, "test": ...}, equal for images of one group, of either split, and
    for no others; sizes: Sizes. Subsets are filled with whole groups in order; a group that is too
    large is passed over. If no whole group fits, a part of the smallest is taken, and its other
    images are in no subset. Groups of the pool face groups of equal size, or several smaller ones;
    what is too much on a side is left out likewise. A group in both splits is drawn in the training
    set, or in the test set if only that suffices. Raises WrongUse, naming what can be had, if there
    are too few images.
    """
    draw = _draw_train_first(order, groups, sizes)
    if _sizes_of(draw) != sizes:
        other = _draw_test_first(order, groups, sizes)
        draw = other if _sizes_of(other) == sizes else draw
    n_groups = len(np.unique(np.concatenate([groups[split][order[split]] for split in order])))
    for name, size, n_images in zip(Sizes._fields, sizes, _sizes_of(draw)):
        if n_images < size:
            name = "candidate + independent (pool)" if name == "pool" else name
            have = f"but {n_images} is the most that was reached without dividing a group"
            raise WrongUse(f"subsets: {name} is {size}, {have} ({n_groups} groups)")
    return draw


def _sizes_of(draw):
    return Sizes(len(draw.shared), draw.pairs.size, len(draw.external))


def _draw_train_first(order, groups, sizes):
    shared, pairs, blocks = _draw_train(order["train"], groups["train"], sizes)
    used = np.concatenate([groups["train"][shared], groups["train"][pairs.flatten()]])
    test = order["test"][~np.isin(groups["test"][order["test"]], used)]
    external, _ = _fill(members_of(test, groups["test"]), sizes.external)
    return GroupedDraw(shared, pairs, blocks, external)


def _draw_test_first(order, groups, sizes):
    external, _ = _fill(members_of(order["test"], groups["test"]), sizes.external)
    used = groups["test"][external]
    train = order["train"][~np.isin(groups["train"][order["train"]], used)]
    return GroupedDraw(*_draw_train(train, groups["train"], sizes), external)


def _draw_train(order, groups, sizes):
    """(shared, pairs, blocks) of a GroupedDraw."""
    shared, rest = _fill(members_of(order, groups), sizes.shared)
    return shared, *pair_groups(rest, sizes.pool // 2)


def members_of(order, groups):
    """The images of each group, a list of arrays; groups and images in the order of `order`."""
    _, firsts, inverse = np.unique(groups[order], return_index=True, return_inverse=True)
    firsts = firsts[inverse]  # of every image, the place of the first one of its group
    by_group = np.argsort(firsts, kind="stable")
    bounds = np.flatnonzero(np.diff(firsts[by_group])) + 1
    return np.split(order[by_group], bounds) if len(order) else []


def _fill(members, size):
    """(images of whole groups in order, (n,) with n at most size; the groups that are left). If
    whole groups do not fill it, a part of the smallest that is left does.
    """
    chosen, rest, room = [np.empty(0, dtype=np.int64)], [], size
    for group in members:
        if len(group) <= room:
            chosen.append(group)
            room -= len(group)
        else:
            rest.append(group)
    if room and rest:  # all of them are larger than the room
        smallest = min(range(len(rest)), key=lambda place: len(rest[place]))
        chosen.append(rest.pop(smallest)[:room])
    return np.concatenate(chosen), rest


def pair_groups(members, n_pairs):
    """(pairs (n, 2), blocks (n,)) of a GroupedDraw, from as few groups as suffice, in order; n is
    less than n_pairs if all groups do not suffice. members: the images of each group, arrays.
    """
    ends, n_images = np.cumsum([len(group) for group in members]), 2 * n_pairs
    while True:
        n_groups = min(int(np.searchsorted(ends, n_images)) + 1, len(members))
        pairs, blocks = _pair_all(members[:n_groups])
        missing = n_pairs - len(pairs)
        if missing <= 0 or n_groups == len(members):
            return pairs[:n_pairs], blocks[:n_pairs]
        n_images = ends[n_groups - 1] + 2 * missing


def _pair_all(members):
    """(pairs, blocks) of all groups: the largest faces the largest that fit beside it, until
    nothing does; the images that then face none are left out.
    """
    by_size = {}
    for group in members:
        by_size.setdefault(len(group), deque()).append(group)
    sizes = sorted(by_size)

    def take(place):
        size = sizes[place]
        group = by_size[size].popleft()
        if not by_size[size]:
            sizes.pop(place)
        return group

    pairs, lengths = [np.empty((0, 2), dtype=np.int64)], []
    while sizes:
        one, others = take(-1), []
        room = len(one)
        while room and bisect_right(sizes, room):
            others.append(take(bisect_right(sizes, room) - 1))
            room -= len(others[-1])
        if others:
            sides = [one[: len(one) - room], np.concatenate(others)]
            # neither side has the larger groups in every block
            pairs.append(np.stack(sides if len(lengths) % 2 else sides[::-1], axis=1))
            lengths.append(len(one) - room)
    return np.concatenate(pairs), np.repeat(np.arange(len(lengths)), lengths)
