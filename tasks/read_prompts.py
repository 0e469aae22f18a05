"""The prompts of a file as they are, without splits: those of an evaluation suite, or what an audit has completions of."""

from __future__ import annotations

from typing import Any

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
    trained: str = "{prompt}"  # the template of the prompts that rounds train on


def read_prompts(work: Work) -> None:
    """PROMPTS (`all.parquet`): every distinct prompt of `inputs["file"]`, in its order.

    Raises:
        PromptsError: it shares a prompt with what `inputs["prompts"]`, where given, has rounds train on.
    """
    settings = Prompts(**work.settings.model_dump(exclude={"trained"}))
    rows = prompts.distinct(settings, work.inputs["file"])
    if "prompts" in work.inputs:
        as_trained = prompts.distinct(settings.model_copy(update={"template": work.settings.trained}), work.inputs["file"])
        _refuse_shared([{_asked(row), _asked(other)} for row, other in zip(rows, as_trained, strict=True)], work)
    tables.write(tables.from_rows(rows, tables.PROMPTS), tables.PROMPTS, work.out / f"{SPLIT}.parquet")


def _refuse_shared(measured: list[set[str]], work: Work) -> None:
    for split in ("seed", "rounds"):
        trained = {_asked(row) for row in tables.read(work.inputs["prompts"] / f"{split}.parquet", tables.PROMPTS).to_pylist()}
        if shared := sum(not trained.isdisjoint(ways) for ways in measured):
            raise PromptsError(
                f"expected prompts that are only measured, found {shared} of {len(measured)} in the {split} split, which "
                "is trained on; take them out of one of the two files"
            )


def _asked(row: dict[str, Any]) -> str:
    """A prompt as it is, less its system message: the same question under another one is the same question."""
    return tables.prompt_id([message for message in row["messages"] if message["role"] != "system"])
