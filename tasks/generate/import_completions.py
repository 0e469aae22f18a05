"""Copy a file of completions that somebody else produced into the store, so that it cannot change under a campaign."""

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
    """COMPLETIONS in the file's order, and in `recorded.parquet` (RECORDED) whatever else their records say.

    Token ids, log-probabilities and seeds are unknown; so is a finish reason that the file does not give.
    """
    settings = Prompts(map=work.settings.map, template=work.settings.template)
    rows, more = [], []
    samples: Counter[str] = Counter()
    for place, record in sources.read(work.inputs["file"]):
        prompt = tables.prompt_id(records.messages_of(settings, record, place))
        for found in records.completions_of(settings, record, place):
            identity = tables.completion_id(work.key, prompt, samples[prompt])
            known = {"completion_id": identity, "prompt_id": prompt, "sample": samples[prompt], "text": found.text}
            unknown = {"token_ids": None, "logprobs": None, "seed": None}
            rows.append({**known, **unknown, "finish_reason": found.finish_reason, "engine": "recorded"})
            more.append({"completion_id": identity, "record": json.dumps(found.given, ensure_ascii=False, default=str)})
            samples[prompt] += 1
    tables.write(tables.from_rows(rows, tables.COMPLETIONS), tables.COMPLETIONS, work.out / "completions.parquet")
    tables.write(tables.from_rows(more, tables.RECORDED), tables.RECORDED, work.out / "recorded.parquet")
