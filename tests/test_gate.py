from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from data.alarm import Alarm
from data.recipe.recipe import load
from data.recipe.settings import Gate
from data.store.campaign import Decision, Metric, Verdict
from flows.commands.check import smallest_gain
from tasks.evaluate.measure import versus_champion
from tasks.gate.gate import DIFFERENCE, decide, gate_facts
from tasks.gate.spending import FACT, OF_A_CAMPAIGN, Error, error_of_round, expected_spread, smallest_difference
from tests.bench_gate import World, null_world, play

Result = tuple[int, int] | None
BETTER, WORSE, UNCLEAR, UNKNOWN = (30, 5), (5, 30), (10, 8), None
SHARE = Error(promote=0.0125, roll_back=0.00625)
WORDS: dict[Result, str] = {
    BETTER: "+12.5 points, 95% interval +6.7 to +18.1, n = 200",
    WORSE: "-12.5 points, 95% interval -18.1 to -6.7, n = 200",
    UNCLEAR: "+1.0 points, 95% interval -3.4 to +5.4, n = 200",
}
REASONS: dict[Result, str] = {
    BETTER: f"Better than the champion on held-out prompts: {WORDS[BETTER]}. Exact p = 1.1e-05, and this round decides at "
    "0.013. It was chosen for being high: count on +6.2 points.",
    WORSE: f"Worse than the champion on held-out prompts: {WORDS[WORSE]}. Exact p = 1.1e-05, and this round decides at 0.0063.",
    UNCLEAR: f"Not significantly different from the champion on held-out prompts: {WORDS[UNCLEAR]}. Exact p = 0.41, and this "
    "round decides at 0.013. A gain of 6.5 points would be found in 80% of cases.",
}


def measured(result: Result, n: int = 200) -> dict[str, Metric]:
    """What the measuring function says of this many prompts won and lost; of no prompt at all for None."""
    won, lost = result or (0, 0)
    ours = {str(i): [float(i < won)] for i in range(n if result else 0)}
    theirs = {str(i): [float(won <= i < won + lost)] for i in range(n if result else 0)}
    rows = versus_champion("held_out", ours, theirs)
    return {row["metric"]: Metric(**{k: row[k] for k in ("value", "low", "high", "n", "split")}) for row in rows}


def judge(result: Result, untrained: str | None = None, error: Error = SHARE, **gate: Any) -> Verdict:
    return decide(Gate(**gate), measured(result), error, untrained)


@pytest.mark.parametrize(("result", "decision"), [(BETTER, "promote"), (WORSE, "roll_back"), (UNCLEAR, "hold")])
def test_each_verdict_and_its_reason(result: Result, decision: str) -> None:
    # surely more prompts won than lost promotes, surely fewer rolls back, else it holds; the reason has the numbers
    verdict = judge(result)
    assert verdict.decision == decision
    assert verdict.reason == REASONS[result]


@pytest.mark.parametrize("share", [Error(0.025, 0.0125), Error(0.004, 0.002)])
@pytest.mark.parametrize("side", [1, -1])
def test_few_wins_promote_only_if_chance_rarely_gives_them(share: Error, side: int) -> None:
    # w wins to 0 losses happen by chance in 1 of 2^w cases: 4 never promote, and the first w that does is the exact test's
    allowed, decision = (share.promote, "promote") if side == 1 else (share.roll_back, "roll_back")
    for wins in range(14):
        expected = decision if wins and 0.5**wins <= allowed else "hold"
        assert judge((wins, 0) if side == 1 else (0, wins), error=share).decision == expected
    assert judge((4, 0), error=error_of_round(1, [{}])).decision == "hold"


@pytest.mark.parametrize("lost", [0, 3, 10, 40])
def test_the_verdict_changes_at_the_share_of_the_round(lost: int) -> None:
    # the p value is McNemar's exact one-sided one: the least number of wins that promotes, and one win fewer holds
    fewest = next(w for w in range(200) if w > lost and binom.sf(w - 1, w + lost, 0.5) <= SHARE.promote)
    assert judge((fewest, lost)).decision == "promote"
    assert judge((fewest - 1, lost)).decision == "hold"


