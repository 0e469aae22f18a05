"""Verifiers for answers other than mathematics: a choice, a quantity, words. They read `answer_part` of the completion."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import regex
from annotated_types import Ge, Lt

from tasks.score.scorers import Row, Score, answer_part, gold_answer, printable
from tasks.score.units import agree, in_base_units, last_quantity

VERIFIERS = ("multiple_choice", "normalised_text", "quantity")
VERSIONS = dict.fromkeys(("multiple_choice", "normalised_text", "quantity"), 2)  # 2: equal answers have equal details

T = TypeVar("T")

_LETTER = r"\(?([A-J])\b\)?"
_NOT_ALONE = r"(?!(?<=[AI])\s+[a-z])(?!\s*(?:or|and|/|,)\s*\(?[A-J]\b)"  # "A dog", "A or B"
_BOXED = regex.compile(r"\\boxed\{(?:\\text\{)?\s*" + _LETTER)
_STATED = regex.compile(r"(?i:\b(?:is|it's|est|answer|choice|option)\b)[\s:*(]{0,9}([A-J])\b" + _NOT_ALONE)
_FIRST = regex.compile(_LETTER + r"(?:[^\w\s]|\s+[A-Z]|\s*$)")
_ALONE = regex.compile(r"\b([A-J])\b" + _NOT_ALONE)


def multiple_choice(prompts: Sequence[Row], completions: Sequence[Row]) -> list[Score]:
    """1.0 if the letter that the completion chooses (A to J) is the one of the gold answer.

    The letter is the first of these: in the last box, in the last "is B" or "answer: B", at the start of the answer, or the
    only letter in it. Several letters without any of these are no answer, so that naming all of them does not pay.
    """
    return _compare(prompts, completions, _choice, lambda gold, answer: gold == answer)


def _choice(text: str) -> str | None:
    for pattern in (_BOXED, _STATED):
        if letters := pattern.findall(text):
            return str(letters[-1])
    if opening := _FIRST.match(text):
        return str(opening[1])
    alone = set(_ALONE.findall(text))
    return alone.pop() if len(alone) == 1 else None


def normalised_text(prompts: Sequence[Row], completions: Sequence[Row]) -> list[Score]:
    """1.0 if the answer equals the gold answer apart from case, punctuation, articles and spaces.

    The normalisation is SQuAD's (https://arxiv.org/abs/1606.05250, its evaluation script).
    """
    return _compare(prompts, completions, _normalised, lambda gold, answer: gold == answer)


def _normalised(text: str) -> str | None:
    plain = text.casefold().translate(str.maketrans("", "", string.punctuation))
    return " ".join(word for word in plain.split() if word not in ("a", "an", "the")) or None


def quantity(
    prompts: Sequence[Row], completions: Sequence[Row], *, tolerance: Annotated[float, Ge(0), Lt(1)] = 1e-6
) -> list[Score]:
    """1.0 if the last number of the answer equals the gold number within a relative `tolerance`, after converting units.

    "5000 m" equals "5 km". If only one side has a unit, the numbers must agree as written. An unknown word ("5 apples") is not
    a unit.
    """
    return _compare(prompts, completions, last_quantity, lambda gold, answer: agree(gold, answer, tolerance), in_base_units)


def _compare(
    prompts: Sequence[Row],
    completions: Sequence[Row],
    read: Callable[[str], T | None],
    same: Callable[[T, T], bool],
    write: Callable[[T], str] = str,
) -> list[Score]:
    """Read both answers and compare them. `write` gives equal answers equal details, which majority@k votes on."""
    return [_one(gold_answer(p), c, read, same, write) for p, c in zip(prompts, completions, strict=True)]


def _one(
    gold: str | None, completion: Row, read: Callable[[str], T | None], same: Callable[[T, T], bool], write: Callable[[T], str]
) -> Score:
    if gold is None:
        return Score(None, "no_answer")
    truth, text = read(gold), answer_part(completion["text"])
    if truth is None:
        return Score(None, "gold_parse_failure")
    if completion["finish_reason"] == "length":
        return Score(0.0, "truncated", printable(text))
    answer = read(text)
    if answer is None:
        return Score(0.0, "no_answer_found")
    return Score(float(same(truth, answer)), "ok", printable(write(answer)))
