"""The confidence intervals of every number that a person is shown. `./ratchet bench coverage` measures each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LEVEL = 0.95  # of every interval
CAUTION = 2  # of 1, 2 and 4 the smallest that keeps 93% where all values but a rare one are equal (bench coverage)
Ends = tuple[float, float]
UNKNOWN = (math.nan, math.nan)  # too few values, or equal ones: the data say nothing about how far the mean may be off


def t_interval(values: np.ndarray, level: float = LEVEL) -> Ends:
    """Student's t interval of a mean. For few values that are about normal, such as one number per seed.

    UNKNOWN with one value or equal values: three equal seeds are chance, not certainty.
    """
    from scipy.stats import t

    if _equal(values):
        return UNKNOWN
    mean, n = float(values.mean()), len(values)
    half = float(t.ppf((1 + level) / 2, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def mean_interval(values: np.ndarray) -> Ends:
    """Interval of a mean over prompts, of values that may be skewed and have no bounds: lengths, log-probabilities, scores.

    It spans Student's t interval and Hall's transformed t interval, which follows the skewness (Hall 1992, "On the removal of
    skewness by transformation", J. R. Stat. Soc. B 54; the inverse is T3 of Zhou and Gao 2000). UNKNOWN as in `t_interval`.
    """
    from scipy.stats import t

    if _equal(values):
        return UNKNOWN
    mean, n, spread = float(values.mean()), len(values), float(values.std(ddof=1))
    skewness = float(((values - mean) ** 3).mean() / values.std() ** 3)
    quantile = float(t.ppf((1 + LEVEL) / 2, n - 1))
    plain, bent = (quantile, -quantile), (_unbent(quantile, skewness, n), _unbent(-quantile, skewness, n))
    low, high = (pick(ends) for pick, ends in zip((max, min), zip(plain, bent, strict=True), strict=True))
    return mean - low * spread / math.sqrt(n), mean - high * spread / math.sqrt(n)


def _unbent(quantile: float, skewness: float, n: int) -> float:
    """The studentised mean at which Hall's transformation gives `quantile`."""
    if abs(skewness) < 1e-6:
        return quantile
    root = float(np.cbrt(1 + skewness * (quantile / math.sqrt(n) - skewness / (6 * n))))
    return 3 * math.sqrt(n) / skewness * (root - 1)


def share_interval(values: np.ndarray, low: float = 0.0, high: float = 1.0) -> Ends:
    """Interval of a mean over prompts, of values between `low` and `high`: shares, pass@k, AUROC. It has a width, within them.

    For values of 0 and 1 it is the exact interval (Clopper and Pearson 1934). Other values vary less than 0 and 1 would, so
    they count as more prompts (Korn and Graubard 1998, Survey Methodology 24): n p (1 - p) / variance. The variance is that of
    the values and of CAUTION more with the largest variance, since a rare value may be missing. UNKNOWN without values.
    """
    from scipy.stats import beta

    n = len(values)
    if n == 0:
        return UNKNOWN
    scaled = np.clip((values - low) / (high - low), 0.0, 1.0)
    p = float(scaled.mean())
    largest = p * (1 - p)
    variance = (n * float(scaled.var()) + CAUTION * largest) / (n + CAUTION)
    prompts = max(n, n * largest / variance) if variance > 0 else n
    ends = (
        float(beta.ppf((1 - LEVEL) / 2, prompts * p, prompts * (1 - p) + 1)) if p > 0 else 0.0,
        float(beta.ppf((1 + LEVEL) / 2, prompts * p + 1, prompts * (1 - p))) if p < 1 else 1.0,
    )
    return low + (high - low) * ends[0], low + (high - low) * ends[1]


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray) -> Ends:
    """Interval of the ratio of two independent means (Fieller 1954): infinite where the denominator's mean may be 0.

    A ratio that is only told where its denominator is surely not 0 is too small on average. Told always, with this interval,
    it is right 95% of the time. UNKNOWN below two values of either, or if the denominators' mean is 0.
    """
    from scipy.stats import t

    if min(len(numerators), len(denominators)) < 2 or denominators.mean() == 0:
        return UNKNOWN
    over, under = float(numerators.mean()), float(denominators.mean())
    quantile = float(t.ppf((1 + LEVEL) / 2, min(len(numerators), len(denominators)) - 1))
    var_over, var_under = (quantile**2 * float(v.var(ddof=1)) / len(v) for v in (numerators, denominators))
    a, b, c = under**2 - var_under, over * under, over**2 - var_over
    if a <= 0:
        return -math.inf, math.inf
    root = math.sqrt(max(0.0, b * b - a * c))
    return (b - root) / a, (b + root) / a


def _equal(values: np.ndarray) -> bool:
    """Whether there are fewer than two values, or no two that differ by more than rounding."""
    return len(values) < 2 or float(np.ptp(values)) <= 1e-12 * float(np.abs(values).max())


def finite(value: float | None) -> float | None:
    """The value as a table stores it: null for an end of an interval that is unknown or infinite."""
    return value if value is not None and math.isfinite(value) else None


def in_brackets(ends: Ends, form: str = "+.1f") -> str:
    """An interval in brackets, or why there is none."""
    return (
        f"[{ends[0]:{form}}, {ends[1]:{form}}]" if all(map(math.isfinite, ends)) else "[no interval: too few or equal values]"
    )


def t_test(differences: np.ndarray) -> float:
    """The two-sided p value of Student's t test that the mean difference is 0. With one value, or equal values, it is 1."""
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(differences, 0.0).pvalue) if len(differences) > 1 and np.ptp(differences) > 0 else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for how many comparisons a study makes, in their order (Holm 1979, as R's p.adjust).

    Below 0.05, the comparison is sure, with an error of at most 5% over all comparisons together.
    """
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = largest
    return corrected


def difference_interval(one: tuple[float, Ends], other: tuple[float, Ends]) -> Ends:
    """Interval of one minus the other, two independent numbers with their intervals (Newcombe 1998, Stat. Med. 17, method 10).

    As the numbers' own intervals, it is never empty and never beyond the largest possible difference.
    """
    (x, (low, high)), (y, (least, most)) = one, other
    return x - y - math.hypot(x - low, most - y), x - y + math.hypot(high - x, y - least)
