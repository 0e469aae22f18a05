"""The curves of a training: what TRL's trainers log under many names, in the same terms whatever the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, variance
from typing import Any

from data.recipe.loss import Loss

Row = dict[str, Any]
FEWEST = 3  # steps that are the beginning; a collapse is over in five


@dataclass(frozen=True)
class TrainingCurves:
    """What a log says; None where its trainer does not log it, or where the steps are too few to tell.

    With a reference, sides have moved from it, and batches tell exactly. Without one they have moved since the first steps,
    which is 0 where the noise between batches explains it. Rewards are those of an online phase.
    """

    margin: float | None = None  # at the end: what the loss takes the sigmoid of
    learned: float | None = None  # how far that margin has moved; without a reference, how far the loss has
    chosen: float | None = None  # nats a chosen completion has moved; per token where `per_token`
    rejected: float | None = None
    per_token: bool = False
    order: tuple[float, float] | None = None  # share of pairs in the order of likelihood, at the beginning and at the end
    kl: float | None = None  # nats per completion from the reference
    reward: float | None = None  # how far the mean reward has moved, in standard deviations of a completion's reward
    equal: float | None = None  # share of prompts whose completions all have the same reward, at the end


def training_curves(log: Sequence[Row], loss: Loss, tail: float) -> TrainingCurves:
    """The curves of a training by `loss`, from rows of TRAINING; `tail` is the share of the steps that is an end."""
    values: dict[str, list[float]] = {}
    for row in log:
        values.setdefault(row["metric"], []).append(row["value"])
    read = _Read(values, tail)
    match loss.kind.trainer:
        case "dpo" | "kto":
            return _from_reference(read, loss)
        case "orpo" | "cpo":
            return _without_reference(read, loss)
        case "grpo" | "rloo":
            return _online(read)
        case _:  # SFT and the listwise losses log nothing but the loss
            return TrainingCurves()


@dataclass(frozen=True)
class _Read:
    values: dict[str, list[float]]
    tail: float

    def first(self, metric: str) -> float | None:
        return self._mean(metric, slice(None, FEWEST))

    def start(self, metric: str) -> float | None:
        return self._mean(metric, slice(None, self._steps(metric)))

    def end(self, metric: str) -> float | None:
        return self._mean(metric, slice(-self._steps(metric), None))

    def moved(self, metric: str) -> float | None:
        """The change from the first steps to the end, 0 where two standard errors cover it."""
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


def _from_reference(read: _Read, loss: Loss) -> TrainingCurves:
    """TRL's rewards are beta log pi / pi_ref of whole completions."""
    margin, chosen, rejected = (read.end(f"rewards/{name}") for name in ("margins", "chosen", "rejected"))
    first, last = read.start("ranking_accuracy"), read.end("ranking_accuracy")
    return TrainingCurves(
        margin=margin,
        learned=margin,
        chosen=None if chosen is None else chosen / loss.beta,
        rejected=None if rejected is None else rejected / loss.beta,
        order=None if first is None or last is None else (first, last),
        # Completions were drawn near the reference, so this estimates KL(reference, policy).
        kl=None if chosen is None or rejected is None else -(chosen + rejected) / (2 * loss.beta),
    )


def _without_reference(read: _Read, loss: Loss) -> TrainingCurves:
    """TRL's rewards are beta log pi: per token in ORPO and SimPO, summed in CPO. ORPO's sigmoid is of the log odds ratio."""
    margin = "log_odds_chosen" if loss.name == "orpo" else "rewards/margins"
    first, last = read.start("rewards/accuracies"), read.end("rewards/accuracies")
    return TrainingCurves(
        margin=read.end(margin),
        learned=read.moved("loss"),  # margins do not begin at 0 here
        chosen=read.moved("logps/chosen"),
        rejected=read.moved("logps/rejected"),
        per_token=loss.name != "cpo",
        order=None if first is None or last is None else (first, last),
    )


def _online(read: _Read) -> TrainingCurves:
    kl, length = read.end("kl"), read.end("completions/mean_length")  # TRL averages the KL over tokens
    moved, spread = read.moved("reward"), read.first("reward_std")
    return TrainingCurves(
        kl=None if kl is None or length is None else kl * length,
        reward=moved / spread if moved is not None and spread else None,
        equal=read.end("frac_reward_zero_std"),
    )
