"""Observe completions: every feature of the shelves on every one of them, as tables, in bounded memory."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data.errors import FeatureFailed, TableError
from data.rows import tables
from tasks.bias.features import Batch
from tasks.run import parts as all_parts
from tasks.run.work import StageSettings, Work

VERSION = 1
LIBRARIES = ("pyarrow", "numpy", "regex", "scikit-learn", "sacrebleu", "vaderSentiment")
BATCH = 2048  # completions at a time, and a prompt's rest

Row = dict[str, Any]
Feature = Callable[..., list[float | None]]
SOURCES = {  # supplied parameter -> (input, its file, its schema, the column)
    "verdicts": ("verdicts", "scores.parquet", tables.SCORES, "value"),
    "answers": ("verdicts", "scores.parquet", tables.SCORES, "detail"),
    "own_logprobs": ("own_logprobs", "logprobs.parquet", tables.LOGPROBS, "logprobs"),
    "base_logprobs": ("base_logprobs", "logprobs.parquet", tables.LOGPROBS, "logprobs"),
    "previous_logprobs": ("previous_logprobs", "logprobs.parquet", tables.LOGPROBS, "logprobs"),
}
COLUMNS = ("completion_id", "prompt_id", "sample", "text", "token_ids", "logprobs", "finish_reason")


class Settings(StageSettings):
    features: dict[str, dict[str, Any]]  # name on the shelf -> settings
    prompt_features: dict[str, dict[str, Any]]
    split: str = ""  # file of the prompts artifact, where one is given


def parts(settings: Settings) -> list[tuple[str, str]]:
    return [(family, name) for family in ("features", "prompt_features") for name in getattr(settings, family)]


def everything() -> dict[str, dict[str, dict[str, Any]]]:
    """Settings that name every feature of both all_parts."""
    return {family: {name: {} for name in all_parts.public(family)} for family in ("features", "prompt_features")}


def observe(work: Work) -> None:
    """FEATURES (`features.parquet`) and PROMPT_FEATURES (`prompt_features.parquet`) of `inputs["completions"]`.

    `prompts`, and row for row with the completions `verdicts` (SCORES), `base_logprobs` and `previous_logprobs` (LOGPROBS) are
    inputs that may be there; a feature that asks for what is not has a column of nulls. `own_logprobs`, of the checkpoint that
    drew, come in where the sampler's own numbers are of another format than these; else they are the sampler's.
    """
    s: Settings = work.settings
    given = _given(work)
    features = {name: _bind("features", name, more, given) for name, more in s.features.items()}
    prompt_features = {name: _bind("prompt_features", name, more, given) for name, more in s.prompt_features.items()}
    schema = tables.features(*map(column, features))
    prompt_schema = tables.prompt_features(*map(column, prompt_features))
    per_prompt: list[pa.Table] = []  # a row a prompt: small beside one batch of texts

    def pieces() -> Iterator[pa.Table]:
        done = 0
        for rows, supplied in _batches(work, given):
            yield _table(
                schema, {k: [row[k] for row in rows] for k in ("completion_id", "prompt_id")}, features, rows, supplied
            )
            groups, nested = _grouped(rows, supplied)
            ids = {"prompt_id": [group[0]["prompt_id"] for group in groups]}
            per_prompt.append(_table(prompt_schema, ids, prompt_features, groups, nested))
            done += len(rows)
            work.tick(done, done)

    tables.write_stream(pieces(), schema, work.out / "features.parquet")
    prompts = tables.write_stream(per_prompt, prompt_schema, work.out / "prompt_features.parquet")
    if prompts != len(pc.unique(pa.chunked_array([table["prompt_id"].combine_chunks() for table in per_prompt], pa.string()))):
        raise TableError("completions: expected the samples of a prompt to stand together, found a prompt in two places")


def column(name: str) -> str:
    """The column of a feature: its name on the shelf, or what follows the colon of a user's own."""
    return name.rpartition(":")[2]


def kinds(settings: Settings) -> dict[str, str]:
    """What each column measures, for the ledger: "rate", "length" or "real"."""
    found = {}
    for family, name in parts(settings):
        module = sys.modules[all_parts.find(family, name).__module__]
        found[column(name)] = getattr(module, "KINDS", {}).get(column(name), "real")
    return found


def _given(work: Work) -> set[str]:
    there = {parameter for parameter, (source, *_) in SOURCES.items() if source in work.inputs}
    return there | {"own_logprobs"} | ({"prompts"} if "prompts" in work.inputs else set())


