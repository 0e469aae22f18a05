"""Build the pairs to train on (DPO and other preference losses), and state facts about them."""

from __future__ import annotations

import json
from typing import Any

from data.rows import tables
from tasks.choose import mitigations
from tasks.choose.chosen_facts import pair_facts
from tasks.choose.judged import all_scores, facts_of_part, judged, origins
from tasks.run import parts as all_parts
from tasks.run.work import StageSettings, Work

VERSION = 5  # 5: facts.json has rewards, and what mitigations dropped. 4: audit.json is called facts.json
LIBRARIES = ()


class Settings(StageSettings):
    pairer: str
    settings: dict[str, Any]
    scorers: list[str]  # in recipe order; the first is the verifier
    mitigations: list[dict[str, Any]]  # {mitigation, settings}, in order


def parts(settings: Settings) -> list[tuple[str, str]]:
    return [("pairers", settings.pairer), *mitigations.dependencies(settings.mitigations)]


def pair(work: Work) -> None:
    """PAIRS and `facts.json`: ties, duplicates, wrong chosen, truncated, length gap, prompts without pairs."""
    s: Settings = work.settings
    completions, reward, scores = judged(work.inputs, s.scorers)
    offered, reward = mitigations.on_rewards(s.mitigations, reward, completions, scores)
    pairer = all_parts.configure("pairers", s.pairer, s.settings, **origins(work.inputs))
    pairs = pairer(offered, reward, scores)
    kept = mitigations.apply("chosen", s.mitigations, pairs, completions, scores)
    tables.write(tables.from_rows(kept, tables.PAIRS), tables.PAIRS, work.out / "pairs.parquet")
    facts = pair_facts(kept, completions, reward, all_scores(work.inputs, s.scorers)) | {
        "dropped_by_mitigations": len(pairs) - len(kept)
    }
    facts |= facts_of_part("pairers", s.pairer, s.settings, offered, reward)
    (work.out / "facts.json").write_text(json.dumps(facts, indent=1))
