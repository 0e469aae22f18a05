"""The inputs of selectors and pairers: completions with their reward, scores, origins, and which are too long to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from pydantic import Field

from data.rows import tables
from data.rows.completions import Row, Values, as_rows, read_completions, read_values
from tasks.run import parts
from tasks.run.work import StageSettings, Work


class Settings(StageSettings):
    """The settings that choosing pairs and choosing completions share."""

    settings: dict[str, Any]  # of the selector or pairer
    scorers: list[str]  # in recipe order; the first is the verifier
    mitigations: list[dict[str, Any]]  # {mitigation, settings}, in order
    max_length: int = Field(0, ge=0)  # tokens of prompt and completion that training reads; 0 = no limit
    split: str = "rounds"  # the prompts file that the completions answer
    trust_remote_code: bool = False


def libraries(settings: Settings) -> tuple[str, ...]:
    """What counts tokens, if there is a limit to them."""
    return ("transformers", "tokenizers") if settings.max_length else ()


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


def too_long(work: Work) -> Set[str]:
    """The ids of completions that have more than `max_length` tokens together with their prompt, so that no trainer reads them.

    Counted as in training, with the tokenizer of `inputs["tokenizer"]` (a checkpoint): all checkpoints of a campaign share it.
    """
    s: Settings = work.settings
    if not s.max_length:
        return frozenset()
    from tasks.models.models import load_tokenizer
    from tasks.models.sequences import sequences_of_split

    tokenizer = load_tokenizer(work.inputs["tokenizer"], s.trust_remote_code)
    lengths = {i: len(prompt) + len(ids) for i, (prompt, ids) in sequences_of_split(work.inputs, s.split, tokenizer).items()}
    return frozenset(i for i, length in lengths.items() if length > s.max_length)


def without(rows: Sequence[Row], ids: Set[str]) -> list[Row]:
    """The completions that are not among `ids`."""
    return [row for row in rows if row["completion_id"] not in ids]
