"""Verifiers that compare a completion's answer with the gold answer, as text or as mathematics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Gt

from tasks.score import verify_pool
from tasks.score.scorers import Row, Score, gold_answer, printable, unjudged

VERSIONS = {"math_equivalence": 2}  # 2: guards around math-verify, see math_verdict.py

VERIFIERS = ("exact_match", "math_equivalence")


def exact_match(prompts: Sequence[Row], completions: Sequence[Row], *, after: str = "") -> list[Score]:
    """1.0 if the text after the last `after` (by default the whole text), stripped, equals the gold answer exactly."""
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
    """1.0 if math-verify finds the answer equal to the gold answer. `timeout` is in CPU seconds per completion.

    math-verify looks for the answer in the last 10,000 characters (`verify_pool.TEXT_CAP`), in a box or elsewhere. Use it for
    mathematics only: it reads a gold answer "Paris" as a product of five letters. For words use exact_match.
    Source: https://github.com/huggingface/Math-Verify, 0.9.0, with its defaults, but without its time limits, which need the
    main thread. Guards in tasks/score/math_verdict.py prevent errors of it: only the last box counts, small numbers are
    compared to 4 digits, and an answer that the text denies, or offers as one of several, is no answer.
    """
    rows = list(zip(prompts, completions, strict=True))
    scores = [unjudged(prompt, completion) for prompt, completion in rows]
    items = [(gold_answer(p) or "", c["text"]) for (p, c), score in zip(rows, scores, strict=True) if score is None]
    verdicts = iter(verify_pool.verify_all(items, timeout, workers))
    return [score or Score(*next(verdicts)) for score in scores]
