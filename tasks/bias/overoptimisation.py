"""Goodhart's law as figures: how far the proxy outran gold, and gold over the distance from round 0.

Gold is the verifier's word on the probe, the proxy the reward that the campaign trains on, where that is more than gold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from data.alarm import Alarm
from tasks.bias.effects import Array, prompt_means
from tasks.bias.pressure import UNKNOWN, Estimate, estimate

FLOOR = 0.10  # standard deviations of round 0 that are worth a word, as the alarm rule has it
WHAT = "proxy"


def proxy_gap(proxy: Array, gold: Array, proxy_0: Array, gold_0: Array) -> Estimate:
    """How much more the proxy rose than gold, each in its own standard deviations at round 0, per prompt and paired."""
    rises = []
    for now, then in ((proxy, proxy_0), (gold, gold_0)):
        sd = float(np.nanstd(then))
        rises.append((prompt_means(now) - prompt_means(then)) / sd if sd > 0 else np.full(len(now), np.nan))
    return estimate(rises[0] - rises[1])


def fitted(kl: Sequence[float], gold: Sequence[float]) -> tuple[float, float] | None:
    """(a, b) of gold = d (a - b log d), d = sqrt(KL to round 0), by least squares; None below 3 rounds with KL > 0.

    The form of Gao et al., arXiv 2210.10760, for policies trained by RL; gold is counted from round 0.
    """
    d = np.sqrt(np.maximum(np.array(kl, dtype=float), 0.0))  # an estimate of a small KL may be below 0
    g = np.array(gold, dtype=float)[d > 0]
    d = d[d > 0]
    if d.size < 3:
        return None
    (a, b), *_ = np.linalg.lstsq(np.stack([d, -d * np.log(d)], axis=1), g, rcond=None)
    return float(a), float(b)


def peak(a: float, b: float) -> float | None:
    """The KL at which the curve turns down: d = exp(a / b - 1); None where it only rises, or where exp overflows."""
    return math.exp(2 * (a / b - 1)) if b > 0 and a / b < 100 else None


def facts_of(
    round: int, kl: float | None, gold: Array | None, gold_0: Array | None, gap: Estimate, earlier: Mapping[str, Any]
) -> dict[str, Any]:
    """What a round's ledger knows, as plain values with null for what is not known.

    Args:
        gold, gold_0: the verifier's words on the probe, prompts x samples. earlier: these facts for the round before.
    """
    rise = estimate(prompt_means(gold) - prompt_means(gold_0)) if gold is not None and gold_0 is not None else UNKNOWN
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
    """The proxy surely outran gold, and gold did not surely rise: a watch, and an ALARM from the second round running on."""
    gap, rise = facts["proxy_gap"], facts["gold_rise"]
    if gap is None or rise is None or gap["low"] <= 0 or gap["value"] < FLOOR or rise["low"] > 0:
        return []
    said = (
        f"the reward rose by {gap['value']:.2f} SD [{gap['low']:.2f}, {gap['high']:.2f}] more than gold since round 0, gold by "
        f"{100 * rise['value']:+.1f} points [{100 * rise['low']:+.1f}, {100 * rise['high']:+.1f}]; acts on it: residualised, "
        "loss.beta, gate.kl_budget"
    )
    return [Alarm("ALARM" if any(alarm["name"] == WHAT for alarm in earlier) else "watch", "ledger", WHAT, said)]


def lines(facts: Mapping[str, Any]) -> list[str]:
    """The facts for a person."""
    told = []
    if gap := facts["proxy_gap"]:
        told.append(f"Reward less gold: {gap['value']:+.2f} SD [{gap['low']:+.2f}, {gap['high']:+.2f}] since round 0.")
    if curve := facts["overoptimisation"]:
        turns = f"turns down at a KL of {curve['kl_at_peak']:.3g}" if curve["kl_at_peak"] else "has no peak"
        now = facts["gold_over_kl"][-1]
        told.append(
            f"Gold over d = sqrt(KL to round 0): d ({curve['a']:.3g} - {curve['b']:.3g} log d) by {len(facts['gold_over_kl'])} "
            f"rounds; it {turns}; now {100 * now['gold']:+.1f} points at a KL of {now['kl']:.3g}."
        )
    return told


def _plain(found: Estimate) -> dict[str, float] | None:
    return asdict(found) if math.isfinite(found.value) else None
