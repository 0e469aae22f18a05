"""Alarms about a round, which a person, the gate and MLflow read. One type, whatever raises it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["watch", "ALARM", "STOP"]
Source = Literal["ledger", "training", "judge", "suite"]
LEVELS = ("", "watch", "ALARM", "STOP")  # from no alarm to the highest


@dataclass(frozen=True)
class Alarm:
    """One finding of a round, at one of three levels.

    watch: a first sign. ALARM: a person should look at it. STOP: a hard limit was passed. The recipe's `gate.on_alarm` says
    what the gate does at each level.
    """

    level: Level
    source: Source  # the bias ledger, the training log, judge health or an evaluation suite
    name: str  # of the feature, limit, judge or suite
    sentence: str  # what changed, by how much, since when, and the remedy

    def __str__(self) -> str:
        return f"{self.level} {self.name}: {self.sentence}"


def gravest(alarms: Iterable[Alarm]) -> str:
    """The highest level among alarms; "" if there are none."""
    return max((alarm.level for alarm in alarms), key=LEVELS.index, default="")


def by_gravity(alarms: Iterable[Alarm]) -> list[Alarm]:
    """The highest level first; alarms of a level keep their order."""
    return sorted(alarms, key=lambda alarm: -LEVELS.index(alarm.level))
