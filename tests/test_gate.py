from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.alarm import Alarm
from data.recipe.settings import Gate
from data.store.campaign import Decision, Metric, Verdict
from tasks.gate.gate import decide

BETTER, WORSE, UNCLEAR = (0.10, 0.05, 0.15), (-0.10, -0.15, -0.05), (0.01, -0.02, 0.04)
NUMBERS = {
    BETTER: "Better than the champion on held-out prompts: +10.0 points, 95% interval +5.0 to +15.0, n = 200.",
    WORSE: "Worse than the champion on held-out prompts: -10.0 points, 95% interval -15.0 to -5.0, n = 200.",
    UNCLEAR: "Not significantly different from the champion on held-out prompts: "
    "+1.0 points, 95% interval -2.0 to +4.0, n = 200.",
}


def judge(interval: tuple[Any, Any, Any], untrained: str | None = None, **gate: str) -> Verdict:
    value, low, high = interval
    metric = Metric(value=value, low=low, high=high, n=200, split="held_out")
    return decide(Gate(**gate), {"accuracy_vs_champion": metric}, untrained)


@pytest.mark.parametrize(("interval", "decision"), [(BETTER, "promote"), (WORSE, "roll_back"), (UNCLEAR, "hold")])
def test_each_verdict_and_its_reason(interval: tuple[float, float, float], decision: str) -> None:
    # above zero promotes, below rolls back, spanning zero holds; the reason is one sentence with the numbers
    verdict = judge(interval)
    assert verdict.decision == decision
    assert verdict.reason == NUMBERS[interval]


@pytest.mark.parametrize(
    ("interval", "decision"),
    [((0.1, 0.0, 0.2), "hold"), ((-0.1, -0.2, 0.0), "hold"), ((0.0, 0.0, 0.0), "hold"), ((0.1, 1e-9, 0.2), "promote")],
)
def test_an_interval_that_touches_zero_holds(interval: tuple[float, float, float], decision: str) -> None:
    # "better" means strictly above zero; the same answers as the champion's (no spread) change nothing
    assert judge(interval).decision == decision


@pytest.mark.parametrize(
    ("interval", "setting", "decision"),
    [
        (BETTER, "on_better", "ask"),
        (UNCLEAR, "on_unclear", "ask"),
        (WORSE, "on_worse", "ask"),
        (WORSE, "on_worse", "stop"),
    ],
)
def test_a_recipe_chooses_what_each_outcome_means(interval: tuple[float, ...], setting: str, decision: str) -> None:
    # a person is asked, or the campaign stops, only for the outcome it was set for; the reason stays the numbers'
    for other in NUMBERS:
        verdict = judge(other, **{setting: decision})
        assert verdict.decision == (decision if other == interval else judge(other).decision)
        assert verdict.reason == NUMBERS[other]


@pytest.mark.parametrize("gate", [{}, {"on_unclear": "ask"}, {"on_better": "ask", "on_worse": "stop"}])
def test_what_cannot_be_measured_holds(gate: dict[str, str]) -> None:
    # without a verified answer accuracy is unknown: the champion stays, and the reason says why
    verdict = judge((None, None, None), **gate)
    assert verdict == Verdict(
        decision="hold", reason="No held-out prompt has an answer to verify, so accuracy cannot be compared."
    )


@pytest.mark.parametrize("gate", [{}, {"rule": "always_promote"}, {"on_unclear": "ask"}])
def test_a_round_that_trained_nothing_holds(gate: dict[str, str]) -> None:
    # the same model cannot be promoted over itself, under any rule
    verdict = judge(BETTER, untrained="3 pairs, train.minimum = 8", **gate)
    expected = "Nothing was trained, so the head does not change: 3 pairs, train.minimum = 8."
    assert verdict == Verdict(decision="hold", reason=expected)


@pytest.mark.parametrize("interval", [BETTER, WORSE, UNCLEAR, (None, None, None)])
def test_an_open_gate_promotes_and_still_says_the_numbers(interval: tuple[Any, Any, Any]) -> None:
    # always_promote is for controls: nothing rolls back, what was measured is on record
    verdict = judge(interval, rule="always_promote")
    numbers = NUMBERS[interval].split(": ")[1] if interval in NUMBERS else "the difference in accuracy is unknown."
    assert verdict == Verdict(decision="promote", reason=f"gate.rule is always_promote: {numbers}")


@given(
    st.tuples(*[st.none() | st.floats(-1, 1)] * 3),
    st.none() | st.just("no pairs"),
    st.sampled_from(["paired_interval", "always_promote"]),
)
def test_every_round_gets_one_decision_in_one_line(interval: tuple[Any, Any, Any], untrained: str | None, rule: str) -> None:
    # whatever was measured, the gate answers
    verdict = judge(interval, untrained, rule=rule)
    assert verdict.decision in get_args(Decision)
    assert verdict.reason
    assert "\n" not in verdict.reason


@pytest.mark.parametrize(
    ("interval", "level", "setting", "decision"),
    [
        (BETTER, "watch", {}, "promote"),
        (BETTER, "ALARM", {}, "hold"),
        (BETTER, "STOP", {}, "roll_back"),
        (WORSE, "ALARM", {}, "roll_back"),
        (BETTER, "ALARM", {"ALARM": "ask"}, "ask"),
        (BETTER, "ALARM", {"ALARM": "ignore"}, "promote"),
        (UNCLEAR, "STOP", {"STOP": "stop"}, "stop"),
        (WORSE, "STOP", {"STOP": "ask"}, "roll_back"),
    ],
)
def test_alarms_answer_through_the_table(
    interval: tuple[float, ...], level: Any, setting: dict[str, str], decision: str
) -> None:
    # the gravest alarm's verdict counts where it is graver than accuracy's; the reason then names the alarm
    metric = Metric(value=interval[0], low=interval[1], high=interval[2], n=200, split="held_out")
    alarms = [Alarm("watch", "ledger", "tone", "Rose."), Alarm(level, "ledger", "list", "12% to 30%.")]
    verdict = decide(Gate(on_alarm=setting), {"accuracy_vs_champion": metric}, None, alarms)
    assert verdict.decision == decision
    by_accuracy = decide(Gate(), {"accuracy_vs_champion": metric}, None)
    assert (f"Overruled by {level} list: 12% to 30%." in verdict.reason) == (verdict.decision != by_accuracy.decision)
