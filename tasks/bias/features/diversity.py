"""Lexical diversity within a completion, by a measure that does not fall with length as the type-token ratio does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tasks.bias.features import Row, Values

WORD = re.compile(r"\w+")
FACTOR = 0.72  # the type-token ratio at which a factor ends (McCarthy and Jarvis, Behavior Research Methods 42, 2010)
FEWEST = 50  # words below which the measure is unreliable
NOT_PARTS = ("factors",)


def mtld(completions: Sequence[Row]) -> Values:
    """MTLD: mean words until the type-token ratio falls to .72, forwards and backwards; None below 50 words.

    Source: McCarthy and Jarvis 2010, with their partial factor at the end. None for a text that never repeats a word.
    """
    return [_mtld(WORD.findall(row["text"].lower())) for row in completions]


def _mtld(words: list[str]) -> float | None:
    both = [factors(words), factors(reversed(words))] if len(words) >= FEWEST else [0.0]
    return sum(len(words) / number for number in both) / 2 if all(both) else None


def factors(words: Iterable[str]) -> float:
    """How many times the type-token ratio falls to .72 and starts again; the rest counts by how far it has fallen."""
    whole, types, count = 0.0, set[str](), 0
    for word in words:
        types.add(word)
        count += 1
        if len(types) / count <= FACTOR:
            whole, types, count = whole + 1, set(), 0
    return whole + ((1 - len(types) / count) / (1 - FACTOR) if count else 0.0)
