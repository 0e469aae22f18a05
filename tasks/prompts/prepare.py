"""Turn a prompt source into the splits of a campaign, and store a check that no two of them share a prompt."""

from __future__ import annotations

import json

from data.recipe.settings import Prompts
from data.rows import prompts, tables
from tasks.run.work import Work

VERSION = 2
LIBRARIES = ()


class Settings(Prompts):
    """The recipe's [prompts]. The file's content is an input, so its path is not a setting."""


def prepare(work: Work) -> None:
    """PROMPTS per split (`<split>.parquet`), the given solutions of the seed split (`given.parquet`), and `check.json`."""
    rows, given = prompts.splits(work.settings, work.inputs.get("file"), work.seed)
    for split in prompts.SPLITS:
        tables.write(tables.from_rows(rows[split], tables.PROMPTS), tables.PROMPTS, work.out / f"{split}.parquet")
    solutions = [
        {
            "completion_id": tables.completion_id(row["text"], row["prompt_id"], 0),
            "prompt_id": row["prompt_id"],
            "sample": 0,
            "text": row["text"],
            "token_ids": None,
            "logprobs": None,
            "finish_reason": "given",
            "seed": None,
            "engine": "given",
        }
        for row in given
    ]
    tables.write(tables.from_rows(solutions, tables.COMPLETIONS), tables.COMPLETIONS, work.out / "given.parquet")
    (work.out / "check.json").write_text(json.dumps(prompts.disjoint(rows), indent=1))
