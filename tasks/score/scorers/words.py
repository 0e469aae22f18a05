"""Verifiers for answers other than mathematics: a choice, a quantity, words. They read `answer_part` of the completion."""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from annotated_types import Ge, Lt

from tasks.score import claims, units, verify_pool
from tasks.score.scorers import Row, Score, answer_part, gold_answer, printable, unjudged

VERIFIERS = ("multiple_choice", "normalised_text", "quantity")
# 2: equal answers have equal details; 3: a letter that is denied does not count; pint reads units
VERSIONS = {"multiple_choice": 3, "normalised_text": 2, "quantity": 3}
LIBRARIES = {"quantity": ("pint",)}
CPU_SECONDS = 5.0  # per quantity; reading one takes about a millisecond

T = TypeVar("T")


def multiple_choice(prompts: Sequence[Row], completions: Sequence[Row]) -> list[Score]:
    """1.0 if the letter that the completion chooses (A to J) is the one of the gold answer.

    The letter is the first of these: in the last box, in the last "is B" or "answer: B", at the start of the answer, or the
    only letter in it. Several letters without any of these are no answer, so that naming all of them does not pay. A letter
    that the answer denies ("it is not B") does not count.
    """
    return _compare(prompts, completions, claims.choice, lambda gold, answer: gold == answer)


def normalised_text(prompts: Sequence[Row], completions: Sequence[Row]) -> list[Score]:
    """1.0 if the answer equals the gold answer apart from case, punctuation, articles and spaces.

    The normalisation is SQuAD's (https://arxiv.org/abs/1606.05250, its evaluation script).
    """
    return _compare(prompts, completions, _normalised, lambda gold, answer: gold == answer)


def _normalised(text: str) -> str | None:
    plain = text.casefold().translate(str.maketrans("", "", string.punctuation))
    return " ".join(word for word in plain.split() if word not in ("a", "an", "the")) or None


def quantity(
    prompts: Sequence[Row], completions: Sequence[Row], *, tolerance: Annotated[float, Ge(0), Lt(1)] = 1e-6, workers: int = 2
) -> list[Score]:
    """1.0 if the last quantity of the answer equals the gold quantity within a relative `tolerance`, after converting units.

    "5000 m" equals "5 km". If only one side has a unit, the numbers must agree as written. An unknown word ("5 apples") is not
    a unit. The last box is read if there is one. "either 3 km or 4 km" and "it is not 3 km" are no answer.

    pint reads and converts units, in worker processes with a limit of 5 CPU seconds per completion.
    Source: https://github.com/hgrecco/pint, with its definitions of units; a ton is 2,000 pounds, a tonne 1,000 kg.
    """
    judge = verify_pool.Judge(functools.partial(units.verdict, tolerance=tolerance), units.warm_up, units.no_shortcut)
    rows = list(zip(prompts, completions, strict=True))
    scores = [unjudged(prompt, completion) for prompt, completion in rows]
    items = [
        (gold_answer(p) or "", answer_part(c["text"])) for (p, c), score in zip(rows, scores, strict=True) if score is None
    ]
    verdicts = iter(verify_pool.verify_all(items, CPU_SECONDS, workers, judge))
    return [score or Score(*next(verdicts)) for score in scores]


def _compare(
    prompts: Sequence[Row],
    completions: Sequence[Row],
    read: Callable[[str], T | None],
    same: Callable[[T, T], bool],
) -> list[Score]:
    """Read both answers and compare them. Equal answers have equal details, which majority@k votes on."""
    return [_one(gold_answer(p), c, read, same) for p, c in zip(prompts, completions, strict=True)]


def _one(gold: str | None, completion: Row, read: Callable[[str], T | None], same: Callable[[T, T], bool]) -> Score:
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
    return Score(float(same(truth, answer)), "ok", printable(str(answer)))
