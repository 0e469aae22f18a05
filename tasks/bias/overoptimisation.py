"""Over-optimisation (Goodhart's law): how far the proxy rose above gold, and gold as a function of the KL to round 0.

Gold is the verifier's verdict on the probe samples. The proxy is the training reward, if that is not the verifier alone.

Proxy and gold are compared in gold's unit, the share of right answers. At round 0 the proxy is calibrated: among the samples of
one prompt, how much more often is an answer right whose reward is so far above the prompt's mean? In later rounds this predicts
how much gold should have risen with the reward. A good proxy keeps that prediction, whatever its scale and its noise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.alarm import Alarm
from data.statistics import LEVEL
from tasks.bias.alarm_rule import remedies
from tasks.bias.effects import SMALLEST, Array, prompt_means
from tasks.bias.pressure import DIFFERENCE, UNKNOWN, Estimate, Z, estimate

FLOOR = 0.02  # smallest gap that raises an alarm, as a share of right answers: two points, as for rates in the alarm rule
ALARM_NAME = "proxy"
BINS = 10  # of the calibration, with equally many samples of round 0 (histogram binning: Zadrozny and Elkan 2001)
RESAMPLES = 500  # of prompts, for standard errors
FEWEST_ROUNDS = 3  # with a KL above 0, for a fit of two numbers


@dataclass(frozen=True)
class Gap:
    """The rise of gold that the proxy predicts, and by how much it is above the true rise; as shares of right answers."""

    predicted: Estimate = UNKNOWN
    excess: Estimate = UNKNOWN
    unknown: str = ""  # why neither can be known


def proxy_gap(proxy: Array, gold: Array, proxy_0: Array, gold_0: Array) -> Gap:
    """Calibrate the proxy at round 0, and compare the rise that it predicts with the rise of gold, paired by prompt.

    The intervals are Student's, by a bootstrap over prompts that calibrates anew each time. Rewards outside the range of round
    0 count as its ends, so nothing is extrapolated. With one sample of each prompt there, the calibration is between prompts.

    Args:
        proxy, gold, proxy_0, gold_0: prompts x samples, now and at round 0; NaN = not scored.
    """
    used = ~np.isnan([prompt_means(side) for side in (proxy, gold, proxy_0, gold_0)]).any(0)
    proxy, gold, proxy_0, gold_0 = (side[used] for side in (proxy, gold, proxy_0, gold_0))
    if reason := _too_little(gold_0):
        return Gap(unknown=reason)
    above, above_0 = (side - _level(proxy_0) for side in (proxy, proxy_0))
    weights = _resamples(len(gold))
    if reason := _predicts_nothing(above_0, gold_0, weights):
        return Gap(unknown=reason)
    predicted = _predicted(above, above_0, gold_0, weights)
    true = weights @ (prompt_means(gold) - prompt_means(gold_0))
    return Gap(_interval(predicted, len(gold)), _interval(predicted - true, len(gold)))


def _too_little(gold_0: Array) -> str:
    if len(gold_0) < SMALLEST:
        return f"it needs {SMALLEST} prompts with verdicts, found {len(gold_0)}"
    if np.nanmin(gold_0) == np.nanmax(gold_0):
        return f"at round 0 {'all' if np.nanmax(gold_0) else 'no'} answers are right"
    return ""


def _level(values: Array) -> Array:
    """The mean of each prompt, as a column; of all prompts where each has one sample."""
    several = (~np.isnan(values)).sum(-1).max() > 1
    level: Array = prompt_means(values)[:, None] if several else np.nanmean(values)
    return level


@functools.lru_cache(maxsize=8)
def _resamples(prompts: int) -> Array:
    """The weight of each prompt, all alike, and then in each resample: 1 + RESAMPLES x prompts."""
    counts = np.random.default_rng(0).multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES)
    weights: Array = np.concatenate([np.ones((1, prompts)), counts]) / prompts
    return weights


def _predicts_nothing(above_0: Array, gold_0: Array, weights: Array) -> str:
    """The reason why a proxy that is no better at round 0 than chance predicts no rise; "" if it surely is better."""
    together = _interval(weights @ np.nansum(above_0 * (gold_0 - _level(gold_0)), axis=-1), len(gold_0))
    if together.low > 0:
        return ""
    how = "prefers wrong answers" if together.high < 0 else "does not tell right from wrong answers"
    return f"at round 0 the reward {how} surely enough"


def _predicted(above: Array, above_0: Array, gold_0: Array, weights: Array) -> Array:
    """The predicted rise of gold, by weights: the chance to be right in each bin of the reward, times how much fuller it is."""
    edges = np.unique(np.nanquantile(above_0, np.linspace(0, 1, BINS + 1)[1:-1]))
    right_0 = np.where(np.isnan(above_0), np.nan, gold_0 - _level(gold_0))
    ones = np.where(np.isnan(right_0), np.nan, 1.0)
    chance = weights @ _by_bin(above_0, edges, right_0) / np.maximum(weights @ _by_bin(above_0, edges, ones), 1e-12)
    fuller = weights @ (_shares(above, edges) - _shares(above_0, edges))
    predicted: Array = (chance * fuller).sum(-1)
    return predicted


def _by_bin(values: Array, edges: Array, amounts: Array) -> Array:
    """Sum of the amounts of the samples whose value is in a bin: prompts x bins. NaN amounts are left out."""
    place = np.searchsorted(edges, values, side="right")
    return np.stack([np.nansum(np.where(place == i, amounts, 0.0), axis=-1) for i in range(len(edges) + 1)], axis=-1)


def _shares(values: Array, edges: Array) -> Array:
    """Share of a prompt's samples in each bin."""
    counts = _by_bin(values, edges, np.where(np.isnan(values), np.nan, 1.0))
    shares: Array = counts / counts.sum(-1, keepdims=True)
    return shares


