"""Confidence intervals that stages, reports and benchmarks share."""

from __future__ import annotations

import math

import numpy as np

LEVEL = 0.95  # of every interval


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """Student's t interval of a mean. With one value, or equal values, both ends are the mean."""
    from scipy.stats import t

    mean, n = float(values.mean()), len(values)
    spread = float(values.std(ddof=1)) if n > 1 else 0.0
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * spread / math.sqrt(n) if spread > 0 else 0.0
    return mean - half, mean + half
