"""The token ids of completions and their prompts, as a trainer reads them and as `train.max_length` counts them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.rows import tables
from tasks.models.models import completion_ids, render

Sequences = dict[str, tuple[list[int], list[int]]]  # completion_id -> (prompt ids, completion ids)


def sequences(prompts: Path, completions: Path, tokenizer: Any) -> Sequences:
    """The token ids of every completion of a file, and of its rendered prompt."""
    messages = {row["prompt_id"]: row["messages"] for row in tables.read(prompts, tables.PROMPTS).to_pylist()}
    rendered: dict[str, list[int]] = {}
    sequences_by_id = {}
    for row in tables.read(completions, tables.COMPLETIONS).to_pylist():
        if row["prompt_id"] not in rendered:
            rendered[row["prompt_id"]] = render(tokenizer, messages[row["prompt_id"]])
        sequences_by_id[row["completion_id"]] = (rendered[row["prompt_id"]], completion_ids(tokenizer, row))
    return sequences_by_id


def sequences_of_split(inputs: Mapping[str, Path], split: str, tokenizer: Any) -> Sequences:
    """`sequences` of the inputs `prompts` (this split of it) and `completions`."""
    return sequences(inputs["prompts"] / f"{split}.parquet", inputs["completions"] / "completions.parquet", tokenizer)