def _interval(resampled: Array, prompts: int) -> Estimate:
    """The first value, with Student's t interval by the standard deviation of the others."""
    from scipy.special import stdtrit

    value, error = float(resampled[0]), float(resampled[1:].std(ddof=1)) * math.sqrt(prompts / (prompts - 1))
    half = float(stdtrit(prompts - 1, (1 + LEVEL) / 2)) * error
    return Estimate(value, value - half, value + half)


# -- gold over KL -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Curve:
    """Gold = d (a - b log d), d = sqrt(KL to round 0). The KL at which it turns down is UNKNOWN unless b is surely above 0."""

    a: Estimate
    b: Estimate
    kl_at_peak: Estimate


def fitted(kl: Sequence[float], gold: Sequence[float], errors: Sequence[float], shared: float = 0.0) -> Curve | None:
    """The curve of rounds by generalised least squares, with 95% intervals; None below FEWEST_ROUNDS with KL > 0.

    Form: Gao et al., arXiv 2210.10760, for policies trained by RL. The interval of the peak is Fieller's, of a / b.

    Args:
        gold: the change since round 0.
        errors: the standard errors of these; where rounds scatter more, the intervals widen.
        shared: correlation of the errors of two rounds, since both are compared with one round 0.
    """
    d = np.sqrt(np.maximum(np.array(kl, dtype=float), 0.0))  # an estimate of a small KL may be below 0
    used = (d > 0) & (np.array(errors, dtype=float) > 0)
    d, g, e = d[used], np.array(gold, dtype=float)[used], np.array(errors, dtype=float)[used]
    if d.size < FEWEST_ROUNDS:
        return None
    weights = np.linalg.inv(np.outer(e, e) * (shared + (1 - shared) * np.eye(d.size)))
    terms = np.stack([d, -d * np.log(d)], axis=1)
    covariance = np.linalg.pinv(terms.T @ weights @ terms)
    found = covariance @ terms.T @ weights @ g
    left = g - terms @ found
    covariance *= max(1.0, float(left @ weights @ left) / (d.size - 2))
    half = Z * np.sqrt(np.diag(covariance))
    a, b = (Estimate(float(v), float(v - h), float(v + h)) for v, h in zip(found, half, strict=True))
    return Curve(a, b, _peak(found, covariance) if b.low > 0 else UNKNOWN)


def _peak(found: Array, covariance: Array) -> Estimate:
    """The KL at which the curve turns down, exp(2 (a / b - 1)), with Fieller's interval; UNKNOWN if it overflows."""
    (a, b), squared = found, Z * Z * covariance
    p, q, r = b * b - squared[1, 1], a * b - squared[0, 1], a * a - squared[0, 0]
    root = math.sqrt(max(0.0, q * q - p * r))
    ratios = a / b, (q - root) / p, (q + root) / p
    return Estimate(*(math.exp(2 * (ratio - 1)) for ratio in ratios)) if ratios[2] < 100 else UNKNOWN


