"""Copy a file of completions from another program into the store, so that it cannot change during a campaign."""

from __future__ import annotations

import json
from collections import Counter

from data.recipe.settings import Columns, Prompts
from data.rows import records, sources, tables
from tasks.run.work import StageSettings, Work

VERSION = 1
LIBRARIES = ()


class Settings(StageSettings):
    map: Columns
    template: str  # part of a prompt's id


def import_completions(work: Work) -> None:
    """COMPLETIONS in the file's order, and RECORDED (`recorded.parquet`) with the other fields of their records.

    Token ids, log-probabilities and seeds are null. So is a finish reason that the file does not give.
    """
    settings = Prompts(map=work.settings.map, template=work.settings.template)
    completions, other_fields = [], []
    samples: Counter[str] = Counter()
    for location, record in sources.read(work.inputs["file"]):
        prompt = tables.prompt_id(records.messages_of(settings, record, location))
        for completion in records.completions_of(settings, record, location):
            identity = tables.completion_id(work.key, prompt, samples[prompt])
            given = {"completion_id": identity, "prompt_id": prompt, "sample": samples[prompt], "text": completion.text}
            unknown = {"token_ids": None, "logprobs": None, "seed": None}
            completions.append({**given, **unknown, "finish_reason": completion.finish_reason, "engine": "recorded"})
            fields = json.dumps(completion.given, ensure_ascii=False, default=str)
            other_fields.append({"completion_id": identity, "record": fields})
            samples[prompt] += 1
    tables.write(tables.from_rows(completions, tables.COMPLETIONS), tables.COMPLETIONS, work.out / "completions.parquet")
    tables.write(tables.from_rows(other_fields, tables.RECORDED), tables.RECORDED, work.out / "recorded.parquet")
