"""The gate: may the model move forward? A plain function of what was measured; its reason is one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data.alarm import Alarm, gravest
from data.recipe.settings import Gate
from data.store.campaign import Decision, Metric, Verdict

GRAVITY: tuple[Decision, ...] = ("promote", "hold", "ask", "roll_back", "stop")


def decide(gate: Gate, metrics: Mapping[str, Metric], untrained: str | None, alarms: Sequence[Alarm] = ()) -> Verdict:
    """The verdict on a round's checkpoint: what accuracy says, or what the gravest alarm says where that is graver.

    Args:
        metrics: holds `accuracy` and `accuracy_vs_champion`, a paired difference with its 95% interval, on held-out.
        untrained: why the round trained nothing, or None.
        alarms: of the bias ledger and of training; `gate.on_alarm` says what each level does.
    """
    if untrained is not None:
        return Verdict(decision="hold", reason=f"nothing was trained, so the head stays: {untrained}")
    difference = metrics["accuracy_vs_champion"]
    if gate.rule == "always_promote":
        return Verdict(decision="promote", reason=f"the gate is open (always_promote); {_said(difference)}")
    verdict = _by_accuracy(gate, difference)
    level = gravest(alarms)
    answer = getattr(gate.on_alarm, level) if level else "ignore"
    if answer == "ignore" or GRAVITY.index(answer) <= GRAVITY.index(verdict.decision):
        return verdict
    worst = [alarm for alarm in alarms if alarm.level == level]
    more = f" (and {len(worst) - 1} more)" if len(worst) > 1 else ""
    return Verdict(decision=answer, reason=f"{verdict.reason}; but {worst[0]}{more}")


def _by_accuracy(gate: Gate, difference: Metric) -> Verdict:
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
