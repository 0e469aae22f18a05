"""Training that fails is noticed: each symptom gets its alarm and cause, healthy logs none, and the gate acts on a collapse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.alarm import Alarm
from data.errors import RecipeError
from data.recipe import recipe as recipes
from data.recipe.loss import Loss
from data.store.campaign import Campaign, Metric
from tasks.gate.training_alarms import training_alarms

DPO = Loss(name="sigmoid", beta=0.1)
HEALTHY = {"rewards/margins": 0.8, "rewards/chosen": 0.1, "rewards/rejected": -0.7, "ranking_accuracy": 0.6}


def log_of(**values: float) -> list[dict[str, Any]]:
    """Fifty steps that go straight from a fresh start (ranking accuracy 0.6, the rest 0) to the values given."""
    start = {"ranking_accuracy": 0.6}
    end = {**HEALTHY, **{name.replace("__", "/"): value for name, value in values.items()}}
    return [
        {"step": step, "metric": name, "value": start.get(name, 0.0) + (value - start.get(name, 0.0)) * min(1, step / 40)}
        for name, value in end.items()
        for step in range(1, 51)
    ]


def finished(value: float, low: float, high: float) -> dict[str, Metric]:
    return {"finished": Metric(value=value, low=low, high=high, n=1000, split="held_out")}


WHOLE = finished(0.99, 0.98, 1.0)


def named(alarms: list[Alarm]) -> dict[str, str]:
    return {alarm.name: alarm.level for alarm in alarms}


def test_a_healthy_training_raises_nothing() -> None:
    # margins grow, chosen completions gain, the order of likelihoods stays
    assert training_alarms(log_of(), DPO, WHOLE, WHOLE) == []


@pytest.mark.parametrize(
    ("log", "name", "level", "cause"),
    [
        (log_of(rewards__margins=0.003), "loss stuck", "watch", "learning_rate"),
        (log_of(rewards__margins=35.0), "margins exploded", "ALARM", "Lower train.steps"),
        (log_of(rewards__chosen=-0.9, rewards__rejected=-1.9), "likelihood displacement", "ALARM", "terms"),
        (log_of(ranking_accuracy=0.4), "ranking accuracy", "watch", "from 57% to 40%"),
    ],
)
def test_each_symptom_has_its_alarm_and_cause(log: list[dict[str, Any]], name: str, level: str, cause: str) -> None:
    # one thing wrong, one alarm, and its sentence names the likely cause
    alarms = training_alarms(log, DPO, WHOLE, WHOLE)
    assert named(alarms) == {name: level}
    assert cause in alarms[0].sentence


def test_a_small_beta_is_no_standstill() -> None:
    # SPPO's beta is 0.001: a reward margin of 0.015 is 15 nats there, and at beta = 0.1 nothing
    log = log_of(rewards__margins=0.015, rewards__chosen=0.0, rewards__rejected=-0.015)
    assert training_alarms(log, Loss(name="sppo_hard", beta=0.001), WHOLE, WHOLE) == []
    assert named(training_alarms(log, DPO, WHOLE, WHOLE)) == {"loss stuck": "watch"}


def test_the_kl_budget_is_the_recipes() -> None:
    # (0.1 - 0.7) / (2 * 0.1) = 3 nats from the reference: over a budget of 2, within one of 4, and no alarm without one
    assert named(training_alarms(log_of(), DPO, WHOLE, WHOLE, kl_budget=2.0)) == {"KL over budget": "ALARM"}
    assert training_alarms(log_of(), DPO, WHOLE, WHOLE, kl_budget=4.0) == []


@pytest.mark.parametrize("away", ["loss.reference=base", "loss.reference=ema", "train.start_from=base"])
def test_a_kl_budget_that_could_not_fire_is_refused(away: str) -> None:
    # the log's KL is of the round's own samples: of a far reference it comes out negative, and no budget would be over
    with pytest.raises(RecipeError, match=r"it needs loss\.reference = 'previous' and train\.start_from = 'previous'"):
        recipes.load("tiny_dpo", [away, "gate.kl_budget=5.0"])


@pytest.mark.parametrize("sets", [(), ("loss.name=grpo", "loss.beta=0.0", "select=false", "train.replay=false")])
def test_a_kl_budget_nobody_could_keep_is_refused(sets: tuple[str, ...]) -> None:
    # SFT has no reference, and an online phase without a KL coefficient measures none
    with pytest.raises(RecipeError, match=r"gate\.kl_budget needs a loss that logs its KL"):
        recipes.load("tiny_raft", [*sets, "gate.kl_budget=5.0"])


def test_completions_that_stop_finishing_are_a_hard_limit() -> None:
    # a loss of a few points that intervals tell apart is an alarm, a fifth of all is a stop, noise is nothing
    assert named(training_alarms(log_of(), DPO, WHOLE, finished(0.9, 0.88, 0.92))) == {"finish rate": "ALARM"}
    assert named(training_alarms(log_of(), DPO, WHOLE, finished(0.6, 0.57, 0.63))) == {"finish rate": "STOP"}
    assert training_alarms(log_of(), DPO, WHOLE, finished(0.93, 0.86, 0.985)) == []


def moving(metrics: dict[str, tuple[float, float]], steps: int = 50, noise: float = 0.02) -> list[dict[str, Any]]:
    """Steps on which each metric goes straight from one value to another, up and down by `noise` of its larger end."""
    return [
        {"step": step, "metric": name, "value": a + (b - a) * step / steps + noise * max(abs(a), abs(b)) * (-1) ** step}
        for name, (a, b) in metrics.items()
        for step in range(1, steps + 1)
    ]


GAINS = {"loss": (1.0, 0.5), "logps/chosen": (-0.08, -0.03), "rewards/margins": (0.5, 1.2), "rewards/accuracies": (0.85, 0.99)}


@pytest.mark.parametrize(
    ("loss", "wrong", "name", "cause"),
    [
        (
            "simpo",
            {"logps/chosen": (-0.08, -0.36)},
            "likelihood displacement",
            "0.24 nats of log-probability per token since training began",
        ),
        ("orpo", {"logps/chosen": (-0.08, -0.36)}, "likelihood displacement", "the weight of the odds ratio"),
        ("cpo", {"logps/chosen": (-2.0, -9.0)}, "likelihood displacement", "terms = { sft = 1.0 }"),
        ("cpo", {"rewards/margins": (1.0, 35.0)}, "margins exploded", "Lower train.steps"),
        ("orpo", {"log_odds_chosen": (2.0, 35.0)}, "margins exploded", "Lower train.steps"),
        ("simpo", {"loss": (1.0, 1.0)}, "loss stuck", "learning_rate"),
        ("cpo", {"rewards/accuracies": (0.9, 0.7)}, "ranking accuracy", "from 88% to 72%"),
    ],
)
def test_losses_without_a_reference_have_the_same_diagnoses(
    loss: str, wrong: dict[str, tuple[float, float]], name: str, cause: str
) -> None:
    # what they log has no reference to be measured from, so it is what has moved since the first steps, noise left out
    healthy = GAINS | ({"log_odds_chosen": (2.0, 3.0)} if loss == "orpo" else {})
    assert training_alarms(moving(healthy), Loss(name=loss), WHOLE, WHOLE) == []
    alarms = training_alarms(moving(healthy | wrong), Loss(name=loss), WHOLE, WHOLE)
    assert [alarm.name for alarm in alarms] == [name]
    assert cause in alarms[0].sentence


def test_noise_between_batches_is_no_displacement() -> None:
    # CPO's sums differ by nats from batch to batch: a fall of four nats in a noise of eight is not told apart, nor five steps
    fall = moving({"logps/chosen": (-8.0, -12.0)}, noise=0.7)
    assert training_alarms(fall, Loss(name="cpo"), WHOLE, WHOLE) == []
    assert training_alarms(moving(GAINS | {"logps/chosen": (-2.0, -90.0)}, steps=5), Loss(name="cpo"), WHOLE, WHOLE) == []


def test_kto_names_its_own_cause() -> None:
    # it takes no NLL term: what displaces it is wrong completions that outnumber the right ones
    alarms = training_alarms(log_of(rewards__chosen=-0.9, rewards__rejected=-1.9), Loss(name="kto"), WHOLE, WHOLE)
    assert "loss.desirable_weight = 0" in alarms[0].sentence


@pytest.mark.parametrize("loss", ["grpo", "rloo"])
def test_an_online_phase_is_watched(loss: str) -> None:
    # TRL's KL is per token: 0.1 nats of 30 tokens are 3 a completion; a reward that falls, and one that is the same for all
    fine = {"reward": (0.5, 0.6), "reward_std": (0.5, 0.5), "frac_reward_zero_std": (0.4, 0.5), "kl": (0.0, 0.1)}
    fine |= {"completions/mean_length": (30.0, 30.0)}

    def seen(budget: float = 0.0, **wrong: tuple[float, float]) -> dict[str, str]:
        return named(training_alarms(moving(fine | wrong), Loss(name=loss, beta=0.05), WHOLE, WHOLE, kl_budget=budget))

    assert seen() == seen(4.0) == {}
    assert seen(2.0) == {"KL over budget": "ALARM"}
    assert seen(reward=(0.5, 0.3)) == {"reward fell": "ALARM"}
    assert seen(frac_reward_zero_std=(0.5, 1.0), reward=(0.9, 1.0)) == {"rewards all equal": "watch"}


# A reward that goes from .1 to .8 and back; then each course of entropy, length and KL that public logs of collapses show.
COLLAPSE = {
    "reward": (0.1, 0.8, 0.05),
    "reward_std": (0.3, 0.4, 0.2),
    "entropy": (0.6, 0.3, 0.3),
    "kl": (0.0, 0.05, 0.05),
    "completions/mean_length": (200.0, 250.0, 250.0),
    "completions/clipped_ratio": (0.05, 0.02, 0.05),
    "frac_reward_zero_std": (0.3, 0.3, 1.0),
}


def rises_and_ends(**changed: tuple[float, ...]) -> list[dict[str, Any]]:
    """100 steps of every metric: up to its second value at step 60, at the third from step 75 on; () leaves it out."""
    courses = COLLAPSE | {name.replace("__", "/"): course for name, course in changed.items()}
    return [
        {"step": step, "metric": name, "value": float(np.interp(step, [1, 60, 65, 75], [*course[:2], course[1], course[2]]))}
        for name, course in courses.items()
        if course
        for step in range(1, 101)
    ]


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"kl": (0.0, 0.05, 27.0)}, "nats per token: the policy left its reference"),
        ({"entropy": (0.6, 0.3, 11.9)}, "the text is turning to noise"),
        ({"entropy": (2.4, 2.3, 3.4)}, "at most 3.47 = ln 32 is possible: the text is turning to noise"),
        ({"entropy": (0.6, 0.3, 0.0)}, "the policy gives one answer"),
        ({"completions__clipped_ratio": (0.05, 0.02, 1.0)}, "100% of the answers are cut at the token limit"),
        ({"completions__clipped_ratio": (), "completions__mean_length": (90.0, 95.0, 256.0)}, "all answers have 256 tokens"),
        ({"completions__mean_length": (200.0, 250.0, 3.0)}, "answers shrank from 2"),
        ({}, "do not say why"),
    ],
)
def test_a_rise_and_collapse_is_one_alarm_with_its_cause(changed: dict[str, tuple[float, ...]], cause: str) -> None:
    # the first steps are as bad as the last: compared with them nothing fell. No second alarm says the same or another cause
    [alarm] = training_alarms(rises_and_ends(**changed), Loss(name="grpo"), WHOLE, WHOLE, facts={"vocabulary": 32})
    assert (alarm.level, alarm.name) == ("ALARM", "reward collapse")
    assert cause in alarm.sentence
    assert "It has not recovered" in alarm.sentence


def test_a_reward_that_recovers_has_not_collapsed() -> None:
    # .8, then 0 for 15 steps, then .8 again: nothing fell in the end
    log = [row | {"value": 0.8} if row["metric"] == "reward" and row["step"] > 85 else row for row in rises_and_ends()]
    log = [row for row in log if row["metric"] != "frac_reward_zero_std"]
    assert training_alarms(log, Loss(name="grpo"), WHOLE, WHOLE) == []


def test_what_is_wrong_beside_the_reward_is_said_while_it_holds() -> None:
    # each alone, with the reward at its best: KL without a budget is an ALARM, the rest a watch
    fine = {"reward": (0.1, 0.8, 0.8), "frac_reward_zero_std": (0.3, 0.3, 0.3)}

    def seen(**wrong: tuple[float, ...]) -> dict[str, str]:
        return named(training_alarms(rises_and_ends(**(fine | wrong)), Loss(name="grpo"), WHOLE, WHOLE))

    assert seen() == seen(entropy=(0.6, 0.3, 0.0)) == {}  # sure and right is no fault
    assert seen(kl=(0.0, 0.05, 27.0)) == {"KL blow-up": "ALARM"}
    assert seen(entropy=(0.6, 0.3, 5.0)) == {"noise": "watch"}
    assert seen(completions__clipped_ratio=(0.9, 0.95, 1.0)) == {"token limit": "watch"}
    assert seen(completions__mean_length=(200.0, 250.0, 3.0)) == {"empty answers": "watch"}


def test_equal_rewards_have_their_cause_named() -> None:
    # nothing is ever right because no answer ends: other prompts would not help
    log = rises_and_ends(
        reward=(0.0, 0.0, 0.0), frac_reward_zero_std=(), reward_std=(0.0, 0.0, 0.0), completions__clipped_ratio=(),
        completions__mean_length=(256.0, 256.0, 256.0),
    )  # fmt: skip
    [alarm] = training_alarms(log, Loss(name="grpo"), WHOLE, WHOLE)
    assert alarm.name == "rewards all equal"
    assert "all answers have 256 tokens" in alarm.sentence
    assert "generate.max_tokens" in alarm.sentence


FEW_PAIRS = {"pairs": 6, "prompts": 40, "prompts_without": {"all wrong": 34, "all right": 0}}


def test_one_step_is_not_called_stuck() -> None:
    # a step's margin is logged before its update, so one step always shows 0. The cause is that 34 of 40 prompts gave no pair
    log = [{"step": 1, "metric": name, "value": value} for name, value in {"rewards/margins": 0.0, "loss": 0.69}.items()]
    [alarm] = training_alarms(log, DPO, WHOLE, WHOLE, facts={"steps": 1, **FEW_PAIRS})
    assert (alarm.level, alarm.name) == ("watch", "one step")
    assert "a single step on 6 pairs from 40 prompts (prompts without: 34 all wrong)" in alarm.sentence
    assert "learning_rate" not in alarm.sentence


@pytest.mark.parametrize(("steps", "names_data"), [(9, True), (10, False)])
def test_a_standstill_after_few_steps_names_the_data(steps: int, names_data: bool) -> None:
    # below ten steps the data is the likelier cause than the learning rate
    log = log_of(rewards__margins=0.003)
    [alarm] = training_alarms(log, DPO, WHOLE, WHOLE, facts={"steps": steps, **FEW_PAIRS})
    assert alarm.name == "loss stuck"
    assert (f"only {steps} steps on 6 pairs" in alarm.sentence) == names_data
    assert ("learning_rate" in alarm.sentence) != names_data


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_collapse_is_named_in_the_first_round_and_rolled_back(home: Path) -> None:
    # DPO with beta = 0.1 and no NLL term collapses on the tiny world: the first round's alarms say why, the gate rolls back,
    # and the campaign ends no worse than it began
    from flows.service import environment

    environment.prepare(home)
    from flows.round.improve import improve

    few = ["prompts.per_round=300", "prompts.held_out=300", "prompts.test=100", "prompts.ood=0", "prompts.probe=0"]
    sets = [*few, "rounds=2", "train.steps=60", "train.batch=16", "evaluate.samples=0", "hardware.prefect=false"]
    Campaign.start(home, "collapse", recipes.load("tiny_dpo", [*sets, "loss.beta=0.1", "loss.terms={}"]))
    improve.fn("collapse", str(home))
    campaign = Campaign.open(home, "collapse")
    rounds, final = campaign.rounds(), campaign.final()
    assert [alarm.source for alarm in rounds[1].alarms if alarm.name == "likelihood displacement"] == ["training"]
    assert rounds[1].verdict.decision == "roll_back"
    assert rounds[-1].head == rounds[0].checkpoint
    assert final is not None
    assert final["head"]["accuracy"].value == final["base"]["accuracy"].value
