"""Anchors: texts sampled once by checkpoint 0, and copies with an edited form; the judge scores them again in every round."""

from __future__ import annotations

import itertools

from data.rows import tables
from tasks.run.work import StageSettings, Work

VERSION = 1
LIBRARIES = ()


class Settings(StageSettings):
    edits: dict[str, str]  # name -> text with {text}


def anchors(work: Work) -> None:
    """COMPLETIONS: per prompt of `inputs["completions"]` its unchanged samples, then all of them once per edit."""
    s: Settings = work.settings
    originals = tables.read(work.inputs["completions"] / "completions.parquet", tables.COMPLETIONS).to_pylist()
    rows = []
    for prompt, group in itertools.groupby(originals, key=lambda row: row["prompt_id"]):
        samples = list(group)
        rows += samples
        for edit_number, edit in enumerate(s.edits.values(), start=1):
            for index, row in enumerate(samples):
                number = edit_number * len(samples) + index
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
