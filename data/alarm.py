"""Alarms: what a person, the gate and MLflow must know about a round. One type, whoever raises it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["watch", "ALARM", "STOP"]
Source = Literal["ledger", "training", "judge", "suite"]
LEVELS = ("", "watch", "ALARM", "STOP")  # from nothing to the gravest


@dataclass(frozen=True)
class Alarm:
    """One finding of a round.

    watch: worth a look. ALARM: a person should look. STOP: a hard limit was passed. `gate.on_alarm` says what each level does.
    """

    level: Level
    source: Source  # who noticed: the bias ledger, the training log, judge health or an evaluation suite
    name: str  # of the feature, limit, judge or suite
    sentence: str  # what happened, how much, since when, and what acts on it

    def __str__(self) -> str:
        return f"{self.level} {self.name}: {self.sentence}"


def gravest(alarms: Iterable[Alarm]) -> str:
    """The highest level among alarms; "" if there are none."""
    return max((alarm.level for alarm in alarms), key=LEVELS.index, default="")


def by_gravity(alarms: Iterable[Alarm]) -> list[Alarm]:
    """The gravest first, else in their order."""
    return sorted(alarms, key=lambda alarm: -LEVELS.index(alarm.level))
