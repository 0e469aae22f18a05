"""The shelf of scorers: `(prompts, completions, *, settings) -> list[Score]`.

prompts[i] is the prompt row (data.tables.PROMPTS) of completions[i] (COMPLETIONS); Score i belongs to completions[i]. A part's
name in a recipe is the name of a public function or class here; keyword-only parameters are its settings, except `workers`,
which comes from the recipe's [hardware] and never enters a key. The first scorer of a recipe is its verifier.

A value of None means "does not apply", 0.0 means "wrong", and an exception stops the round with the row named. The verifiers
agree on what a status says (and `detail` holds what they read, for whoever looks into a table):

| status | value | says |
|---|---|---|
| ok | 1.0 or 0.0 | judged |
| no_answer_found | 0.0 | the completion holds no answer in the demanded form: it is plainly not the right one |
| truncated | 0.0 | cut at the token limit: the answer, if there is one, might have gone on, so it never counts as right |
| no_answer | None | the prompt has no gold answer |
| gold_parse_failure | None | the gold answer cannot be read; says nothing about the completion |
| timeout, crashed | None | judging took too long or too much memory; nobody knows whether it was right |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Gt
from pydantic import AfterValidator

from tasks import verify_pool

Row = dict[str, Any]
_REGEX_SECONDS = 1.0


@dataclass(frozen=True)
class Score:
    """One row of data.tables.SCORES, less its ids."""

    value: float | None
    status: str = "ok"
    detail: str | None = None


NOT_PARTS = ("Score",)


def exact_match(prompts: Sequence[Row], completions: Sequence[Row], *, after: str = "") -> list[Score]:
    """1.0 where the text after the last `after` (all of it by default), stripped, is the gold answer to the letter."""
    return [_exact(prompt, completion, after) for prompt, completion in zip(prompts, completions, strict=True)]


def _exact(prompt: Row, completion: Row, after: str) -> Score:
    gold, text = _gold(prompt), completion["text"]
    if gold is None:
        return Score(None, "no_answer")
    answer = text[text.rfind(after) + len(after) :].strip() if after and after in text else "" if after else text.strip()
    detail = verify_pool.printable(answer)
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
    items = [(_gold(p) or "", c["text"]) for (p, c), score in zip(rows, scores, strict=True) if score is None]
    verdicts = iter(verify_pool.verify_all(items, timeout, workers))
    return [score or Score(*next(verdicts)) for score in scores]


def _unjudged(prompt: Row, completion: Row) -> Score | None:
    """The score of what needs no judging."""
    if _gold(prompt) is None:
        return Score(None, "no_answer")
    return Score(0.0, "truncated") if completion["finish_reason"] == "length" else None


def _compiles(pattern: str) -> str:
    import regex

    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"expected a regular expression: {error}") from error
    return pattern


def format(
    prompts: Sequence[Row], completions: Sequence[Row], *, pattern: Annotated[str, AfterValidator(_compiles)]
) -> list[Score]:
    """1.0 where the whole stripped text matches the regular expression, e.g. `(?s)<think>.*</think>.*`, else 0.0.

    The pattern is yours, the text is the model's: a match that takes longer than a second is a "timeout" with no value.
    """
    import regex  # unlike re, it can be told to stop

    compiled = regex.compile(pattern)
    return [_matches(compiled, completion["text"].strip()) for completion in completions]


def _matches(compiled: Any, text: str) -> Score:
    try:
        return Score(float(compiled.fullmatch(text, timeout=_REGEX_SECONDS) is not None))
    except TimeoutError:
        return Score(None, "timeout")


def _gold(prompt: Row) -> str | None:
    """The gold answer; an empty one is none, or an empty completion would be right."""
    return (prompt["answer"] or "").strip() or None