@pytest.mark.parametrize(
    ("result", "setting", "decision"),
    [
        (BETTER, "on_better", "ask"),
        (UNCLEAR, "on_unclear", "ask"),
        (WORSE, "on_worse", "ask"),
        (WORSE, "on_worse", "stop"),
    ],
)
def test_a_recipe_chooses_what_each_outcome_means(result: Result, setting: str, decision: str) -> None:
    # a person is asked, or the campaign stops, only for the outcome it was set for; the reason stays the numbers'
    for other in REASONS:
        changed: dict[str, Any] = {setting: decision}
        verdict = judge(other, **changed)
        assert verdict.decision == (decision if other == result else judge(other).decision)
        assert verdict.reason == REASONS[other]


@pytest.mark.parametrize("gate", [{}, {"on_unclear": "ask"}, {"on_better": "ask", "on_worse": "stop"}])
def test_what_cannot_be_measured_holds(gate: dict[str, Any]) -> None:
    # without a verified answer accuracy is unknown: the champion stays, and the reason says why
    verdict = judge(UNKNOWN, **gate)
    assert verdict == Verdict(
        decision="hold", reason="No held-out prompt has an answer to verify, so accuracy cannot be compared."
    )


@pytest.mark.parametrize("gate", [{}, {"rule": "always_promote"}, {"on_unclear": "ask"}])
def test_a_round_that_trained_nothing_holds(gate: dict[str, Any]) -> None:
    # the same model cannot be promoted over itself, under any rule
    verdict = judge(BETTER, untrained="3 pairs, train.minimum = 8", **gate)
    expected = "Nothing was trained, so the head does not change: 3 pairs, train.minimum = 8."
    assert verdict == Verdict(decision="hold", reason=expected)


@pytest.mark.parametrize("result", [BETTER, WORSE, UNCLEAR, UNKNOWN])
def test_an_open_gate_promotes_and_still_says_the_numbers(result: Result) -> None:
    # always_promote is for controls: nothing rolls back, what was measured is on record
    verdict = judge(result, rule="always_promote")
    numbers = WORDS[result] if result else "the difference in accuracy is unknown"
    assert verdict == Verdict(decision="promote", reason=f"gate.rule is always_promote: {numbers}.")


@given(
    st.none() | st.tuples(st.integers(0, 20), st.integers(0, 20)),
    st.none() | st.just("no pairs"),
    st.sampled_from(["paired_interval", "always_promote"]),
)
def test_every_round_gets_one_decision_in_one_line(result: Result, untrained: str | None, rule: str) -> None:
    # whatever was measured, the gate answers
    verdict = judge(result, untrained, rule=rule)
    assert verdict.decision in get_args(Decision)
    assert verdict.reason
    assert "\n" not in verdict.reason


