"""Compute the features of completions, as tables, in bounded memory."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data.errors import FeatureFailed, TableError
from data.rows import tables
from tasks.bias.features import Batch
from tasks.bias.marks import FILE, Collector, Marks
from tasks.run import parts as all_parts
from tasks.run.work import StageSettings, Work

VERSION = 2  # 2: MARKS, and features that compare prompts
LIBRARIES = ("pyarrow", "numpy", "regex", "scikit-learn", "sacrebleu", "vaderSentiment")
BATCH = 2048  # completions at a time, plus the rest of the last prompt

Row = dict[str, Any]
Feature = Callable[..., list[float | None]]
SOURCES = {  # supplied parameter -> (input, its file, its schema, the column)
    "verdicts": ("verdicts", "scores.parquet", tables.SCORES, "value"),
    "answers": ("verdicts", "scores.parquet", tables.SCORES, "detail"),
    "own_logprobs": ("own_logprobs", "logprobs.parquet", tables.LOGPROBS, "logprobs"),
    "base_logprobs": ("base_logprobs", "logprobs.parquet", tables.LOGPROBS, "logprobs"),
    "previous_logprobs": ("previous_logprobs", "logprobs.parquet", tables.LOGPROBS, "logprobs"),
    "base_kl": ("base_logprobs", "kl.parquet", tables.KL, "kl"),
    "previous_kl": ("previous_logprobs", "kl.parquet", tables.KL, "kl"),
}
MARKS = "marks"  # the parameter of features that compare prompts: supplied when all rows are read
COLUMNS = ("completion_id", "prompt_id", "sample", "text", "token_ids", "logprobs", "finish_reason")


class Settings(StageSettings):
    features: dict[str, dict[str, Any]]  # name of the part -> settings
    prompt_features: dict[str, dict[str, Any]]
    split: str = ""  # file of the prompts artifact, if there is one


def parts(settings: Settings) -> list[tuple[str, str]]:
    return [(family, name) for family in ("features", "prompt_features") for name in getattr(settings, family)]


def family_of(name: str) -> str:
    """The family of a feature that a recipe names: "prompt_features" or "features".

    A user's own prompt feature is told by the name of its first parameter, `groups`.

    Raises:
        PartError: a user's own feature cannot be imported.
    """
    if ":" not in name:
        return "prompt_features" if name in all_parts.public("prompt_features") else "features"
    first = next(iter(inspect.signature(all_parts.find("features", name)).parameters), "")
    return "prompt_features" if first == "groups" else "features"


def everything() -> dict[str, dict[str, dict[str, Any]]]:
    """Settings that name every feature and every prompt feature."""
    return {family: {name: {} for name in all_parts.public(family)} for family in ("features", "prompt_features")}


def observe(work: Work) -> None:
    """FEATURES (`features.parquet`) and PROMPT_FEATURES (`prompt_features.parquet`) of `inputs["completions"]`.

    With features that compare prompts also MARKS (`marks.parquet`), from which they are computed when all rows are read.

    Optional inputs: `prompts`; and, row for row with the completions, `verdicts` (SCORES), `base_logprobs` and
    `previous_logprobs` (LOGPROBS, and KL if there is one). A feature that needs a missing input has a column of nulls.

    `own_logprobs`, of the checkpoint that sampled, are an input if the sampler computed in another format than LOGPROBS.
    Otherwise they are the sampler's own.
    """
    s: Settings = work.settings
    available = _available(work)
    features = {name: _bind("features", name, settings, available) for name, settings in s.features.items()}
    prompt_features = {
        name: _bind("prompt_features", name, settings, available) for name, settings in s.prompt_features.items()
    }
    schema = tables.features(*map(column, features))
    prompt_schema = tables.prompt_features(*map(column, prompt_features))
    across = {name: bound for name, bound in prompt_features.items() if MARKS in bound[1]}
    collector = Collector()
    per_prompt: list[pa.Table] = []  # a row per prompt: small compared with a batch of texts

    def pieces() -> Iterator[pa.Table]:
        done = 0
        for rows, supplied in _batches(work, available):
            yield _table(
                schema, {k: [row[k] for row in rows] for k in ("completion_id", "prompt_id")}, features, rows, supplied
            )
            groups, nested = _grouped(rows, supplied)
            ids = {"prompt_id": [group[0]["prompt_id"] for group in groups]}
            per_prompt.append(_table(prompt_schema, ids, prompt_features, groups, nested))
            if across:
                collector.add(groups)
            done += len(rows)
            work.tick(done, done)

    tables.write_stream(pieces(), schema, work.out / "features.parquet")
    whole = pa.concat_tables(per_prompt) if per_prompt else prompt_schema.empty_table()
    if whole.num_rows != len(pc.unique(whole["prompt_id"])):
        raise TableError(
            "completions: expected all samples of a prompt in consecutive rows, found a prompt in two places. "
            "Sort the rows by prompt_id."
        )
    if across:
        whole = _with_across(whole, across, collector.write(work.out / FILE))
    tables.write(whole, prompt_schema, work.out / "prompt_features.parquet")


def _with_across(table: pa.Table, across: dict[str, Any], marks: Marks) -> pa.Table:
    """The table of prompt features with the columns of those that compare prompts."""
    groups = [[{"prompt_id": prompt}] for prompt in marks.prompts]
    for name, (feature, _) in across.items():
        bound = functools.partial(feature, marks=marks)
        values = pa.array(_values(name, bound, groups, {}), pa.float64())
        index = table.column_names.index(column(name))
        table = table.set_column(index, table.schema.field(index), values)
    return table


def column(name: str) -> str:
    """The column of a feature: the name of the part, without the module of a user's own."""
    return name.rpartition(":")[2]


