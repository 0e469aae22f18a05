"""Running windows of a logged value, and the rule by which a reward has collapsed. Both read only what was logged so far.

Real collapses rise first: the reward goes from .1 to .8 and back to 0. So the last steps are compared with the best window of
steps before them, not with the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf, sqrt

# Chosen on simulated healthy curves and on 71 public GRPO logs (tests/test_collapse.py has the simulation).
SHARE = 0.1  # of a training's steps: the width of a window ...
FEWEST = 5  # ... which has at least this many steps
ERRORS = 5.0  # standard errors by which the reward must have fallen
LEFT = 1 / 3  # of the best window's reward, above the floor: what is left after a collapse, at most


@dataclass(frozen=True)
class Window:
    """Consecutive logged values: their mean, and the steps of the first and the last."""

    mean: float
    first: int
    last: int


@dataclass(frozen=True)
class Fall:
    """The last window beside the best one that ended before it began."""

    best: Window
    now: Window
    errors: float  # the fall in standard errors of the difference of two windows
    left: float  # share of the best window's height above the floor: min(0, the lowest value so far)

    @property
    def collapsed(self) -> bool:
        return self.errors > ERRORS and self.left <= LEFT


def width_of(steps: int) -> int:
    """Steps of a window, for a training of `steps` steps."""
    return max(FEWEST, round(SHARE * steps))


def windows(values: Sequence[float], steps: Sequence[int], width: int) -> list[Window]:
    """Every run of `width` values, in order. `steps[i]` is the step of `values[i]`."""
    sums = list(accumulate(values, initial=0.0))
    return [
        Window((sums[end] - sums[end - width]) / width, steps[end - width], steps[end - 1])
        for end in range(width, len(values) + 1)
    ]


def noise(values: Sequence[float]) -> float:
    """SD of a value around its own course: root mean square of successive differences / sqrt(2) (von Neumann 1941).

    A slow trend hardly enters it, and a collapse enters it once.
    """
    squares = [(b - a) ** 2 for a, b in pairwise(values)]
    return sqrt(sum(squares) / len(squares) / 2) if squares else 0.0


def fall_of(values: Sequence[float], steps: Sequence[int], width: int) -> Fall | None:
    """How far the last window lies below the best one before it; None if there are fewer than two windows of values."""
    if len(values) < 2 * width:
        return None
    *earlier, now = windows(values, steps, width)
    best = max(earlier[: len(values) - 2 * width + 1], key=lambda window: window.mean)
    lost, error = best.mean - now.mean, noise(values) * sqrt(2 / width)
    floor = min(0.0, *values)
    errors = lost / error if error else inf * lost if lost else 0.0
    return Fall(best, now, errors, (now.mean - floor) / (best.mean - floor) if best.mean > floor else 1.0)


def best_save(values: Sequence[float], interval: int, width: int) -> int | None:
    """The step of the save whose `width` next steps had the highest mean reward; None if no save has so many yet.

    A save is made every `interval` steps, and `values[i]` is the reward of step i + 1. The reward of step s + 1 is that of
    samples from the save of step s. The steps before a save say little of it: they may lie before a collapse.
    """
    scores = {
        save: sum(values[save : save + width]) for save in range(interval, len(values) - width + 1, interval)
    }  # at a tie the earliest, so that a later save changes nothing
    return max(scores, key=lambda save: scores[save]) if scores else None