@pytest.mark.parametrize(
    ("result", "level", "setting", "decision"),
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
def test_alarms_answer_through_the_table(result: Result, level: Any, setting: dict[str, str], decision: str) -> None:
    # the gravest alarm's verdict counts where it is graver than accuracy's; the reason then names the alarm
    alarms = [Alarm("watch", "ledger", "tone", "Rose."), Alarm(level, "ledger", "list", "12% to 30%.")]
    verdict = decide(Gate(on_alarm=setting), measured(result), SHARE, None, alarms)
    assert verdict.decision == decision
    by_accuracy = judge(result)
    assert (f"Overruled by {level} list: 12% to 30%." in verdict.reason) == (verdict.decision != by_accuracy.decision)


# -- the error of a whole campaign -----------------------------------------------------------------------------------------
def spend(rounds: int, facts: list[dict[str, Any]], upto: int) -> list[Error]:
    """The errors of the rounds up to number `upto`; their facts are added to `facts`."""
    errors = []
    while len(facts) <= upto:
        errors.append(error_of_round(rounds, facts))
        facts.append(gate_facts(Gate(), measured(UNCLEAR), errors[-1], None))
    return errors


@pytest.mark.parametrize("rounds", [1, 2, 3, 10, 20])
def test_rounds_spend_equal_shares_and_a_fork_goes_on_with_what_is_left(rounds: int) -> None:
    # the shares are equal, and with those of forks upon forks they never add up to more than the campaign may spend
    facts: list[dict[str, Any]] = [{}]
    own = spend(rounds, facts, rounds)
    assert [e.promote for e in own] == pytest.approx([OF_A_CAMPAIGN.promote / (rounds + 1)] * rounds)
    for longer in (rounds + 3, rounds + 10):
        own += spend(longer, facts, longer)
    assert min(e.promote for e in own) > 0
    assert sum(e.promote for e in own) < OF_A_CAMPAIGN.promote
    assert sum(e.roll_back for e in own) < OF_A_CAMPAIGN.roll_back


@pytest.mark.parametrize(
    ("result", "untrained", "gate"),
    [(BETTER, "no pairs", Gate()), (UNKNOWN, None, Gate()), (BETTER, None, Gate(rule="always_promote"))],
)
def test_a_round_that_compares_nothing_spends_nothing(result: Result, untrained: str | None, gate: Gate) -> None:
    # what was not tested leaves its share to the rounds after it; what was tested has spent it, whatever was found
    assert gate_facts(gate, measured(result), SHARE, untrained) == {}
    assert error_of_round(3, [{}, {}]).promote == pytest.approx(OF_A_CAMPAIGN.promote / 3)
    for tested in (BETTER, WORSE, UNCLEAR):
        facts = gate_facts(Gate(), measured(tested), SHARE, None)[FACT]
        assert facts["spent"] == {"promote": 0.0125, "roll_back": 0.00625}
        assert facts["found"] == {BETTER: "better", WORSE: "worse", UNCLEAR: "unclear"}[tested]


@pytest.mark.parametrize("rounds", [3, 10])
def test_of_campaigns_of_equal_checkpoints_few_promote_or_roll_back(rounds: int) -> None:
    # 160 campaigns of 64 prompts, seeds fixed beforehand: at most 5% promote and 5% roll back, for 3 rounds and for 10
    played = [play(null_world(seed, 64, rounds, 2), seed) for seed in range(160)]
    assert sum(bool(p.promoted) for p in played) / 160 <= 0.05
    assert sum(p.rolled_back > 0 for p in played) / 160 <= 0.05


def test_a_gain_of_the_size_that_check_names_is_found_in_80_of_100_cases() -> None:
    # 200 campaigns whose first round gains as much as the formula says can be found with 100 prompts and 4 samples
    world = World(100, 3, 4)
    gain = sum(play(world, seed).smallest[0] for seed in range(20)) / 20
    assert gain == pytest.approx(smallest_difference(expected_spread(4), 100, SHARE.promote), rel=0.1)
    played = [play(World(100, 3, 4, gain=gain), 1000 + seed) for seed in range(200)]
    assert 0.7 <= sum(p.promoted[:1] == [1] for p in played) / 200 <= 0.88
    assert sum(p.rolled_back > 0 for p in played) / 200 <= 0.05


def test_check_and_a_round_name_the_smallest_gain_by_one_formula() -> None:
    # check knows it before anything runs; more rounds and fewer prompts raise it; without a gate there is none
    gain = {n: smallest_gain(load("tiny_raft", ["evaluate.samples=4"]), n)["smallest_gain"] for n in (200, 500)}
    assert gain[500] == smallest_difference(expected_spread(4), 500, error_of_round(3, [{}]).promote) < 0.04 < gain[200]
    assert smallest_gain(load("tiny_raft", ["evaluate.samples=4", "rounds=20"]), 500)["smallest_gain"] > gain[500]
    assert smallest_gain(load("tiny_control"), 500) == smallest_gain(load("tiny_raft"), 0) == {}


def test_what_a_promotion_says_to_count_on_is_rarely_more_than_the_truth() -> None:
    # 200 campaigns that gain 6 points: a promoted one shows more than that, since it was chosen; what it says to count on is
    # more than the truth in at most 5% of campaigns
    played = [play(World(100, 2, 4, gain=0.06), 5000 + seed) for seed in range(200)]
    promoted = [p for p in played if p.promoted]
    assert sum(p.shown[0] for p in promoted) / len(promoted) > 0.075
    assert sum(p.counted[0] > 0.06 for p in promoted) / 200 <= 0.05


def test_no_difference_does_not_prove_that_none_can_be_seen() -> None:
    # where no prompt differs, the smallest gain is about three prompts, not none
    assert 200 * gate_facts(Gate(), measured((0, 0)), SHARE, None)[FACT]["smallest_gain"] == pytest.approx(3.08, abs=0.01)
    difference = measured((0, 0))[DIFFERENCE]
    assert difference.low is not None
    assert difference.high == pytest.approx(-difference.low)
    assert 0.01 < -difference.low < 0.02
