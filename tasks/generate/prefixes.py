"""Solutions cut after each of their steps, as prompts that a model is to go on with: what process scores are sampled from."""

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
    separator: str  # one or more of it end a step
    steps: int  # told apart at most: what follows belongs to the last one


def prefixes(work: Work) -> None:
    """PROMPTS (`<split>.parquet`): each distinct start of a completion once, as the assistant's turn after its prompt.

    In the order of the completions of `inputs["completions"]`; the answer is that of the prompt in `inputs["prompts"]`.
    """
    s: Settings = work.settings
    prompts = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS).to_pylist()
    by_id = {row["prompt_id"]: row for row in prompts}
    made: dict[str, Row] = {}
    for row in read_completions(work.inputs["completions"]).to_pylist():
        prompt = by_id[row["prompt_id"]]
        for messages in begun(prompt["messages"], row["text"], s.separator, s.steps):
            made.setdefault(tables.prompt_id(messages), {**prompt, "messages": messages})
    rows = [{**row, "prompt_id": prompt_id} for prompt_id, row in made.items()]
    tables.write(tables.from_rows(rows, tables.PROMPTS), tables.PROMPTS, work.out / f"{s.split}.parquet")


def begun(messages: Sequence[Row], text: str, separator: str, steps: int) -> list[list[Row]]:
    """The conversation with the text cut after its first step, its second, and so on; after the last one nothing is to come."""
    ends = re.finditer(f"(?:{re.escape(separator)})+", text)
    cuts = itertools.islice((end.end() for end in ends if end.start() > 0 and end.end() < len(text)), steps - 1)
    return [[*messages, {"role": "assistant", "content": text[:cut]}] for cut in cuts]
