"""Scorers: `(prompts, completions, *, settings) -> list[Score]`.

prompts[i] is the prompt (a row of PROMPTS) of completions[i] (a row of COMPLETIONS), and Score i belongs to completions[i]. A
recipe names a scorer by the name of a public function or class in this folder. Keyword-only parameters are its settings, except
those in SUPPLIED of tasks/run/parts.py, such as `workers`. The first scorer of a recipe is its verifier.

A verifier judges each completion by itself, whatever the other samples are: 1.0 = right, 0.0 = wrong by the gold answer. A file
lists its verifiers in VERIFIERS, and `check` refuses any other scorer as the first one. In a file of a user's own without that
list every scorer may verify that takes no verdicts and no model.

A value of None means "does not apply", 0.0 means "wrong", and an exception stops the round and names the row. The gold answer
is the verified correct answer of a prompt. All verifiers use these statuses; `detail` has the answer that they read:

| status | value | meaning |
|---|---|---|
| ok | 1.0 or 0.0 | judged |
| no_answer_found | 0.0 | the completion has no answer in the demanded form, so it is wrong |
| truncated | 0.0 | cut at the token limit: its answer may be incomplete, so it never counts as right |
| no_answer | None | the prompt has no gold answer |
| gold_parse_failure | None | the gold answer cannot be read, so the completion is not judged |
| timeout, crashed | None | judging needed too much time or memory, so it is unknown whether the completion is right |
| parse_failure | None | a judge's verdict cannot be read, so the completion is not judged |
| refused | None | a judge's server refused the request |
| low_label_mass | None | a judge that is read by probabilities would rather answer with something other than a label |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
NOT_PARTS = ("Score", "gold_answer", "unjudged", "answer_part", "printable")


@dataclass(frozen=True)
class Score:
    """One row of data.rows.tables.SCORES, without its ids."""

    value: float | None
    status: str = "ok"
    detail: str | None = None


def gold_answer(prompt: Row) -> str | None:
    """The gold answer, or None. An empty one counts as None, because else an empty completion would be right."""
    return (prompt["answer"] or "").strip() or None


def unjudged(prompt: Row, completion: Row) -> Score | None:
    """The score of a completion that needs no judging: without a gold answer, or cut at the token limit. Else None."""
    if gold_answer(prompt) is None:
        return Score(None, "no_answer")
    return Score(0.0, "truncated") if completion["finish_reason"] == "length" else None


def answer_part(text: str) -> str:
    """The answer in a completion: the text in its last <answer> tags, else the text after </think>, else all of it.

    Only the last 10,000 characters are read: answers are at the end, and hostile text is long.
    """
    text = text[-10_000:].rpartition("</think>")[2]
    return text.rpartition("<answer>")[2].partition("</answer>")[0].strip()


def printable(text: str) -> str:
    """The first 80 characters of a text, with lone surrogates escaped, which Parquet does not accept."""
    return text[:80].encode("utf-8", "backslashreplace").decode()
