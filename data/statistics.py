"""Confidence intervals that stages, reports and benchmarks share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LEVEL = 0.95  # of every interval


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
