"""Pool completions of a round's prompts: the policy's, given answers, an earlier model's, and a contrasting prompt's.

The later stages (scores, reward, selection or pairs, training) read one table and treat all rows alike. `origins.parquet` names
the origin of each row, for parts with a parameter `origins`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from data.rows import tables
from tasks.run.work import StageSettings, Work

VERSION = 1
LIBRARIES = ()

Row = dict[str, Any]


class Settings(StageSettings):
    contrast: str  # the template of the contrasting prompts; empty = there are none


def pool(work: Work) -> None:
    """COMPLETIONS of `inputs["prompts"]`, prompt by prompt, and ORIGINS.

    Inputs: `completions` (origin "policy"). Optional: `base`, `earlier/<n>`, `contrast` (completions), `given` (a prepare
    artifact). Rows of other prompts are left out.
    """
    s: Settings = work.settings
    prompts = tables.read(work.inputs["prompts"] / "rounds.parquet", tables.PROMPTS).to_pylist()
    original = {tables.prompt_id(contrasting(row["messages"], s.contrast)): row["prompt_id"] for row in prompts}
    of_prompt: dict[str, list[tuple[Row, str]]] = defaultdict(list)
    for name, folder in work.inputs.items():
        origin = {"completions": "policy", "prompts": ""}.get(name, name.partition("/")[0])
        for row in _rows(folder, "given" if origin == "given" else "completions") if origin else ():
            prompt = original.get(row["prompt_id"], "") if origin == "contrast" else row["prompt_id"]
            of_prompt[prompt].append(({**row, "prompt_id": prompt}, origin))
    pooled = [pair for prompt in prompts for pair in sorted(of_prompt[prompt["prompt_id"]], key=_order)]
    tables.write(
        tables.from_rows((row for row, _ in pooled), tables.COMPLETIONS), tables.COMPLETIONS, work.out / "completions.parquet"
    )
    origins = [{"completion_id": row["completion_id"], "origin": origin} for row, origin in pooled]
    tables.write(tables.from_rows(origins, tables.ORIGINS), tables.ORIGINS, work.out / "origins.parquet")


def _rows(folder: Path, name: str) -> list[Row]:
    rows: list[Row] = tables.read(folder / f"{name}.parquet", tables.COMPLETIONS).to_pylist()
    return rows


def _order(pair: tuple[Row, str]) -> tuple[bool, str, int, str]:
    """Sort key: the policy's samples first, then by origin, in the order of their samples."""
    row, origin = pair
    return origin != "policy", origin, row["sample"], row["completion_id"]


def contrasting(messages: list[Row], template: str) -> list[Row]:
    """The messages, with the last one inserted into the template at {prompt}."""
    *before, last = messages
    return [*before, {**last, "content": template.replace("{prompt}", last["content"])}]
