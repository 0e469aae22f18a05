"""Choose the completions to train on (RAFT, SFT), and say what was chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from data.rows import tables
from tasks.choose import mitigations
from tasks.choose.chosen_facts import audit_selection
from tasks.generate.recorded import as_rows, read_completions
from tasks.run import parts as shelves
from tasks.run.work import Work

VERSION = 2  # 2: what a mitigation leaves without a reward is not offered
LIBRARIES = ()

Row = dict[str, Any]
Values = dict[str, float | None]


class Settings(BaseModel):
    selector: str
    settings: dict[str, Any]
    scorers: list[str]  # in recipe order; the first is the verifier
    mitigations: list[dict[str, Any]] = []  # {mitigation, settings}, in order


def parts(settings: Settings) -> list[tuple[str, str]]:
    return [("selectors", settings.selector), *mitigations.bound(settings.mitigations)]


def select(work: Work) -> None:
    """SELECTED rows (`selected.parquet`) and `audit.json`."""
    s: Settings = work.settings
    completions, reward, scores = judged(work.inputs, s.scorers)
    offered, reward = mitigations.on_rewards(s.mitigations, reward, completions, scores)
    selector = shelves.bind("selectors", s.selector, s.settings, **origins(work.inputs))
    chosen = selector(offered, reward, scores)
    chosen = mitigations.apply("chosen", s.mitigations, chosen, completions, scores)
    tables.write(tables.from_rows(chosen, tables.SELECTED), tables.SELECTED, work.out / "selected.parquet")
    audit = audit_selection(chosen, completions, reward, scores)
    (work.out / "audit.json").write_text(json.dumps(audit, indent=1))


def judged(inputs: Any, scorers: list[str]) -> tuple[list[Row], Values, dict[str, Values]]:
    """Completions with their reward and each scorer's values, by completion_id."""
    completions = as_rows(read_completions(inputs["completions"]))
    scores = {name: read_values(inputs[f"score/{name}"]) for name in scorers}
    return completions, read_values(inputs["reward"]), scores


def origins(inputs: Any) -> dict[str, dict[str, str]]:
    """Where each completion comes from, for the parts that ask (tasks/generate/pool.py)."""
    if "origins" not in inputs:
        return {}
    table = tables.read(inputs["origins"] / "origins.parquet", tables.ORIGINS)
    return {"origins": dict(zip(table["completion_id"].to_pylist(), table["origin"].to_pylist(), strict=True))}


def read_values(folder: Path) -> Values:
    """The values of a SCORES artifact by completion_id."""
    table = tables.read(folder / "scores.parquet", tables.SCORES)
    return dict(zip(table["completion_id"].to_pylist(), table["value"].to_pylist(), strict=True))
