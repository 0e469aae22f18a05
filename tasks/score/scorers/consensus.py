"""Self-consistency: how many of a prompt's samples give the same answer. No gold answer is read."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Annotated, Literal

from annotated_types import Gt

from tasks.score import verify_pool
from tasks.score.scorers import Row, Score, answer_part, printable

Place = tuple[str, str]  # a prompt and an answer given to it


def votes(
    prompts: Sequence[Row],
    completions: Sequence[Row],
    *,
    read: Literal["text", "mathematics"] = "text",
    after: str = "",
    timeout: Annotated[float, Gt(0)] = 5.0,
    workers: int = 2,
) -> list[Score]:
    """Share of the prompt's samples whose answer is the same as this one's; without an answer it has no value.

    `read = "text"`: the text after the last `after`, or what stands in <answer> tags, to the letter. `read = "mathematics"`:
    answers as math-verify reads them, equal where it finds them equal. The votes of https://arxiv.org/abs/2411.04109 (ScPO).
    """
    if read == "text":
        answers: list[str | None] = [_text(row["text"], after) for row in completions]
    else:
        read_as = verify_pool.verify_all([("0", row["text"]) for row in completions], timeout, workers)
        answers = [detail if status == "ok" else None for _, status, detail in read_as]
    places = [
        (row["prompt_id"], answer) if answer and row["finish_reason"] != "length" else None
        for row, answer in zip(completions, answers, strict=True)
    ]
    class_of = _classes({p for p in places if p}, timeout, workers) if read == "mathematics" else {}
    classes = [class_of.get(place, place) if place else None for place in places]
    count, samples = Counter(classes), Counter(row["prompt_id"] for row in completions)
    return [
        Score(None, "no_answer_found") if c is None else Score(count[c] / samples[c[0]], "ok", printable(c[1])) for c in classes
    ]


def _text(text: str, after: str) -> str:
    if not after:
        return answer_part(text)
    return text.rpartition(after)[2].strip() if after in text else ""


def _classes(places: set[Place], timeout: float, workers: int) -> dict[Place, Place]:
    """Every answer's class, named by the first answer of its prompt (in sorted order) that it equals."""
    by_prompt: dict[str, list[str]] = defaultdict(list)
    for prompt, answer in sorted(places):
        by_prompt[prompt].append(answer)
    asked = [(p, a, b) for p, answers in by_prompt.items() for a, b in itertools.combinations(answers, 2)]
    same = verify_pool.verify_all([(a, f"${b}$") for _, a, b in asked], timeout, workers)
    class_of = {place: place for place in places}
    for (prompt, a, b), (value, _, _) in zip(asked, same, strict=True):
        if value == 1.0 and class_of[prompt, b] == (prompt, b):
            class_of[prompt, b] = class_of[prompt, a]
    return class_of
