"""Every threshold is tested on both of its sides, and every look-back of k rounds on k + 1 rounds."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from data.recipe.loss import Loss
from data.recipe.settings import Score
from data.store.campaign import Campaign, Metric, Round
from flows.round.finish import needs_replay
from registry.projection import note
from tasks.bias import bias, overoptimisation
from tasks.bias.alarm_rule import judge
from tasks.bias.effects import Kind, cohens_h
from tasks.bias.ledger import Entry, Sample, compare
from tasks.bias.pressure import Estimate
from tasks.gate.training_alarms import forgetting, training_alarms, uninformative_judges

pytestmark = pytest.mark.filterwarnings("error")
PROMPTS = 1000
SURE = Estimate(0.3, 0.2, 0.4)


# -- hard limits of the bias ledger -------------------------------------------------------------------------------------
def rate(share: float) -> np.ndarray:
    """A style that exactly this share of the prompts' completions has; a larger share has it where a smaller one does."""
    return (np.arange(PROMPTS) < round(share * PROMPTS)).astype(float)[:, None]


def level_of(feature: str, base: float, now: float, stratum: str | None = None) -> str:
    strata = [stratum] * PROMPTS if stratum else None
    entries = compare(Sample({feature: rate(now)}), Sample({feature: rate(base)}), None, kinds={feature: "rate"}, strata=strata)
    judged, _ = judge(entries, round=1)
    return next(entry.level for entry in judged if entry.group == stratum)


@pytest.mark.parametrize(
    ("feature", "stratum", "base", "below", "above"),
    [
        ("truncated", None, 0.15, 0.20, 0.202),  # a fifth of the completions cut at the token limit
        ("truncated", None, 0.02, 0.049, 0.05),  # a twentieth, where that is twice as many as at round 0
        ("truncated", None, 0.08, 0.159, 0.16),  # twice as many, where that is a twentieth
        ("loop", None, 0.002, 0.02, 0.022),  # completions that repeat themselves to the end
        ("refusal", "benign", 0.02, 0.119, 0.12),  # 10 points more refusals of harmless prompts
    ],
)
def test_a_hard_limit_stops_above_it_and_not_below(
    feature: str, stratum: str | None, base: float, below: float, above: float
) -> None:
    # a STOP beyond the limit, at most an ALARM within it
    assert level_of(feature, base, below, stratum) != "STOP"
    assert level_of(feature, base, above, stratum) == "STOP"
    assert level_of(feature, above, above, stratum) == ""  # the base's own habit is no drift


