"""The shelf of scorers: `(prompts, completions, *, settings) -> list[Score]`.

prompts[i] is the prompt row (PROMPTS) of completions[i] (COMPLETIONS); Score i belongs to completions[i]. A part's
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
| parse_failure | None | a judge's answer cannot be read; says nothing about the completion |
| refused | None | a judge's server refused to answer |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
NOT_PARTS = ("Score", "gold_answer", "answer_part", "printable")


@dataclass(frozen=True)
class Score:
    """One row of data.rows.tables.SCORES, less its ids."""

    value: float | None
    status: str = "ok"
    detail: str | None = None


def gold_answer(prompt: Row) -> str | None:
    """The gold answer; an empty one is none, or an empty completion would be right."""
    return (prompt["answer"] or "").strip() or None


def answer_part(text: str) -> str:
    """What a completion gives as its answer: inside its last <answer> tags, else what follows </think>, else all of it.

    At most the last 10,000 characters: answers stand at the end, and hostile text is long.
    """
    text = text[-10_000:].rpartition("</think>")[2]
    return text.rpartition("<answer>")[2].partition("</answer>")[0].strip()


def printable(text: str) -> str:
    """The start of a text, fit for a table: Parquet refuses lone surrogates."""
    return text[:80].encode("utf-8", "backslashreplace").decode()
