"""Read the tables of `observe` as the ledger compares them: features as arrays, prompts x samples, in one order of prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from data.rows import tables
from data.rows.completions import RIGHT
from tasks.bias.effects import Array
from tasks.bias.ledger import ACROSS, Sample
from tasks.bias.marks import FILE, Marks, read_marks
from tasks.bias.prompt_features import across


@dataclass(frozen=True)
class Layout:
    """The position of each row of a table in an array of prompts x samples; rows of other prompts have none."""

    rows: Array
    prompts: Array
    samples: Array
    shape: tuple[int, int]

    @classmethod
    def of(cls, prompts: Sequence[str], order: Mapping[str, int]) -> Layout:
        """From the prompt of each row. The samples of a prompt are in the order of their rows."""
        samples_of: Counter[str] = Counter()
        positions = []
        for row, prompt in enumerate(prompts):
            if prompt in order:
                positions.append((row, order[prompt], samples_of[prompt]))
                samples_of[prompt] += 1
        rows, prompt_indices, samples = np.array(positions, dtype=int).reshape(-1, 3).T
        return cls(rows, prompt_indices, samples, (len(order), max(samples_of.values(), default=1)))

    def grid(self, values: Array) -> Array:
        """One column; NaN where a prompt has fewer samples."""
        array = np.full(self.shape, np.nan)
        array[self.prompts, self.samples] = values[self.rows]
        return array


def grids(prompts: Sequence[str], order: Mapping[str, int], columns: Mapping[str, Array]) -> dict[str, Array]:
    """Columns of rows as arrays, prompts x samples, in the order of `order`."""
    layout = Layout.of(prompts, order)
    return {name: layout.grid(values) for name, values in columns.items()}


def features(path: Path, schema: Any, order: Mapping[str, int], names: Sequence[str]) -> dict[str, Array]:
    """Columns of a table with a `prompt_id`, by name."""
    table = tables.read(path, schema)
    return grids(table["prompt_id"].to_pylist(), order, {name: numbers(table, name) for name in names})


def numbers(table: Any, column: str) -> Array:
    return np.array(table[column].to_pylist(), dtype=float)  # null becomes NaN


def prompts_of(observed: Path) -> list[str]:
    """The prompts of an artifact of `observe`, in their order."""
    prompts: list[str] = pq.read_table(observed / "prompt_features.parquet", columns=["prompt_id"])["prompt_id"].to_pylist()
    return prompts


def read_sample(observed: Path, prompts: Sequence[str], scores: Mapping[str, Path] | None = None) -> Sample:
    """The Sample of an `observe` artifact on these prompts, a column at a time.

    `scores` are SCORES artifacts of the same completions; each becomes a feature of that name. "gold" is the verifier's, and
    tells which completions are right. A null, and a sample that a prompt does not have, is NaN. Features that compare prompts
    are of these prompts alone.
    """
    order = {prompt: row for row, prompt in enumerate(prompts)}
    table = observed / "features.parquet"
    layout = Layout.of(pq.read_table(table, columns=["prompt_id"])["prompt_id"].to_pylist(), order)
    values = {name: layout.grid(_column(table, name)) for name in _names(table)}
    whole, per_prompt = observed / "prompt_features.parquet", Layout.of(prompts_of(observed), order)
    values |= {name: per_prompt.grid(_column(whole, name)) for name in _names(whole)}
    for name, folder in (scores or {}).items():
        values[name] = layout.grid(numbers(tables.read(folder / "scores.parquet", tables.SCORES), "value"))
    marks = marks_of(observed, prompts)
    if marks is not None:
        values |= {name: np.array(getattr(across, name)([], marks=marks), float)[:, None] for name in ACROSS & values.keys()}
    gold = values.get("gold")
    return Sample(values, None if gold is None else np.where(np.isnan(gold), np.nan, (gold >= RIGHT).astype(float)), marks)


def marks_of(observed: Path, prompts: Sequence[str]) -> Marks | None:
    """The marks of these prompts; None if no feature compared prompts."""
    return read_marks(observed / FILE).of(prompts) if (observed / FILE).exists() else None


def _names(table: Path) -> list[str]:
    return [name for name in pq.read_schema(table).names if name not in ("completion_id", "prompt_id")]


def _column(table: Path, name: str) -> np.ndarray:
    values: np.ndarray = pq.read_table(table, columns=[name])[name].to_numpy(zero_copy_only=False)
    return values.astype(float)
