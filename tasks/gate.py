"""The gate: may the model move forward? A plain function of what was measured; its reason is one sentence."""

from __future__ import annotations

from collections.abc import Mapping

from data.campaign import Decision, Metric, Verdict
from data.recipe import Gate


def decide(gate: Gate, metrics: Mapping[str, Metric], untrained: str | None) -> Verdict:
    """The verdict on a round's checkpoint.

    Args:
        metrics: holds `accuracy` and `accuracy_vs_champion`, a paired difference with its 95% interval, on held-out.
        untrained: why the round trained nothing, or None.
    """
    if untrained is not None:
        return Verdict(decision="hold", reason=f"nothing was trained, so the head stays: {untrained}")
    difference = metrics["accuracy_vs_champion"]
    if gate.rule == "always_promote":
        return Verdict(decision="promote", reason=f"the gate is open (always_promote); {_said(difference)}")
    if difference.value is None or difference.low is None or difference.high is None:
        return Verdict(
            decision="hold", reason="no held-out prompt has an answer to verify, so better and worse cannot be told apart"
        )
    decision: Decision
    if difference.low > 0:
        decision, why = gate.on_better, "better than the champion"
    elif difference.high < 0:
        decision, why = gate.on_worse, "worse than the champion"
    else:
        decision, why = gate.on_unclear, "not clearly different from the champion"
    return Verdict(decision=decision, reason=f"{why} on held-out: {_said(difference)}")


def _said(difference: Metric) -> str:
    if difference.value is None or difference.low is None or difference.high is None:
        return "no paired difference could be measured"
    points = [100 * x for x in (difference.value, difference.low, difference.high)]
    return f"{points[0]:+.1f} points, 95% interval {points[1]:+.1f} to {points[2]:+.1f}, n = {difference.n}"
