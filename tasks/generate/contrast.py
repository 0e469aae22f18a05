"""Contrasting copies of the round's prompts, which ask for worse answers. RLCD pairs the completions of the two prompts."""

from __future__ import annotations

from data.rows import tables
from tasks.generate.pool import contrasting
from tasks.run.work import StageSettings, Work

VERSION = 1
LIBRARIES = ()


class Settings(StageSettings):
    template: str  # holds {prompt}


def contrast(work: Work) -> None:
    """PROMPTS (`rounds.parquet`) with new ids. `tasks/generate/pool.py` maps them to the original prompts."""
    s: Settings = work.settings
    rows = tables.read(work.inputs["prompts"] / "rounds.parquet", tables.PROMPTS).to_pylist()
    for row in rows:
        row["messages"] = contrasting(row["messages"], s.template)
        row["prompt_id"] = tables.prompt_id(row["messages"])
    tables.write(tables.from_rows(rows, tables.PROMPTS), tables.PROMPTS, work.out / "rounds.parquet")
