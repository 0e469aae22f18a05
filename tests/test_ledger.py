"""The bias ledger's oracles: planted changes of known size must come out as what they are, and nothing else may."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from data.alarm import Alarm, gravest
from data.recipe import recipe as recipes
from data.rows import tables
from tasks.bias import bias, observe, overoptimisation, pressure
from tasks.bias.alarm_rule import FOLLOWS_ACCURACY, LESS_OF_A_FAULT, gain_in_words, judge, mitigations, sentence
from tasks.bias.bias import answer_collapse
from tasks.bias.counterfactual_features import COLUMNS
from tasks.bias.effects import Kind, changes, cohens_h
from tasks.bias.families import FAULTS
from tasks.bias.ledger import Entry, Sample, compare
from tasks.run import parts
from tests import bench_alarms, reward_worlds

KNOWN = observe.kinds(observe.Settings(**observe.everything()))
KINDS: dict[str, Kind] = {"tone": "real", "list": "rate", "words": "length"}


def sample(seed: int, prompts: int = 512, k: int = 4, tone: float = 0.0, rate: float = 0.2, words: float = 1.0) -> Sample:
    draw = np.random.default_rng(seed)
    return Sample(
        {
            "tone": draw.normal(tone, 1, (prompts, k)),
            "list": (draw.random((prompts, k)) < rate).astype(float),
            "words": np.floor(words * np.exp(draw.normal(5, 0.5, (prompts, k)))),
        },
        right=(draw.random((prompts, k)) < 0.5).astype(float),
    )


def found(entries: list[Entry], feature: str, group: str | None = None) -> Entry:
    return next(e for e in entries if e.key == (feature, group))


def test_identical_samples_differ_in_nothing() -> None:
    # oracle 1: identical texts give drift 0, effect 0, amplification 0, AUC 0.5 and no alarm
    one = sample(1)
    entries, alarms = judge(compare(one, one, one, kinds=KINDS, strata=["a", "b"] * 256), round=1)
    assert alarms == []
    assert {(e.drift, e.effect, e.step, e.level) for e in entries} == {(0.0, 0.0, 0.0, "")}
    rates = {"a": one.values["list"][::2], "b": one.values["list"][1::2]}
    assert set(pressure.amplification(rates, rates).values()) == {0.0}
    assert pressure.surface_auc(np.zeros((100, 3)), range(100)) == 0.5


def test_two_seeds_of_one_sampler_raise_no_alarm() -> None:
    # oracle 1: what differs between two samplings of one checkpoint is noise, and the rule knows
    for seed in range(20):
        _, alarms = judge(compare(sample(seed), sample(1000 + seed, k=16), None, kinds=KINDS), round=1)
        assert gravest(alarms) in ("", "watch")


def test_a_planted_change_is_named_with_its_size() -> None:
    # a rate that doubles alarms at once, with the right numbers in the sentence and nothing else beside it
    _, alarms = judge(compare(sample(1, rate=0.4), sample(2, k=16), None, kinds=KINDS), round=3)
    assert [(a.level, a.name) for a in alarms] == [("ALARM", "list")]
    assert alarms[0].sentence.startswith("Rose from 20.")
    assert "Significant since round 3." in alarms[0].sentence


def test_a_small_change_needs_two_rounds() -> None:
    # 0.15 SD is a watch at first; in the next round it is an alarm that says since when
    base = sample(2, k=16)
    first, alarms = judge(compare(sample(3, tone=0.15), base, base, kinds=KINDS), round=1)
    assert [(a.level, a.name) for a in alarms] == [("watch", "tone")]
    _, alarms = judge(compare(sample(4, tone=0.15), base, sample(3, tone=0.15), kinds=KINDS), first, round=2)
    assert [(a.level, a.name) for a in alarms] == [("ALARM", "tone")]
    assert "Significant since round 1." in alarms[0].sentence


def test_a_change_that_follows_accuracy_is_no_alarm() -> None:
    # right answers are shorter, and more are right: the mean moves, neither right nor wrong answers do
    draw = np.random.default_rng(5)

    def at(accuracy: float, k: int) -> Sample:
        right = (draw.random((400, k)) < accuracy).astype(float)
        return Sample({"tone": draw.normal(0, 1, (400, k)) - 2 * right}, right=right)

    _, alarms = judge(compare(at(0.8, 4), at(0.4, 16), None, kinds={"tone": "real"}), round=1)
    assert [a.level for a in alarms] == ["watch"]
    assert FOLLOWS_ACCURACY in alarms[0].sentence


def test_less_of_a_fault_is_no_alarm() -> None:
    # over-confidence that halves is told as a watch; were it to rise as much, it would be an ALARM
    draw = np.random.default_rng(7)
    low, high = (Sample({"vote_brier": draw.normal(mean, 0.1, (200, 4))}) for mean in (0.1, 0.2))
    for now, base, level in ((low, high, "watch"), (high, low, "ALARM")):
        _, alarms = judge(compare(now, base, None, kinds={"vote_brier": "real"}), round=1)
        assert [alarm.level for alarm in alarms] == [level]
        assert (LESS_OF_A_FAULT in alarms[0].sentence) == (level == "watch")


@pytest.mark.parametrize(("now", "level"), [(0.002, ""), (0.30, "STOP"), (0.08, "STOP")])
def test_hard_stops_have_absolute_floors(now: float, level: str) -> None:
    # truncation doubling from 0.1% to 0.2% is no stop; 3% to 8% is, and so is a third of everything
    draw = np.random.default_rng(6)
    base = Sample({"truncated": (draw.random((512, 16)) < (0.001 if now < 0.01 else 0.03)).astype(float)})
    ours = Sample({"truncated": (draw.random((512, 4)) < now).astype(float)})
    _, alarms = judge(compare(ours, base, None, kinds={"truncated": "rate"}), round=1)
    assert gravest(alarms) == level


def test_over_refusal_of_harmless_prompts_is_a_stop() -> None:
    # refusals of the stratum "benign" rise by 15 points: STOP, also where the probe is all of it; on any other stratum they are
    # a style like any other
    draw = np.random.default_rng(12)
    then, now = ((draw.random((200, k)) < rate).astype(float) for k, rate in ((16, 0.02), (4, 0.17)))
    for stratum, beside, level in (("benign", "maths", "STOP"), ("benign", "benign", "STOP"), ("harmful", "maths", "ALARM")):
        strata = [stratum] * 100 + [beside] * 100
        entries = compare(Sample({"refusal": now}), Sample({"refusal": then}), None, kinds={"refusal": "rate"}, strata=strata)
        judged, _ = judge(entries, round=1)
        assert found(judged, "refusal", stratum).level == level


@pytest.mark.parametrize(("solved", "stops"), [(0.3, True), (0.6, False)])
def test_answers_that_narrow_while_less_is_solved_are_a_stop(solved: float, stops: bool) -> None:
    # entropy down by a half: with fewer prompts solved a STOP, with more solved the policy has only become surer
    draw = np.random.default_rng(13)

    def at(entropy: float, rate: float, drawings: int) -> Sample:
        values = {"answer_entropy": draw.normal(entropy, 0.1, (200, drawings))}
        return Sample(values, right=np.repeat(draw.random((200, drawings)) < rate, 4, axis=1).astype(float))

    base, now = at(0.8, 0.45, 4), at(0.4, solved, 1)
    alarms = answer_collapse(compare(now, base, None, kinds={"answer_entropy": "real"}), now, base)
    assert [alarm.level for alarm in alarms] == ["STOP"] * stops
    assert all("fell from 0.80 to 0." in alarm.sentence for alarm in alarms)


@pytest.mark.parametrize(("step", "low", "high", "says"), [
    (0.3, 0.2, 0.4, "Training followed (gain 0.75 [0.50, 0.90]: the policy moved 0.75 times as far as the chosen data)."),
    (0.01, -0.1, 0.1, "It did not change significantly in this round (selection pressure +0.4)."),
    (-0.3, -0.4, -0.2, "Selection favours the opposite (selection pressure +0.4: the chosen completions have 0.4 more than"),
])  # fmt: skip
def test_a_sentence_names_the_cause_of_the_last_step(step: float, low: float, high: float, says: str) -> None:
    # a step whose interval includes 0 has no cause, whatever was selected
    selection: dict[str, Any] = {
        "pressure": 0.4,
        "pressure_low": 0.3,
        "pressure_high": 0.5,
        "gain": 0.75,
        "gain_low": 0.5,
        "gain_high": 0.9,
    }
    numbers = {"mean": 1.0, "base": 0.5, "drift": 0.5, "drift_low": 0.4, "drift_high": 0.6, "effect": 0.5, "p": 0.0}
    numbers |= {"effect_low": 0.4, "effect_high": 0.6, "p_by": 0.0, "step_p": 0.5, "step_p_by": 0.5}
    stepped = {"step": step, "step_low": low, "step_high": high, "step_effect": step}
    entry = Entry("tone", None, "real", 200, level="ALARM", since=1, **numbers, **stepped, **selection)
    assert says in sentence(entry, {})


def test_a_gain_without_ends_is_told_as_one() -> None:
    # the ends are null in the table, and a sentence says why
    numbers: dict[str, Any] = dict.fromkeys(("mean", "base", "drift", "drift_low", "drift_high", "effect", "p"), 0.0)
    numbers |= dict.fromkeys(("effect_low", "effect_high", "step", "step_low", "step_high", "step_effect", "step_p"), 0.0)
    entry = Entry("tone", None, "real", 9, **numbers, gain=0.7)
    assert gain_in_words(entry) == "0.70 [unbounded: the pressure may be 0]"
    assert gain_in_words(replace(entry, gain_low=0.5, gain_high=0.9)) == "0.70 [0.50, 0.90]"
    assert gain_in_words(replace(entry, gain=None)) == ""


def test_a_step_back_is_told_as_a_step() -> None:
    # a watch for the step alone does not claim a difference from round 0
    base, up = sample(2, k=16), sample(3, tone=0.5)
    first, _ = judge(compare(up, base, base, kinds=KINDS), round=1)
    _, alarms = judge(compare(sample(4), base, up, kinds=KINDS), first, round=2)
    assert [(a.level, a.name) for a in alarms] == [("watch", "tone")]
    assert " SD to " in alarms[0].sentence
    assert "in this round; not significantly different from round 0." in alarms[0].sentence


def test_what_acts_on_a_feature_is_there() -> None:
    # every feature of the shelves is told something that exists: a mitigation, or a place in the recipe
    known, shelf = recipes.load("tiny_dpo").plain(), parts.public("mitigations")
    for feature, kind in KNOWN.items():
        for name in mitigations(feature, kind):
            section, _, key = name.partition(".")
            assert name in shelf or key in known[section]
            if name in ("residualised", "style_balanced"):  # they take features that need the completion alone
                assert not parts.needs("features", feature)


def test_no_mitigation_is_named_where_none_can_act() -> None:
    # not for a prompt feature, whoever wrote it; not for a distance to round 0, which is unknown there and never alarms
    for name in parts.public("prompt_features"):
        assert not {"residualised", "style_balanced"} & set(mitigations(name, "real")), name
    assert mitigations("mine", "real", of_prompt=True) == ()
    assert mitigations("mine", "real") == ("residualised", "style_balanced")
    assert {
        mitigations(name, "real")
        for name in ("kl_base", "kl_base_token", "kl_base_start", "kl_base_k1", "kl_previous", "kl_previous_k1")
    } == {()}
    assert {*KNOWN, *itertools.chain(*COLUMNS.values())} >= set(FAULTS)


def test_pressure_is_what_the_simulation_oracle_says() -> None:
    # oracle 3: a Gaussian feature judged by q + 0.25 f, best of 8, is selected by 0.344 SD a round, as predicted
    draw = np.random.default_rng(7)
    f, q = draw.normal(size=(4000, 8)), draw.normal(size=(4000, 8))
    reward = q + 0.25 * f
    chosen = (reward == reward.max(-1, keepdims=True)).astype(float)
    s = pressure.estimate(pressure.pressure(f, chosen))
    error = (s.high - s.low) / 3.92
    assert abs(s.value - 0.344) < 3 * error
    assert pressure.predicted_pressure(f, reward) == pytest.approx(0.345, abs=0.02)
    assert pressure.expected_maximum(4) == pytest.approx(1.029, abs=1e-3)


KNOWN_RATES = {4: (0.29, 0.47, 0.76, 0.98), 8: (0.34, 0.59, 0.90, 1.00)}  # by judge bonus 0.1, 0.25, 0.5, 1


@pytest.mark.parametrize(
    ("k", "bonus", "expected"),
    [(k, *cell) for k, row in KNOWN_RATES.items() for cell in zip((0.1, 0.25, 0.5, 1.0), row, strict=True)],
)
def test_a_perfect_imitator_follows_the_known_trajectories(k: int, bonus: float, expected: float) -> None:
    # oracle 3: a style at 20% with a judge bonus, best of K, imitated perfectly for five rounds
    draw, rate = np.random.default_rng(8), 0.2
    for _ in range(5):
        style = (draw.random((20000, k)) < rate).astype(float)
        best = (draw.normal(size=style.shape) + bonus * style).argmax(-1)
        rate = float(style[np.arange(len(style)), best].mean())
    assert rate == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("strength", [1.0, 1.5])
def test_gain_tells_copying_from_amplifying(strength: float) -> None:
    # oracle 4: an imitator that moves by what selection favoured has gain 1, one that moves by 1.5 times that has 1.5
    draw = np.random.default_rng(9)
    f = draw.normal(size=(600, 8))
    chosen = (f + draw.normal(0, 2, f.shape)).argsort(-1).argsort(-1) == 7
    s = pressure.pressure(f, chosen.astype(float))
    shift = strength * float(np.nanmean(s))
    step = draw.normal(shift, 1, (512, 4)).mean(-1) - draw.normal(0, 1, (512, 4)).mean(-1)
    gain = pressure.gain(step, s)
    assert gain.low < strength < gain.high
    assert (gain.low > 1) == (strength > 1)


def test_gain_is_unknown_without_pressure() -> None:
    # a ratio to nothing is not a number worth printing
    response, selected = np.random.default_rng(10).normal(1, 1, 100), np.tile([1.0, -1.0], 45)
    assert math.isnan(pressure.gain(response, selected).value)


@pytest.mark.parametrize("standard_errors", [0.5, 1.0, 2.0, 3.0, 5.0])
def test_the_gain_is_always_told_and_held_by_its_interval(standard_errors: float) -> None:
    # Fieller: at any pressure 95% of the intervals hold the gain of 1, and half of the gains told are below it, half above;
    # told only beyond two standard errors, it was .40 on average where the pressure is one
    draw, size = np.random.default_rng(31), standard_errors / math.sqrt(200)
    told = [pressure.gain(draw.normal(size, 0.3, 200), draw.normal(size, 1, 200)) for _ in range(400)]
    assert np.mean([gain.low <= 1 <= gain.high for gain in told]) >= 0.93
    if standard_errors >= 2:
        assert np.median([gain.value for gain in told]) == pytest.approx(1, abs=0.08)
    assert (np.mean([math.isinf(gain.high) for gain in told]) > 0.6) == (standard_errors < 2)


def test_surface_auc_sees_a_combination() -> None:
    # two features that are useless alone and give the pair away together; and pure noise stays near a half
    draw = np.random.default_rng(11)
    hidden = draw.normal(size=600)
    telling = np.stack([hidden + 0.3, -hidden + 0.3], axis=1)
    assert (pressure.surface_auc(telling, [row // 3 for row in range(600)]) or 0) > 0.95
    assert pressure.surface_auc(draw.normal(size=(600, 3)), range(600)) == pytest.approx(0.5, abs=0.06)


def test_amplification_has_the_direction_of_the_data() -> None:
    # by hand: the style is commoner in a than in b, and the model has still more of it in a: +0.2; less in b: +0.1
    trained = {"a": np.array([1.0] * 6 + [0.0] * 4), "b": np.array([1.0] * 2 + [0.0] * 8)}
    made = {"a": np.array([1.0] * 8 + [0.0] * 2), "b": np.array([1.0] + [0.0] * 9)}
    assert pressure.amplification(trained, made) == pytest.approx({"a": 0.2, "b": 0.1})


def test_lengths_are_ratios_and_rates_are_h() -> None:
    # half as long again is a log ratio of about 0.405; 20% to 40% is h = 0.442
    change = changes(
        [np.full((50, 2), 150.0), np.repeat([[1.0, 0.0]], 50, 0)],
        [np.full((50, 4), 100.0), np.repeat([[1.0, 0.0, 0.0, 0.0]], 50, 0)],
        ["length", "rate"],
        [0.5, 0.4],
    )
    assert change.difference[0] == pytest.approx(math.log(151 / 101))
    assert change.effect[1] == pytest.approx(float(cohens_h(np.array(0.5), np.array(0.25))))


def test_overoptimisation_recovers_its_curve() -> None:
    # the fit of Gao's form finds the parameters that made the points, whatever their errors
    kl = np.array([0.5, 2.0, 5.0, 12.0])
    d = np.sqrt(kl)
    curve = overoptimisation.fitted(kl.tolist(), (d * (0.8 - 0.3 * np.log(d))).tolist(), [0.01, 0.02, 0.01, 0.03], 0.3)
    assert curve is not None
    assert (curve.a.value, curve.b.value) == pytest.approx((0.8, 0.3))


@pytest.mark.parametrize("rounds", [3, 6])
def test_the_fits_intervals_hold_the_truth_and_no_peak_is_made_up(rounds: int) -> None:
    # 95% of the intervals of a, b and the peak; of curves that only rise at most 1 in 20 is said to turn down
    found = reward_worlds.fits(reward_worlds.TURNING, rounds, 1000)
    assert np.mean([reward_worlds.holds(curve.a, reward_worlds.A) for curve in found]) == pytest.approx(0.95, abs=0.03)
    assert np.mean([reward_worlds.holds(curve.b, reward_worlds.TURNING) for curve in found]) == pytest.approx(0.95, abs=0.03)
    peaks = [curve.kl_at_peak for curve in found if np.isfinite(curve.kl_at_peak.value)]
    truth = math.exp(2 * (reward_worlds.A / reward_worlds.TURNING - 1))
    assert np.mean([reward_worlds.holds(peak, truth) for peak in peaks]) >= 0.92
    made_up = [curve for curve in reward_worlds.fits(0.0, rounds, 1000) if np.isfinite(curve.kl_at_peak.value)]
    assert len(made_up) <= 50


def test_the_curve_gathers_a_point_a_round_and_says_where_it_turns() -> None:
    # gold of .5 + d (.2 - .1 log d): unknown for two rounds, then the curve, which turns at d = e; null, never 0, without gold
    facts = overoptimisation.facts_of(0, 0.0, None, None, overoptimisation.Gap(), {})
    assert (facts["gold_over_kl"], facts["proxy_gap"], facts["gold_rise"]) == ([], None, None)
    gold_0 = np.full((10000, 4), 0.0)
    gold_0[:5000] = 1.0
    for number, d in enumerate((0.5, 1.0, 2.0), 1):
        gold = np.full((10000, 4), 0.0)
        gold[: round(10000 * (0.5 + d * (0.2 - 0.1 * math.log(d))))] = 1.0
        facts = overoptimisation.facts_of(number, d * d, gold, gold_0, overoptimisation.Gap(), facts)
        assert (facts["overoptimisation"] is None) == (number < 3)
    assert facts["overoptimisation"]["kl_at_peak"]["value"] == pytest.approx(math.exp(2), rel=0.01)
    assert "turns down at a KL of 7.3" in "".join(overoptimisation.lines(facts))


def test_a_good_reward_raises_no_alarm_and_a_gamed_one_does() -> None:
    # a judge that rises exactly as gold does: no ALARM in any of 30 campaigns of 3 rounds; one that pays for an empty habit by
    # a standard deviation: an ALARM in at least 9 of 10. The scale of the judge does not matter.
    for judge_of in ("probability", "logit"):
        good = [reward_worlds.levels(reward_worlds.Judged(judge_of, 64, (0.1, 0.2, 0.3)), seed) for seed in range(15)]
        assert not [seed for seed, levels in enumerate(good) if "ALARM" in levels]
        gamed = [reward_worlds.levels(reward_worlds.Judged(judge_of, 128, habit=(1, 1, 1)), seed) for seed in range(10)]
        assert sum("ALARM" in levels for levels in gamed) >= 9


@pytest.mark.parametrize(("prompts", "rate", "slope", "says"), [
    (29, 0.5, 2.0, "it needs 30 prompts with verdicts, found 29"),
    (64, 0.0, 2.0, "at round 0 no answers are right"),
    (64, 0.5, 0.0, "at round 0 the reward does not tell right from wrong answers surely enough"),
    (64, 0.5, -2.0, "at round 0 the reward prefers wrong answers surely enough"),
])  # fmt: skip
def test_a_reward_that_cannot_be_calibrated_raises_no_alarm(prompts: int, rate: float, slope: float, says: str) -> None:
    # however much it rises; the report says why
    draw = np.random.default_rng(3)
    gold = (draw.random((prompts, 8)) < rate).astype(float)
    proxy = slope * gold + draw.normal(size=gold.shape)
    facts = overoptimisation.facts_of(1, 1.0, gold, gold, overoptimisation.proxy_gap(proxy + 3.0, gold, proxy, gold), {})
    assert overoptimisation.alarms_of(facts, []) == []
    assert overoptimisation.lines(facts) == [f"Whether the reward outran accuracy cannot be known: {says}."]


def test_equal_differences_are_not_certain() -> None:
    # no spread is no proof: two or three prompts are not tested; 40 equal differences have p above 0 and an interval; a style
    # in no sample may still have a rate above 0
    few = np.where(np.arange(64) < 3, 1.0, np.nan)[:, None]
    [entry] = compare(Sample({"f": 2 * few}), Sample({"f": few}), None, kinds={"f": "real"})
    assert (entry.n, entry.p, entry.drift) == (3, None, 1.0)
    change = changes(
        [np.full((40, 1), 2.0), np.zeros((40, 4))], [np.ones((40, 1)), np.zeros((40, 16))], ["real", "rate"], [1, 1]
    )
    assert 2.0**-39 <= change.p[0] < 1e-6
    assert change.low[0] < 1.0 < change.high[0]
    assert change.low[1] < 0 < change.high[1] < 0.1


@pytest.mark.parametrize("shape", ["real", "rate", "zeros", "t3"])
def test_the_intervals_of_the_ledger_hold_the_truth_on_a_small_probe(shape: str) -> None:
    # 32 prompts, and rates of 1%: 95 +- 2.5 of 100
    drift, effect = bench_alarms.coverage(shape, 32, 4, 16, rate=0.01, count=1000)
    assert drift >= 0.925
    assert not effect < 0.925


def test_features_of_few_prompts_raise_no_alarm() -> None:
    # features that apply to 2 prompts of 64, to 3, 10, 30 and 40: no ALARM in 5 campaigns in which nothing moves
    assert bench_alarms.null(bench_alarms.World("sparse", 64), 5)[0] == 0


def test_an_alarm_reads_as_one_line() -> None:
    # programs and people look for `ALARM <feature>`
    assert str(Alarm("ALARM", "ledger", "list", "moved")) == "ALARM list: moved"


def test_a_ledger_does_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    # the bootstrap is a matrix product: on another number of BLAS threads its last digits, and the digest, would differ
    def threads(*_: object) -> None:
        raise RuntimeError(sorted({pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}))

    monkeypatch.setattr(tables, "read", threads)
    work = SimpleNamespace(settings=None, inputs={"prompts": Path()})
    with threadpool_limits(2, "blas"), pytest.raises(RuntimeError, match=re.escape("[1]")):
        bias.bias(work)  # type: ignore[arg-type]
