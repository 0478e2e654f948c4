"""Confounders: warnings if subsets, which should differ in membership alone, share images or differ
in their classes.
"""

import itertools
from collections import Counter

import numpy as np
import scipy

from memorization.data.duplicates import digests_of_subsets, number_digests
from memorization.data.subsets import SUBSETS
from memorization.errors import escape
from memorization.machine.processes import on_first_process
from memorization.machine.screen import caution, say

FAR = 0.5  # share of the way from the distance of random splits to that of disjoint classes
RANDOM_SPLITS, ROUNDS = 1000, 10  # random splits of a round, and rounds
# Classes of two subsets differ if chance seldom makes them so, by an effect that is not negligible:
# .1 is small (Cohen 1988, Statistical power analysis, section 7.2).
LARGEST_P, LEAST_V = 0.001 / 6, 0.1  # .001 for all six pairs of subsets
UNLABELLED = "(no label)"
MOST_PRINTED = 20  # classes


@on_first_process
def warn_of_confounders(subsets, images, settings):
    """Warn if images of two subsets, or of a crossover's pool, are the same, and if the classes of
    two subsets differ or hardly overlap.

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
    repeated = count_repeated(subsets, images) if subsets.scheme == "crossover" else 0
    if repeated:
        again = f"{repeated} images of the pool are the same (equal pixels) as another one of it"
        caution(f"subsets: {again}; where f has one and g the other, neither can stand out")
    in_file_order = settings.order == "file" and not settings.file
    advice = "; set subsets.order to shuffled" if in_file_order else ""
    distances = find_distant_classes(subsets, images)
    if distances:
        parts = [f"{' and '.join(pair)} ({share:.0%} differ)" for pair, share in distances.items()]
        doubt = f"what differs between them may be the classes' doing{advice}"
        caution(f"subsets: classes hardly overlap: {', '.join(parts)}; {doubt}")
    effects = find_unequal_classes(subsets, images)
    effects = {pair: effect for pair, effect in effects.items() if pair not in distances}
    if effects:
        parts = [f"{' and '.join(pair)} (Cramer's V {v:.2f})" for pair, v in effects.items()]
        doubt = f"a part of what differs between their scores may be the classes' doing{advice}"
        caution(f"subsets: classes are not equally frequent: {', '.join(parts)}; {doubt}")


def count_twins(subsets, images):
    """{(one, other): how many images of one subset have the pixels of an image of the other},
    without zeros.
    """
    numbers, n_twins = _number_pixels(subsets, images), {}
    for one, other in itertools.combinations(SUBSETS, 2):
        n_equal = int(np.isin(numbers[one], numbers[other]).sum())
        if n_equal:
            n_twins[one, other] = n_equal
    return n_twins


def count_repeated(subsets, images):
    """How many candidates, or images of a crossover's pool, have the pixels of another one."""
    _, counts = np.unique(_number_pixels(subsets, images)["candidate"], return_counts=True)
    return int(counts[counts > 1].sum())


def _number_pixels(subsets, images):
    """{subset: (n,) int64, equal for images with the same pixels}."""
    ends = np.cumsum([len(getattr(subsets, name)) for name in SUBSETS])[:-1]
    numbers = number_digests(digests_of_subsets(subsets, images))
    return dict(zip(SUBSETS, np.split(numbers, ends)))


def find_distant_classes(subsets, images):
    """{(one, other): total variation distance of their classes, in [0, 1]} of the subsets that
    hardly overlap.

    Their distance is larger than that of every random split of their images, and at least FAR of
    the way from the mean of the random splits to 1. Images without a label do not count.
    """
    histograms, distances = _histograms(subsets, images), {}
    generator = np.random.default_rng(0)
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
    shares, of_others = (values / values.sum(-1, keepdims=True) for values in (one, other))
    return np.abs(shares - of_others).sum(-1) / 2


def find_unequal_classes(subsets, images):
    """{(one, other): Cramer's V of their classes, in [0, 1]} of the subsets in which classes are
    not equally frequent: V is at least LEAST_V, and p of the chi-square at most LARGEST_P.

    Images without a label do not count.
    """
    histograms, effects = _histograms(subsets, images), {}
    for pair in itertools.combinations(SUBSETS, 2):
        test = compare_classes([histograms[name] for name in pair])
        if test and test["p"] <= LARGEST_P and test["cramers_v"] >= LEAST_V:
            effects[pair] = test["cramers_v"]
    return effects


def compare_classes(histograms):
    """The chi-square test that all subsets are of the same classes: a dict of chi_square,
    degrees_of_freedom, p and cramers_v in [0, 1]; or None if fewer than two subsets have images or
    there are fewer than two classes. histograms: (subsets, classes), numbers of images.
    """
    table = np.asarray(histograms)
    table = table[table.any(axis=1)]
    table = table[:, table.any(axis=0)]
    if min(table.shape) < 2:
        return None
    test = scipy.stats.chi2_contingency(table, correction=False)
    return {
        "chi_square": float(test.statistic),
        "degrees_of_freedom": int(test.dof),
        "p": float(test.pvalue),
        "cramers_v": float(
            scipy.stats.contingency.association(table, method="cramer", correction=False)
        ),
    }


def _histograms(subsets, images):
    """{subset: how many of its images are of each class, (classes,) int64}."""
    return {
        name: np.bincount(labels[labels >= 0], minlength=len(images.classes))
        for name, labels in _labels(subsets, images).items()
    }


def _labels(subsets, images):
    """{subset: the labels of its images, (n,) int64}, -1 where there is none."""
    return {
        name: getattr(images, split).labels.numpy()[getattr(subsets, name)]
        for name, split in SUBSETS.items()
    }


def class_counts(subsets, images):
    """{subset: {class: how many of its images are of it}} for summary.json, without empty subsets;
    every class that one of them has is in all. Images without a label are UNLABELLED, the last.
    """
    histograms, labels = _histograms(subsets, images), _labels(subsets, images)
    counts = {name: Counter() for name in SUBSETS if len(labels[name])}
    for label in np.flatnonzero(sum(histograms.values())):
        for name in counts:  # two classes may have one name
            counts[name][images.classes[label]] += int(histograms[name][label])
    missing = {name: int((labels[name] < 0).sum()) for name in counts}
    if any(missing.values()):
        for name in counts:
            counts[name][UNLABELLED] = missing[name]
    return {name: dict(of_subset) for name, of_subset in counts.items()}


def class_test(counts):
    """`compare_classes` of `class_counts`, without the images that have no label."""
    classes = [name for name in next(iter(counts.values())) if name != UNLABELLED]
    return compare_classes([[of_subset[name] for name in classes] for of_subset in counts.values()])


def print_class_counts(counts):
    """Print a table of `class_counts`, unless there are many classes, and their `class_test`."""
    classes = list(next(iter(counts.values())))
    if len(classes) <= MOST_PRINTED:
        say(f"\n{'images of class':>22} {' '.join(f'{name:>11}' for name in counts)}")
        for name in classes:
            numbers = " ".join(f"{of_subset[name]:>11}" for of_subset in counts.values())
            say(f"{escape(name):>22} {numbers}")
    test = class_test(counts)
    if test:
        chi_square = f"{test['chi_square']:.1f} ({test['degrees_of_freedom']} degrees of freedom)"
        effect = f"p {test['p']:.2g}, Cramer's V {test['cramers_v']:.2f}"
        say(f"classes of the subsets: chi-square {chi_square}, {effect}")
