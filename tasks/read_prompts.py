"""The prompts of a file as they are, without splits: what an audit draws completions for, or reads recorded ones of."""

from __future__ import annotations

from pydantic import BaseModel

from data import prompts, tables
from data.recipe import Columns, Prompts
from tasks.work import Work

VERSION = 1
LIBRARIES = ()
SPLIT = "all"


class Settings(BaseModel):
    map: Columns
    template: str  # part of a prompt's id


def read_prompts(work: Work) -> None:
    """PROMPTS (`all.parquet`): every distinct prompt of `inputs["file"]`, in its order."""
    settings = Prompts(map=work.settings.map, template=work.settings.template)
    rows = prompts.distinct(settings, work.inputs["file"])
    tables.write(tables.from_rows(rows, tables.PROMPTS), tables.PROMPTS, work.out / f"{SPLIT}.parquet")