def kinds(settings: Settings) -> dict[str, str]:
    """The kind of each column, for the ledger: "rate", "length" or "real"."""
    return {column(name): all_parts.kind(family, name) for family, name in parts(settings)}


def _available(work: Work) -> set[str]:
    """The parameters of features that the inputs can supply."""
    from_tables = {
        parameter
        for parameter, (source, file, *_) in SOURCES.items()
        if source in work.inputs and (work.inputs[source] / file).exists()
    }
    return from_tables | {"own_logprobs"} | ({"prompts"} if "prompts" in work.inputs else set())


def _bind(family: str, name: str, settings: dict[str, Any], available: set[str]) -> tuple[Feature | None, set[str]]:
    """The feature with its settings (None if it needs what is not available), and the parameters it must be supplied with."""
    needed = all_parts.needs(family, name)
    return (all_parts.configure(family, name, settings) if needed <= available | {MARKS} else None), needed


def _table(
    schema: pa.Schema, ids: dict[str, list[str]], features: dict[str, Any], rows: Sequence[Any], supplied: dict[str, list[Any]]
) -> pa.Table:
    columns: dict[str, list[Any]] = dict(ids)
    for name, (feature, needed) in features.items():
        values = {parameter: supplied[parameter] for parameter in needed & supplied.keys()}
        columns[column(name)] = _values(name, None if MARKS in needed else feature, rows, values)
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in schema}, schema=schema)


def _values(name: str, feature: Feature | None, rows: Sequence[Any], supplied: dict[str, list[Any]]) -> list[float | None]:
    if feature is None:
        return [None] * len(rows)
    try:
        values = list(feature(rows, **supplied))
    except Exception as error:  # a user's own feature may raise anything
        raise FeatureFailed(f"feature '{name}' failed: {error!r}") from error
    if len(values) != len(rows):
        raise FeatureFailed(
            f"feature '{name}': expected {len(rows)} values, one a row, found {len(values)}. Return one value per row."
        )
    for index, value in enumerate(values):
        if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value)):
            raise FeatureFailed(
                f"feature '{name}' gave {value!r} to row {index} of its batch: expected a finite number or None. "
                "Return None for a value that does not apply."
            )
    return values


def _batches(work: Work, available: set[str]) -> Iterator[tuple[Batch, dict[str, list[Any]]]]:
    """Whole prompts of about BATCH completions, with the supplied parameters row for row."""
    path = work.inputs["completions"] / "completions.parquet"
    sources = {name: SOURCES[name] for name in available - {"prompts"}}
    streams = {
        name: _Rows(work.inputs[source], *column) for name, (source, *column) in sources.items() if source in work.inputs
    }
    prompts = _prompts(work)
    for rows in whole_prompts(
        row for table in tables.read_stream(path, tables.COMPLETIONS, BATCH, COLUMNS) for row in table.to_pylist()
    ):
        supplied: dict[str, list[Any]] = {name: stream.next_values(rows) for name, stream in streams.items()}
        supplied.setdefault("own_logprobs", [row.get("logprobs") for row in rows])
        if prompts is not None:
            supplied["prompts"] = [prompts[row["prompt_id"]] for row in rows]
        yield Batch(rows), supplied


def whole_prompts(rows: Iterator[Row], least: int = BATCH) -> Iterator[list[Row]]:
    """Batches of at least `least` rows (except the last) that keep the samples of a prompt together.

    COMPLETIONS has the samples of a prompt in consecutive rows.
    """
    batch: list[Row] = []
    for _, samples in itertools.groupby(rows, key=lambda row: row["prompt_id"]):
        batch += samples
        if len(batch) >= least:
            yield batch
            batch = []
    if batch:
        yield batch


def _grouped(rows: Sequence[Row], supplied: dict[str, list[Any]]) -> tuple[list[list[Row]], dict[str, list[list[Any]]]]:
    """Rows and the supplied parameters, prompt by prompt in sample order."""
    order = [
        sorted(indices, key=lambda i: rows[i]["sample"])
        for _, indices in itertools.groupby(range(len(rows)), key=lambda i: rows[i]["prompt_id"])
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
    """One column of a table whose rows match those of the completions, read along with them."""

    def __init__(self, folder: Path, file: str, schema: pa.Schema, name: str) -> None:
        self.path, self.name = folder / file, name
        stream = tables.read_stream(self.path, schema, BATCH, ("completion_id", name))
        self.rows = (row for table in stream for row in table.to_pylist())

    def next_values(self, completions: Sequence[Row]) -> list[Any]:
        """The values of the next completions.

        Raises:
            TableError: the two tables do not have the same completions in the same order.
        """
        rows = list(itertools.islice(self.rows, len(completions)))
        if [row["completion_id"] for row in rows] != [row["completion_id"] for row in completions]:
            raise TableError(
                f"{self.path}: expected the rows of the completions in their order, found others. "
                "Compute both from the same completions."
            )
        return [row[self.name] for row in rows]
