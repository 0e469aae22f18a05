"""Verifiers for answers that are no mathematics: a choice, a quantity, words. They read `answer_part` of the completion."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import regex
from annotated_types import Ge, Lt

from tasks.score.scorers import Row, Score, answer_part, gold_answer, printable
from tasks.score.units import agree, in_base_units, last_quantity

VERSIONS = dict.fromkeys(("multiple_choice", "normalised_text", "quantity"), 2)  # 2: equal answers are told alike

T = TypeVar("T")

_LETTER = r"\(?([A-J])\b\)?"
_NOT_ALONE = r"(?!(?<=[AI])\s+[a-z])(?!\s*(?:or|and|/|,)\s*\(?[A-J]\b)"  # "A dog", "A or B"
_BOXED = regex.compile(r"\\boxed\{(?:\\text\{)?\s*" + _LETTER)
_SAID = regex.compile(r"(?i:\b(?:is|it's|est|answer|choice|option)\b)[\s:*(]{0,9}([A-J])\b" + _NOT_ALONE)
_FIRST = regex.compile(_LETTER + r"(?:[^\w\s]|\s+[A-Z]|\s*$)")
_ALONE = regex.compile(r"\b([A-J])\b" + _NOT_ALONE)


def multiple_choice(prompts: Sequence[Row], completions: Sequence[Row]) -> list[Score]:
    """1.0 where the letter that the completion settles on (A to J) is the gold answer's.

    Read in this order: the last box, the last "is B" or "answer: B", a letter that opens the answer, the only letter there is.
    Several letters and none of these is no answer: naming them all must not pay.
    """
    return _compare(prompts, completions, _choice, lambda gold, said: gold == said)


def _choice(text: str) -> str | None:
    for pattern in (_BOXED, _SAID):
        if found := pattern.findall(text):
            return str(found[-1])
    if opening := _FIRST.match(text):
        return str(opening[1])
    alone = set(_ALONE.findall(text))
    return alone.pop() if len(alone) == 1 else None


def normalised_text(prompts: Sequence[Row], completions: Sequence[Row]) -> list[Score]:
    """1.0 where the answer is the gold one but for case, punctuation, articles and spaces.

    The normalisation is SQuAD's (https://arxiv.org/abs/1606.05250, its evaluation script).
    """
    return _compare(prompts, completions, _normalised, lambda gold, said: gold == said)


def _normalised(text: str) -> str | None:
    plain = text.casefold().translate(str.maketrans("", "", string.punctuation))
    return " ".join(word for word in plain.split() if word not in ("a", "an", "the")) or None


def quantity(
    prompts: Sequence[Row], completions: Sequence[Row], *, tolerance: Annotated[float, Ge(0), Lt(1)] = 1e-6
) -> list[Score]:
    """1.0 where the last number of the answer is the gold one within a relative `tolerance`, units converted.

    "5000 m" is "5 km". Where only one side names a unit the numbers as written must agree; a word that is no unit we know
    ("5 apples") is none.
    """
    return _compare(prompts, completions, last_quantity, lambda gold, said: agree(gold, said, tolerance), in_base_units)


def _compare(
    prompts: Sequence[Row],
    completions: Sequence[Row],
    read: Callable[[str], T | None],
    same: Callable[[T, T], bool],
    told: Callable[[T], str] = str,
) -> list[Score]:
    """Read both sides and compare, with the statuses of a verifier; equal answers are `told` alike, for those who vote."""
    return [_one(gold_answer(p), c, read, same, told) for p, c in zip(prompts, completions, strict=True)]


def _one(
    gold: str | None, completion: Row, read: Callable[[str], T | None], same: Callable[[T, T], bool], told: Callable[[T], str]
) -> Score:
    if gold is None:
        return Score(None, "no_answer")
    truth, text = read(gold), answer_part(completion["text"])
    if truth is None:
        return Score(None, "gold_parse_failure")
    if completion["finish_reason"] == "length":
        return Score(0.0, "truncated", printable(text))
    said = read(text)
    return Score(0.0, "no_answer_found") if said is None else Score(float(same(truth, said)), "ok", printable(told(said)))
