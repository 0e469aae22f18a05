"""Completions and their scores as rows: read from artifacts, and grouped as selectors, pairers and scorers need them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.rows import tables

Row = dict[str, Any]
Values = Mapping[str, float | None]  # completion_id -> score

RIGHT = 1.0  # from here on a verdict says "right"; anything known below it says "wrong"


def read_completions(folder: Path) -> pa.Table:
    """The COMPLETIONS of an artifact. Recorded ones have a further column `record`: the rest of their file, as JSON."""
    table = tables.read(folder / "completions.parquet", tables.COMPLETIONS)
    if not (folder / "recorded.parquet").exists():
        return table
    return table.append_column("record", tables.read(folder / "recorded.parquet", tables.RECORDED)["record"])


def as_rows(table: pa.Table) -> list[Row]:
    """Rows as scorers and pairers get them, with `record` as a dictionary."""
    rows: list[Row] = table.to_pylist()
    return [{**row, "record": json.loads(row["record"])} if "record" in row else row for row in rows]


def read_values(folder: Path) -> Values:
    """The values of a SCORES artifact by completion_id."""
    table = tables.read(folder / "scores.parquet", tables.SCORES)
    return dict(zip(table["completion_id"].to_pylist(), table["value"].to_pylist(), strict=True))


def by_prompt(completions: Sequence[Row]) -> dict[str, list[Row]]:
    """Completions per prompt in sample order. They are sorted, so that the order of the input changes no result."""
    ordered = sorted(completions, key=lambda row: (row["prompt_id"], row["sample"], row["completion_id"]))
    return {prompt: list(rows) for prompt, rows in itertools.groupby(ordered, key=lambda row: row["prompt_id"])}


def verifier(scores: Mapping[str, Values]) -> Values:
    """The values of the first scorer, the verifier, read by `is_right` and `is_wrong`."""
    return next(iter(scores.values()))


def is_right(verdict: float | None) -> bool:
    """Whether a verdict says that the completion is right. Every figure of the project reads verdicts so.

    Partial credit (0.5, or 0.1 for a good form) is not right, because accuracy does not count it.
    """
    return verdict is not None and verdict >= RIGHT


def is_wrong(verdict: float | None) -> bool:
    """Whether a verdict says that the completion is not right. An unknown verdict is neither right nor wrong."""
    return verdict is not None and verdict < RIGHT


def finished(row: Row) -> bool:
    """Whether the completion exists and, as far as is known, was not cut at the token limit."""
    return row["finish_reason"] not in ("length", "error")


def unique_texts(rows: Iterable[Row], besides: Iterable[Row] = ()) -> list[Row]:
    """The first row of every distinct text, in order, without texts that `besides` holds."""
    seen = {row["text"] for row in besides}
    return [row for row in rows if not (row["text"] in seen or seen.add(row["text"]))]  # type: ignore[func-returns-value]