# -- facts of a round, alarms, sentences --------------------------------------------------------------------------------
def facts_of(
    round: int, kl: float | None, gold: Array | None, gold_0: Array | None, gap: Gap, earlier: Mapping[str, Any]
) -> dict[str, Any]:
    """The facts of a round as plain values; null if unknown.

    Args:
        gold, gold_0: the verifier's verdicts on the probe, prompts x samples, now and at round 0.
        gap: of `proxy_gap`.
        earlier: these facts for the round before.
    """
    rise = (
        estimate(prompt_means(gold) - prompt_means(gold_0), DIFFERENCE) if gold is not None and gold_0 is not None else UNKNOWN
    )
    points = list(earlier.get("gold_over_kl") or ())
    if round and kl is not None and math.isfinite(rise.low):
        points.append({"round": round, "kl": kl, "gold": rise.value, "error": (rise.high - rise.low) / 2 / Z})
    return {
        **outran_facts(gap),
        "gold_rise": _plain(rise),
        "gold_over_kl": points,
        "overoptimisation": _plain_curve(points, gold, gold_0),
    }


def outran_facts(gap: Gap | None) -> dict[str, Any]:
    """What `proxy_gap` found as plain values; None: there is no proxy, or no gold."""
    gap = gap or Gap()
    unknown = gap.unknown or None
    return {"proxy_gap": _plain(gap.excess), "predicted_rise": _plain(gap.predicted), "proxy_unknown": unknown}


def _plain_curve(points: Sequence[Mapping[str, float]], gold: Array | None, gold_0: Array | None) -> dict[str, Any] | None:
    """The fit of `gold_over_kl` as plain values. Points of older versions, without an error, are left out."""
    if gold is None or gold_0 is None:
        return None
    now, then = gold.shape[1], gold_0.shape[1]
    known = [point for point in points if "error" in point]
    kl, rise, error = ([point[name] for point in known] for name in ("kl", "gold", "error"))
    curve = fitted(kl, rise, error, shared=now / (now + then))
    return {name: _plain(value) for name, value in vars(curve).items()} if curve else None


def alarms_of(facts: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> list[Alarm]:
    """A watch if the proxy surely predicts a rise of gold, surely a larger one than there is, and gold did not surely rise.

    An ALARM if it repeats.

    Args:
        earlier: the alarms of the round before, as in alarms.json.
    """
    gap, rise, predicted = facts["proxy_gap"], facts["gold_rise"], facts["predicted_rise"]
    if gap is None or rise is None or predicted is None or rise["low"] > 0:
        return []
    if gap["low"] <= 0 or predicted["low"] <= 0 or gap["value"] < FLOOR:
        return []
    sentence = (
        f"Since round 0 the training reward rose as if accuracy had risen by {_points(predicted)}. Accuracy changed by "
        f"{_points(rise)}. {remedies(('residualised', 'loss.beta', 'gate.kl_budget'))}"
    )
    repeated = any(alarm["name"] == ALARM_NAME for alarm in earlier)
    return [Alarm("ALARM" if repeated else "watch", "ledger", ALARM_NAME, sentence)]


def _points(share: Mapping[str, float]) -> str:
    return f"{100 * share['value']:+.1f} points [{100 * share['low']:+.1f}, {100 * share['high']:+.1f}]"


def lines(facts: Mapping[str, Any]) -> list[str]:
    """The facts as sentences for report.md."""
    sentences = outran(facts)
    if curve := facts["overoptimisation"]:
        rounds, now, a, b = len(facts["gold_over_kl"]), facts["gold_over_kl"][-1], curve["a"], curve["b"]
        sentences += [
            f"Fit of {rounds} rounds: gain in accuracy = d (a - b log d), d = sqrt(KL), a = {_interval_of(a)}, "
            f"b = {_interval_of(b)}.",
            f"{_turns(curve)} This round: {100 * now['gold']:+.1f} points at a KL of {now['kl']:.3g}.",
        ]
    return sentences


def outran(facts: Mapping[str, Any]) -> list[str]:
    """Whether the reward rose more than accuracy, in sentences."""
    if reason := facts["proxy_unknown"]:
        return [f"Whether the reward outran accuracy cannot be known: {reason}."]
    if not (gap := facts["proxy_gap"]):
        return []
    predicted = _points(facts["predicted_rise"])
    return [f"By its reward, accuracy should have changed by {predicted}. That is {_points(gap)} more than it did."]


def _turns(curve: Mapping[str, Any]) -> str:
    if peak := curve["kl_at_peak"]:
        return f"The curve turns down at a KL of {_interval_of(peak)}."
    return "Whether the curve turns down cannot be known yet: the interval of b includes 0 or less."


def _interval_of(value: Mapping[str, float]) -> str:
    return f"{value['value']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"


def _plain(value: Estimate) -> dict[str, float] | None:
    """To five digits: the last digits of a sum over resamples have differed between two processes on one machine."""
    return {k: float(f"{v:.5g}") for k, v in asdict(value).items()} if math.isfinite(value.low) else None