def _bind(family: str, name: str, settings: dict[str, Any], given: set[str]) -> tuple[Feature | None, set[str]]:
    """The bound feature and what it has to be supplied with; no feature where that is not there."""
    wanted = all_parts.needs(family, name)
    return (all_parts.configure(family, name, settings) if wanted <= given else None), wanted


def _table(
    schema: pa.Schema, ids: dict[str, list[str]], features: dict[str, Any], rows: Sequence[Any], supplied: dict[str, list[Any]]
) -> pa.Table:
    columns: dict[str, list[Any]] = dict(ids)
    for name, (feature, wanted) in features.items():
        columns[column(name)] = _values(
            name, feature, rows, {parameter: supplied[parameter] for parameter in wanted & supplied.keys()}
        )
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in schema}, schema=schema)


def _values(name: str, feature: Feature | None, rows: Sequence[Any], supplied: dict[str, list[Any]]) -> list[float | None]:
    if feature is None:
        return [None] * len(rows)
    try:
        values = list(feature(rows, **supplied))
    except Exception as error:  # it may be the user's own: whatever it raises
        raise FeatureFailed(f"feature '{name}' failed: {error!r}") from error
    if len(values) != len(rows):
        raise FeatureFailed(f"feature '{name}': expected {len(rows)} values, one a row, found {len(values)}")
    for place, value in enumerate(values):
        if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value)):
            raise FeatureFailed(
                f"feature '{name}' gave {value!r} to row {place} of its batch: expected a finite number or None"
            )
    return values


def _batches(work: Work, given: set[str]) -> Iterator[tuple[Batch, dict[str, list[Any]]]]:
    """About BATCH completions at a time, whole prompts, with what is supplied row for row."""
    path = work.inputs["completions"] / "completions.parquet"
    sources = {name: SOURCES[name] for name in given - {"prompts"}}
    streams = {
        name: _Rows(work.inputs[source], *column) for name, (source, *column) in sources.items() if source in work.inputs
    }
    prompts = _prompts(work)
    for rows in whole_prompts(
        row for table in tables.read_stream(path, tables.COMPLETIONS, BATCH, COLUMNS) for row in table.to_pylist()
    ):
        supplied: dict[str, list[Any]] = {name: rest.of(rows) for name, rest in streams.items()}
        supplied.setdefault("own_logprobs", [row.get("logprobs") for row in rows])
        if prompts is not None:
            supplied["prompts"] = [prompts[row["prompt_id"]] for row in rows]
        yield Batch(rows), supplied


def whole_prompts(rows: Iterator[Row], least: int = BATCH) -> Iterator[list[Row]]:
    """Runs of at least `least` rows (but the last) that part no prompt's samples, which stand together in COMPLETIONS."""
    held: list[Row] = []
    for _, samples in itertools.groupby(rows, key=lambda row: row["prompt_id"]):
        held += samples
        if len(held) >= least:
            yield held
            held = []
    if held:
        yield held


def _grouped(rows: Sequence[Row], supplied: dict[str, list[Any]]) -> tuple[list[list[Row]], dict[str, list[list[Any]]]]:
    """Rows and what is supplied with them, prompt by prompt in sample order."""
    order = [
        sorted(places, key=lambda i: rows[i]["sample"])
        for _, places in itertools.groupby(range(len(rows)), key=lambda i: rows[i]["prompt_id"])
    ]
    return [[rows[i] for i in group] for group in order], {
        name: [[values[i] for i in group] for group in order] for name, values in supplied.items()
    }


def _prompts(work: Work) -> dict[str, Row] | None:
    if "prompts" not in work.inputs:
        return None
    table = tables.read(work.inputs["prompts"] / f"{work.settings.split}.parquet", tables.PROMPTS)
    return {row["prompt_id"]: row for row in table.to_pylist()}


class _Rows:
    """One column of a table that stands row for row with the completions, read along with them."""

    def __init__(self, folder: Path, file: str, schema: pa.Schema, name: str) -> None:
        self.path, self.name = folder / file, name
        stream = tables.read_stream(self.path, schema, BATCH, ("completion_id", name))
        self.rows = (row for table in stream for row in table.to_pylist())

    def of(self, completions: Sequence[Row]) -> list[Any]:
        """Raises TableError where the two tables do not name the same completions."""
        taken = list(itertools.islice(self.rows, len(completions)))
        if [row["completion_id"] for row in taken] != [row["completion_id"] for row in completions]:
            raise TableError(f"{self.path}: expected the rows of the completions in their order, found others")
        return [row[self.name] for row in taken]
