"""Joins sampled continuations to the starts that they continue, so that a verifier reads whole solutions."""

from __future__ import annotations

from data.rows import tables
from tasks.run.work import StageSettings, Work

VERSION = 1
LIBRARIES = ()


class Settings(StageSettings):
    split: str  # which file of the prefixes artifact


def continued(work: Work) -> None:
    """COMPLETIONS of `inputs["drawn"]`, each text after its start in `inputs["prefixes"]`. The joined text has no token ids."""
    starts = {
        row["prompt_id"]: row["messages"][-1]["content"]
        for row in tables.read(work.inputs["prefixes"] / f"{work.settings.split}.parquet", tables.PROMPTS).to_pylist()
    }
    rows = tables.read(work.inputs["drawn"] / "completions.parquet", tables.COMPLETIONS).to_pylist()
    for row in rows:
        row.update(text=starts[row["prompt_id"]] + row["text"], token_ids=None, logprobs=None)
    tables.write(tables.from_rows(rows, tables.COMPLETIONS), tables.COMPLETIONS, work.out / "completions.parquet")
