"""Duplicates: groups of images whose pixels are equal, or nearly so.

Nearly equal are copies that were compressed, resized, cropped by a little, made brighter or darker,
or mirrored. Images are compared by fingerprints, shrunk gray images without mean and scale. Two are
near duplicates if they are far closer to each other than other images are to either of them.
"""

from dataclasses import dataclass

import numpy as np
import scipy
import torch
from tqdm import tqdm

from memorization.data.subsets import SUBSETS
from memorization.machine import processes

CELLS = 12  # height and width of a fingerprint
# Two images are near duplicates if their distance is at most FACTOR * spacing**POWER, where spacing
# is the distance from either of them to its RANK-th nearest image: the more alike images are
# anyway, the closer duplicates must be. Measured on Fashion-MNIST, see docs/images.md.
FACTOR, POWER = 0.37, 1.25
CLOSE, FAR = 0.03, 0.45  # up to CLOSE any two images are near duplicates, beyond FAR none are
LEAST_RANK, RANK = 5, 20  # the spacing of fewer than 200 images is at a lower rank
# Spacings are those of a sample of the images, every STEP-th one, if there are so many.
STEP, SAMPLE = 10, 400
VALUES = 1 << 20  # of images shrunk at a time, few enough for a CPU's cache
# Fingerprints compared at a time: on a CPU so few that their products are in its cache.
ROWS, COLUMNS, COLUMNS_ON_GPU = 512, 2048, 1 << 17
CHECKED = 1 << 15  # pairs whose distances are computed in float64 at a time
ROUNDING = 1e-5  # bound on the error of a product in float32
TOLERANCE = 1e-3  # relative, by which a threshold may change without new comparisons


@dataclass(frozen=True, eq=False)
class Duplicates:
    """groups: (n,) int64, equal for duplicates of each other; they are numbered in the order of
    their first images. An image without a duplicate is a group of its own. pixels: (n,) int64,
    equal for images of equal pixels. distances: (n,) float64, to the nearest other image of the
    group: 0 if it has the same pixels, infinite if there is none.
    """

    groups: np.ndarray
    pixels: np.ndarray
    distances: np.ndarray

    @property
    def repeated(self):
        """Whether each image has a duplicate, (n,) bool."""
        return np.isfinite(self.distances)

    @property
    def is_exact(self):
        """Whether each image has the pixels of another one, (n,) bool."""
        return np.bincount(self.pixels)[self.pixels] > 1


def find_duplicates(digests, fingerprints, device):
    """The Duplicates among n images.

    digests: (n, bytes) uint8, equal if the pixels are; fingerprints: (n, D) float32, of
    `fingerprints_of`; device: on which they are compared. That takes time in proportion to n
    squared, and memory in proportion to n.
    """
    pixels = number_digests(digests)
    firsts = np.unique(pixels, return_index=True)[1]
    vectors = fingerprints[firsts]  # one image of each kind of pixels
    halves = [half.to(device) for half in _halves(vectors)]
    of_firsts = _group(vectors, halves)
    distances = _nearest_distances(vectors, of_firsts)[pixels]
    distances[np.bincount(pixels)[pixels] > 1] = 0.0
    return Duplicates(_in_order(of_firsts[pixels]), pixels, distances)


def nearest_images(fingerprints, rows, count, device):
    """The nearest other images of some images, by the distance of their fingerprints, the smaller
    one of an image and its mirror image.

    fingerprints: (n, D) float32, of `fingerprints_of`; rows: (r,) int64, images; count: of
    neighbours, less than n; device: on which they are compared. Returns (r, count) int64, images,
    the nearest first, and their distances, (r, count) float64.
    """
    halves = [half.to(device) for half in _halves(fingerprints)]
    nearest = []
    for start in range(0, len(rows), ROWS):
        part = torch.from_numpy(rows[start : start + ROWS]).to(device)
        products = _products([half[part] for half in halves], halves)
        products.scatter_(1, part[:, None], -2)  # not the image itself
        nearest.append(products.topk(count, dim=1).indices.cpu())
    nearest = torch.cat(nearest).numpy()
    distances = _distances(fingerprints, np.repeat(rows, count), nearest.ravel())
    distances = distances.reshape(nearest.shape)
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(nearest, order, 1), np.take_along_axis(distances, order, 1)


