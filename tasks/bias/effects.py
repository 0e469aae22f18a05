"""Statistics of the bias ledger: differences of features between two sets of samples of the same prompts, with intervals.

Values are arrays, prompts x samples, NaN where a feature does not apply. The unit is the prompt: its samples are averaged
first and prompts are paired, because samples of one prompt are not independent.

The spread of the differences alone is no safe error: where a rare style happens to be in no sample, or in one sample of each of
three prompts, they hardly vary. So the error is at least what sampling alone gives, by the samples within prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data.statistics import LEVEL

Kind = Literal["real", "rate", "length"]  # rate: 0 or 1 per completion; length: a count, compared on the log scale
Array = np.ndarray
SMALLEST = 30  # prompts below which nothing is tested; also the smallest group of the ledger


@dataclass(frozen=True)
class Change:
    """Differences of several features between two sets of samples (now minus then), each an array over features; NaN = unknown.

    difference: of prompt means, on the scale of `scaled` (a log ratio for lengths). effect: the standardised difference.
    """

    n: Array  # prompts with both values
    now: Array  # mean over prompts, on the feature's own scale
    then: Array
    difference: Array
    low: Array  # 95%, over prompts: `skewed_intervals` for rates and what is mostly 0, else Student's t
    high: Array
    effect: Array
    effect_low: Array
    effect_high: Array
    p: Array  # of a paired t test; NaN below SMALLEST prompts


@dataclass(frozen=True)
class Moments:
    """The samples of each prompt in short: arrays of prompts, with any leading axes (features)."""

    mean: Array  # NaN without values
    count: Array  # samples with a value
    squares: Array  # sum of squared deviations from the prompt's mean
    least: Array  # the smallest value

    def where(self, kept: Array) -> Moments:
        mean, least = (np.where(kept, side, np.nan) for side in (self.mean, self.least))
        return Moments(mean, np.where(kept, self.count, 0), np.where(kept, self.squares, 0.0), least)


def scaled(values: Array, kind: Kind) -> Array:
    """Lengths as log(1 + n): they are skewed, and their drift is a ratio. Other kinds are unchanged."""
    on_scale: Array = np.log1p(values) if kind == "length" else values
    return on_scale


def moments(values: Array) -> Moments:
    """Mean, number and squared deviations of the samples of each prompt (last axis)."""
    known = ~np.isnan(values)
    count = known.sum(-1)
    mean = prompt_means(values)
    deviations = np.where(known, values - mean[..., None], 0.0)
    return Moments(mean, count, (deviations * deviations).sum(-1), np.where(known, values, np.inf).min(-1))


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
    h: Array = _angle(now) - _angle(then)
    return h


def _angle(rate: Array) -> Array:
    angle: Array = 2 * np.arcsin(np.sqrt(np.clip(rate, 0, 1)))
    return angle


# -- the test -----------------------------------------------------------------------------------------------------------
def paired_t(now: Moments, then: Moments) -> tuple[Array, Array, Array, Array]:
    """Mean difference over prompts (last axis), its standard error, its two-sided p, and the number of pairs.

    p is of Student's t, and at least 2^(1 - m), where m prompts differ: m coins cannot be surer (the exact sign test).
    """
    from scipy.special import stdtr

    difference = now.mean - then.mean
    n, mean = (~np.isnan(difference)).sum(-1), prompt_means(difference)
    error = standard_error(now, then)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(n - 1, -np.abs(mean) / error)
    unequal = (np.nan_to_num(difference) != 0).sum(-1)
    p = np.where(unequal > 0, np.maximum(p, 0.5 ** (np.maximum(unequal, 1) - 1.0)), 1.0)
    return mean, error, np.where(n >= SMALLEST, p, np.nan), n


def standard_error(now: Moments, then: Moments) -> Array:
    """Standard error of the mean difference; NaN where it cannot be known: below 2 prompts, or if nothing varies at all.

    The largest of: what the differences between prompts give; what sampling alone gives, if both sets vary within prompts as
    they do together; and |mean| / n, so that equal differences have an interval too.
    """
    difference = now.mean - then.mean
    known = ~np.isnan(difference)
    n = known.sum(-1)
    mean = prompt_means(difference)
    deviation = np.where(known, difference - mean[..., None], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (deviation**2).sum(-1) / (n - 1) / n
        error: Array = np.sqrt(np.fmax(np.fmax(between, _of_sampling(now, then, known)), (mean / n) ** 2))
    return np.where((n > 1) & (error > 0), error, np.nan)


def _of_sampling(now: Moments, then: Moments, known: Array) -> Array:
    """Variance of the mean difference if the samples of a prompt were all that varied; NaN with one sample a prompt."""
    freedom = np.where(known, now.count + then.count - 2, 0).sum(-1)
    squares = np.where(known, now.squares + then.squares, 0.0).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(known, 1 / now.count + 1 / then.count, 0.0).sum(-1)
        variance: Array = squares / freedom * shares / known.sum(-1) ** 2
    return variance


# -- intervals ----------------------------------------------------------------------------------------------------------
def _quantile(n: Array) -> Array:
    """Of Student's t, for an interval of LEVEL over n prompts."""
    from scipy.special import stdtrit

    quantile: Array = stdtrit(np.maximum(n - 1, 1), (1 + LEVEL) / 2)
    return quantile


