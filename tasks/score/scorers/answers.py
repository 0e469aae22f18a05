"""Verifiers that compare an answer with the prompt's gold answer: to the letter, or as mathematics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Gt

from tasks.score import verify_pool
from tasks.score.scorers import Row, Score, gold_answer, printable


def exact_match(prompts: Sequence[Row], completions: Sequence[Row], *, after: str = "") -> list[Score]:
    """1.0 where the text after the last `after` (all of it by default), stripped, is the gold answer to the letter."""
    return [_exact(prompt, completion, after) for prompt, completion in zip(prompts, completions, strict=True)]


def _exact(prompt: Row, completion: Row, after: str) -> Score:
    gold, text = gold_answer(prompt), completion["text"]
    if gold is None:
        return Score(None, "no_answer")
    answer = text[text.rfind(after) + len(after) :].strip() if after and after in text else "" if after else text.strip()
    detail = printable(answer)
    if completion["finish_reason"] == "length":
        return Score(0.0, "truncated", detail)
    if not answer:
        return Score(0.0, "no_answer_found")
    return Score(float(answer == gold), "ok", detail)


def math_equivalence(
    prompts: Sequence[Row], completions: Sequence[Row], *, timeout: Annotated[float, Gt(0)] = 5.0, workers: int = 2
) -> list[Score]:
    """1.0 where math-verify finds the answer mathematically equal to the gold one. `timeout` is in CPU seconds a completion.

    The answer is looked for in the last 10,000 characters (`verify_pool.TEXT_CAP`), boxed or not, as math-verify does it. It
    is for mathematics: it reads a gold answer "Paris" as a product of five letters; use exact_match for words.
    Source: https://github.com/huggingface/Math-Verify, 0.9.0, with its defaults less its time limits, which need a main thread.
    """
    rows = list(zip(prompts, completions, strict=True))
    scores = [_unjudged(prompt, completion) for prompt, completion in rows]
    items = [(gold_answer(p) or "", c["text"]) for (p, c), score in zip(rows, scores, strict=True) if score is None]
    verdicts = iter(verify_pool.verify_all(items, timeout, workers))
    return [score or Score(*next(verdicts)) for score in scores]


def _unjudged(prompt: Row, completion: Row) -> Score | None:
    """The score of what needs no judging."""
    if gold_answer(prompt) is None:
        return Score(None, "no_answer")
    return Score(0.0, "truncated") if completion["finish_reason"] == "length" else None
