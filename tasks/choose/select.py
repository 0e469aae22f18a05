"""Select the completions to train on (RAFT, SFT, KTO, listwise losses), and state facts about them."""

from __future__ import annotations

import json
from typing import Any

from data.rows import tables
from tasks.choose import mitigations
from tasks.choose.chosen_facts import selection_facts
from tasks.choose.judged import all_scores, facts_of_part, judged, origins
from tasks.run import parts as all_parts
from tasks.run.work import StageSettings, Work

VERSION = 4  # 4: facts.json has rewards, and what mitigations dropped. 3: audit.json is called facts.json
LIBRARIES = ()


class Settings(StageSettings):
    selector: str
    settings: dict[str, Any]
    scorers: list[str]  # in recipe order; the first is the verifier
    mitigations: list[dict[str, Any]]  # {mitigation, settings}, in order


def parts(settings: Settings) -> list[tuple[str, str]]:
    return [("selectors", settings.selector), *mitigations.dependencies(settings.mitigations)]


def select(work: Work) -> None:
    """SELECTED rows (`selected.parquet`) and `facts.json`."""
    s: Settings = work.settings
    completions, reward, scores = judged(work.inputs, s.scorers)
    offered, reward = mitigations.on_rewards(s.mitigations, reward, completions, scores)
    selector = all_parts.configure("selectors", s.selector, s.settings, **origins(work.inputs))
    chosen = selector(offered, reward, scores)
    kept = mitigations.apply("chosen", s.mitigations, chosen, completions, scores)
    tables.write(tables.from_rows(kept, tables.SELECTED), tables.SELECTED, work.out / "selected.parquet")
    facts = selection_facts(kept, completions, reward, all_scores(work.inputs, s.scorers)) | {
        "dropped_by_mitigations": len(chosen) - len(kept)
    }
    facts |= facts_of_part("selectors", s.selector, s.settings, offered, reward)
    (work.out / "facts.json").write_text(json.dumps(facts, indent=1))
