"""The inputs of selectors and pairers: completions with their reward, every scorer's values, and their origins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data.rows import tables
from data.rows.completions import Row, Values, as_rows, read_completions, read_values
from tasks.run import parts


def judged(inputs: Any, scorers: list[str]) -> tuple[list[Row], Values, dict[str, Values]]:
    """Completions with their reward and each scorer's values, by completion_id."""
    completions = as_rows(read_completions(inputs["completions"]))
    scores = {name: read_values(inputs[f"score/{name}"]) for name in scorers}
    return completions, read_values(inputs["reward"]), scores


def origins(inputs: Any) -> dict[str, dict[str, str]]:
    """The origin of each completion (tasks/generate/pool.py), for parts with a parameter `origins`."""
    if "origins" not in inputs:
        return {}
    table = tables.read(inputs["origins"] / "origins.parquet", tables.ORIGINS)
    return {"origins": dict(zip(table["completion_id"].to_pylist(), table["origin"].to_pylist(), strict=True))}


def facts_of_part(family: str, name: str, settings: Mapping[str, Any], offered: Sequence[Row], reward: Values) -> Row:
    """What a selector or pairer itself tells of its choice, for facts.json; nothing for most."""
    facts = parts.facts_about(family, name)
    return facts(offered, reward, **parts.check_settings(family, name, settings)) if facts else {}
