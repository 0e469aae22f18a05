"""Confidence intervals that stages, reports and benchmarks share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LEVEL = 0.95  # of every interval
CAUTION = 2  # of 1, 2 and 4 the smallest that keeps 93% where all values but a rare one are equal (bench coverage)
Ends = tuple[float, float]
UNKNOWN = (math.nan, math.nan)  # too few values, or equal ones: the data say nothing about how far the mean may be off


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """Student's t interval of a mean. With one value, or equal values, both ends are the mean."""
    from scipy.stats import t

    mean, n = float(values.mean()), len(values)
    spread = float(values.std(ddof=1)) if n > 1 else 0.0
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * spread / math.sqrt(n) if spread > 0 else 0.0
    return mean - half, mean + half


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


def share_interval(values: np.ndarray, low: float = 0.0, high: float = 1.0) -> Ends:
    """Interval of a mean over prompts, of values between `low` and `high`: shares, pass@k, AUROC. Never empty or beyond them.

    For values of 0 and 1 it is the exact interval (Clopper and Pearson 1934). Other values vary less than 0 and 1 would, and
    count as more prompts (Korn and Graubard 1998, Survey Methodology 24): n p (1 - p) / variance. The variance is that of the
    values and of CAUTION more with the largest variance, since a rare value may be missing. UNKNOWN without values.
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


def difference_interval(one: tuple[float, Ends], other: tuple[float, Ends]) -> Ends:
    """Interval of one minus the other, two independent numbers with their intervals (Newcombe 1998, Stat. Med. 17, method 10).

    As the numbers' own intervals, it is never empty and never beyond the largest possible difference.
    """
    (x, (low, high)), (y, (least, most)) = one, other
    return x - y - math.hypot(x - low, most - y), x - y + math.hypot(high - x, y - least)
