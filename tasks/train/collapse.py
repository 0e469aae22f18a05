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


def means(values: Sequence[float], width: int) -> list[float]:
    """The mean of every run of `width` values, in order."""
    sums = list(accumulate(values, initial=0.0))
    return [(after - before) / width for before, after in zip(sums, sums[width:], strict=False)]


def window(values: Sequence[float], steps: Sequence[int], width: int, start: int) -> Window:
    """The window that begins at a position. `steps[i]` is the step of `values[i]`."""
    return Window(sum(values[start : start + width]) / width, steps[start], steps[start + width - 1])


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
    found = means(values, width)
    earlier = found[: len(values) - 2 * width + 1]
    start = max(range(len(earlier)), key=earlier.__getitem__)
    best, now = (window(values, steps, width, at) for at in (start, len(values) - width))
    lost, error = best.mean - now.mean, noise(values) * sqrt(2 / width)
    floor = min(0.0, min(values))
    errors = lost / error if error else 0.0 if lost <= 0 else inf
    return Fall(best, now, errors, (now.mean - floor) / (best.mean - floor) if best.mean > floor else 1.0)


def first_collapse(values: Sequence[float], steps: Sequence[int], width: int) -> Fall | None:
    """The fall at the first step at which the reward had collapsed; None if it never had."""
    falls = (fall_of(values[:end], steps[:end], width) for end in range(2 * width, len(values) + 1))
    return next((fall for fall in falls if fall and fall.collapsed), None)


def best_save(values: Sequence[float], interval: int, width: int) -> int | None:
    """The step of the save whose `width` next steps had the highest mean reward; None if no save has so many yet.

    A save is made every `interval` steps, and `values[i]` is the reward of step i + 1. The reward of step s + 1 is that of
    samples from the save of step s. The steps before a save say little of it: they may lie before a collapse.
    """
    scores = {
        save: sum(values[save : save + width]) for save in range(interval, len(values) - width + 1, interval)
    }  # at a tie the earliest, so that a later save changes nothing
    return max(scores, key=lambda save: scores[save]) if scores else None
