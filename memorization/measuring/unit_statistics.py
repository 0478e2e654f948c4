"""What is kept of the activations of units while images go by: as much for many images as for few.

Every process keeps its own statistics, which are merged at the end. They do not depend on the order
of the images, but for the rounding of sums.
"""

import tempfile
from contextlib import contextmanager

import numpy as np

from memorization.errors import WrongUse
from memorization.machine import processes
from memorization.machine.files import reason_of

TOP = 5  # images that are kept of every unit, those that fire it most
MEDIANS_TOGETHER = 2**22  # values that are read at a time
NO_IMAGE = np.iinfo(np.int64).max  # a place for an image that is still empty


class UnitStatistics:
    """Running statistics of U units over images.

    n: images so far. total, squares: sums of the activations and of their squares; lowest: the
    smallest one, (U,) float64 each. top_values, top_indices: (TOP, U), the largest activations in
    descending order and their images; of equal ones the lowest index comes first.
    """

    def __init__(self, n_units):
        self.n = 0
        self.total, self.squares = np.zeros(n_units), np.zeros(n_units)
        self.lowest = np.full(n_units, np.inf)
        self.top_values = np.full((TOP, n_units), -np.inf)
        self.top_indices = np.full((TOP, n_units), NO_IMAGE)

    def add(self, activations, indices):
        """Count more images. activations: (B, U), finite; indices: (B,) int64, of the images."""
        activations = activations.astype(np.float64)
        self.n += len(activations)
        self.total += activations.sum(0)
        self.squares += np.square(activations).sum(0)
        self.lowest = np.minimum(self.lowest, activations.min(0))
        self._add_to_top(*_largest(activations, indices))

    def merge(self, other):
        """Count the images of other UnitStatistics, none of which is in these."""
        self.n += other.n
        self.total += other.total
        self.squares += other.squares
        self.lowest = np.minimum(self.lowest, other.lowest)
        self._add_to_top(other.top_values, other.top_indices)

    def _add_to_top(self, values, indices):
        values = np.concatenate([self.top_values, values])
        indices = np.concatenate([self.top_indices, indices])
        order = np.lexsort((indices, -values), axis=0)[:TOP]
        self.top_values = np.take_along_axis(values, order, axis=0)
        self.top_indices = np.take_along_axis(indices, order, axis=0)

    @property
    def highest(self):
        """The largest activation of every unit, (U,)."""
        return self.top_values[0]

    @property
    def mean(self):
        """The mean activation of every unit, (U,)."""
        return self.total / self.n

    @property
    def mean_of_rest(self):
        """The mean over all images but the one with the largest activation, (U,)."""
        return (self.total - self.highest) / (self.n - 1)

    @property
    def std(self):
        """The standard deviation (n - 1) over the images, (U,)."""
        squares = self.squares - self.n * np.square(self.mean)
        return np.sqrt(np.maximum(squares, 0) / (self.n - 1))


def _largest(activations, indices):
    """The TOP largest activations of every unit, or all if there are fewer, and their images, two
    arrays (TOP, U); of equal ones the lowest indices. activations: (B, U); indices: (B,).
    """
    order = np.argsort(indices)
    by_unit, indices = activations[order].T.copy(), indices[order]  # (U, B)
    units, values, images = np.arange(len(by_unit)), [], []
    for _ in range(min(TOP, len(indices))):
        place = by_unit.argmax(1)  # of equal ones the first
        values.append(by_unit[units, place])
        images.append(indices[place])
        by_unit[units, place] = -np.inf
    return np.stack(values), np.stack(images)


class ClassSums:
    """Sums of the activations of U units over the images of every class.

    counts: (classes,) int64, images so far; totals: (classes, U) float64. Images without a label
    are passed over.
    """

    def __init__(self, n_classes, n_units):
        self.counts = np.zeros(n_classes, dtype=np.int64)
        self.totals = np.zeros((n_classes, n_units))

    def add(self, activations, labels):
        """Count more images. activations: (B, U); labels: (B,) int64, -1 for none."""
        has_label = labels >= 0
        np.add.at(self.counts, labels[has_label], 1)
        np.add.at(self.totals, labels[has_label], activations[has_label].astype(np.float64))

    def merge(self, other):
        """Count the images of other ClassSums."""
        self.counts += other.counts
        self.totals += other.totals

    @property
    def labels(self):
        """The classes that have an image, (C,) int64."""
        return np.flatnonzero(self.counts)

    @property
    def means(self):
        """The mean activation over the images of each of these classes, (C, U)."""
        return self.totals[self.labels] / self.counts[self.labels, None]


class StoredActivations:
    """All activations of U units, in a temporary file without a name, for medians. Memory holds a
    part of them at a time. Raises WrongUse if the file cannot be written.
    """

    def __init__(self, n_units):
        self.n, self.n_units = 0, n_units
        with _refuse_full_disk():
            self._file = tempfile.TemporaryFile()

    def add(self, activations):
        """Keep those of more images. activations: (B, U) float32."""
        self.n += len(activations)
        with _refuse_full_disk():
            self._file.write(np.ascontiguousarray(activations, dtype=np.float32).tobytes())
            self._file.flush()

    def median_of_rest(self, n_images):
        """The median over all images but the one with the largest activation, (U,) float64. All
        processes take part. n_images: of all processes together.
        """
        together = max(1, MEDIANS_TOGETHER // n_images)
        starts = range(0, self.n_units, together)
        return np.concatenate([self._median(slice(start, start + together)) for start in starts])

    def _median(self, units):
        parts = range(processes.count())
        shares = processes.map_in_processes(lambda _: self._read(units), parts, "medians")
        return median_of_rest(np.concatenate(shares))

    def _read(self, units):
        """The activations of a slice of units, (n, units)."""
        if not self.n:
            return np.empty((0, len(range(self.n_units)[units])), dtype=np.float32)
        stored = np.memmap(self._file, np.float32, mode="r", shape=(self.n, self.n_units))
        return np.array(stored[:, units])


@contextmanager
def _refuse_full_disk():
    """Turn an error of the file system into WrongUse that names the folder of temporary files."""
    try:
        yield
    except OSError as error:
        full = f"{tempfile.gettempdir()}: cannot be written ({reason_of(error)})"
        kept = "all activations are kept there for medians; TMPDIR names another folder"
        raise WrongUse(f"units.center: median: {full}; {kept}") from None


def median_of_rest(values):
    """The median of the values in every column but for the largest one, (U,) float64. values: (N,
    U), N >= 2.
    """
    return np.median(np.sort(values, axis=0)[:-1].astype(np.float64), axis=0)


def merge_processes(statistics, name):
    """The statistics of all processes together, which each process gets. statistics: of this one,
    UnitStatistics or ClassSums; name: of the work, at its bar.
    """
    shares = processes.map_in_processes(lambda _: statistics, range(processes.count()), name)
    for other in shares[1:]:
        shares[0].merge(other)
    return shares[0]
