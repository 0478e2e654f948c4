"""How well scores repeat: agreement between seeds, and what repeats in the score of an image.

Scores are those of single seeds, (S, N): row s holds the scores of N images by seed s, positive if
an image is memorized. The same functions take the scores of external images, where nothing can be
memorized. What repeats there is not memory, so every figure of candidates is read beside theirs.

Images whose score is NaN in any seed are left out everywhere.
"""

import itertools
import math

import numpy as np
import scipy

from memorization.significance import mean_and_spread

COMPONENTS = ("image", "training", "views", "seeds", "reliability")
TOP = 10  # rankings are compared by their first tenth
MOST_HALVINGS = 50  # ways of halving the seeds that are averaged
BOOTSTRAP_RESAMPLES = 1000
RANK_DRAWS = 400
BLOCK = 100  # resamples that are drawn together


def agreement(scores):
    """How well single seeds agree about the ranking of images, averaged over all pairs of seeds.

    scores: (S, N), S at least 2. Returns a dict:
        spearman: rank correlation, equal scores by their mean rank
        kendall: Kendall's tau-b
        overlap: share of the first tenth, the N // 10 highest scores, that two rankings have in
            common; where scores are equal, the share expected if chance breaks the ties
        overlap_by_chance: that of two unrelated rankings, about .1
        images: images that have a score in all seeds
    The first three are dicts of `mean_and_spread` over n pairs. Pairs share seeds, so std describes
    how pairs differ, and std / sqrt(n) is no standard error. A seed whose scores are all equal has
    no ranking, and every mean is NaN.
    """
    return compare_rankings(itertools.combinations(_complete(scores), 2))


def compare_rankings(pairs):
    """The dict of `agreement` over pairs of rankings of the same images, at least one.

    pairs: of scores (N,) without NaN.
    """
    pairs = list(pairs)
    images = len(pairs[0][0])
    return {
        "spearman": mean_and_spread(_compare(_spearman, pairs)),
        "kendall": mean_and_spread(_compare(_kendall, pairs)),
        "overlap": mean_and_spread(_compare(_overlap, pairs)),
        "overlap_by_chance": _size_of_top(images) / images if images else float("nan"),
        "images": images,
    }


def agreement_of_halves(scores, seed=0):
    """The same as `agreement` between mean scores of two disjoint halves of the seeds, averaged
    over all ways of halving, or over 50 ways drawn at random if there are more.

    scores: (S, N). A half has S // 2 seeds; if S is odd, each halving leaves one seed out. Returns
    the dict of `agreement`, where n counts halvings, or None if S is below 4.
    """
    if len(scores) < 4:
        return None
    return compare_rankings(_means_of_halves(_complete(scores), seed))


def spearman_brown(correlation, times):
    """Reliability of a mean of so many times as many measurements, S r / (1 + (S - 1) r) (Spearman
    1910, Brown 1910).

    correlation: r, of two single measurements. It holds for Pearson's correlation; Spearman's is
    at most .018 smaller for normal scores. A negative r gives a negative reliability, which means
    none. NaN for r of -1 / (S - 1) or less, which no S measurements have.
    """
    divisor = 1 + (times - 1) * correlation
    return float(times * correlation / divisor) if divisor > 0 else float("nan")


