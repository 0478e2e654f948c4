"""Tests between subsets, effect sizes, and intervals.

Tests over samples hold *given this pair*: all samples share the two encoders, and every score
contains the offset of this pair. Contrasts between subsets cancel that offset. Only several seeds
show how much pairs differ.
"""

import numpy as np
import scipy

BOOTSTRAP_RESAMPLES = 2000
LEVEL = 0.95  # of intervals
RARE = 0.95  # quantile of the scores of S_E, at which the memorized images are counted
MOST_AT_ONCE = 10**7  # numbers of resampled images


def describe(values):
    """n, mean, std (n - 1) and standard error of (n,) values, a dict of floats."""
    return {
        "n": len(values),
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)),
        "standard_error": float(np.std(values, ddof=1) / np.sqrt(len(values))),
    }


def mean_and_spread(values):
    """Mean, standard deviation (n - 1) and n of (n,) values, a dict. The deviation of a single
    value is None.
    """
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "n": len(values),
    }


def welch_test(greater, smaller, noise=(0.0, 0.0)):
    """Welch's one-sided t test that the mean of `greater` is above the mean of `smaller`.

    noise: the mean variance of a value of each that the choice of views alone leaves. Returns t, p,
    Cohen's d, and Cohen's d free of that noise, as a dict.
    """
    result = scipy.stats.ttest_ind(greater, smaller, equal_var=False, alternative="greater")
    return {
        "t": float(result.statistic),
        "p": float(result.pvalue),
        "d": cohens_d(greater, smaller),
        "d_free_of_views": cohens_d(greater, smaller, noise),
    }


def one_sample_test(values, alternative):
    """One-sample t test of a mean against 0, as in SSLMem.

    alternative: "greater", "less" or "two-sided". Returns t, p and Cohen's d as a dict.
    """
    result = scipy.stats.ttest_1samp(values, 0.0, alternative=alternative)
    return {
        "t": float(result.statistic),
        "p": float(result.pvalue),
        "d": _effect_size(np.mean(values), np.std(values, ddof=1)),
    }


def paired_test(first, second):
    """Paired one-sided t test that `first` is above `second`.

    first, second: (n,), one value a seed. Returns t, p, n and the mean difference as a dict.
    """
    result = scipy.stats.ttest_rel(first, second, alternative="greater")
    difference = float(np.mean(np.subtract(first, second)))
    return {
        "t": float(result.statistic),
        "p": float(result.pvalue),
        "n": len(first),
        "mean_difference": difference,
    }


def cohens_d(first, second, noise=(0.0, 0.0)):
    """Difference of two means over the pooled standard deviation (Cohen 1988).

    noise: a variance of the values of each that is left out, such as that of measuring. NaN if no
    deviation is left.
    """
    n, m = len(first), len(second)
    of_first, of_second = np.var(first, ddof=1) - noise[0], np.var(second, ddof=1) - noise[1]
    pooled = ((n - 1) * of_first + (m - 1) * of_second) / (n + m - 2)
    return _effect_size(np.mean(first) - np.mean(second), np.sqrt(max(pooled, 0.0)))


def _effect_size(difference, deviation):
    return float(difference / deviation) if deviation else float("nan")


def p_against(null, values):
    """One-sided p of each value: (1 + number of null values >= it) / (1 + n), (N,).

    null: (n,), scores of images that no encoder was trained on; values: (N,), scores, large if
    memorized. If an image is like those of the null, its p is uniform on 1 / (1 + n), ..., 1: a
    conformal p-value (Bates et al. 2023, arXiv 2104.08279). NaN of the null is left out; the p of a
    NaN is NaN.
    """
    values, null = np.asarray(values, np.float64), _sort_known(null)
    at_least = len(null) - np.searchsorted(null, values, side="left")
    return np.where(np.isnan(values), np.nan, (1 + at_least) / (1 + len(null)))


def p_within(null):
    """One-sided p of each null value against the others: (1 + number of others >= it) / n, (n,).

    null: see `p_against`. NaN is left out; its p is NaN.
    """
    values, null = np.asarray(null, np.float64), _sort_known(null)
    at_least = len(null) - np.searchsorted(null, values, side="left")  # the value itself is counted
    return np.where(np.isnan(values), np.nan, at_least / max(1, len(null)))


def q_values(p):
    """Benjamini-Hochberg q of p-values, (N,): among all with q <= a, the expected share of false
    ones is at most a.

    p: (N,), such as those of `p_against`, for which this holds although they share one null (Bates
    et al. 2023). NaN is left out and stays. As no p is below 1 / (1 + n), q <= a needs at least
    N / (a (1 + n)) values that are above the whole null, or more that are above most of it.
    """
    p = np.asarray(p, np.float64)
    q, known = np.full(p.shape, np.nan), ~np.isnan(p)
    if known.any():
        q[known] = scipy.stats.false_discovery_control(p[known], method="bh")
    return q


