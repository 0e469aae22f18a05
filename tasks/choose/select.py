"""Choose the completions to train on (RAFT, SFT), and say what was chosen."""

from __future__ import annotations

import json
from typing import Any

from data.rows import tables
from tasks.choose import mitigations
from tasks.choose.chosen_facts import audit_selection
from tasks.choose.judged import judged, origins
from tasks.run import parts as all_parts
from tasks.run.work import StageSettings, Work

VERSION = 2  # 2: what a mitigation leaves without a reward is not offered
LIBRARIES = ()


class Settings(StageSettings):
    selector: str
    settings: dict[str, Any]
    scorers: list[str]  # in recipe order; the first is the verifier
    mitigations: list[dict[str, Any]]  # {mitigation, settings}, in order


def parts(settings: Settings) -> list[tuple[str, str]]:
    return [("selectors", settings.selector), *mitigations.dependencies(settings.mitigations)]


def select(work: Work) -> None:
    """SELECTED rows (`selected.parquet`) and `audit.json`."""
    s: Settings = work.settings
    completions, reward, scores = judged(work.inputs, s.scorers)
    offered, reward = mitigations.on_rewards(s.mitigations, reward, completions, scores)
    selector = all_parts.configure("selectors", s.selector, s.settings, **origins(work.inputs))
    chosen = selector(offered, reward, scores)
    chosen = mitigations.apply("chosen", s.mitigations, chosen, completions, scores)
    tables.write(tables.from_rows(chosen, tables.SELECTED), tables.SELECTED, work.out / "selected.parquet")
    audit = audit_selection(chosen, completions, reward, scores)
    (work.out / "audit.json").write_text(json.dumps(audit, indent=1))
