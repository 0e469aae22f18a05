"""The gate: may the model move forward? A plain function of metrics and alarms, whose verdict states its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data.alarm import Alarm, gravest
from data.recipe.settings import Gate
from data.store.campaign import Decision, Metric, Verdict

GRAVITY: tuple[Decision, ...] = ("promote", "hold", "ask", "roll_back", "stop")


def decide(gate: Gate, metrics: Mapping[str, Metric], untrained: str | None, alarms: Sequence[Alarm] = ()) -> Verdict:
    """The verdict on a round's checkpoint: by accuracy, or by the gravest alarm if that decision is graver.

    The head is the checkpoint that the next round starts from. The champion is the best checkpoint accepted so far.

    Args:
        metrics: `accuracy_vs_champion` among them, a paired difference with its 95% interval on held-out prompts.
        untrained: why the round trained nothing, or None.
        alarms: of the round; `gate.on_alarm` has a decision for each level.
    """
    if untrained is not None:
        return Verdict(decision="hold", reason=f"Nothing was trained, so the head does not change: {untrained}.")
    difference = metrics["accuracy_vs_champion"]
    if gate.rule == "always_promote":
        return Verdict(decision="promote", reason=f"gate.rule is always_promote: {_difference_in_words(difference)}.")
    verdict = _by_accuracy(gate, difference)
    level = gravest(alarms)
    decision = getattr(gate.on_alarm, level) if level else "ignore"
    if decision == "ignore" or GRAVITY.index(decision) <= GRAVITY.index(verdict.decision):
        return verdict
    first, *others = [alarm for alarm in alarms if alarm.level == level]
    also = f" More alarms of this level: {', '.join(alarm.name for alarm in others)}." if others else ""
    return Verdict(decision=decision, reason=f"{verdict.reason} Overruled by {first}{also}")


def _by_accuracy(gate: Gate, difference: Metric) -> Verdict:
    if difference.value is None or difference.low is None or difference.high is None:
        return Verdict(decision="hold", reason="No held-out prompt has an answer to verify, so accuracy cannot be compared.")
    decision: Decision
    if difference.low > 0:
        decision, comparison = gate.on_better, "Better than the champion"
    elif difference.high < 0:
        decision, comparison = gate.on_worse, "Worse than the champion"
    else:
        decision, comparison = gate.on_unclear, "Not significantly different from the champion"
    return Verdict(decision=decision, reason=f"{comparison} on held-out prompts: {_difference_in_words(difference)}.")


def _difference_in_words(difference: Metric) -> str:
    if difference.value is None or difference.low is None or difference.high is None:
        return "the difference in accuracy is unknown"
    points = [100 * x for x in (difference.value, difference.low, difference.high)]
    return f"{points[0]:+.1f} points, 95% interval {points[1]:+.1f} to {points[2]:+.1f}, n = {difference.n}"
