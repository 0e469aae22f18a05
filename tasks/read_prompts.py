"""The prompts of a file as they are, without splits: those of an evaluation suite, or what an audit has completions of."""

from __future__ import annotations

from pydantic import BaseModel

from data import prompts, tables
from data.errors import PromptsError
from data.settings import Columns, Prompts
from tasks.work import Work

VERSION = 1
LIBRARIES = ()
SPLIT = "all"


class Settings(BaseModel):
    map: Columns
    template: str  # part of a prompt's id
    answer_after: str = ""


def read_prompts(work: Work) -> None:
    """PROMPTS (`all.parquet`): every distinct prompt of `inputs["file"]`, in its order.

    Raises:
        PromptsError: it shares a prompt with what `inputs["prompts"]`, where given, has rounds train on.
    """
    settings = Prompts(**work.settings.model_dump())
    rows = prompts.distinct(settings, work.inputs["file"])
    if "prompts" in work.inputs:
        _refuse_shared([row["prompt_id"] for row in rows], work)
    tables.write(tables.from_rows(rows, tables.PROMPTS), tables.PROMPTS, work.out / f"{SPLIT}.parquet")


def _refuse_shared(measured: list[str], work: Work) -> None:
    for split in ("seed", "rounds"):
        trained = tables.read(work.inputs["prompts"] / f"{split}.parquet", tables.PROMPTS)["prompt_id"].to_pylist()
        if shared := set(measured) & set(trained):
            raise PromptsError(
                f"expected prompts that are only measured, found {len(shared)} of {len(measured)} in the {split} split, which "
                "is trained on; take them out of one of the two files"
            )
