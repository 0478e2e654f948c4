"""Which samples to remove: policies that rank a training set, and near duplicates that are removed
together.
"""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from scipy.cluster.vq import kmeans2
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from memorization.data.randomness import permutation
from memorization.fields import Distinct
from memorization.normalization import normalize_rows
from models.settings import Settings

# the policies with chance in them, drawn `removal.draws` times
DRAWN = ("random", "random_matched")
MOST_DUPLICATES = 100  # a sample, on average
NEIGHBORS_AT_ONCE = 1024  # rows of the similarity matrix made at a time


class RemovalSettings(Settings):
    counts: Annotated[list[Annotated[int, Field(ge=1)]], Distinct] = Field(
        [], description="how many samples to remove from f's training set"
    )
    percentages: Annotated[list[Annotated[float, Field(gt=0, lt=100)]], Distinct] = Field(
        [], description="the same as shares of the ranked samples, in per cent"
    )
    policies: Annotated[
        list[Literal["memorized", "least", "random", "random_matched", "typical"]],
        Field(min_length=1),
        Distinct,
    ] = Field(
        ["memorized", "random"],
        description="most or least memorized first, by chance, by chance with the classes of the most memorized, or closest to the "
        "centres of clusters of g's representations",
    )
    draws: int = Field(2, ge=1, le=1000, description="draws of each policy with chance in it")
    candidates_only: bool = Field(
        False, description="with shared samples, which have no score: rank the candidates alone"
    )
    fixed_steps: bool = Field(
        True,
        description="train a smaller set for more epochs, as many steps as the whole one takes",
    )
    clusters: int | None = Field(
        None, ge=1, description="typical: clusters of k-means; null for the number of classes"
    )
    group_duplicates: bool = Field(
        False, description="remove near duplicates together, by every policy alike"
    )
    duplicates_in: Literal["pixels", "g"] = Field(
        "pixels", description="near duplicates are found in pixels or in g's representations"
    )
    duplicate_similarity: float = Field(
        0.95,
        gt=0,
        le=1,
        description="cosine similarity, the mean taken away, from which two are duplicates",
    )

    PLAIN: ClassVar = {}  # see ScoreSettings

    def determining(self):
        """The names of the settings that determine the numbers of a result."""
        names = ["counts", "percentages", "policies", "fixed_steps", "group_duplicates"]
        names += ["draws"] if set(DRAWN) & set(self.policies) else []
        names += ["clusters"] if "typical" in self.policies else []
        return names + (["duplicates_in", "duplicate_similarity"] if self.group_duplicates else [])


def removal_order(policy, scores, labels, count, seed, typicality=None, groups=None):
    """Positions in the training set in the order in which a policy removes them, (N,) int64.

    policy: "memorized" (highest score first), "least" (lowest first), "random", "random_matched"
    (first as many of each class as are among the `count` that "memorized" removes), "typical"
    (least distance first). scores: (N,) memorization scores; labels: (N,), -1 where there is none;
    seed: of the draw; typicality: (N,) distances, of `distances_to_centres`; groups: as in
    `remove_in_order`.
    """
    by_score = np.argsort(-scores, kind="stable")
    if policy == "memorized":
        return by_score
    if policy == "least":
        return np.argsort(scores, kind="stable")
    if policy == "typical":
        return np.argsort(typicality, kind="stable")
    # no draw of one policy is that of another
    chance = permutation(len(scores), seed, "removal", epoch=DRAWN.index(policy)).numpy()
    if policy == "random":
        return chance
    of_memorized = labels[remove_in_order(by_score, count, groups)]
    wanted = {label: (of_memorized == label).sum() for label in np.unique(labels)}
    of_class = {label: chance[labels[chance] == label] for label in wanted}
    matched = np.isin(
        chance, np.concatenate([of_class[label][: wanted[label]] for label in wanted])
    )
    return np.concatenate([chance[matched], chance[~matched]])


def remove_in_order(order, count, groups=None):
    """The first `count` positions of an order, (count,) int64, sorted; near duplicates together.

    groups: (N,) int64, the group of every position, or None where each is alone. A group is taken
    when its first member is met; one that would go beyond the count is left for later, so that
    every policy ends at exactly the same number. Raises ValueError where none does.
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

    values: (N, D), pixels or representations, compared after their mean over samples is taken away.
    Raises ValueError where a sample has more than MOST_DUPLICATES of them on average: the threshold
    is then too low to tell anything, and its links would fill the memory.
    """
    values = np.ldexp(values, -np.frexp(np.abs(values).max())[1])  # else a sum may overflow
    values = normalize_rows(values - values.mean(0))
    rows, columns = [], []
    for start in range(0, len(values), NEIGHBORS_AT_ONCE):
        near, others = np.nonzero(values[start : start + NEIGHBORS_AT_ONCE] @ values.T >= threshold)
        rows.append(near + start)
        columns.append(others)
        if sum(map(len, rows)) > MOST_DUPLICATES * len(values):
            raise ValueError(
                f"more than {MOST_DUPLICATES} near duplicates a sample at a similarity of {threshold}"
            )
    rows, columns = np.concatenate(rows), np.concatenate(columns)
    links = csr_matrix(
        (np.ones(len(rows), dtype=bool), (rows, columns)), shape=(len(values), len(values))
    )
    return connected_components(links, directed=False)[1].astype(np.int64)


def distances_to_centres(values, clusters, seed):
    """How far each sample lies from the centre of its own cluster, (N,): small means typical.

    values: (N, D) representations, l2-normalized here; clusters: of k-means (Sorscher et al. 2022
    prune by this distance). Raises ValueError where every sample is a centre of its own, or all are
    alike.
    """
    values = normalize_rows(values)
    if clusters >= len(values) or np.ptp(values, axis=0).max() < 1e-6:
        raise ValueError(
            f"{clusters} clusters of {len(values)} samples, or samples that are all alike, tell nothing of what is typical"
        )
    centres, nearest = kmeans2(
        values.astype(np.float64), clusters, iter=100, minit="++", rng=np.random.default_rng(seed)
    )
    return np.linalg.norm(values - centres[nearest], axis=1)
