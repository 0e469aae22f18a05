"""The round's prompts put so that they ask for worse answers: RLCD pairs what the two prompts bring about."""

from __future__ import annotations

from data.rows import tables
from tasks.generate.pool import contrasting
from tasks.run.work import StageSettings, Work

VERSION = 1
LIBRARIES = ()


class Settings(StageSettings):
    template: str  # holds {prompt}


def contrast(work: Work) -> None:
    """PROMPTS (`rounds.parquet`) with new ids; `tasks/generate/pool.py` finds the way back."""
    s: Settings = work.settings
    rows = tables.read(work.inputs["prompts"] / "rounds.parquet", tables.PROMPTS).to_pylist()
    for row in rows:
        row["messages"] = contrasting(row["messages"], s.template)
        row["prompt_id"] = tables.prompt_id(row["messages"])
    tables.write(tables.from_rows(rows, tables.PROMPTS), tables.PROMPTS, work.out / "rounds.parquet")
