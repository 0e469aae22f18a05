"""Put other completions of a round's prompts beside the policy's: given answers, an earlier model's, a contrasting prompt's.

Everything after it (scores, reward, selection or pairs, training) sees one table and treats all rows alike; `origins.parquet`
says where each came from, for the parts that ask (a parameter `origins`).
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
    contrast: str  # the template the contrasting prompts were made with; empty = there are none


def pool(work: Work) -> None:
    """COMPLETIONS of `inputs["prompts"]`, prompt by prompt, and ORIGINS.

    Inputs: `completions` (origin "policy"); where wanted `base`, `earlier/<n>`, `contrast` (completions) and `given` (a
    prepare artifact). Rows of other prompts are left out.
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
    kept = [pair for prompt in prompts for pair in sorted(of_prompt[prompt["prompt_id"]], key=_place)]
    tables.write(
        tables.from_rows((row for row, _ in kept), tables.COMPLETIONS), tables.COMPLETIONS, work.out / "completions.parquet"
    )
    origins = [{"completion_id": row["completion_id"], "origin": origin} for row, origin in kept]
    tables.write(tables.from_rows(origins, tables.ORIGINS), tables.ORIGINS, work.out / "origins.parquet")


def _rows(folder: Path, name: str) -> list[Row]:
    rows: list[Row] = tables.read(folder / f"{name}.parquet", tables.COMPLETIONS).to_pylist()
    return rows


def _place(pair: tuple[Row, str]) -> tuple[bool, str, int, str]:
    """The policy's own first, in sample order."""
    row, origin = pair
    return origin != "policy", origin, row["sample"], row["completion_id"]


def contrasting(messages: list[Row], template: str) -> list[Row]:
    """The messages with the last one put into the template in place of {prompt}."""
    *before, last = messages
    return [*before, {**last, "content": template.replace("{prompt}", last["content"])}]
