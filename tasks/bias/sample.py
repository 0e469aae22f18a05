"""From observed tables to what the ledger compares: features as arrays, prompts x samples, in one order of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data.rows import tables
from tasks.bias.ledger import Sample


def prompts_of(observed: Path) -> list[str]:
    """The prompts that an artifact of `observe` knows, in their order."""
    found: list[str] = pq.read_table(observed / "prompt_features.parquet", columns=["prompt_id"])["prompt_id"].to_pylist()
    return found


def read_sample(observed: Path, prompts: Sequence[str], scores: Mapping[str, Path] | None = None) -> Sample:
    """The Sample of an `observe` artifact on these prompts, a column at a time.

    `scores` are SCORES artifacts of the same completions, each a further feature by its name; "gold" is the verifier's and also
    says which completions are right. NaN stands where a prompt has fewer samples, or a value is null.
    """
    place = {prompt: row for row, prompt in enumerate(prompts)}
    table = observed / "features.parquet"
    rows = pq.read_table(table, columns=["prompt_id"])["prompt_id"].to_pylist()
    where = _places(rows, place)
    shape = len(place), max((column for _, _, column in where), default=0) + 1
    values = {name: _laid_out(_column(table, name), where, shape) for name in _names(table)}
    table = observed / "prompt_features.parquet"
    where_prompt = [(i, place[prompt], 0) for i, prompt in enumerate(prompts_of(observed)) if prompt in place]
    values |= {name: _laid_out(_column(table, name), where_prompt, (len(place), 1)) for name in _names(table)}
    for name, folder in (scores or {}).items():
        found = tables.read(folder / "scores.parquet", tables.SCORES)["value"]
        values[name] = _laid_out(found.to_numpy(zero_copy_only=False).astype(float), where, shape)
    gold = values.get("gold")
    return Sample(values, None if gold is None else np.where(np.isnan(gold), np.nan, (gold >= 1).astype(float)))


def _places(rows: Sequence[str], place: Mapping[str, int]) -> list[tuple[int, int, int]]:
    """(row of the table, prompt, sample) of every row whose prompt is wanted."""
    seen: dict[str, int] = {}
    where = []
    for i, prompt in enumerate(rows):
        if prompt in place:
            where.append((i, place[prompt], seen.get(prompt, 0)))
            seen[prompt] = seen.get(prompt, 0) + 1
    return where


def _names(table: Path) -> list[str]:
    return [name for name in pq.read_schema(table).names if name not in ("completion_id", "prompt_id")]


def _column(table: Path, name: str) -> np.ndarray:
    values: np.ndarray = pq.read_table(table, columns=[name])[name].to_numpy(zero_copy_only=False)
    return values.astype(float)


def _laid_out(values: np.ndarray, where: Sequence[tuple[int, int, int]], shape: tuple[int, int]) -> np.ndarray:
    out = np.full(shape, np.nan)
    if where:
        rows, prompts, samples = np.array(where).T
        out[prompts, samples] = values[rows]
    return out
