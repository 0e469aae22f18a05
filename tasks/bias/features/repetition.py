"""Repetition and loops, over sampled tokens if they are known, else over words; and how much a text compresses."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.bias.features import Row, Values, units

LONGEST_PERIOD = 64
SHORTEST_TAIL = 48
NOT_PARTS = ("repeated_share",)
KINDS = {"loop": "rate"}


def rep_3(completions: Sequence[Row]) -> Values:
    """1 - distinct 3-grams / 3-grams; 0 for a shorter text."""
    return [repeated_share(units(row), 3) for row in completions]


def rep_10(completions: Sequence[Row]) -> Values:
    """1 - distinct 10-grams / 10-grams; 0 for a shorter text."""
    return [repeated_share(units(row), 10) for row in completions]


def rep_20(completions: Sequence[Row]) -> Values:
    """1 - distinct 20-grams / 20-grams; 0 for a shorter text."""
    return [repeated_share(units(row), 20) for row in completions]


def repeated_share(sequence: Sequence[Any], n: int) -> float:
    """1 - distinct n-grams / n-grams, 0.0 for a sequence shorter than n (as in TRL's repetition penalty)."""
    total = len(sequence) - n + 1
    if total < 1:
        return 0.0
    return 1.0 - len(set(zip(*(sequence[i:] for i in range(n)), strict=False))) / total


def loop(completions: Sequence[Row]) -> Values:
    """1.0 if the text ends in a loop: some period p <= 64 repeats over the last max(3p, 48) units."""
    return [float(_loops(units(row))) for row in completions]


def _loops(sequence: Sequence[Any]) -> bool:
    if len(sequence) <= SHORTEST_TAIL:
        return False
    ids = np.unique(np.asarray(sequence), return_inverse=True)[1]
    for period in range(1, LONGEST_PERIOD + 1):
        tail = max(3 * period, SHORTEST_TAIL)
        if tail + period <= len(ids) and (ids[-tail:] == ids[-tail - period : -period]).all():
            return True
    return False


def compression(completions: Sequence[Row]) -> Values:
    """zlib bytes / bytes: it falls as a text repeats itself, and is above 1 for very short ones; None for an empty text."""
    return [len(zlib.compress(data)) / len(data) if (data := row["text"].encode()) else None for row in completions]