# -- the alarm rule -----------------------------------------------------------------------------------------------------
BASE: dict[Kind, np.ndarray] = {  # round 0, of standard deviation about 1, and lengths that hardly vary
    "real": np.tile([-1.0, 1.0], PROMPTS // 2)[:, None],
    "length": np.tile([100.0, 110.0], PROMPTS // 2)[:, None],
}


def moved(kind: Kind, by: float) -> Entry:
    """The entry of a feature that every prompt moved by the same amount: standard deviations, or a ratio of lengths."""
    base = BASE[kind]
    now = (base + 1) * by - 1 if kind == "length" else base + by * base.std(ddof=1)
    [entry] = compare(Sample({"feature": now}), Sample({"feature": base}), None, kinds={"feature": kind})
    return entry


def level(entry: Entry, earlier: tuple[Entry, ...] = (), number: int = 1) -> str:
    return judge([entry], earlier, round=number)[0][0].level


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("by", "expected"), [(0.099, ""), (0.101, "watch"), (0.249, "watch"), (0.251, "ALARM")])
def test_an_effect_is_told_from_a_tenth_and_an_alarm_at_once_from_a_quarter(by: float, sign: int, expected: str) -> None:
    # in standard deviations of round 0, up or down
    assert level(moved("real", sign * by)) == expected


@pytest.mark.parametrize(("ratio", "expected"), [(1.095, ""), (1.105, "ALARM"), (1 / 1.095, ""), (1 / 1.105, "ALARM")])
def test_lengths_must_change_by_a_tenth(ratio: float, expected: str) -> None:
    # whatever the effect is: where lengths hardly vary, a small ratio is many standard deviations
    assert abs(moved("length", ratio).effect or 0.0) > 1
    assert level(moved("length", ratio)) == expected


@pytest.mark.parametrize(("now", "expected"), [(0.020, ""), (0.021, "watch")])
def test_rates_must_change_by_two_points(now: float, expected: str) -> None:
    # whatever the effect is: Cohen's h of a rare style is large
    assert 0.2 < cohens_h(np.array(now), np.array(0.001)) < 0.25
    assert level_of("bold", 0.001, now) == expected


@pytest.mark.parametrize(("p", "expected"), [(0.049, "watch"), (0.051, "")])
def test_a_change_must_be_significant(p: float, expected: str) -> None:
    # at 5%, here of a single test, which Benjamini-Yekutieli leaves as it is
    assert level(dataclasses.replace(moved("real", 0.15), p=p)) == expected


@pytest.mark.parametrize(("p", "expected"), [(0.0049, "ALARM"), (0.0051, "watch")])
def test_an_alarm_at_once_must_be_surer(p: float, expected: str) -> None:
    # p below 0.005 where one round decides; two rounds running need 0.05 each
    one = dataclasses.replace(moved("real", 0.3), p=p)
    assert level(one) == expected
    first, _ = judge([one], round=1)
    assert level(one, tuple(first), 2) == "ALARM"


@pytest.mark.parametrize(("prompts", "expected"), [(29, ""), (30, "ALARM")])
def test_a_feature_is_tested_from_thirty_prompts(prompts: int, expected: str) -> None:
    # whether it is null on the others, or there are no others; also where a hard limit is passed
    for of in (prompts, PROMPTS):
        values = np.where(np.arange(of) < prompts, 1.0, np.nan)[:, None]
        for feature, kind, above in (("tone", "real", "ALARM"), ("truncated", "rate", "STOP")):
            then, now = (Sample({feature: values * draws}) for draws in (np.zeros((1, 16)), np.ones((1, 4))))
            judged, _ = judge(compare(now, then, None, kinds={feature: kind}), round=1)  # type: ignore[dict-item]
            assert judged[0].level == (above if expected else "")
            assert (judged[0].n, judged[0].drift) == (prompts, 1.0)


def test_a_small_change_alarms_only_in_two_rounds_running() -> None:
    # the rule looks back at one round: seen, gone and seen again in the third is a first time
    seen, gone = moved("real", 0.15), moved("real", 0.0)
    one, _ = judge([seen], round=1)
    assert level(seen, tuple(one), 2) == "ALARM"
    two, _ = judge([gone], one, round=2)
    three, _ = judge([seen], two, round=3)
    assert (three[0].level, three[0].since) == ("watch", 3)
    other_way, _ = judge([moved("real", -0.15)], one, round=2)
    assert (other_way[0].level, other_way[0].since) == ("watch", 2)


@pytest.mark.parametrize(("size", "there"), [(29, False), (30, True)])
def test_a_stratum_needs_thirty_prompts(size: int, there: bool) -> None:
    # fewer give no entry of their own
    strata = ["small"] * size + ["large"] * (PROMPTS - size)
    entries = compare(Sample({"f": rate(0.5)}), Sample({"f": rate(0.4)}), None, kinds={"f": "rate"}, strata=strata)
    assert ("small" in {entry.group for entry in entries}) == there


@pytest.mark.parametrize(("left", "stops"), [(0.71, False), (0.69, True)])
def test_answers_have_collapsed_below_seven_tenths(left: float, stops: bool) -> None:
    # of their entropy at round 0, where fewer prompts are solved
    base = Sample({"answer_entropy": np.full((PROMPTS, 1), 1.0)}, right=rate(0.6))
    now = Sample({"answer_entropy": np.full((PROMPTS, 1), left)}, right=rate(0.4))
    alarms = bias.answer_collapse(compare(now, base, None, kinds={"answer_entropy": "real"}), now, base)
    assert [alarm.level for alarm in alarms] == ["STOP"] * stops


@pytest.mark.parametrize(("auc", "levels"), [(0.69, []), (0.71, ["watch"])])
def test_pairs_carry_a_shortcut_from_seven_tenths(auc: float, levels: list[str]) -> None:
    # the AUC of surface features alone
    assert [alarm.level for alarm in bias._shortcut(auc)] == levels


def facts_with(gap: Estimate, predicted: Estimate) -> dict[str, object]:
    return overoptimisation.facts_of(1, 1.0, rate(0.5), rate(0.5), overoptimisation.Gap(predicted, gap), {})


@pytest.mark.parametrize(("gap", "levels"), [(0.019, []), (0.021, ["watch"])])
def test_a_reward_outruns_the_verifier_from_two_points(gap: float, levels: list[str]) -> None:
    # of accuracy, surely above 0, where accuracy did not rise
    facts = facts_with(Estimate(gap, gap - 0.01, gap + 0.01), Estimate(0.1, 0.05, 0.15))
    assert [alarm.level for alarm in overoptimisation.alarms_of(facts, [])] == levels


@pytest.mark.parametrize(("low", "levels"), [(-0.01, []), (0.01, ["watch"])])
def test_a_reward_outruns_the_verifier_surely_or_not_at_all(low: float, levels: list[str]) -> None:
    # by the lower ends of two intervals: of the rise that it predicts, and of what that is above the true rise
    for facts in (facts_with(Estimate(0.3, low, 0.6), SURE), facts_with(SURE, Estimate(0.3, low, 0.6))):
        assert [alarm.level for alarm in overoptimisation.alarms_of(facts, [])] == levels


# -- alarms of training -------------------------------------------------------------------------------------------------
Values = dict[str, tuple[float, float]]  # a metric in the first half of the steps, and in the second
DPO, ONLINE = Loss(name="sigmoid", beta=0.1), Loss(name="grpo", beta=0.05)
LEARNS: Values = {
    "rewards/margins": (0.0, 0.8),
    "rewards/chosen": (0.0, 0.1),
    "rewards/rejected": (0.0, -0.7),
    "ranking_accuracy": (0.6, 0.6),
}
PER_TOKEN: Values = {"loss": (1.0, 0.5), "logps/chosen": (-1.0, -1.0), "rewards/margins": (0.5, 0.8)}
SAMPLES: Values = {"reward": (0.5, 0.5), "reward_std": (0.5, 0.5), "frac_reward_zero_std": (0.5, 0.5)}


def alarms(values: Values, loss: Loss, steps: int = 50, budget: float = 0.0) -> dict[str, str]:
    """The alarms about a training, sentence by what it is about: `{name: level}`."""
    log = [
        {"step": step, "metric": name, "value": value[step > steps // 2]}
        for name, value in values.items()
        for step in range(1, steps + 1)
    ]
    return {str(alarm).split(" ", 1)[1].partition(":")[0]: alarm.level for alarm in training_alarms(log, loss, {}, {}, budget)}


@pytest.mark.parametrize(
    ("name", "loss", "healthy", "metric", "below", "above"),
    [
        ("margins exploded", DPO, LEARNS, "rewards/margins", (0.0, 19.9), (0.0, 20.1)),
        ("likelihood displacement", DPO, LEARNS, "rewards/chosen", (0.0, -0.299), (0.0, -0.301)),  # 3 nats of beta 0.1
        ("likelihood displacement", Loss(name="simpo"), PER_TOKEN, "logps/chosen", (-1.0, -1.099), (-1.0, -1.101)),
        ("ranking accuracy", DPO, LEARNS, "ranking_accuracy", (0.6, 0.551), (0.6, 0.549)),
        ("loss stuck", DPO, LEARNS, "rewards/margins", (0.0, 0.0201), (0.0, 0.0199)),
        ("loss stuck", Loss(name="sppo_hard", beta=0.001), LEARNS, "rewards/margins", (0.0, 0.00051), (0.0, 0.00049)),
        ("reward fell", ONLINE, SAMPLES, "reward", (0.5, 0.451), (0.5, 0.449)),  # a tenth of the standard deviation, 0.5
        ("rewards all equal", ONLINE, SAMPLES, "frac_reward_zero_std", (0.5, 0.949), (0.5, 0.951)),
        ("reward collapse", ONLINE, SAMPLES, "reward", (0.6, 0.201), (0.6, 0.199)),  # a third is left
        ("KL blow-up", ONLINE, SAMPLES, "kl", (0.0, 0.999), (0.0, 1.001)),  # nats per token
        ("noise", ONLINE, SAMPLES, "entropy", (0.1, 1.099), (0.1, 1.101)),  # a nat above its lowest ...
        ("noise", ONLINE, SAMPLES, "entropy", (1.0, 2.999), (1.0, 3.001)),  # ... and three times that
        ("token limit", ONLINE, SAMPLES, "completions/clipped_ratio", (0.1, 0.899), (0.1, 0.901)),
        ("empty answers", ONLINE, SAMPLES, "completions/mean_length", (100.0, 20.1), (100.0, 19.9)),
    ],
)
def test_each_limit_of_training_has_two_sides(
    name: str, loss: Loss, healthy: Values, metric: str, below: tuple[float, float], above: tuple[float, float]
) -> None:
    # nothing just within the limit, the one alarm just beyond it
    healthy = {
        key: value for key, value in healthy.items() if loss.beta == 0.1 or key not in ("rewards/chosen", "rewards/rejected")
    }
    assert name not in alarms({**healthy, metric: below}, loss)
    assert name in alarms({**healthy, metric: above}, loss)


def test_a_kl_budget_has_two_sides() -> None:
    # (0.1 - 0.7) / (2 * 0.1): 3 nats per completion
    assert alarms(LEARNS, DPO, budget=3.01) == {}
    assert alarms(LEARNS, DPO, budget=2.99) == {"KL over budget": "ALARM"}


@pytest.mark.parametrize(("steps", "told"), [(5, False), (6, True)])
def test_a_move_is_told_from_six_steps(steps: int, told: bool) -> None:
    # three steps are the beginning and three the end
    assert ("likelihood displacement" in alarms({**PER_TOKEN, "logps/chosen": (-1.0, -3.0)}, Loss(name="simpo"), steps)) == told


@pytest.mark.parametrize(("lost", "expected"), [(0.049, []), (0.051, ["ALARM"]), (0.199, ["ALARM"]), (0.201, ["STOP"])])
def test_completions_that_stop_finishing(lost: float, expected: list[str]) -> None:
    # a twentieth of them is an ALARM, a fifth a STOP
    before, after = (
        {"finished": Metric(value=value, low=value - 0.001, high=value + 0.001, n=9999, split="held_out")}
        for value in (0.95, 0.95 - lost)
    )
    assert [alarm.level for alarm in training_alarms([], DPO, before, after)] == expected


@pytest.mark.parametrize(("high", "levels"), [(0.549, ["watch"]), (0.551, [])])
def test_a_judge_is_as_good_as_guesses_below_55_percent(high: float, levels: list[str]) -> None:
    # the upper end of its AUROC's interval within a prompt, where nothing else is rewarded
    auroc = {"judge/likes/within_prompt_auroc": Metric(value=0.5, low=1 - high, high=high, n=200)}
    scores = [Score(scorer="exact_match", weight=0.0), Score(scorer="judge", name="likes")]
    assert [alarm.level for alarm in uninformative_judges(auroc, {}, scores)] == levels


# -- evaluation suites --------------------------------------------------------------------------------------------------
def suite(what: str, lost: float, high: float) -> dict[str, Metric]:
    difference = Metric(value=-lost, low=-2 * lost - high, high=high, n=200, split="all")
    return {f"suite/far/{what}": Metric(value=0.5, n=200, split="all"), f"suite/far/{what}_vs_base": difference}


@pytest.mark.parametrize(
    ("what", "lost", "high", "levels"),
    [
        ("accuracy", 0.019, -0.001, []),
        ("accuracy", 0.021, -0.001, ["watch"]),  # two points
        ("logprob", 0.049, -0.001, []),
        ("logprob", 0.051, -0.001, ["watch"]),  # nats a token
        ("accuracy", 0.1, 0.001, []),  # not surely
        ("accuracy", 0.1, -0.001, ["watch"]),
    ],
)
def test_forgetting_has_a_floor_and_must_be_sure(what: str, lost: float, high: float, levels: list[str]) -> None:
    # both: by the value, and by the upper end of its interval
    assert [alarm.level for alarm in forgetting(suite(what, lost, high), {})] == levels


@pytest.mark.parametrize(("lost_before", "expected"), [(0.019, "watch"), (0.021, "ALARM")])
def test_forgetting_alarms_where_the_round_before_was_over_the_floor(lost_before: float, expected: str) -> None:
    # the same floor holds for both rounds
    [alarm] = forgetting(suite("accuracy", 0.1, -0.001), suite("accuracy", lost_before, -0.001))
    assert alarm.level == expected


# -- look-backs of a campaign -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory, known_store: Path) -> Campaign:
    """Three rounds that look back in every way: a pool of earlier samples, a judge's anchors, a ledger with counterfactual
    prompts. Its steps are so large that the ledger has alarms."""
    from flows.service import environment
    from tests.micro import micro

    home = tmp_path_factory.mktemp("thresholds") / "home"
    shutil.copytree(known_store, home / "store")
    environment.prepare(home)
    from flows.round.improve import improve

    judged = (
        'score=[{scorer="tests.micro:ends_even", weight=0.0}, '
        '{scorer="judge", checkpoint="policy", settings={template="tiny_verdict", reading="expected", minimum_mass=0.0}}]'
    )
    recipe = micro(
        *("tiny_dpo", "rounds=3", judged, 'pair={pairer="best_vs_worst", settings={allow_wrong_chosen=true}}'),
        *(
            "pool.earlier=1",
            "gate.rule=always_promote",
            "evaluate.samples=0",
            "prompts.per_round=16",
            "train.learning_rate=3e-2",
        ),
        *(
            "prompts.probe=40",
            "probe.samples=2",
            "probe.baseline=1",
            'probe.counterfactuals=["sycophancy"]',
            'probe.features=["tokens", "rep_3"]',
        ),
    )
    started = Campaign.start(home, "thresholds", recipe)
    improve.fn("thresholds", str(home))
    return started


def inputs_of(campaign: Campaign, finished: Round, stage: str) -> dict[str, str]:
    """The keys of what a stage of a round was given, by the names of its inputs."""
    manifests = [campaign.store.manifest(ref.key) for ref in finished.artifacts.values()]
    [inputs] = [manifest["input_keys"] for manifest in manifests if manifest["job"]["stage"] == stage]
    return dict(inputs)


def test_the_pool_holds_the_newest_of_the_earlier_rounds(campaign: Campaign) -> None:
    # pool.earlier = 1 in the third round: the second round's own samples, not the first's
    _, first, second, third = campaign.rounds()
    assert first.artifacts["generate"] != second.artifacts["generate"]
    pooled = inputs_of(campaign, third, "pool")
    earlier = [key for name, key in pooled.items() if name.startswith("earlier/")]
    assert earlier == [second.artifacts["generate"].key]


def test_a_judges_drift_is_from_the_first_round_and_from_the_one_before(campaign: Campaign) -> None:
    # in the third round these are two: the same frozen texts, scored by the judges of the first and of the second round
    first, second, third = (inputs_of(campaign, finished, "judge_health") for finished in campaign.rounds()[1:])
    assert first.keys() & {"anchors_first", "anchors_previous"} == set()
    assert len({each["anchors_now"] for each in (first, second, third)}) == 3
    assert (third["anchors_first"], third["anchors_previous"]) == (first["anchors_now"], second["anchors_now"])


def test_mlflows_note_tells_every_alarm(campaign: Campaign) -> None:
    # whoever opens a round in MLflow reads what the ledger says of it
    told = 0
    for finished in campaign.rounds():
        stages = {campaign.store.manifest(ref.key)["job"]["stage"]: ref for ref in finished.artifacts.values()}
        alarms = json.loads((campaign.store.folder(stages["bias"].key) / "payload" / "alarms.json").read_text())["alarms"]
        assert all(alarm["sentence"] in note(finished) for alarm in alarms)
        told += len(alarms)
    assert told


@contextmanager
def lost(campaign: Campaign, key: str) -> Iterator[None]:
    """While an artifact is gone with its manifest."""
    folder = campaign.store.folder(key)
    folder.rename(folder.with_name("away"))
    try:
        yield
    finally:
        folder.with_name("away").rename(folder)


def test_what_a_later_round_compares_with_is_missed(campaign: Campaign) -> None:
    # a resumed campaign makes anew what the next round's ledger reads of earlier rounds, the counterfactual prompts among it
    *past, last = campaign.rounds()
    made = {ref.key: label for finished in past for label, ref in finished.artifacts.items()}
    inputs = {name: key for name, key in inputs_of(campaign, last, "bias").items() if key in made}
    assert {
        "previous/counterfactuals",
        "base/1/counterfactuals",
        "previous/observed",
        "previous/verdicts",
        "earlier",
    } <= inputs.keys()
    assert not needs_replay(campaign, past)
    for name, key in inputs.items():
        with lost(campaign, key):
            assert needs_replay(campaign, past), f"{name}: {made[key]}"
