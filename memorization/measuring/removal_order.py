"""The order in which a policy removes samples, and groups of near duplicates."""

from dataclasses import dataclass

import numpy as np
import scipy

from memorization.data.randomness import permutation
from memorization.normalization import normalize_rows

# The policies with chance in them, which are drawn `removal.draws` times.
DRAWN = ("random", "random_matched")
MOST_DUPLICATES = 100  # a sample, on average
ROWS_AT_ONCE = 1024  # of the similarity matrix


@dataclass(frozen=True, eq=False)
class RankedSamples:
    """The samples that may be removed, in the order of the training set: N of them.

    index: (N,) int64, in the training set; label: (N,), -1 if there is none; score: (N,)
    memorization scores, means over seeds; typicality: (N,) distances, of `distances_to_centres`;
    groups: (N,) int64, of `duplicate_groups`, or None if each sample is alone; q: (N,) of the
    scores, against S_E.
    """

    index: np.ndarray
    label: np.ndarray
    score: np.ndarray
    seeds: list
    typicality: np.ndarray | None = None
    groups: np.ndarray | None = None
    q: np.ndarray | None = None

    def __len__(self):
        return len(self.index)

    def count_groups(self):
        """The number of groups of several near duplicates, or None if they were not looked for."""
        return None if self.groups is None else int((np.bincount(self.groups) > 1).sum())


def removal_order(policy, samples, count, seed):
    """Positions among RankedSamples in the order in which a policy removes them, (N,) int64.

    policy: "memorized" (highest score first), "least" (lowest first), "random", "random_matched"
    (first as many of each class as are among the `count` that "memorized" removes), "typical"
    (least distance first). seed: of the draw.
    """
    by_score = np.argsort(-samples.score, kind="stable")
    if policy == "memorized":
        return by_score
    if policy == "least":
        return np.argsort(samples.score, kind="stable")
    if policy == "typical":
        return np.argsort(samples.typicality, kind="stable")
    # The policies share no draw.
    chance = permutation(len(samples), seed, "removal", epoch=DRAWN.index(policy)).numpy()
    if policy == "random":
        return chance
    of_memorized = samples.label[remove_in_order(by_score, count, samples.groups)]
    first = []
    for label in np.unique(samples.label):
        of_class = chance[samples.label[chance] == label]
        first.append(of_class[: (of_memorized == label).sum()])
    matched = np.isin(chance, np.concatenate(first))
    return np.concatenate([chance[matched], chance[~matched]])


def remove_in_order(order, count, groups=None):
    """The first `count` positions of an order, (count,) int64, sorted; near duplicates together.

    groups: (N,) int64, the group of every position, or None if each is alone. A group is removed
    when its first member is met. A group that would exceed the count is skipped, so that every
    policy removes exactly the same number. Raises ValueError if the groups do not add up to it.
    """
    if groups is None:
        return np.sort(order[:count])
    members = {}
    for position in order:
        members.setdefault(groups[position], []).append(position)
    removed = []
    for group in members.values():  # in the order in which their first members were met
        if len(removed) + len(group) <= count:
            removed += group
    if len(removed) != count:
        raise ValueError(f"groups of near duplicates add up to {len(removed)}, not to {count}")
    return np.sort(np.array(removed, dtype=np.int64))


def duplicate_groups(values, threshold):
    """The group of near duplicates of every sample, (N,) int64: samples linked by a cosine
    similarity of at least `threshold`.

    values: (N, D), pixels or representations. Their mean over samples is subtracted first. Raises
    ValueError if a sample has more than MOST_DUPLICATES of them on average: the threshold is then
    too low to tell anything, and its links would fill the memory.
    """
    values = np.ldexp(values, -np.frexp(np.abs(values).max())[1])  # else a sum may overflow
    values = normalize_rows(values - values.mean(0))
    rows, columns = [], []
    for start in range(0, len(values), ROWS_AT_ONCE):
        near, others = np.nonzero(values[start : start + ROWS_AT_ONCE] @ values.T >= threshold)
        rows.append(near + start)
        columns.append(others)
        if sum(map(len, rows)) > MOST_DUPLICATES * len(values):
            too_many = f"more than {MOST_DUPLICATES} near duplicates a sample"
            raise ValueError(f"{too_many} at a similarity of {threshold}")
    rows, columns = np.concatenate(rows), np.concatenate(columns)
    ones, shape = np.ones(len(rows), dtype=bool), (len(values), len(values))
    links = scipy.sparse.csr_matrix((ones, (rows, columns)), shape=shape)
    return scipy.sparse.csgraph.connected_components(links, directed=False)[1].astype(np.int64)


def distances_to_centres(values, clusters, seed):
    """The distance of each sample from the centre of its cluster, (N,): small means typical.

    values: (N, D) representations, l2-normalized here; clusters: of k-means (Sorscher et al. 2022
    prune by this distance). Raises ValueError if every sample would be a centre, or if all samples
    are alike.
    """
    values = normalize_rows(values)
    if clusters >= len(values) or np.ptp(values, axis=0).max() < 1e-6:
        too_few = f"{clusters} clusters of {len(values)} samples, or samples that are all alike"
        raise ValueError(f"{too_few}, tell nothing of what is typical")
    centres, nearest = scipy.cluster.vq.kmeans2(
        values.astype(np.float64), clusters, iter=100, minit="++", rng=np.random.default_rng(seed)
    )
    return np.linalg.norm(values - centres[nearest], axis=1)
