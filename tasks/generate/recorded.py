"""The completions of a round that somebody else produced: those of an imported file that answer the round's prompts."""

from __future__ import annotations

import json
from typing import Any

from data.errors import PromptsError
from data.rows import tables
from tasks.run.work import StageSettings, Work

VERSION = 1
LIBRARIES = ()

Row = dict[str, Any]


class Settings(StageSettings):
    split: str  # which file of the prompts artifact


def recorded(work: Work) -> None:
    """COMPLETIONS and RECORDED of `inputs["imported"]` for `inputs["prompts"]`, prompt by prompt; `facts.json` counts the rest.

    Raises:
        PromptsError: no completion belongs to any of the prompts.
    """
    prompts = tables.read(work.inputs["prompts"] / f"{work.settings.split}.parquet", tables.PROMPTS)["prompt_id"].to_pylist()
    known = tables.read(work.inputs["imported"] / "completions.parquet", tables.COMPLETIONS)
    rows_of: dict[str, list[int]] = {prompt: [] for prompt in prompts}
    for index, prompt in enumerate(known["prompt_id"].to_pylist()):
        if prompt in rows_of:
            rows_of[prompt].append(index)
    taken = [index for rows in rows_of.values() for index in rows]
    if not taken:
        raise PromptsError(
            f"expected completions of this round's {len(prompts)} prompts, found {known.num_rows} recorded completions that "
            "answer none of them; prompts must be equal to the letter (see prompts.map and prompts.template)"
        )
    tables.write(known.take(taken), tables.COMPLETIONS, work.out / "completions.parquet")
    more = tables.read(work.inputs["imported"] / "recorded.parquet", tables.RECORDED).take(taken)
    tables.write(more, tables.RECORDED, work.out / "recorded.parquet")
    facts = {
        "prompts": len(prompts),
        "prompts_without": sum(not rows for rows in rows_of.values()),
        "completions": len(taken),
        "of_other_prompts": known.num_rows - len(taken),
    }
    (work.out / "facts.json").write_text(json.dumps(facts, indent=1))
