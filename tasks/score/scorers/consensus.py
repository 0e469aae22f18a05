"""Self-consistency: the share of a prompt's samples with the same answer. It reads no gold answer."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Annotated, Literal

from annotated_types import Gt

from data.rows.completions import is_right
from tasks.score import verify_pool
from tasks.score.scorers import Row, Score, answer_part, printable

VERSIONS = {"votes": 2}  # 2: 42, 42. and $42 are one answer

Answer = tuple[str, str]  # a prompt id, and an answer to the prompt

_AROUND, _AFTER = " \t\r\n$€£¥*_`", ".,;:"  # not what may be part of an answer: 5!, 5', 42%, (1, 2]
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def votes(
    prompts: Sequence[Row],
    completions: Sequence[Row],
    *,
    read: Literal["text", "mathematics"] = "text",
    after: str = "",
    timeout: Annotated[float, Gt(0)] = 5.0,
    workers: int = 2,
) -> list[Score]:
    """The share of the prompt's samples that have the same answer. A completion without an answer has no value.

    `read = "text"`: the answer is the text after the last `after`, or in <answer> tags, compared by its characters: 42, 42.,
    **42** and $42 are one answer, and so are 1,000 and 1000. `read = "mathematics"`: math-verify reads and compares the
    answers. These are the votes of https://arxiv.org/abs/2411.04109 (ScPO).
    """
    if read == "text":
        answers: list[str | None] = [_text(row["text"], after) for row in completions]
    else:
        verdicts = verify_pool.verify_all([("0", row["text"]) for row in completions], timeout, workers)
        answers = [detail if status == "ok" else None for _, status, detail in verdicts]
    keys = [
        (row["prompt_id"], answer) if answer and row["finish_reason"] != "length" else None
        for row, answer in zip(completions, answers, strict=True)
    ]
    class_of = _classes({key for key in keys if key}, timeout, workers) if read == "mathematics" else {}
    classes = [class_of.get(key, key) if key else None for key in keys]
    count, samples = Counter(classes), Counter(row["prompt_id"] for row in completions)
    return [
        Score(None, "no_answer_found") if c is None else Score(count[c] / samples[c[0]], "ok", printable(c[1])) for c in classes
    ]


def _text(text: str, after: str) -> str:
    if not after:
        return _plain(answer_part(text))
    return _plain(text.rpartition(after)[2]) if after in text else ""


def _plain(answer: str) -> str:
    """An answer without what only decorates it: emphasis, currency signs, punctuation after it, spaces, the comma of 1,000."""
    bare = answer.replace("\\$", "$").lstrip(_AROUND).rstrip(_AROUND + _AFTER)
    return _THOUSANDS.sub("", " ".join(bare.split()))


def _classes(keys: set[Answer], timeout: float, workers: int) -> dict[Answer, Answer]:
    """The class of every answer, which is the first answer of its prompt (in sorted order) that it equals."""
    by_prompt: dict[str, list[str]] = defaultdict(list)
    for prompt, answer in sorted(keys):
        by_prompt[prompt].append(answer)
    pairs = [(p, a, b) for p, answers in by_prompt.items() for a, b in itertools.combinations(answers, 2)]
    same = verify_pool.verify_all([(a, f"${b}$") for _, a, b in pairs], timeout, workers)
    class_of = {key: key for key in keys}
    for (prompt, a, b), (value, _, _) in zip(pairs, same, strict=True):
        if is_right(value) and class_of[prompt, b] == (prompt, b):
            class_of[prompt, b] = class_of[prompt, a]
    return class_of
