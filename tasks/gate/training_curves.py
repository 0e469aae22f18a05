"""The curves of a training: the values that TRL's trainers log under many names, in the same terms for every loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from statistics import mean, variance
from typing import Any

from data.recipe.loss import Loss
from tasks.train.collapse import Fall, fall_of, first_collapse, means, width_of

Row = dict[str, Any]
FEWEST = 3  # steps that count as the beginning: a collapse takes about five


@dataclass(frozen=True)
class Course:
    """The highest and the lowest running mean of a logged value, and the last one."""

    highest: float
    lowest: float
    now: float
    constant: bool  # whether every value of the last window is the same


@dataclass(frozen=True)
class TrainingCurves:
    """The values of a training log; None if the trainer does not log them or there are too few steps.

    With a reference, changes of log-probability are from it and exact. Without one they are since the first steps, and 0 if the
    noise between batches explains them.
    """

    margin: float | None = None  # at the end: the argument of the sigmoid in the loss
    learned: float | None = None  # change of that margin; without a reference, change of the loss
    chosen: float | None = None  # change of the log-probability of a chosen completion, in nats; per token if `per_token`
    rejected: float | None = None
    per_token: bool = False
    order: tuple[float, float] | None = None  # share of pairs whose chosen side is likelier, at the beginning and the end
    kl: float | None = None  # nats per completion from the reference
    equal: float | None = None  # online: share of prompts whose completions all have the same reward, at the end
    reward: Fall | None = None  # online: how far the mean reward ended below its best
    lost: float | None = None  # the same in standard deviations of a completion's reward
    entropy: Course | None = None  # online: nats per token
    kl_per_token: Course | None = None  # online: nats per token from the reference
    length: Course | None = None  # online: tokens of a completion
    truncated: Course | None = None  # online: share of completions that are cut at the token limit


def training_curves(log: Sequence[Row], loss: Loss, tail: float) -> TrainingCurves:
    """The curves of a training by `loss`, from rows of TRAINING; `tail` is the share of the steps that counts as the end."""
    values: dict[str, list[float]] = {}
    steps: dict[str, list[int]] = {}
    for row in log:
        if isfinite(row["value"]):  # a step whose samples have no reward logs NaN
            values.setdefault(row["metric"], []).append(row["value"])
            steps.setdefault(row["metric"], []).append(row["step"])
    metrics = _Log(values, steps, tail)
    match loss.kind.trainer:
        case "dpo" | "kto":
            return _from_reference(metrics, loss)
        case "orpo" | "cpo":
            return _without_reference(metrics, loss)
        case "grpo" | "rloo":
            return _online(metrics)
        case _:  # SFT and the listwise losses log nothing but the loss
            return TrainingCurves()


@dataclass(frozen=True)
class _Log:
    values: dict[str, list[float]]
    steps: dict[str, list[int]]  # of the values
    tail: float

    def course(self, *metrics: str, until: float = inf) -> Course | None:
        """The course of the first of the metrics that is logged, up to a step; None if there are fewer steps than a window."""
        for metric in metrics:
            steps = [step for step in self.steps.get(metric, []) if step <= until]
            values, width = self.values.get(metric, [])[: len(steps)], width_of(len(self.values.get(metric, [])))
            if found := means(values, width):
                return Course(max(found), min(found), found[-1], len(set(values[-width:])) == 1)
        return None

    def fall(self, metric: str) -> Fall | None:
        """The fall at the end; if the end is that of a collapse, the fall when it was first seen."""
        values, steps = self.values.get(metric, []), self.steps.get(metric, [])
        fall = fall_of(values, steps, width_of(len(values)))
        return first_collapse(values, steps, width_of(len(values))) if fall and fall.collapsed else fall

    def all(self, metric: str) -> float | None:
        return self._mean(metric, slice(None))

    def start(self, metric: str) -> float | None:
        return self._mean(metric, slice(None, self._steps(metric)))

    def end(self, metric: str) -> float | None:
        return self._mean(metric, slice(-self._steps(metric), None))

    def change(self, metric: str) -> float | None:
        """The change from the first steps to the end; 0 if it is within two standard errors."""
        values = self.values.get(metric, [])
        if len(values) < 2 * FEWEST:
            return None
        first, last = values[:FEWEST], values[-max(FEWEST, self._steps(metric)) :]
        change = mean(last) - mean(first)
        error = sqrt(max(variance(first), variance(last)) * (1 / len(first) + 1 / len(last)))
        return change if abs(change) > 2 * error else 0.0

    def _mean(self, metric: str, steps: slice) -> float | None:
        return mean(self.values[metric][steps]) if metric in self.values else None

    def _steps(self, metric: str) -> int:
        return max(1, round(self.tail * len(self.values.get(metric, []))))


def _from_reference(log: _Log, loss: Loss) -> TrainingCurves:
    """TRL's rewards are beta log pi / pi_ref of whole completions."""
    margin, chosen, rejected = (log.end(f"rewards/{name}") for name in ("margins", "chosen", "rejected"))
    first, last = log.start("ranking_accuracy"), log.end("ranking_accuracy")
    return TrainingCurves(
        margin=margin,
        learned=margin,
        chosen=None if chosen is None else chosen / loss.beta,
        rejected=None if rejected is None else rejected / loss.beta,
        order=None if first is None or last is None else (first, last),
        # Completions were sampled near the reference, so this estimates KL(reference, policy).
        kl=None if chosen is None or rejected is None else -(chosen + rejected) / (2 * loss.beta),
    )


def _without_reference(log: _Log, loss: Loss) -> TrainingCurves:
    """TRL's rewards are beta log pi: per token in ORPO and SimPO, summed in CPO. ORPO's sigmoid is of the log odds ratio."""
    margin = "log_odds_chosen" if loss.name == "orpo" else "rewards/margins"
    first, last = log.start("rewards/accuracies"), log.end("rewards/accuracies")
    return TrainingCurves(
        margin=log.end(margin),
        learned=log.change("loss"),  # margins do not begin at 0 here
        chosen=log.change("logps/chosen"),
        rejected=log.change("logps/rejected"),
        per_token=loss.name != "cpo",
        order=None if first is None or last is None else (first, last),
    )


def _online(log: _Log) -> TrainingCurves:
    kl, length = log.end("kl"), log.end("completions/mean_length")  # TRL averages the KL over tokens
    fall, spread = log.fall("reward"), log.all("reward_std")
    # What happened at a collapse shows within a window after it was first seen; later, values drift anywhere.
    until = 2 * fall.now.last - fall.now.first if fall and fall.collapsed else inf
    return TrainingCurves(
        kl=None if kl is None or length is None else kl * length,
        equal=_equal(log),
        reward=fall,
        lost=(fall.best.mean - fall.now.mean) / spread if fall and spread else None,
        entropy=log.course("entropy", until=until),
        kl_per_token=log.course("kl", until=until),
        length=log.course("completions/mean_length", "completion_length", until=until),
        truncated=log.course("completions/clipped_ratio", until=until),
    )


def _equal(log: _Log) -> float | None:
    """Older trainers log no share of prompts with equal rewards, but a spread that is 0 where all are equal."""
    if "frac_reward_zero_std" in log.values or "reward_std" not in log.values:
        return log.end("frac_reward_zero_std")
    spread = log.values["reward_std"]
    return _Log({"equal": [float(value == 0) for value in spread]}, {}, log.tail).end("equal")