def number_digests(digests):
    """(n,) int64, equal if digests (n, bytes) uint8 are."""
    rows = np.ascontiguousarray(digests).view(f"V{digests.shape[1]}")[:, 0]
    return np.unique(rows, return_inverse=True)[1]


def _in_order(groups):
    """Groups numbered in the order of their first images."""
    _, firsts, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(firsts))[inverse]


def digests_of_subsets(subsets, images):
    """Digests of the pixels of all images of Subsets, (n, bytes) uint8, in the order of SUBSETS,
    then by index.
    """
    return np.concatenate(
        [
            getattr(images, split).digests_of(np.sort(getattr(subsets, name)))
            for name, split in SUBSETS.items()
        ]
    )


def fingerprints_of_subsets(subsets, images):
    """Fingerprints of the same images in the same order, see `fingerprints_of`."""
    return np.concatenate(
        [
            fingerprints_of(getattr(images, split), np.sort(getattr(subsets, name)))
            for name, split in SUBSETS.items()
        ]
    )


# --- fingerprints -------------------------------------------------------------------------------


def fingerprints_of(split, indices):
    """Fingerprints of the images of a Split, (n, CELLS**2) float32: the gray image shrunk to CELLS
    x CELLS pixels, less its mean, of length 1; 0 for an image of one gray. indices: (n,) int64.

    Their products are the same on every machine: pixels are summed as integers.
    """
    weights = torch.from_numpy(_cell_weights(split.size))
    fingerprints = torch.empty(len(indices), CELLS * CELLS)
    at_once = max(1, VALUES // split.pixels[0].numel()) if len(split.pixels) else 1
    parts = torch.as_tensor(indices).split(at_once)
    for out, part in zip(fingerprints.split(at_once), parts):
        gray = split.gather(part).sum(1, dtype=torch.int16).float()  # (B, S, S)
        cells = (gray @ weights.T).double()  # (B, S, CELLS), whole numbers less than 2**24
        cells = (weights.double() @ cells).flatten(1)
        cells -= cells.mean(1, keepdim=True)
        out[:] = cells / torch.linalg.vector_norm(cells, dim=1, keepdim=True).clamp(min=1.0)
    return fingerprints.numpy()


def _cell_weights(size):
    """How many CELLS-ths of every one of `size` pixels lie in each of CELLS equal cells,
    (CELLS, size) float32, whole numbers.
    """
    cells, pixels = np.arange(CELLS)[:, None] * size, np.arange(size) * CELLS
    overlap = np.minimum(cells + size, pixels + CELLS) - np.maximum(cells, pixels)
    return overlap.clip(min=0).astype(np.float32)


def _halves(vectors):
    """The even and the odd half of fingerprints, two tensors (n, D / 2): the product of two images
    is the sum of those of their halves, and if one is mirrored, their difference.
    """
    images = torch.from_numpy(vectors).view(-1, CELLS, CELLS)
    left, right = images[:, :, : CELLS // 2], images[:, :, CELLS // 2 :].flip(2)
    halves = (left + right) / 2**0.5, (left - right) / 2**0.5
    return tuple(half.flatten(1).contiguous() for half in halves)


def _products(one, other):
    """Products of fingerprints, the larger one of an image and its mirror image: (p, q), of the
    halves of p and of q.
    """
    even, odd = (a @ b.T for a, b in zip(one, other))
    return even.add_(odd.abs_())


def _distances(vectors, rows, columns):
    """Distances of pairs of fingerprints in float64, (n,), the smaller one of an image and its
    mirror image. rows, columns: (n,) int64.
    """
    distances = np.empty(len(rows))
    for start in range(0, len(rows), CHECKED):
        part = slice(start, start + CHECKED)
        one, other = (vectors[side[part]].astype(np.float64) for side in (rows, columns))
        mirrored = other.reshape(-1, CELLS, CELLS)[:, :, ::-1].reshape(one.shape)
        least = np.minimum(((one - other) ** 2).sum(1), ((one - mirrored) ** 2).sum(1))
        distances[part] = np.sqrt(least)
    return distances


# --- near duplicates ----------------------------------------------------------------------------


def _group(vectors, halves):
    """The number of the group of each image, (n,) int64: near duplicates of one image are in one
    group.

    Copies that were found do not count as what lies around an image. So distances that were too
    large beside them may do without them, and images are compared again.
    """
    groups, thresholds = np.arange(len(vectors)), np.zeros(len(vectors))
    while True:
        larger = _thresholds(halves, groups)
        changed = larger > thresholds * (1 + TOLERANCE)
        thresholds[changed] = larger[changed]
        joined = _connect(vectors, halves, thresholds, np.flatnonzero(changed), groups)
        if np.array_equal(joined, groups):
            return groups
        groups = joined


def _thresholds(halves, groups):
    """The largest distance at which another image is a near duplicate of each, (n,) float64."""
    n_images, device = len(groups), halves[0].device
    step = min(max(n_images // SAMPLE, 1), STEP)
    rank = max(LEAST_RANK, min(n_images // 10, RANK) // step)
    sample = np.arange(0, n_images, step)
    sample = sample[np.sort(np.unique(groups[sample], return_index=True)[1])]  # one of each group
    if rank >= len(sample):
        return np.full(n_images, CLOSE)
    of_images = torch.from_numpy(groups).to(device)
    of_sample, own_groups = [half[sample] for half in halves], of_images[sample]
    products_at_rank = []
    for start in range(0, n_images, ROWS):
        rows = slice(start, start + ROWS)
        products = _products([half[rows] for half in halves], of_sample)
        products.masked_fill_(of_images[rows, None] == own_groups, -1)  # they are not around it
        products_at_rank.append(products.topk(rank, dim=1).values[:, -1])
    spacings = (2 - 2 * torch.cat(products_at_rank).double()).clamp(min=0).sqrt().cpu().numpy()
    return (FACTOR * spacings**POWER).clip(CLOSE, FAR)


def _connect(vectors, halves, thresholds, rows, groups):
    """The groups, (n,) int64, after those of near duplicates are joined. rows: (r,) int64, images
    that are compared with all, ascending.
    """
    n_images, device = len(vectors), halves[0].device
    width = COLUMNS if device.type == "cpu" else COLUMNS_ON_GPU
    least = torch.from_numpy(1 - thresholds**2 / 2 - ROUNDING).float().to(device)
    starts = tqdm(
        range(0, len(rows), ROWS), "comparing images", leave=False, disable=processes.hidden_bar()
    )
    for start in starts:
        part = rows[start : start + ROWS]
        of_part, own = [half[part] for half in halves], least[part]
        for first in range(start if len(rows) == n_images else 0, n_images, width):
            others = slice(first, first + width)
            products = _products(of_part, [half[others] for half in halves])
            hits = (products.amax(1) >= own).nonzero()[:, 0]
            near = products[hits] >= torch.maximum(own[hits, None], least[others])
            one, other = near.nonzero().T
            one, other = part[hits[one].cpu().numpy()], first + other.cpu().numpy()
            groups = _join_near(groups, vectors, thresholds, one, other)
    return groups


def _join_near(groups, vectors, thresholds, rows, columns):
    """The groups after those of pairs of images are joined that are near duplicates."""
    for start in range(0, len(rows), CHECKED):
        one, other = rows[start : start + CHECKED], columns[start : start + CHECKED]
        apart = groups[one] != groups[other]
        one, other = one[apart], other[apart]
        least = np.minimum(thresholds[one], thresholds[other])
        near = _distances(vectors, one, other) <= least
        if near.any():
            groups = join_groups(groups, one[near], other[near])
    return groups


def join_groups(groups, rows, columns):
    """The groups, (n,) int64, after those of pairs of images are joined; numbers below n. groups:
    (n,) int64, numbers below n; rows, columns: (p,) int64, images.
    """
    links = np.ones(len(rows), dtype=bool), (groups[rows], groups[columns])
    graph = scipy.sparse.coo_array(links, shape=(len(groups),) * 2)
    return scipy.sparse.csgraph.connected_components(graph)[1][groups]


def _nearest_distances(vectors, groups):
    """The distance of each image to the nearest other one of its group, (n,) float64, infinite if
    there is none.
    """
    distances = np.full(len(vectors), np.inf)
    order = np.argsort(groups, kind="stable")
    bounds = np.flatnonzero(np.diff(groups[order])) + 1
    for members in np.split(order, bounds):
        if len(members) == 1:
            continue
        halves = _halves(vectors[members])
        for start in range(0, len(members), ROWS):
            products = _products([half[start : start + ROWS] for half in halves], halves)
            products.diagonal(start).fill_(-2)
            nearest = members[products.argmax(1).numpy()]
            rows = members[start : start + ROWS]
            distances[rows] = _distances(vectors, rows, nearest)
    return distances
