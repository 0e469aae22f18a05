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


def paired_shares_interval(
    wins: np.ndarray, losses: np.ndarray, n: np.ndarray, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Tango's score interval of a difference of two shares on the same n prompts: (wins - losses) / n.

    wins: prompts that only the first got right; losses: only the second. It has a width also where no prompt differs. The
    share of losses is the most likely one for the difference in question (Tango, Statistics in Medicine 17, 1998, 891-908).
    Element by element.
    """
    from scipy.stats import norm

    wins, losses, n = (np.asarray(x, dtype=float) for x in (wins, losses, n))
    critical, difference = float(norm.ppf((1 + level) / 2)), (wins - losses) / n

    def statistic(delta: np.ndarray) -> np.ndarray:
        b, c = (2 * n - wins + losses) * delta - wins - losses, -losses * delta * (1 - delta)
        only_second = (np.sqrt(np.maximum(b**2 - 8 * n * c, 0)) - b) / (4 * n)
        variance = n * np.maximum(2 * only_second + delta * (1 - delta), 1e-300)
        return np.asarray((wins - losses - n * delta) / np.sqrt(variance))

    inside, outside = np.stack([difference, difference]), np.stack([np.full_like(difference, end) for end in (-1.0, 1.0)])
    for _ in range(40):  # bisection of both limits, to 1e-12
        middle = (inside + outside) / 2
        near = np.abs(statistic(middle)) <= critical
        inside, outside = np.where(near, middle, inside), np.where(near, outside, middle)
    return inside[0], inside[1]


def sign_test(wins: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The two-sided exact p value that wins and losses are equally likely (McNemar's exact test). Element by element."""
    from scipy.stats import binom

    return np.asarray(np.minimum(1.0, 2 * binom.cdf(np.minimum(wins, losses), wins + losses, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for how many comparisons a study makes, in their order (Holm 1979, as R's p.adjust).

    Below 0.05, the comparison is sure, with an error of at most 5% over all comparisons together.
    """
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = largest
    return corrected
