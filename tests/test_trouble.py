"""Training that fails is noticed: each symptom gets its alarm and cause, healthy logs none, and the gate acts on a collapse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data import recipe as recipes
from data.campaign import Campaign, Metric
from data.loss import Loss
from tasks.alarms import Alarm
from tasks.trouble import training_alarms

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
    return {alarm.feature: alarm.level for alarm in alarms}


def test_a_healthy_training_raises_nothing() -> None:
    # margins grow, chosen completions gain, the order of likelihoods stays
    assert training_alarms(log_of(), DPO, WHOLE, WHOLE) == []


@pytest.mark.parametrize(
    ("log", "name", "level", "cause"),
    [
        (log_of(rewards__margins=0.003), "loss stuck", "watch", "learning_rate"),
        (log_of(rewards__margins=35.0), "margins exploded", "ALARM", "too many steps"),
        (log_of(rewards__chosen=-0.9, rewards__rejected=-1.9), "likelihood displacement", "ALARM", "terms"),
        (log_of(ranking_accuracy=0.4), "ranking accuracy", "watch", "57% -> 40%"),
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


def test_completions_that_stop_finishing_are_a_hard_limit() -> None:
    # a loss of a few points that intervals tell apart is an alarm, a fifth of all is a stop, noise is nothing
    assert named(training_alarms(log_of(), DPO, WHOLE, finished(0.9, 0.88, 0.92))) == {"finish rate": "ALARM"}
    assert named(training_alarms(log_of(), DPO, WHOLE, finished(0.6, 0.57, 0.63))) == {"finish rate": "STOP"}
    assert training_alarms(log_of(), DPO, WHOLE, finished(0.93, 0.86, 0.985)) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_collapse_is_named_in_the_first_round_and_rolled_back(home: Path) -> None:
    # DPO with beta = 0.1 and no NLL term collapses on the tiny world: the first round's alarms say why, the gate rolls back,
    # and the campaign ends no worse than it began
    from flows import environment

    environment.prepare(home)
    from flows.improve import improve

    few = ["prompts.per_round=300", "prompts.held_out=300", "prompts.test=100", "prompts.ood=0", "prompts.probe=0"]
    sets = [*few, "rounds=2", "train.steps=60", "train.batch=16", "evaluate.samples=0", "hardware.prefect=false"]
    Campaign.start(home, "collapse", recipes.load("tiny_dpo", [*sets, "loss.beta=0.1", "loss.terms={}"]))
    improve.fn("collapse", str(home))
    campaign = Campaign.open(home, "collapse")
    rounds, final = campaign.rounds(), campaign.final()
    assert any("likelihood displacement" in alarm for alarm in rounds[1].facts["training_alarms"])
    assert rounds[1].verdict.decision == "roll_back"
    assert rounds[-1].head == rounds[0].checkpoint
    assert final is not None
    assert final["head"]["accuracy"].value == final["base"]["accuracy"].value
