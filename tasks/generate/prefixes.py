"""Solutions cut after each of their steps, as prompts for a model to continue. Process scores are computed from the results."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from data.rows import tables
from data.rows.completions import read_completions
from tasks.run.work import StageSettings, Work

VERSION = 1
LIBRARIES = ()

Row = dict[str, Any]


class Settings(StageSettings):
    split: str  # which file of the prompts artifact
    separator: str  # one or more of these end a step
    steps: int  # at most; any further text belongs to the last step


def prefixes(work: Work) -> None:
    """PROMPTS (`<split>.parquet`): each distinct start of a completion once, as the assistant's turn after its prompt.

    They are in the order of `inputs["completions"]`. Each has the answer of its prompt in `inputs["prompts"]`.
    """
    s: Settings = work.settings
    prompts = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS).to_pylist()
    by_id = {row["prompt_id"]: row for row in prompts}
    prompt_of_start: dict[str, Row] = {}
    for row in read_completions(work.inputs["completions"]).to_pylist():
        prompt = by_id[row["prompt_id"]]
        for messages in begun(prompt["messages"], row["text"], s.separator, s.steps):
            prompt_of_start.setdefault(tables.prompt_id(messages), {**prompt, "messages": messages})
    rows = [{**row, "prompt_id": prompt_id} for prompt_id, row in prompt_of_start.items()]
    tables.write(tables.from_rows(rows, tables.PROMPTS), tables.PROMPTS, work.out / f"{s.split}.parquet")


def begun(messages: Sequence[Row], text: str, separator: str, steps: int) -> list[list[Row]]:
    """The conversation with the text cut after its first step, after its second, and so on, but not after its last step."""
    ends = re.finditer(f"(?:{re.escape(separator)})+", text)
    cuts = itertools.islice((end.end() for end in ends if end.start() > 0 and end.end() < len(text)), steps - 1)
    return [[*messages, {"role": "assistant", "content": text[:cut]}] for cut in cuts]
