"""An online training whose reward collapses is stopped, and its best save is the result; healthy noise stops nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.recipe.loss import Loss
from data.rows import tables
from data.store.store import hash_folder
from tasks.gate.training_alarms import training_alarms
from tasks.run.work import stage_module
from tasks.score.scorers import Score
from tasks.train.collapse import LEFT, Fall, best_save, fall_of, first_collapse, width_of
from tasks.train.early_stop import rewards_of, saving
from tests.test_train import read, work_of

STEPS = 60


def courses(shape: str, count: int, draw: np.random.Generator) -> np.ndarray:
    """True accuracies, campaigns x steps: how a training may go."""
    low, high = draw.uniform(0.05, 0.4, (count, 1)), draw.uniform(0.5, 0.95, (count, 1))
    time = np.arange(STEPS) / STEPS
    made: np.ndarray = {
        "rises": low + (high - low) * (1 - np.exp(-time * draw.uniform(2, 20, (count, 1)))),
        "stays": np.broadcast_to(high, (count, STEPS)),
        "hardly ever right": np.broadcast_to(low / 5, (count, STEPS)),
        "slips by a quarter": high * (1 - 0.25 * time),
        "collapses": np.interp(time, [0, 0.5, 0.7, 0.78, 1], [0.1, 0.8, 0.8, 0.0, 0.0])[None] * np.ones((count, 1)),
    }[shape]
    return made


def rewards(shape: str, count: int, seed: int) -> list[list[float]]:
    """Mean rewards of steps of 8 prompts x 4 answers. Prompts differ: most are solved nearly always or hardly ever."""
    draw = np.random.default_rng(seed)
    right = np.clip(courses(shape, count, draw), 1e-3, 1 - 1e-3)[:, :, None]
    difficulty = draw.beta(right, 1 - right, (count, STEPS, 8))
    means: list[list[float]] = (draw.binomial(4, difficulty).mean(axis=2) / 4).tolist()
    return means


def stops(values: Sequence[float]) -> Fall | None:
    return first_collapse(values, range(1, len(values) + 1), width_of(STEPS))


@pytest.mark.parametrize("shape", ["rises", "stays", "hardly ever right", "slips by a quarter"])
def test_healthy_noise_stops_next_to_nothing(shape: str) -> None:
    # 200 noisy trainings of each kind, judged after every step: at most 1% are stopped (2 of 200)
    assert sum(stops(values) is not None for values in rewards(shape, 200, seed=15)) <= 2


def test_a_rise_and_collapse_is_stopped_with_a_save_from_the_top() -> None:
    # .1 -> .8 -> 0: all of 50 trainings stop, within two windows of the fall's end (step 47), none before its start (43). The
    # save was made between 80% of the rise (step 25) and the fall, in 47 of 50
    good, width = 0, width_of(STEPS)
    for values in rewards("collapses", 50, seed=16):
        fall = stops(values)
        assert fall is not None
        assert 43 < fall.now.last <= 47 + 2 * width
        save = best_save(values[: fall.now.last], width, width)
        good += save is not None and 25 <= save <= 43
    assert good >= 47


def test_the_decision_reads_the_log_so_far_and_nothing_else() -> None:
    # what is logged after the stop does not change it, so a resumed training stops where an uninterrupted one does
    for values in rewards("collapses", 20, seed=17):
        fall = stops(values)
        assert fall is not None
        assert stops([*values[: fall.now.last], *([1.0] * 20)]) == fall
        assert stops(values[: fall.now.last - 1]) is None


def test_a_fall_is_measured_against_the_best_window_before_it() -> None:
    # 5 of .2, 5 of .8, 5 of .2: the best window is the middle one, and a quarter of it is left
    fall = fall_of([0.2] * 5 + [0.8] * 5 + [0.2] * 5, range(10, 160, 10), 5)
    assert fall is not None
    assert (fall.best.first, fall.best.last, fall.now.first, fall.now.last) == (60, 100, 110, 150)
    assert (fall.best.mean, fall.now.mean) == pytest.approx((0.8, 0.2))
    assert fall.left == pytest.approx(0.25)
    assert fall_of([0.8] * 9, range(9), 5) is None  # not yet two windows


@pytest.mark.parametrize(("end", "collapsed"), [(0.9 * LEFT + 0.001, False), (0.9 * LEFT - 0.001, True)])
def test_what_is_left_has_two_sides(end: float, collapsed: bool) -> None:
    # a third of the best reward is the limit; a negative reward moves the floor: from 0.4 of -1 ... 0.9 little is lost
    fall = fall_of([0.9] * 40 + [end] * 10, range(50), 10)
    assert fall is not None
    assert fall.collapsed == collapsed
    below = fall_of([-1.0] + [0.9] * 39 + [end] * 10, range(50), 10)
    assert below is not None
    assert not below.collapsed


def test_a_save_is_judged_by_the_steps_after_it() -> None:
    # the save of step 10 follows ten good steps, but what was sampled from it is worthless; that of step 5 is the best
    values = [0.5] * 4 + [0.9] * 6 + [0.0] * 10
    assert best_save(values, 5, 5) == 5
    assert best_save(values[:9], 5, 5) is None  # no save has five steps after it yet


@pytest.mark.parametrize(
    ("steps", "every", "expected"), [(500, 50, (50, 2)), (80, 50, (8, 2)), (80, 3, (3, 4)), (10, 50, (5, 2))]
)
def test_there_is_a_save_in_every_window(steps: int, every: int, expected: tuple[int, int]) -> None:
    # kept: the best one so far, and those whose next window is not yet over
    assert tuple(saving(steps, every).values()) == expected


def test_a_step_without_a_known_reward_keeps_its_place() -> None:
    # else each later reward would be taken for that of another step
    assert rewards_of([{"reward": 0.5}, {"reward": float("nan")}, {"eval_loss": 1.0}, {"reward": 0.25}]) == [0.5, 0.5, 0.25]
    assert rewards_of([{"reward": float("nan")}]) == [0.0]


# -- a real one -----------------------------------------------------------------------------------------------------------
def brief(prompts: Sequence[dict[str, Any]], completions: Sequence[dict[str, Any]]) -> list[Score]:
    """1.0 for an answer that ends by itself within 12 characters: quickly learned, and lost when the text turns to noise."""
    return [Score(float(row["finish_reason"] == "stop" and len(row["text"]) <= 12)) for row in completions]


@pytest.mark.minutes
@pytest.mark.timeout(1200)
def test_a_real_collapse_stops_training_and_a_kill_changes_nothing(run_micro: Any, tmp_path: Path) -> None:
    # GRPO at a learning rate of .03 goes from .4 to 1 and to .1 within 23 steps. The result is the save of its best window, bit
    # for bit, and the same after a kill shortly before the stop; the round's alarm says what happened
    few = ("rounds=1", "loss.name=grpo", "loss.beta=0.05", "select=false", "train.replay=false", "train.batch=16")
    campaign = run_micro("tiny_raft", *few, "train.steps=2", "evaluate.samples=0")
    reward = {"name": "brief", "scorer": "tests.test_collapse:brief", "settings": {}, "weight": 1.0}
    hot = {"steps": 40, "learning_rate": 0.03, "schedule": "constant", "rewards": [reward], "save_every": 50}
    online = stage_module("online").online
    whole, cut = (work_of(campaign, tmp_path / name, **hot) for name in ("whole", "cut"))
    online(whole)
    facts = json.loads((whole.out / "training.json").read_text())
    stop = facts["stopped"]
    assert facts["steps"] == stop["step"] < 40
    assert facts["best_step"] == stop["save"] < stop["now"]["first"]
    assert stop["best"]["mean"] > 0.8
    assert stop["now"]["mean"] < LEFT * stop["best"]["mean"]
    saved = (whole.scratch / f"checkpoint-{stop['save']}" / "model.safetensors").read_bytes()
    assert (whole.out / "model.safetensors").read_bytes() == saved

    def crash(done: int, total: int) -> None:
        if done == stop["step"] - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        online(replace(cut, tick=crash))
    online(cut)
    assert hash_folder(cut.out) == hash_folder(whole.out)
    log = read(whole.out / "training.parquet", tables.TRAINING)
    [alarm] = training_alarms(log, Loss(name="grpo", beta=0.05), {}, {}, facts=facts)
    assert (alarm.level, alarm.name) == ("watch", "reward collapse")
    assert f"Training stopped at step {stop['step']}; its result is the save of step {stop['save']}." in alarm.sentence
