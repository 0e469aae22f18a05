"""The inputs of selectors and pairers: completions with their reward, scores, origins, and which are too long to train on."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from pydantic import Field

from data.rows import tables
from data.rows.completions import Row, Values, as_rows, read_completions, read_values
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
