"""Statistics of the bias ledger: differences of features between two sets of samples of the same prompts, with intervals.

Values are arrays, prompts x samples, NaN where a feature does not apply. The unit is the prompt: its samples are averaged
first and prompts are paired, because samples of one prompt are not independent.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["real", "rate", "length"]  # rate: 0 or 1 per completion; length: a count, compared on the log scale
Array = np.ndarray
LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Change:
    """Differences of several features between two sets of samples (now minus then), each an array over features; NaN = unknown.

    difference: of prompt means, on the scale of `scaled` (a log ratio for lengths). effect: the standardised difference.
    """

    n: Array  # prompts with both values
    now: Array  # mean over prompts, on the feature's own scale
    then: Array
    difference: Array
    low: Array  # 95% percentile bootstrap over prompts
    high: Array
    effect: Array
    effect_low: Array
    effect_high: Array
    p: Array  # of a paired t test


def scaled(values: Array, kind: Kind) -> Array:
    """Lengths as log(1 + n): they are skewed, and their drift is a ratio. Other kinds are unchanged."""
    on_scale: Array = np.log1p(values) if kind == "length" else values
    return on_scale


def prompt_means(values: Array) -> Array:
    """Mean over the samples of each prompt (last axis); NaN for a prompt without values."""
    known = ~np.isnan(values)
    count = known.sum(-1)
    total = np.where(known, values, 0.0).sum(-1)
    means: Array = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return means


def spread(values: Array, kind: Kind) -> float:
    """Standard deviation over completions; that of round 0 is the unit of effects, so that all rounds compare."""
    known = scaled(values, kind)[~np.isnan(values)]
    return float(known.std(ddof=1)) if known.size > 1 else float("nan")


def cohens_h(now: Array, then: Array) -> Array:
    """2 asin sqrt(p) - 2 asin sqrt(q): the effect of a rate, defined also if the style was absent before."""
    h: Array = 2 * np.arcsin(np.sqrt(np.clip(now, 0, 1))) - 2 * np.arcsin(np.sqrt(np.clip(then, 0, 1)))
    return h


def paired_t(now: Array, then: Array) -> tuple[Array, Array, Array]:
    """Mean difference over the last axis (prompts), its two-sided p and the number of pairs; any leading axes."""
    from scipy.stats import t

    difference = now - then
    known = ~np.isnan(difference)
    n = known.sum(-1)
    filled = np.where(known, difference, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(n > 0, filled.sum(-1) / n, np.nan)
        deviation = np.where(known, difference - mean[..., None], 0.0)
        error = np.sqrt((deviation**2).sum(-1) / (n - 1) / n)
        p = 2 * t.sf(np.abs(mean) / error, n - 1)
    p = np.where(error > 0, p, np.where(mean == 0, 1.0, 0.0))  # no spread: all differences are equal
    return mean, np.where(n > 1, p, np.nan), n


@functools.lru_cache(maxsize=8)
def resamples(prompts: int, count: int = RESAMPLES, seed: int = 0) -> Array:
    """How often each prompt is in each bootstrap resample: count x prompts. All features of a round share it."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=count).astype(float)


def resampled_means(values: Array, counts: Array) -> Array:
    """Means of `values` (features x prompts) in every resample: features x resamples; NaN values are left out."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0) @ counts.T
    weight = known.astype(float) @ counts.T
    means: Array = np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)
    return means


def interval(resampled: Array) -> tuple[Array, Array]:
    """The percentile interval over the last axis; NaN if all values are."""
    tails = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]
    ends = np.percentile(resampled, tails, axis=-1)
    unknown = np.isnan(resampled)
    for row in np.argwhere(unknown.any(-1) & ~unknown.all(-1)):  # so few known prompts that a resample has none
        ends[(slice(None), *row)] = np.nanpercentile(resampled[tuple(row)], tails)
    return ends[0], ends[1]


def changes(now: Sequence[Array], then: Sequence[Array], kinds: Sequence[Kind], yardsticks: Sequence[float]) -> Change:
    """Compare features between two sets of samples of the same prompts.

    Args:
        now, then: per feature, prompts x samples. Prompts are in the same order; the number of samples may differ.
        yardsticks: per feature, `spread` at round 0, the unit of the effect; not used for rates.
    """
    kind, yard = np.array(kinds), np.array(yardsticks, dtype=float)
    ours, theirs = (np.stack([prompt_means(scaled(v, k)) for v, k in zip(side, kinds, strict=True)]) for side in (now, then))
    both = ~np.isnan(ours) & ~np.isnan(theirs)
    ours, theirs = np.where(both, ours, np.nan), np.where(both, theirs, np.nan)
    difference, p, n = paired_t(ours, theirs)
    counts = resamples(ours.shape[1])
    resampled_now, resampled_then = resampled_means(ours, counts), resampled_means(theirs, counts)
    low, high = interval(resampled_now - resampled_then)

    is_rate, mean_now, mean_then = kind == "rate", prompt_means(ours), prompt_means(theirs)
    with np.errstate(divide="ignore", invalid="ignore"):
        real = [np.where(difference == 0, 0.0, side / yard) for side in (difference, low, high)]
    h_low, h_high = interval(cohens_h(resampled_now, resampled_then))
    rate = [cohens_h(mean_now, mean_then), h_low, h_high]
    effect, effect_low, effect_high = (np.where(is_rate, r, v) for r, v in zip(rate, real, strict=True))
    own = [np.where(kind == "length", np.expm1(mean), mean) for mean in (mean_now, mean_then)]
    return Change(n, own[0], own[1], difference, low, high, effect, effect_low, effect_high, p)
