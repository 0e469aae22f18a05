"""Build the pairs to train on (DPO and other preference losses), and state facts about them."""

from __future__ import annotations

import json

from data.rows import tables
from tasks.choose import judged, mitigations
from tasks.choose.chosen_facts import pair_facts
from tasks.choose.judged import libraries as libraries  # those that count tokens
from tasks.run import parts as all_parts
from tasks.run.work import Work

VERSION = 6  # 6: the unit of the length gap. 5: rewards, and what was dropped; what is too long for training is not offered
LIBRARIES = ()


class Settings(judged.Settings):
    pairer: str


def parts(settings: Settings) -> list[tuple[str, str]]:
    return [("pairers", settings.pairer), *mitigations.dependencies(settings.mitigations)]


def pair(work: Work) -> None:
    """PAIRS and `facts.json`: ties, duplicates, wrong chosen, truncated, length gap, prompts without pairs."""
    s: Settings = work.settings
    completions, reward, scores = judged.judged(work.inputs, s.scorers)
    long = judged.too_long(work)
    fitting = judged.without(completions, long)
    offered, reward = mitigations.on_rewards(s.mitigations, reward, fitting, scores)
    pairer = all_parts.configure("pairers", s.pairer, s.settings, **judged.origins(work.inputs))
    pairs = pairer(offered, reward, scores)
    kept = mitigations.apply("chosen", s.mitigations, pairs, fitting, scores)
    tables.write(tables.from_rows(kept, tables.PAIRS), tables.PAIRS, work.out / "pairs.parquet")
    facts = pair_facts(kept, completions, reward, judged.all_scores(work.inputs, s.scorers), long)
    facts |= {"dropped_by_mitigations": len(pairs) - len(kept)}
    facts |= judged.facts_of_part("pairers", s.pairer, s.settings, offered, reward)
    (work.out / "facts.json").write_text(json.dumps(facts, indent=1))
