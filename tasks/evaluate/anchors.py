"""Anchors: texts frozen at checkpoint 0 that every round's judge scores again, as they are and with their form edited"""

from __future__ import annotations

import itertools

from data.rows import tables
from tasks.run.work import StageSettings, Work

VERSION = 1
LIBRARIES = ()


class Settings(StageSettings):
    edits: dict[str, str]  # name -> text with {text}


def anchors(work: Work) -> None:
    """COMPLETIONS: per prompt of `inputs["completions"]` its samples as they are, then all of them once per edit."""
    s: Settings = work.settings
    given = tables.read(work.inputs["completions"] / "completions.parquet", tables.COMPLETIONS).to_pylist()
    rows = []
    for prompt, group in itertools.groupby(given, key=lambda row: row["prompt_id"]):
        samples = list(group)
        rows += samples
        for place, edit in enumerate(s.edits.values(), start=1):
            for index, row in enumerate(samples):
                number = place * len(samples) + index
                rows.append(
                    {
                        **row,
                        "completion_id": tables.completion_id(work.key, prompt, number),
                        "sample": number,
                        "text": edit.replace("{text}", row["text"]),
                        "token_ids": None,
                        "logprobs": None,
                        "engine": "given",
                    }
                )
    tables.write(tables.from_rows(rows, tables.COMPLETIONS), tables.COMPLETIONS, work.out / "completions.parquet")
