"""The prompts of a file as they are, without splits: those of an evaluation suite, or what an audit has completions of."""

from __future__ import annotations

import json
from pathlib import Path

from data.errors import PromptsError
from data.recipe.settings import Columns, Prompts
from data.rows import prompts, records, sources, tables
from tasks.run.work import StageSettings, Work

VERSION = 1
LIBRARIES = ()
SPLIT = "all"

Talk = list[records.Message]


class Settings(StageSettings):
    map: Columns
    template: str  # part of a prompt's id
    answer_after: str
    trained: str  # the template of the prompts that rounds train on


def read_prompts(work: Work) -> None:
    """PROMPTS (`all.parquet`): every distinct prompt of `inputs["file"]`, in its order.

    Raises:
        PromptsError: it shares a prompt with what `inputs["prompts"]`, where given, has rounds train on.
    """
    settings = Prompts(**work.settings.model_dump(exclude={"trained"}))
    rows = prompts.distinct(settings, work.inputs["file"])
    if "prompts" in work.inputs:
        as_trained = settings.model_copy(update={"template": work.settings.trained})
        _refuse_shared([_rendered(how, work.inputs["file"]) for how in (settings, as_trained)], work)
    tables.write(tables.from_rows(rows, tables.PROMPTS), tables.PROMPTS, work.out / f"{SPLIT}.parquet")


def _rendered(settings: Prompts, file: Path) -> list[Talk]:
    return [records.messages_of(settings, record, place) for place, record in sources.read(file)]


def _refuse_shared(ways: list[list[Talk]], work: Work) -> None:
    """`ways`: the file's prompts as they are measured, and as the trained ones are rendered."""
    asked = [set(both) for both in zip(*map(_questions, ways), strict=True)]
    for split in ("seed", "rounds"):
        trained = set(
            _questions(tables.read(work.inputs["prompts"] / f"{split}.parquet", tables.PROMPTS)["messages"].to_pylist())
        )
        if shared := sum(not trained.isdisjoint(both) for both in asked):
            raise PromptsError(
                f"expected prompts that are only measured, found {shared} of {len(asked)} in the {split} split, which "
                "is trained on; take them out of one of the two files"
            )


def _questions(talks: list[Talk]) -> list[str]:
    """Each prompt's id, less a system message that all of them share: it is no part of the question."""
    systems = {json.dumps([m["content"] for m in talk if m["role"] == "system"]) for talk in talks}
    kept = [[m for m in talk if len(systems) > 1 or m["role"] != "system"] for talk in talks]
    return [tables.prompt_id(talk) for talk in kept]
