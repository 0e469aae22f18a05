"""Take a round's completions from an imported file: those that answer the round's prompts."""

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
    """COMPLETIONS and RECORDED of `inputs["imported"]` for `inputs["prompts"]`, prompt by prompt. `facts.json` has the counts.

    Raises:
        PromptsError: no completion answers any of the prompts.
    """
    prompts = tables.read(work.inputs["prompts"] / f"{work.settings.split}.parquet", tables.PROMPTS)["prompt_id"].to_pylist()
    imported = tables.read(work.inputs["imported"] / "completions.parquet", tables.COMPLETIONS)
    rows_of: dict[str, list[int]] = {prompt: [] for prompt in prompts}
    for index, prompt in enumerate(imported["prompt_id"].to_pylist()):
        if prompt in rows_of:
            rows_of[prompt].append(index)
    chosen = [index for rows in rows_of.values() for index in rows]
    if not chosen:
        raise PromptsError(
            f"expected completions of this round's {len(prompts)} prompts, found {imported.num_rows} recorded completions that "
            "answer none of them; prompts must be equal character for character (see prompts.map and prompts.template)"
        )
    tables.write(imported.take(chosen), tables.COMPLETIONS, work.out / "completions.parquet")
    more = tables.read(work.inputs["imported"] / "recorded.parquet", tables.RECORDED).take(chosen)
    tables.write(more, tables.RECORDED, work.out / "recorded.parquet")
    facts = {
        "prompts": len(prompts),
        "prompts_without": sum(not rows for rows in rows_of.values()),
        "completions": len(chosen),
        "of_other_prompts": imported.num_rows - len(chosen),
    }
    (work.out / "facts.json").write_text(json.dumps(facts, indent=1))
