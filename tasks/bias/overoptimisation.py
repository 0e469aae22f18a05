"""Over-optimisation (Goodhart's law): how far the proxy rose above gold, and gold as a function of the KL to round 0.

Gold is the verifier's verdict on the probe samples. The proxy is the training reward, if that is not the verifier alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from data.alarm import Alarm
from tasks.bias.alarm_rule import remedies
from tasks.bias.effects import Array, prompt_means
from tasks.bias.pressure import DIFFERENCE, UNKNOWN, Estimate, estimate

FLOOR = 0.10  # smallest gap that raises an alarm, in standard deviations of round 0, as in the alarm rule
ALARM_NAME = "proxy"


def proxy_gap(proxy: Array, gold: Array, proxy_0: Array, gold_0: Array) -> Estimate:
    """Rise of the proxy minus rise of gold, each in its own standard deviations at round 0, paired by prompt."""
    rises = []
    for now, then in ((proxy, proxy_0), (gold, gold_0)):
        sd = float(np.nanstd(then))
        rises.append((prompt_means(now) - prompt_means(then)) / sd if sd > 0 else np.full(len(now), np.nan))
    return estimate(rises[0] - rises[1])


def fitted(kl: Sequence[float], gold: Sequence[float]) -> tuple[float, float] | None:
    """(a, b) of gold = d (a - b log d), d = sqrt(KL to round 0), by least squares; None below 3 rounds with KL > 0.

    Form: Gao et al., arXiv 2210.10760, for policies trained by RL. Gold is the change since round 0.
    """
    d = np.sqrt(np.maximum(np.array(kl, dtype=float), 0.0))  # an estimate of a small KL may be below 0
    g = np.array(gold, dtype=float)[d > 0]
    d = d[d > 0]
    if d.size < 3:
        return None
    (a, b), *_ = np.linalg.lstsq(np.stack([d, -d * np.log(d)], axis=1), g, rcond=None)
    return float(a), float(b)


def peak(a: float, b: float) -> float | None:
    """The KL at which the curve turns down: d = exp(a / b - 1). None if it only rises or exp overflows."""
    return math.exp(2 * (a / b - 1)) if b > 0 and a / b < 100 else None


def facts_of(
    round: int, kl: float | None, gold: Array | None, gold_0: Array | None, gap: Estimate, earlier: Mapping[str, Any]
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
    if round and kl is not None and math.isfinite(rise.value):
        points.append({"round": round, "kl": kl, "gold": rise.value})
    curve = fitted([p["kl"] for p in points], [p["gold"] for p in points])
    return {
        "proxy_gap": _plain(gap),
        "gold_rise": _plain(rise),
        "gold_over_kl": points,
        "overoptimisation": {"a": curve[0], "b": curve[1], "kl_at_peak": peak(*curve)} if curve else None,
    }


def alarms_of(facts: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> list[Alarm]:
    """A watch if the proxy rose significantly more than gold, and gold did not rise significantly; an ALARM if it repeats.

    Args:
        earlier: the alarms of the round before, as in alarms.json.
    """
    gap, rise = facts["proxy_gap"], facts["gold_rise"]
    if gap is None or rise is None or gap["low"] <= 0 or gap["value"] < FLOOR or rise["low"] > 0:
        return []
    sentence = (
        f"Since round 0 the training reward rose by {gap['value']:.2f} SD [{gap['low']:.2f}, {gap['high']:.2f}] more than "
        f"verified accuracy. Accuracy changed by {100 * rise['value']:+.1f} points "
        f"[{100 * rise['low']:+.1f}, {100 * rise['high']:+.1f}]. {remedies(('residualised', 'loss.beta', 'gate.kl_budget'))}"
    )
    repeated = any(alarm["name"] == ALARM_NAME for alarm in earlier)
    return [Alarm("ALARM" if repeated else "watch", "ledger", ALARM_NAME, sentence)]


def lines(facts: Mapping[str, Any]) -> list[str]:
    """The facts as sentences for report.md."""
    sentences = []
    if gap := facts["proxy_gap"]:
        interval = f"[{gap['low']:+.2f}, {gap['high']:+.2f}]"
        sentences.append(f"Rise of the reward minus rise of accuracy since round 0: {gap['value']:+.2f} SD {interval}.")
    if curve := facts["overoptimisation"]:
        turns = f"turns down at a KL of {curve['kl_at_peak']:.3g}" if curve["kl_at_peak"] else "has no peak"
        now, rounds = facts["gold_over_kl"][-1], len(facts["gold_over_kl"])
        sentences += [
            f"Fit of {rounds} rounds: gain in accuracy = d ({curve['a']:.3g} - {curve['b']:.3g} log d), d = sqrt(KL).",
            f"The curve {turns}. This round: {100 * now['gold']:+.1f} points at a KL of {now['kl']:.3g}.",
        ]
    return sentences


def _plain(value: Estimate) -> dict[str, float] | None:
    return asdict(value) if math.isfinite(value.low) else None