def false_share(p, k):
    """Expected share of false ones among the k values with the smallest p, a float in [0, 1]; NaN
    if there is no p.

    p: (N,), such as those of `p_against`; NaN is left out. k: at least 1; above N it means N. With
    t the k-th smallest p, the share is N t / (number of p <= t), as of N false ones N t have p <= t
    (Storey 2002 with pi_0 = 1). It is an upper bound, close if few of N are memorized. At most 1,
    so if all are false its mean is a little below 1: .9 for k = 16 of 256.

    Raises ValueError if k is below 1.
    """
    p = _sort_known(p)
    if k < 1:
        raise ValueError(f"k is {k}, not at least 1")
    if not len(p):
        return float("nan")
    threshold = p[min(k, len(p)) - 1]
    return float(min(1, len(p) * threshold / np.searchsorted(p, threshold, side="right")))


def _sort_known(values):
    """(n,) values without NaN, in ascending order."""
    values = np.asarray(values, np.float64)
    return np.sort(values[~np.isnan(values)])


def bootstrap_interval(statistic, *samples, seed=0):
    """95 % percentile interval of a statistic of independent samples, each resampled by itself.

    statistic: takes the samples as arrays (..., n) and an `axis`. Returns [low, high].
    """
    interval = _bootstrap(statistic, samples, seed).confidence_interval
    return [float(interval.low), float(interval.high)]


def _bootstrap(statistic, samples, seed):
    """scipy's result of a bootstrap; see `bootstrap_interval`."""
    return scipy.stats.bootstrap(
        samples,
        statistic,
        n_resamples=BOOTSTRAP_RESAMPLES,
        batch=100,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )


def resampled_means(values, seed=0):
    """Means of bootstrap resamples of n images, (resamples, L). values: (n, L). A resample takes
    the same images in all L columns, so that differences between columns keep their error.
    """
    rng, n = np.random.default_rng(seed), len(values)
    at_once, means = max(1, MOST_AT_ONCE // n), []
    for start in range(0, BOOTSTRAP_RESAMPLES, at_once):
        resamples = min(at_once, BOOTSTRAP_RESAMPLES - start)
        means.append(rng.multinomial(n, np.full(n, 1 / n), size=resamples) @ values / n)
    return np.concatenate(means)


def percentile_interval(resampled):
    """The 95 % percentile interval of resampled statistics, two (...) arrays, low and high.
    resampled: (resamples, ...).
    """
    return np.percentile(resampled, [2.5, 97.5], axis=0)


# --- shares ---------------------------------------------------------------------------------------


def clopper_pearson(share, n):
    """The 95 % interval of a rate, [low, high] (Clopper and Pearson 1934). share: observed among n
    images; share * n need not be whole if it is a mean over encoders.
    """
    k, tail = share * n, (1 - LEVEL) / 2
    low = scipy.stats.beta.ppf(tail, k, n - k + 1) if k > 0 else 0.0
    high = scipy.stats.beta.ppf(1 - tail, k + 1, n - k) if k < n else 1.0
    return [float(low), float(high)]


def interval_of_share(candidates, external):
    """The 95 % interval of the share of candidates whose mean score is above the 95th percentile of
    that of S_E, [low, high]. By chance the share is 5 %.

    candidates: (S, n) scores by every seed; external: (S, m); both without NaN. The interval is for
    other images and other seeds. Its variance is a sum of two: that of a bootstrap of the
    candidates and of S_E, as the percentile is uncertain, too; and that of a jackknife, which
    leaves out one seed after the other. Degrees of freedom are those of Welch and Satterthwaite.
    Chance in the score of one image by one seed is in both variances, which makes the interval of
    many seeds a little too wide. That of two or three seeds that differ much is too narrow, and so
    is that of fewer than about 100 images of S_E: docs/reliability.md. It is never narrower than
    Clopper and Pearson's. Of fewer than two images in a list it is [0, 1].
    """
    (seeds, n), m = candidates.shape, external.shape[1]
    if min(n, m) < 2:
        return [0.0, 1.0]
    means = candidates.mean(0), external.mean(0)
    share = float(_share_above_rare(*means))
    low, high = clopper_pearson(share, n)
    of_images = _bootstrap(_share_above_rare, means, seed=0).standard_error ** 2
    of_seeds = (seeds - 1) * np.var(_shares_without_a_seed(candidates, external))
    variance = of_images + of_seeds
    if variance:
        freedom = variance**2 / (of_images**2 / (n - 1) + of_seeds**2 / max(1, seeds - 1))
        half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variance))
        low, high = min(low, max(0.0, share - half)), max(high, min(1.0, share + half))
    return [low, high]


def _shares_without_a_seed(candidates, external):
    """The share of all seeds but one, (S,); that of the only seed if there is one."""
    seeds = np.arange(len(candidates))
    rest = [seeds[seeds != seed] for seed in seeds] if len(seeds) > 1 else [seeds]
    return [_share_above_rare(candidates[some].mean(0), external[some].mean(0)) for some in rest]


def _share_above_rare(candidates, external, axis=-1):
    """Share of the candidates above the 95th percentile of S_E. Both: (..., n)."""
    rare = np.quantile(external, RARE, axis=axis, keepdims=True)
    return (candidates > rare).mean(axis)
