"""The gate: may the model move forward? A plain function of metrics and alarms, whose verdict states its reason.

The difference is of all answers to the held-out prompts, the greedy and the sampled ones, paired by prompt. An exact sign-flip
test judges it, because t intervals promote after 4 wins and no loss. Each round may make only its share of a campaign's error
(tasks/gate/spending.py). Both checkpoints answered with the same random numbers; the champion is never drawn anew.

With 200 prompts and a truth of +2 points, a promoted champion shows +5: it was chosen for being high. So a promotion also
states a gain to count on, the end of a one-sided interval with the round's own error. In at most 5% of campaigns is one of
these above the truth. The test split, which chose nothing, has the champion's gain without this inflation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from data.alarm import Alarm, gravest
from data.recipe.settings import Gate
from data.store.campaign import Decision, Metric, Verdict
from tasks.gate.spending import Error, gain_to_count_on, smallest_difference, spent

Comparison = Literal["better", "worse", "unclear"]
DIFFERENCE, P, SPREAD = "mean_accuracy_vs_champion", "p_vs_champion", "spread_vs_champion"  # the metrics that the gate reads
IN_WORDS: dict[Comparison, str] = {
    "better": "Better than the champion",
    "worse": "Worse than the champion",
    "unclear": "Not significantly different from the champion",
}
GRAVITY: tuple[Decision, ...] = ("promote", "hold", "ask", "roll_back", "stop")


def decide(
    gate: Gate, metrics: Mapping[str, Metric], error: Error, untrained: str | None, alarms: Sequence[Alarm] = ()
) -> Verdict:
    """The verdict on a round's checkpoint: by accuracy, or by the gravest alarm if that decision is graver.

    The head is the checkpoint that the next round starts from. The champion is the best checkpoint accepted so far.

    Args:
        metrics: DIFFERENCE, P and SPREAD among them, of held-out prompts.
        error: that this round may make (`tasks.gate.spending.error_of_round`).
        untrained: why the round trained nothing, or None.
        alarms: of the round; `gate.on_alarm` has a decision for each level.
    """
    if untrained is not None:
        return Verdict(decision="hold", reason=f"Nothing was trained, so the head does not change: {untrained}.")
    if gate.rule == "always_promote":
        words = _difference_in_words(metrics[DIFFERENCE])
        return Verdict(decision="promote", reason=f"gate.rule is always_promote: {words}.")
    verdict = _by_accuracy(gate, metrics, error)
    level = gravest(alarms)
    decision = getattr(gate.on_alarm, level) if level else "ignore"
    if decision == "ignore" or GRAVITY.index(decision) <= GRAVITY.index(verdict.decision):
        return verdict
    first, *others = [alarm for alarm in alarms if alarm.level == level]
    also = f" More alarms of this level: {', '.join(alarm.name for alarm in others)}." if others else ""
    return Verdict(decision=decision, reason=f"{verdict.reason} Overruled by {first}{also}")


def compare(difference: Metric, p: Metric, error: Error) -> Comparison | None:
    """What the exact test says of a checkpoint and the champion, with the error that the round may make; None if unmeasured."""
    if difference.value is None or p.value is None:
        return None
    if difference.value > 0 and p.value <= error.promote:
        return "better"
    return "worse" if difference.value < 0 and p.value <= error.roll_back else "unclear"


def gate_facts(gate: Gate, metrics: Mapping[str, Metric], error: Error, untrained: str | None) -> dict[str, Any]:
    """For the Round: what its gate found, the error it spent, and the smallest gain it could have detected (see `spending`).

    Empty if nothing was tested: then nothing is spent.
    """
    found = compare(metrics[DIFFERENCE], metrics[P], error)
    if untrained is not None or gate.rule == "always_promote" or found is None:
        return {}
    return spent(error, found=found, smallest_gain=_smallest_gain(metrics, error))


def _by_accuracy(gate: Gate, metrics: Mapping[str, Metric], error: Error) -> Verdict:
    difference, p = metrics[DIFFERENCE], metrics[P]
    found = compare(difference, p, error)
    if found is None:
        return Verdict(decision="hold", reason="No held-out prompt has an answer to verify, so accuracy cannot be compared.")
    decision: Decision = {"better": gate.on_better, "worse": gate.on_worse, "unclear": gate.on_unclear}[found]
    reason = (
        f"{IN_WORDS[found]} on held-out prompts: {_difference_in_words(difference)}. {_test_in_words(difference, p, error)}"
    )
    if found == "better":
        surely = gain_to_count_on(difference.value or 0.0, metrics[SPREAD].value or 0.0, difference.n, error)
        reason += f" It was chosen for being high: count on {100 * surely:+.1f} points."
    if found == "unclear":
        reason += f" A gain of {100 * _smallest_gain(metrics, error):.1f} points would be found in 80% of cases."
    return Verdict(decision=decision, reason=reason)


def _smallest_gain(metrics: Mapping[str, Metric], error: Error) -> float:
    return smallest_difference(metrics[SPREAD].value or 0.0, metrics[SPREAD].n, error.promote)


def _test_in_words(difference: Metric, p: Metric, error: Error) -> str:
    share = error.promote if (difference.value or 0.0) >= 0 else error.roll_back
    return f"Exact p = {p.value:.2g}, and this round decides at {share:.2g}."


def _difference_in_words(difference: Metric) -> str:
    if difference.value is None or difference.low is None or difference.high is None:
        return "the difference in accuracy is unknown"
    points = [100 * x for x in (difference.value, difference.low, difference.high)]
    return f"{points[0]:+.1f} points, 95% interval {points[1]:+.1f} to {points[2]:+.1f}, n = {difference.n}"
