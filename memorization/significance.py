"""Tests between subsets, effect sizes, and intervals.

Tests over samples hold *given this pair*: all samples share the two encoders, and every score
contains the offset of this pair. Contrasts between subsets cancel that offset. Only several seeds
show how much pairs differ.
"""

import numpy as np
from scipy import stats

BOOTSTRAP_RESAMPLES = 2000


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
    result = stats.ttest_ind(greater, smaller, equal_var=False, alternative="greater")
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
    result = stats.ttest_1samp(values, 0.0, alternative=alternative)
    return {
        "t": float(result.statistic),
        "p": float(result.pvalue),
        "d": _effect_size(np.mean(values), np.std(values, ddof=1)),
    }


def paired_test(first, second):
    """Paired one-sided t test that `first` is above `second`.

    first, second: (n,), one value a seed. Returns t, p, n and the mean difference as a dict.
    """
    result = stats.ttest_rel(first, second, alternative="greater")
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


def bootstrap_interval(statistic, *samples, seed=0):
    """95 % percentile interval of a statistic of independent samples, each resampled by itself.

    statistic: takes the samples as arrays (..., n) and an `axis`. Returns [low, high].
    """
    result = stats.bootstrap(
        samples,
        statistic,
        n_resamples=BOOTSTRAP_RESAMPLES,
        batch=100,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return [float(result.confidence_interval.low), float(result.confidence_interval.high)]
