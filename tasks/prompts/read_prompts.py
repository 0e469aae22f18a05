"""The prompts of a file, without splits: those of an evaluation suite, or those whose completions an audit reads."""

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

Conversation = list[records.Message]


class Settings(StageSettings):
    map: Columns
    template: str  # part of a prompt's id
    answer_after: str
    trained: str  # the template that the prompts of training rounds have


def read_prompts(work: Work) -> None:
    """PROMPTS (`all.parquet`): every distinct prompt of `inputs["file"]`, in its order.

    Raises:
        PromptsError: the file has a prompt that is trained on, which means it is in the seed or rounds split of
            `inputs["prompts"]`. Without that input nothing is checked.
    """
    settings = Prompts(**work.settings.model_dump(exclude={"trained"}))
    rows = prompts.distinct(settings, work.inputs["file"])
    if "prompts" in work.inputs:
        as_trained = settings.model_copy(update={"template": work.settings.trained})
        _refuse_shared([_rendered(each, work.inputs["file"]) for each in (settings, as_trained)], work)
    tables.write(tables.from_rows(rows, tables.PROMPTS), tables.PROMPTS, work.out / f"{SPLIT}.parquet")


def _rendered(settings: Prompts, file: Path) -> list[Conversation]:
    return [records.messages_of(settings, record, location) for location, record in sources.read(file)]


def _refuse_shared(renderings: list[list[Conversation]], work: Work) -> None:
    """`renderings`: the file's prompts with the template of the evaluation, and with the template of training."""
    measured = [set(both) for both in zip(*map(_questions, renderings), strict=True)]
    for split in ("seed", "rounds"):
        trained = set(
            _questions(tables.read(work.inputs["prompts"] / f"{split}.parquet", tables.PROMPTS)["messages"].to_pylist())
        )
        if shared := sum(not trained.isdisjoint(both) for both in measured):
            raise PromptsError(
                f"expected prompts that are only measured, found {shared} of {len(measured)} in the {split} split, which "
                "is trained on; take them out of one of the two files"
            )


def _questions(conversations: list[Conversation]) -> list[str]:
    """Each prompt's id, without a system message that all prompts share: it does not belong to the question."""
    systems = {json.dumps([m["content"] for m in messages if m["role"] == "system"]) for messages in conversations}
    questions = [[m for m in messages if len(systems) > 1 or m["role"] != "system"] for messages in conversations]
    return [tables.prompt_id(messages) for messages in questions]
