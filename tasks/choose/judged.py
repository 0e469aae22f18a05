"""The inputs of selectors and pairers: completions with their reward, every scorer's values, and their origins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data.rows import tables
from data.rows.completions import Row, Values, as_rows, read_completions, read_values
from tasks.run import parts


def judged(inputs: Any, scorers: list[str]) -> tuple[list[Row], Values, dict[str, Values]]:
    """Completions with their reward and each scorer's values, by completion_id.

    What a part may not read is no input of that name (flows/round/gold.py), and all its values are None.
    """
    completions = as_rows(read_completions(inputs["completions"]))
    unknown: Values = {row["completion_id"]: None for row in completions}

    def values(name: str) -> Values:
        return read_values(inputs[name]) if name in inputs else unknown

    return completions, values("reward"), {name: values(f"score/{name}") for name in scorers}


def all_scores(inputs: Any, scorers: list[str]) -> dict[str, Values]:
    """Each scorer's values, also those that parts may not read. For facts alone."""
    return {name: read_values(inputs[f"score/{name}" if f"score/{name}" in inputs else f"watched/{name}"]) for name in scorers}


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
