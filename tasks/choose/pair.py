"""Build the pairs to train on (DPO and its kin), and audit them."""

from __future__ import annotations

import json
from typing import Any

from data.rows import tables
from tasks.choose import mitigations
from tasks.choose.chosen_facts import audit_pairs
from tasks.choose.judged import judged, origins
from tasks.run import parts as all_parts
from tasks.run.work import StageSettings, Work

VERSION = 3  # 3: what a mitigation leaves without a reward is not offered
LIBRARIES = ()


class Settings(StageSettings):
    pairer: str
    settings: dict[str, Any]
    scorers: list[str]  # in recipe order; the first is the verifier
    mitigations: list[dict[str, Any]]  # {mitigation, settings}, in order


def parts(settings: Settings) -> list[tuple[str, str]]:
    return [("pairers", settings.pairer), *mitigations.dependencies(settings.mitigations)]


def pair(work: Work) -> None:
    """PAIRS and `audit.json`: ties, duplicates, wrong-chosen, truncated, length gap, prompts without pairs."""
    s: Settings = work.settings
    completions, reward, scores = judged(work.inputs, s.scorers)
    offered, reward = mitigations.on_rewards(s.mitigations, reward, completions, scores)
    pairer = all_parts.configure("pairers", s.pairer, s.settings, **origins(work.inputs))
    pairs = pairer(offered, reward, scores)
    pairs = mitigations.apply("chosen", s.mitigations, pairs, completions, scores)
    tables.write(tables.from_rows(pairs, tables.PAIRS), tables.PAIRS, work.out / "pairs.parquet")
    audit = audit_pairs(pairs, completions, reward, scores)
    (work.out / "audit.json").write_text(json.dumps(audit, indent=1))
