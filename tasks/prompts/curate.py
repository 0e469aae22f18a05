"""Choose the prompts that rounds may use: the curators of the [[curate]] tables, one after the other."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from data.errors import StageFailed
from data.rows import tables
from data.rows.completions import is_right
from tasks.prompts.curators import PassRate
from tasks.run import parts as all_parts
from tasks.run.work import StageSettings, Work

VERSION = 1
LIBRARIES = ("regex",)


class Curator(BaseModel):
    curator: str
    settings: dict[str, Any]


class Settings(StageSettings):
    curate: list[Curator]


def parts(settings: Settings) -> list[tuple[str, str]]:
    return [("curators", entry.curator) for entry in settings.curate]


def curate(work: Work) -> None:
    """PROMPTS (`rounds.parquet`), and `curated.json`: how many prompts each curator left.

    Inputs: `prompts` (a prepare artifact), and per finished round `scores/<n>` (of its verifier) and `completions/<n>` (the
    policy's own samples; scores of other completions do not count).

    Raises:
        StageFailed: no prompt is left.
    """
    s: Settings = work.settings
    rows = _prompts(work.inputs["prompts"], "rounds")
    against = _prompts(work.inputs["prompts"], "held_out") + _prompts(work.inputs["prompts"], "test")
    numbers = sorted(int(name.partition("/")[2]) for name in work.inputs if name.startswith("scores/"))
    history = [pass_rates(work.inputs[f"scores/{n}"], work.inputs[f"completions/{n}"]) for n in numbers]
    left = {"given": len(rows)}
    for entry in s.curate:
        rows = all_parts.configure("curators", entry.curator, entry.settings, against=against)(rows, history)
        left[entry.curator] = len(rows)
    if not rows:
        raise StageFailed(f"curate: expected some prompts, but no prompt is left ({left}); loosen the [[curate]] settings")
    tables.write(tables.from_rows(rows, tables.PROMPTS), tables.PROMPTS, work.out / "rounds.parquet")
    (work.out / "curated.json").write_text(json.dumps(left, indent=1))


def _prompts(folder: Path, split: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = tables.read(folder / f"{split}.parquet", tables.PROMPTS).to_pylist()
    return rows


def pass_rates(scores: Path, completions: Path) -> dict[str, PassRate]:
    """The pass rate of each prompt, among its completions in `completions` that have a verdict."""
    own = set(tables.read(completions / "completions.parquet", tables.COMPLETIONS)["completion_id"].to_pylist())
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for row in tables.read(scores / "scores.parquet", tables.SCORES).to_pylist():
        if row["value"] is not None and row["completion_id"] in own:
            verdicts[row["prompt_id"]].append(is_right(row["value"]))
    return {prompt: PassRate(sum(right), len(right)) for prompt, right in verdicts.items()}
