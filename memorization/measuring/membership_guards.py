"""Guards: can members be told from others without the encoder? Then an attack on the encoder proves
nothing.
"""

import numpy as np
import scipy
import torch
import torch.nn.functional as F

from memorization.data.duplicates import find_duplicates, fingerprints_of
from memorization.data.randomness import permutation
from memorization.data.subsets import first_by_hash
from memorization.errors import WrongUse
from memorization.measuring.membership_attacks import relate
from memorization.measuring.membership_rates import (
    FEWEST,
    Trial,
    auc_of,
    interval_of,
    resample_aucs,
)
from memorization.measuring.representations import encode_images

CHANCE = 0.5  # the AUC of what tells nothing
SURE = 1.7  # half widths of a 95 % interval from the mean, beyond which one of 1,000 lies
FOLDS = 5  # of the cross-validation
EXCHANGES = 200  # of labels at random
MOST_IMAGES = 1000  # of each list, that a classifier is tried on
PENALTY = 1.0  # of the ridge regression; an image's similarity to itself is 1 on average
SHRUNK, CELLS = 16, 8  # height and width of the pixels, and of cells of gradients
AT_ONCE = 1 << 22  # values of images worked on together
SPLITS = ("train", "test")  # in the order of rows
TOO_MANY = 0.5  # share of a list that stands in the other one


def find_lists(rows, subsets, seed, with_g):
    """The lists that must not differ but in membership: {"candidate against external": (one,
    other)}, the rows of both, (n,) and (m,) int64; lists of fewer than FEWEST images are left out.

    rows: of `rows_to_score`; in a crossover "candidate" is the pool, and its halves are those of f
    of a seed; with_g: whether g is attacked, too.
    """
    pairs = [("candidate", "external"), ("candidate", "independent"), ("shared", "external")]
    pairs += [("shared", "independent")]
    pairs += [("independent", "external")] if with_g else []
    lists = {
        f"{one} against {other}": (rows["subset"] == one, rows["subset"] == other)
        for one, other in pairs
    }
    if subsets.scheme == "crossover":
        relation = relate(rows, subsets, seed, "candidate")
        lists["one half of the pool against the other"] = (relation == "own", relation == "other")
    lists = {name: tuple(map(np.flatnonzero, of)) for name, of in lists.items()}
    return {name: of for name, of in lists.items() if min(map(len, of)) >= FEWEST}


# --- signals without a trained encoder ------------------------------------------------------------


def measure_guards(lists, rows, images, untrained, alignment):
    """{guard: {lists: {"value", "interval_95", "differs"}}}: the AUC with which members are told
    from others without a trained encoder. `differs` is whether it is too far from .5 for chance.

    lists: of `find_lists`; rows: of `rows_to_score`; images: Images on the device; untrained: an
    Encoder before its training; alignment: the Alignment of the rows under it.
    """
    signals = {
        "untrained encoder: alignment": -alignment.loss,
        "untrained encoder: encodermi_threshold": alignment.cosine,
    }
    guards = {name: {} for name in (*CLASSIFIERS, *signals)}
    for pair, (one, other) in lists.items():
        some = [_choose(list_rows, rows) for list_rows in (one, other)]
        for name, represent in CLASSIFIERS.items():
            features = represent(untrained, images, rows, np.concatenate(some))
            value, interval = cross_validate(features, len(some[0]))
            # Below .5 it is mistaken about images that it was not trained on: so it is with lists
            # that are more alike than chance makes them, as if the classes are balanced.
            guards[name][pair] = _judge(max(value, CHANCE), interval) | {"value": value}
        for name, signal in signals.items():
            trial = Trial(signal, one, other)
            resampled = resample_aucs([trial], rows["subset"])[0]
            guards[name][pair] = _judge(auc_of(trial), interval_of(resampled))
    return guards


def _choose(of_list, rows):
    """At most MOST_IMAGES of the rows of a list, the first by hash, (n,)."""
    split, index = rows["split"][of_list[0]], rows["index"][of_list]
    return of_list[np.isin(index, first_by_hash(index, MOST_IMAGES, split))]


def _judge(value, interval):
    """An AUC of a guard, and whether it is too far from .5 for chance."""
    low, high = interval
    differs = abs(value - CHANCE) > SURE * (high - low) / 2
    return {"value": value, "interval_95": [low, high], "differs": bool(differs)}


def cross_validate(groups, n_members):
    """The AUC of a classifier that is trained on four fifths of the images and tried on the others,
    in turn, and its 95 % interval: ridge regression (Hoerl and Kennard 1970) on standardized
    features.

    groups: a list of (n, D) float64 features, each of which weighs as much as another one; the
    first n_members rows are members. A fold has as many of each list as another one, and its AUC is
    taken by itself: then .5 is expected of lists that are alike. The classifiers of the folds have
    most images in common, so the interval is as wide as the AUCs spread if labels are exchanged at
    random; a bootstrap of the images would be a quarter too narrow.
    """
    features = np.concatenate([_standardize(group) for group in groups], axis=1)
    n = len(features)
    similarity = features @ features.T / len(groups)
    is_member = np.arange(n) < n_members
    counts = (n_members, n - n_members)
    orders = [permutation(count, seed, "membership").numpy() for seed, count in enumerate(counts)]
    fold = np.concatenate(orders) % FOLDS  # at random, as images may come class by class
    labels = _exchange_labels(is_member, fold)  # (n, 1 + EXCHANGES)
    aucs = []
    for number in range(FOLDS):
        held_out, rest = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        targets = labels[rest] - labels[rest].mean(0)
        kernel = similarity[np.ix_(rest, rest)] + PENALTY * np.eye(len(rest))
        signals = similarity[np.ix_(held_out, rest)] @ np.linalg.solve(kernel, targets)
        aucs.append(_aucs_by_column(signals, labels[held_out]))
    value, *by_chance = np.mean(aucs, axis=0)
    half = 1.96 * np.std(by_chance, ddof=1)
    return float(value), [float(value - half), float(value + half)]