def unit_of_rates(now: Moments, then: Moments, kinds: Array) -> Array:
    """By feature, what one use counts, so that its mean is a rate of uses; NaN where that does not fit.

    1 for rates. For an amount that is 0 in some sample of most prompts (uses per 100 words) E[x^2] / E[x]: in this unit a rare
    style has the variance of a rate, p (1 - p).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = prompt_means(now.mean) + prompt_means(then.mean)
        square = sum(prompt_means(side.mean**2 + side.squares / side.count) for side in (now, then))
        least = np.fmin(now.least, then.least)
        absent = np.where(np.isnan(least), np.nan, least == 0)
        fits = (kinds == "real") & (np.fmin.reduce(least, axis=-1) >= 0) & (prompt_means(absent) > 0.5)
        unit: Array = np.where(
            fits & (mean > 0) & (mean * mean < square), square / mean, np.nan
        )  # sums of two: the rate is < 1/2
    return np.where(kinds == "rate", 1.0, unit)


def _wilson(mean: Array, count: Array, n: Array) -> tuple[Array, Array, Array]:
    """A rate over prompts with Wilson's interval, at as many completions as would be as sure if they were independent.

    That number is p (1 - p) / variance of the mean. It runs from the number of prompts, if each prompt always or never has the
    style, to the number of completions.
    """
    p = prompt_means(mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        completions = n**2 / np.where(count > 0, 1 / count, 0.0).sum(-1)
        deviation = np.nan_to_num(mean - p[..., None])
        independent = np.fmin(p * (1 - p) * n * (n - 1) / (deviation**2).sum(-1), completions)
        weight = _quantile(n) ** 2 / independent
        centre, half = p + weight / 2, np.sqrt(weight * p * (1 - p) + weight**2 / 4)
    return p, (centre - half) / (1 + weight), (centre + half) / (1 + weight)


def _recovered(now: Sequence[Array], then: Sequence[Array], correlation: Array) -> tuple[Array, Array]:
    """The interval of a difference, from (value, low, high) of both: Newcombe 1998, Statistics in Medicine 17, method 10."""

    def distance(one: Array, other: Array) -> Array:
        length: Array = np.sqrt(np.maximum(one**2 + other**2 - 2 * correlation * one * other, 0.0))
        return length

    (a, a_low, a_high), (b, b_low, b_high) = now, then
    return a - b - distance(a - a_low, b_high - b), a - b + distance(a_high - a, b - b_low)


def skewed_intervals(now: Moments, then: Moments, unit: Array, n: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Intervals of a difference of rates, and of Cohen's h. A style that is in no sample, or in all, is not sure to stay so.

    Args:
        unit: of `unit_of_rates`; the interval of the difference is in the feature's own unit.
    """
    ours, theirs = (side.mean / unit[..., None] for side in (now, then))
    deviations = [np.nan_to_num(side - prompt_means(side)[..., None]) for side in (ours, theirs)]
    with np.errstate(divide="ignore", invalid="ignore"):
        norm = np.sqrt(np.prod([(side**2).sum(-1) for side in deviations], axis=0))
        correlation = np.where(norm > 0, np.prod(deviations, axis=0).sum(-1) / norm, 0.0)
        rates = _wilson(ours, now.count, n), _wilson(theirs, then.count, n)
    low, high = _recovered(rates[0], rates[1], correlation)
    angles = [tuple(_angle(end) for end in side) for side in rates]
    return (low * unit, high * unit), _recovered(angles[0], angles[1], correlation)


def changes(now: Sequence[Array], then: Sequence[Array], kinds: Sequence[Kind], yardsticks: Sequence[float]) -> Change:
    """Compare features between two sets of samples of the same prompts.

    Args:
        now, then: per feature, prompts x samples. Prompts are in the same order; the number of samples may differ.
        yardsticks: per feature, `spread` at round 0, the unit of the effect; not used for rates.
    """
    ours, theirs = (_stacked([moments(scaled(v, k)) for v, k in zip(side, kinds, strict=True)]) for side in (now, then))
    return compared(ours, theirs, kinds, yardsticks)


def _stacked(sides: Sequence[Moments]) -> Moments:
    return Moments(*(np.stack([getattr(side, name) for side in sides]) for name in ("mean", "count", "squares", "least")))


def compared(now: Moments, then: Moments, kinds: Sequence[Kind], yardsticks: Sequence[float]) -> Change:
    """`changes` of features whose samples are summarised already: moments of features x prompts, on the scale of `scaled`."""
    kind, yard = np.array(kinds), np.array(yardsticks, dtype=float)
    both = ~np.isnan(now.mean) & ~np.isnan(then.mean)
    now, then = now.where(both), then.where(both)
    difference, error, p, n = paired_t(now, then)
    half, is_rate = _quantile(n) * error, kind == "rate"
    low, high = difference - half, difference + half
    unit = unit_of_rates(now, then, kind)
    ends, ends_of_h = skewed_intervals(now, then, unit, n)
    low, high = (np.where(np.isnan(unit), v, r) for r, v in zip(ends, (low, high), strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        effects = [np.where(difference == 0, 0.0, difference / yard), low / yard, high / yard]
    mean_now, mean_then = prompt_means(now.mean), prompt_means(then.mean)
    of_rates = (cohens_h(mean_now, mean_then), *ends_of_h)
    effect, effect_low, effect_high = (np.where(is_rate, r, v) for r, v in zip(of_rates, effects, strict=True))
    own = [np.where(kind == "length", np.expm1(mean), mean) for mean in (mean_now, mean_then)]
    return Change(n, own[0], own[1], difference, low, high, effect, effect_low, effect_high, p)
