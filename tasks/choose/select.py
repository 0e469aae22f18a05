"""Select the completions to train on (RAFT, SFT, KTO, listwise losses), and state facts about them."""

from __future__ import annotations

import json

from data.rows import tables
from tasks.choose import judged, mitigations
from tasks.choose.chosen_facts import selection_facts
from tasks.choose.judged import libraries as libraries  # those that count tokens
from tasks.run import parts as all_parts
from tasks.run.work import Work

VERSION = 5  # 5: the unit of the length gap. 4: rewards, and what was dropped; what is too long for training is not offered
LIBRARIES = ()


class Settings(judged.Settings):
    selector: str


def parts(settings: Settings) -> list[tuple[str, str]]:
    return [("selectors", settings.selector), *mitigations.dependencies(settings.mitigations)]


def select(work: Work) -> None:
    """SELECTED rows (`selected.parquet`) and `facts.json`."""
    s: Settings = work.settings
    completions, reward, scores = judged.judged(work.inputs, s.scorers)
    long = judged.too_long(work)
    fitting = judged.without(completions, long)
    offered, reward = mitigations.on_rewards(s.mitigations, reward, fitting, scores)
    selector = all_parts.configure("selectors", s.selector, s.settings, **judged.origins(work.inputs))
    chosen = selector(offered, reward, scores)
    kept = mitigations.apply("chosen", s.mitigations, chosen, fitting, scores)
    tables.write(tables.from_rows(kept, tables.SELECTED), tables.SELECTED, work.out / "selected.parquet")
    facts = selection_facts(kept, completions, reward, judged.all_scores(work.inputs, s.scorers), long)
    facts |= {"dropped_by_mitigations": len(chosen) - len(kept)}
    facts |= judged.facts_of_part("selectors", s.selector, s.settings, offered, reward)
    (work.out / "facts.json").write_text(json.dumps(facts, indent=1))
