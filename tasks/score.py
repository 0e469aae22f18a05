"""Score completions with one scorer, shard by shard. One artifact per scorer, so a new scorer never re-runs an old one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from data import tables
from data.errors import ScorerFailed
from tasks import parts as shelves
from tasks.scorers import Score
from tasks.work import Work, chunks

VERSION = 1
LIBRARIES = ("math-verify", "latex2sympy2_extended", "sympy", "regex")
SHARD = 2048  # completions; small enough to lose, large enough to keep a process pool busy

Row = dict[str, Any]


class Settings(BaseModel):
    scorer: str
    settings: dict[str, Any]
    split: str


def parts(settings: Settings) -> list[tuple[str, str]]:
    return [("scorers", settings.scorer)]


def score(work: Work) -> None:
    """SCORES: one row per row of `inputs["completions"]`, in its order."""
    s: Settings = work.settings
    prompts = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS).to_pylist()
    by_id = {row["prompt_id"]: row for row in prompts}
    completions = tables.read(work.inputs["completions"] / "completions.parquet", tables.COMPLETIONS)
    scorer = None
    made: list[pa.Table] = []
    for index, rows in enumerate(chunks(completions.num_rows, SHARD)):
        work.tick(rows.start, completions.num_rows)
        file = work.scratch / f"scores-{index:05d}.parquet"
        table = tables.read_shard(file, tables.SCORES)
        if table is None:
            scorer = scorer or shelves.bind("scorers", s.scorer, s.settings, workers=work.hardware.workers)
            batch = completions.slice(rows.start, len(rows)).to_pylist()
            table = tables.from_rows(_score(s.scorer, scorer, by_id, batch), tables.SCORES)
            tables.write_shard(table, tables.SCORES, file)
        made.append(table)
    tables.write(pa.concat_tables(made or [tables.SCORES.empty_table()]), tables.SCORES, work.out / "scores.parquet")
    work.tick(completions.num_rows, completions.num_rows)


def _score(name: str, scorer: Any, prompts: dict[str, Row], batch: Sequence[Row]) -> list[Row]:
    aligned = [prompts[row["prompt_id"]] for row in batch]
    try:
        scores: list[Score] = scorer(aligned, batch)
    except Exception as error:
        raise ScorerFailed(f"scorer '{name}' failed on {_blame(scorer, aligned, batch)}: {error!r}") from error
    if len(scores) != len(batch) or not all(isinstance(score, Score) for score in scores):
        raise ScorerFailed(f"scorer '{name}': expected {len(batch)} Score values, found {len(scores)}; see tasks/scorers.py")
    for row, score in zip(batch, scores, strict=True):
        if score.value is not None and not math.isfinite(score.value):
            raise ScorerFailed(
                f"scorer '{name}' gave {score.value} to completion {row['completion_id']}: expected a number or None"
            )
    return [
        {
            "completion_id": row["completion_id"],
            "prompt_id": row["prompt_id"],
            "value": score.value,
            "status": score.status,
            "detail": score.detail,
        }
        for row, score in zip(batch, scores, strict=True)
    ]


def _blame(scorer: Any, prompts: Sequence[Row], batch: Sequence[Row]) -> str:
    """Find the row: the first one the scorer refuses on its own."""
    for prompt, row in zip(prompts, batch, strict=True):
        try:
            scorer([prompt], [row])
        except Exception:
            return f"completion {row['completion_id']} of prompt {row['prompt_id']}: {row['text'][:80]!r}"
    return f"a batch of {len(batch)} rows, though on none of them alone"
