"""Scores on one scale: standardised within a prompt or over a round; and what a score that does not apply counts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

Values = list[float | None]
SAME = 1e-9  # a spread below this share of the largest value is rounding, not a difference
DIGITS = 9  # of a standardised value: a change of unit must not break ties by its rounding


def standardised(values: Sequence[float | None], groups: Sequence[str]) -> Values:
    """Each value minus the mean of its group, in standard deviations (of the sample) of the group; 0 if all are equal.

    GRPO does this to the rewards of a prompt, https://arxiv.org/abs/2402.03300.
    """
    scale = {group: _mean_and_sd(known) for group, known in _known(values, groups).items()}
    return [None if v is None else _in_sds(v, *scale[group]) for v, group in zip(values, groups, strict=True)]


def filled(values: Sequence[float | None], groups: Sequence[str]) -> Values:
    """The values, with the mean of its group in place of each None; None where the whole group has no value.

    So a score that does not apply to a completion neither helps nor hurts it. As 0 it would be a bonus where the others of its
    prompt have a penalty, and a penalty where they have a bonus.
    """
    means = {group: math.fsum(known) / len(known) for group, known in _known(values, groups).items()}
    return [means.get(group) if v is None else v for v, group in zip(values, groups, strict=True)]


def shares(parts: Mapping[str, Sequence[float]], groups: Sequence[str]) -> dict[str, float] | None:
    """The share of each part in the variance of their sum within groups: its covariance with the sum over the sum's variance.

    The shares add up to 1. One is below 0 if its part works against the sum. None if the sum does not vary.
    """
    centred = {name: _centred(values, groups) for name, values in parts.items()}
    total = [math.fsum(values) for values in zip(*centred.values(), strict=True)]
    variance = math.fsum(v * v for v in total)
    if not variance:
        return None
    return {name: math.fsum(a * b for a, b in zip(v, total, strict=True)) / variance for name, v in centred.items()}


def _centred(values: Sequence[float], groups: Sequence[str]) -> list[float]:
    means = {group: math.fsum(known) / len(known) for group, known in _known(values, groups).items()}
    return [value - means[group] for value, group in zip(values, groups, strict=True)]


def _known(values: Sequence[float | None], groups: Sequence[str]) -> dict[str, list[float]]:
    known: dict[str, list[float]] = defaultdict(list)
    for value, group in zip(values, groups, strict=True):
        if value is not None:
            known[group].append(value)
    return known


def _mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0
    return mean, sd if sd > SAME * max(map(abs, values)) else 0.0


def _in_sds(value: float, mean: float, sd: float) -> float:
    return round((value - mean) / sd, DIGITS) if sd else 0.0
