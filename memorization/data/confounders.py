"""Confounders: warnings if subsets, which should differ in membership alone, share images or differ
in their classes.
"""

import itertools

import numpy as np

from memorization.data.subsets import SUBSETS
from memorization.machine.processes import on_first_process
from memorization.machine.screen import caution

FAR = 0.5  # share of the way from the distance of random splits to that of disjoint classes
RANDOM_SPLITS, ROUNDS = 1000, 10  # random splits of a round, and rounds


@on_first_process
def warn_of_confounders(subsets, images, settings):
    """Warn if images of two subsets are the same, or if the classes of two subsets hardly overlap.

    images: prepared ones; settings: SubsetSettings. Pixels of published data sets are hashed in a
    second or less; those of images in files were hashed when their map was made.
    """
    if subsets.role is not None:
        return
    twins = count_twins(subsets, images)
    if twins:
        pairs = ", ".join(f"{n} of {one} in {other}" for (one, other), n in twins.items())
        what = f"the same image (equal pixels) stands in two subsets: {pairs}"
        caution(f"subsets: {what}; such images are not what their subset says")
    distances = find_distant_classes(subsets, images)
    if distances:
        parts = [f"{' and '.join(pair)} ({share:.0%} differ)" for pair, share in distances.items()]
        in_file_order = settings.order == "file" and not settings.file
        advice = "; set subsets.order to shuffled" if in_file_order else ""
        doubt = f"what differs between them may be the classes' doing{advice}"
        caution(f"subsets: classes hardly overlap: {', '.join(parts)}; {doubt}")


def count_twins(subsets, images):
    """{(one, other): how many images of one subset have the pixels of an image of the other},
    without zeros.
    """
    digests = {}
    for name, split in SUBSETS.items():
        rows = getattr(images, split).digests_of(getattr(subsets, name))
        digests[name] = [row.tobytes() for row in rows]
    n_twins = {}
    for one, other in itertools.combinations(SUBSETS, 2):
        in_other = set(digests[other])
        n_equal = sum(digest in in_other for digest in digests[one])
        if n_equal:
            n_twins[one, other] = n_equal
    return n_twins


def find_distant_classes(subsets, images):
    """{(one, other): total variation distance of their classes, in [0, 1]} of the subsets that
    hardly overlap.

    Their distance is larger than that of every random split of their images, and at least FAR of
    the way from the mean of the random splits to 1. Images without a label do not count.
    """
    histograms = {}
    for name, split in SUBSETS.items():
        labels = getattr(images, split).labels.numpy()[getattr(subsets, name)]
        histograms[name] = np.bincount(labels[labels >= 0], minlength=len(images.classes))
    generator, distances = np.random.default_rng(0), {}
    for one, other in itertools.combinations(SUBSETS, 2):
        of_one, of_both = histograms[one], histograms[one] + histograms[other]
        if not 0 < of_one.sum() < of_both.sum():
            continue
        distance = _total_variation(of_one, histograms[other])
        if distance < FAR:
            continue
        for _ in range(ROUNDS):
            splits = generator.multivariate_hypergeometric(
                of_both, of_one.sum(), RANDOM_SPLITS, method="marginals"
            )
            by_chance = _total_variation(splits, of_both - splits)
            mean = by_chance.mean()
            if distance <= by_chance.max() or distance < mean + FAR * (1 - mean):
                break
        else:
            distances[one, other] = float(distance)
    return distances


def _total_variation(one, other):
    """Half the sum of the absolute differences of two histograms' shares, along their last axis."""
    shares, of_other = (values / values.sum(-1, keepdims=True) for values in (one, other))
    return np.abs(shares - of_other).sum(-1) / 2