def _exchange_labels(is_member, fold):
    """The labels, and labels exchanged at random within the folds, (n, 1 + EXCHANGES) float64."""
    generator, labels = np.random.default_rng(0), np.empty((len(fold), 1 + EXCHANGES))
    labels[:, 0] = is_member
    for number in range(FOLDS):
        rows = np.flatnonzero(fold == number)
        exchanged = np.tile(labels[rows, 0], (EXCHANGES, 1))
        labels[rows, 1:] = generator.permuted(exchanged, axis=1).T
    return labels


def _aucs_by_column(signals, labels):
    """The AUC of every column, (K,). signals, labels: (n, K), labels 1 or 0, of both kinds."""
    ranks, n_members = scipy.stats.rankdata(signals, axis=0), labels[:, 0].sum()
    below = (ranks * labels).sum(0) - n_members * (n_members + 1) / 2
    return below / (n_members * (len(labels) - n_members))


def _standardize(values):
    """(n, D) features of mean 0 and, over all D together, of mean square 1 / D."""
    deviation = values.std(0)
    varies = deviation > 1e-9 * (1 + np.abs(values).max())
    values = (values - values.mean(0))[:, varies] / deviation[varies]
    return values / np.sqrt(max(1, values.shape[1]))


def describe_pixels(encoder, images, rows, places):
    """What a classifier of raw pixels sees of some rows, groups of (n, D) float64 features: the
    image shrunk to SHRUNK x SHRUNK pixels, the squares of these, and how much neighbouring pixels
    of the whole image differ, in CELLS x CELLS cells. So it sees brightness, contrast, and
    sharpness, which tell crops, resizing and compression. places: (n,) rows, those of the training
    set first.
    """
    parts = [[], [], []]
    for split, indices in _by_split(images, rows, places):
        at_once = max(1, AT_ONCE // max(1, split.pixels[0].numel()))
        for batch in indices.split(at_once):
            pixels = split.gather(batch).float() / 255  # (B, C, S, S)
            shrunk = F.adaptive_avg_pool2d(pixels, min(SHRUNK, split.size))
            edges = []
            for dim in (2, 3):
                difference = pixels.diff(dim=dim).abs()
                cells = min(CELLS, *difference.shape[2:])
                edges.append(F.adaptive_avg_pool2d(difference, cells).flatten(1))
            features = (shrunk.flatten(1), shrunk.square().flatten(1), torch.cat(edges, dim=1))
            for part, values in zip(parts, features):
                part.append(values.cpu())
    return [torch.cat(part).double().numpy() for part in parts]


def represent_untrained(encoder, images, rows, places):
    """Representations of some rows, seen whole by an untrained encoder: one group of features, see
    `describe_pixels`.
    """
    parts = [
        encode_images(encoder, split, indices, split.device)
        for split, indices in _by_split(images, rows, places)
        if len(indices)
    ]
    return [torch.cat(parts).double().numpy()]


def _by_split(images, rows, places):
    """(Split, (n,) int64 indices) of some rows: those of the training set, then the others."""
    index, split = rows["index"][places], rows["split"][places]
    for images_of in (images.train, images.test):
        yield images_of, torch.from_numpy(index[split == images_of.name])


CLASSIFIERS = {
    "raw pixels": describe_pixels,
    "untrained encoder: representations": represent_untrained,
}


# --- duplicates -----------------------------------------------------------------------------------


def find_shared_images(lists, rows, images, device):
    """Images that stand in two lists, as equal or nearly equal ones: {lists: [group]}, a group is a
    list of their [split, index]; without lists that have none.

    lists: of `find_lists`. Raises WrongUse if half of a list have the pixels of images in the other
    one.
    """
    splits = [(getattr(images, name), rows["index"][rows["split"] == name]) for name in SPLITS]
    digests = np.concatenate([split.digests_of(indices) for split, indices in splits])
    fingerprints = np.concatenate([fingerprints_of(*of_split) for of_split in splits])
    duplicates = find_duplicates(digests, fingerprints, device)
    shared = {}
    for pair, (one, other) in lists.items():
        for here, there in ((one, other), (other, one)):
            twins = np.isin(duplicates.pixels[here], duplicates.pixels[there]).mean()
            if twins >= TOO_MANY:
                same = f"{twins:.0%} of one list have the pixels of images of the other one"
                raise WrongUse(f"membership: {pair}: members are also others: {same}")
        both = np.concatenate([one, other])
        groups = np.intersect1d(duplicates.groups[one], duplicates.groups[other])
        members = [both[duplicates.groups[both] == group] for group in groups]
        if members:
            shared[pair] = [
                [[str(rows["split"][row]), int(rows["index"][row])] for row in group]
                for group in members
            ]
    return shared
