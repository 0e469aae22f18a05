"""Choose the completions to train on (RAFT, SFT), and say what was chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from data import tables
from tasks import mitigations
from tasks import parts as shelves
from tasks.audit import audit_selection
from tasks.work import Work

VERSION = 1
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
    reward = mitigations.apply("rewards", s.mitigations, reward, completions, scores)
    chosen = shelves.bind("selectors", s.selector, s.settings)(completions, reward, scores)
    chosen = mitigations.apply("chosen", s.mitigations, chosen, completions, scores)
    tables.write(tables.from_rows(chosen, tables.SELECTED), tables.SELECTED, work.out / "selected.parquet")
    audit = audit_selection(chosen, completions, reward, scores)
    (work.out / "audit.json").write_text(json.dumps(audit, indent=1))


def judged(inputs: Any, scorers: list[str]) -> tuple[list[Row], Values, dict[str, Values]]:
    """Completions with their reward and each scorer's values, by completion_id."""
    completions = tables.read(inputs["completions"] / "completions.parquet", tables.COMPLETIONS).to_pylist()
    scores = {name: _values(inputs[f"score/{name}"]) for name in scorers}
    return completions, _values(inputs["reward"]), scores


def _values(folder: Path) -> Values:
    table = tables.read(folder / "scores.parquet", tables.SCORES)
    return dict(zip(table["completion_id"].to_pylist(), table["value"].to_pylist(), strict=True))