def reliability_of_mean(scores, seed=0):
    """Reliability of a mean over seeds: the expected rank correlation of the mean scores with those
    of as many new seeds, by Spearman-Brown.

    scores: (S, N), S at least 2. Returns a dict: from_seeds, from the correlation of single seeds,
    for `seeds` S; from_halves, from the correlation of halves, for `seeds_of_halves` 2 (S // 2).
    The latter two are None if S is below 4.
    """
    count, scores = len(scores), _complete(scores)
    of_seeds = np.mean(_compare(_spearman, itertools.combinations(scores, 2)))
    reliability = {"from_seeds": spearman_brown(of_seeds, count), "seeds": count}
    if count < 4:
        return reliability | {"from_halves": None, "seeds_of_halves": None}
    of_halves = np.mean(_compare(_spearman, _means_of_halves(scores, seed)))
    return reliability | {
        "from_halves": spearman_brown(of_halves, 2),
        "seeds_of_halves": 2 * (count // 2),
    }


def rank_intervals(scores, reliability, seed=0):
    """Ranks that images may have in truth, (N, 2) float64: the 2.5 and 97.5 % quantiles, 1 for the
    highest score.

    scores: (N,) means over seeds, finite; reliability: of their ranking, taken as 0 or 1 beyond
    these. The true score of an image is normal about what its score predicts, m + r (x - m), with
    variance r (1 - r) var(x): the empirical Bayes posterior of a normal model, whose ranks are
    drawn (Laird and Louis 1989). With reliability 0 every image may have any rank.
    """
    r, n_images = min(max(reliability, 0.0), 1.0), len(scores)
    predicted = r * (scores - scores.mean())
    deviation = np.sqrt(r * (1 - r) * scores.var()) if r else 1.0  # of chance alone, any
    rng = np.random.default_rng(seed)
    ranks = np.empty((RANK_DRAWS, n_images), dtype=np.int32)
    for draw in ranks:
        true = predicted + deviation * rng.standard_normal(n_images)
        draw[np.argsort(-true, kind="stable")] = np.arange(1, n_images + 1)
    return np.quantile(ranks, [0.025, 0.975], axis=0, method="nearest").T.astype(float)


def components(scores, errors, seed=0):
    """Components of the variance of scores, by the two-way random model m_s(x) = mean_s + a(x) +
    e_s(x) (analysis of variance, unbiased; Searle, Casella and McCulloch 1992, section 4.3).

    scores, errors: (S, N), S and N at least 2. An error is the standard error over views of that
    score, and seeds score by different views. Returns a dict of dicts {value, interval_95}:
        image: variance of a(x), what stays of an image. It contains all that the seeds share: under
            a fixed split also the effect of its composition, which external images show too
        training: variance of e_s(x) less that of the views
        views: variance over the choice of views, the mean of errors^2
        seeds: variance of mean_s; it moves all images alike and no ranking
        reliability: image / (image + training + views), the correlation of two single seeds,
            ICC(C,1) of McGraw and Wong (1996). As `spearman_brown` is increasing, it carries this
            interval to means of several seeds
    Variances are unbiased and may be negative. Intervals are bootstrap percentiles over images:
    they hold for these seeds and for images whose errors are independent. A few outliers can make
    up most of the variance of images; in that case `agreement` shows a lower rank correlation. All
    values are NaN for fewer than two images.
    """
    scores, errors = _complete(scores, errors)
    images = scores.shape[1]
    if images < 2:
        nothing = {"value": float("nan"), "interval_95": [float("nan")] * 2}
        return {name: nothing.copy() for name in COMPONENTS}
    offsets = scores.mean(1)
    deviations = scores - offsets[:, None]
    squares = [deviations.mean(0) ** 2, (deviations**2).mean(0), (errors**2).mean(0)]
    moments = np.vstack([deviations, *squares]).T  # (N, S + 3), what `_variances` needs of an image
    values = _variances(moments.mean(0), offsets, images, draws=1)
    resamples = _variances(_means_of_resamples(moments, seed), offsets, images, draws=2)
    return {
        name: {
            "value": float(value),
            "interval_95": np.quantile(resample, [0.025, 0.975]).tolist(),
        }
        for name, value, resample in zip(COMPONENTS, values, resamples)
    }


def predicted_reliability(components, seeds, views_ratio=1.0):
    """Reliability of a mean over seeds, a / (a + (training + views / views_ratio) / seeds), in
    [0, 1].

    components: of `components`. views_ratio: number of views over that in `components`; their
    variance is taken as inversely proportional to it. A negative a counts as 0. Where the errors of
    the views exceed all variance within images, that variance is counted as theirs.
    """
    stays = max(components["image"]["value"], 0.0)
    total = stays + _noise(components, views_ratio) / seeds
    return stays / total if total > 0 else float("nan")


def seeds_for(components, reliability, views_ratio=1.0):
    """The smallest number of seeds whose mean has at least this reliability, in (0, 1), by
    `predicted_reliability`; None if nothing stays of an image, a <= 0.
    """
    stays = components["image"]["value"]
    if not stays > 0:
        return None
    seeds = reliability / (1 - reliability) * _noise(components, views_ratio) / stays
    return max(1, math.ceil(seeds * (1 - 1e-12)))  # 9 + rounding is 9


def expected_overlap(correlation):
    """Share that the first tenths of two rankings are expected to have in common, if the scores are
    bivariate normal with this correlation (Pearson's): P(both above their .9 quantile) / .1.

    With the reliability of a mean it predicts the overlap with a repetition of all its seeds. .1 if
    unrelated, 1 if equal. NaN for what is no correlation.
    """
    if not -1 <= correlation <= 1:
        return float("nan")
    covariance = [[1.0, correlation], [correlation, 1.0]]
    both = scipy.stats.multivariate_normal([0.0, 0.0], covariance, allow_singular=True)
    return float(both.cdf(np.full(2, scipy.stats.norm.ppf(1 / TOP))) * TOP)


def _complete(*arrays):
    """(S, N) arrays in float64 without the images that are NaN in any of them."""
    arrays = [np.asarray(array, dtype=np.float64) for array in arrays]
    assert all(array.shape == arrays[0].shape for array in arrays) and len(arrays[0]) >= 2
    images = ~np.isnan(arrays).any((0, 1))
    complete = [array[:, images] for array in arrays]
    return complete[0] if len(complete) == 1 else complete


def _compare(measure, pairs):
    """A measure of every pair of rankings, NaN where one of them has equal scores alone."""
    return [measure(*pair) if all(map(_has_ranking, pair)) else float("nan") for pair in pairs]


def _has_ranking(scores):
    return len(scores) > 1 and np.ptp(scores) > 0


def _spearman(first, second):
    return float(scipy.stats.spearmanr(first, second).statistic)


def _kendall(first, second):
    return float(scipy.stats.kendalltau(first, second).statistic)


def _overlap(first, second):
    return float(_top(first) @ _top(second) / _size_of_top(len(first)))


def _size_of_top(images):
    return max(1, images // TOP)


def _top(scores):
    """Probability that each image is in the first tenth, (N,), if chance breaks ties."""
    size = _size_of_top(len(scores))
    lowest = np.partition(scores, -size)[-size]
    above, level = scores > lowest, scores == lowest
    return above + level * (size - above.sum()) / level.sum()


def _means_of_halves(scores, seed):
    """Pairs of mean scores (N,) of disjoint halves of the seeds."""
    halvings = _halvings(len(scores), np.random.default_rng(seed))
    return [(scores[first].mean(0), scores[second].mean(0)) for first, second in halvings]


def _halvings(count, rng):
    """Ways of drawing two disjoint sets of count // 2 seeds, as pairs of lists: all, or
    MOST_HALVINGS of them. They are drawn until so many differ.
    """
    size = count // 2
    ways = math.comb(count, size) * math.comb(count - size, size) // 2
    halvings = set()
    while len(halvings) < min(ways, MOST_HALVINGS):
        order = rng.permutation(count).tolist()
        halves = sorted([sorted(order[:size]), sorted(order[size : 2 * size])])
        halvings.add(tuple(map(tuple, halves)))
    return [(list(first), list(second)) for first, second in sorted(halvings)]


def _variances(moments, offsets, images, draws):
    """The values of COMPONENTS, (...) arrays.

    moments: (..., S + 3), means over images of the deviations in every seed, of the square of an
    image's mean deviation, of the mean of its squares, and of its mean squared error. offsets:
    (S,), the means from which the scores deviate. draws: how often images were drawn, 2 for a
    resample; each draw adds its own noise to the means of the seeds.
    """
    seeds = len(offsets)
    of_seeds = moments[..., :seeds]
    of_means, of_scores, views = np.moveaxis(moments[..., seeds:], -1, 0)
    grand = of_seeds.mean(-1) ** 2
    rest = of_scores - of_means - (of_seeds**2).mean(-1) + grand
    mean_square = (of_means - grand) * seeds * images / (images - 1)  # of the images
    noise = rest * seeds * images / ((seeds - 1) * (images - 1))  # mean square of the residuals
    image = (mean_square - noise) / seeds
    with np.errstate(invalid="ignore", divide="ignore"):  # by 0 if all scores are equal
        reliability = image / (image + noise)
    of_offsets = (offsets + of_seeds).var(-1, ddof=1) - draws * noise / images
    return image, noise - views, views, of_offsets, reliability


def _means_of_resamples(values, seed):
    """Means of (N, M) values over bootstrap samples of the rows, (BOOTSTRAP_RESAMPLES, M)."""
    rng, rows = np.random.default_rng(seed), len(values)
    starts = rows * np.arange(BLOCK)[:, None]  # each resample is counted in a row of its own
    means = []
    for _ in range(BOOTSTRAP_RESAMPLES // BLOCK):
        places = starts + rng.integers(rows, size=(BLOCK, rows))
        counts = np.bincount(places.ravel(), minlength=BLOCK * rows).reshape(BLOCK, rows)
        means.append(counts @ values / rows)
    return np.concatenate(means)


def _noise(components, views_ratio):
    """Variance of single scores about what stays, with so many times as many views."""
    noise = components["training"]["value"] + components["views"]["value"]
    views = min(components["views"]["value"], noise)
    return noise - views + views / views_ratio
