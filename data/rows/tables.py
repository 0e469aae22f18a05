"""The tables that travel between stages: pyarrow schemas, checked when written and when read, stored as Parquet.

Every file opens with `datasets.load_dataset("parquet", data_files=...)`. Nulls mean "does not apply"; 0.0 means "wrong".
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.errors import TableError


def _schema(**columns: pa.DataType | tuple[pa.DataType, str]) -> pa.Schema:
    """Columns given as a type are required; given as (type, "null") they may hold nulls."""
    return pa.schema(
        [
            pa.field(name, kind[0], nullable=True) if isinstance(kind, tuple) else pa.field(name, kind, nullable=False)
            for name, kind in columns.items()
        ]
    )


MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

PROMPTS = _schema(
    prompt_id=pa.string(),
    messages=MESSAGES,
    answer=(pa.string(), "null"),
    source=pa.string(),
    stratum=(pa.string(), "null"),
    difficulty=(pa.float32(), "null"),
)
COMPLETIONS = _schema(
    completion_id=pa.string(),
    prompt_id=pa.string(),
    sample=pa.int32(),
    text=pa.string(),
    token_ids=(pa.list_(pa.int32()), "null"),  # ends with the end-of-sequence token where one was drawn; null where unknown
    logprobs=(pa.list_(pa.float32()), "null"),  # of the sampler, per token, at temperature 1; null where unknown
    finish_reason=(pa.string(), "null"),  # "stop", "length", "given", "error" (no text came); null where unknown
    seed=(pa.int64(), "null"),  # null where no seed of ours drew it
    engine=pa.string(),  # "given" for texts nobody sampled, "recorded" for those somebody else did
)
RECORDED = _schema(
    completion_id=pa.string(),
    record=pa.string(),  # JSON: what the file of a recorded completion says of it beside prompt and text
)
SCORES = _schema(
    completion_id=pa.string(),
    prompt_id=pa.string(),
    value=(pa.float64(), "null"),
    status=pa.string(),  # "ok", "timeout", "parse_failure", "no_answer", ...
    detail=(pa.string(), "null"),
)
SELECTED = _schema(
    prompt_id=pa.string(),
    completion_id=pa.string(),
    weight=pa.float64(),
    label=(pa.bool_(), "null"),
    rank=(pa.int32(), "null"),
)
PAIRS = _schema(
    prompt_id=pa.string(),
    chosen_id=pa.string(),
    rejected_id=pa.string(),
    margin=pa.float64(),
    weight=pa.float64(),
    label=(
        pa.float64(),
        "null",
    ),  # how sure it is that chosen is the better one, 0 to 1 (CREAM's consistency); null = as sure as any
)
LOGPROBS = _schema(
    completion_id=pa.string(),
    prompt_id=pa.string(),
    logprobs=pa.list_(pa.float32()),
    total=pa.float64(),
)
ORIGINS = _schema(
    completion_id=pa.string(),
    origin=pa.string(),  # "policy", "given", "base", "earlier" or "contrast"
)
TRAINING = _schema(step=pa.int32(), metric=pa.string(), value=pa.float64())
METRICS = _schema(
    metric=pa.string(),
    group=(pa.string(), "null"),
    split=pa.string(),
    value=(pa.float64(), "null"),
    n=pa.int64(),
    low=(pa.float64(), "null"),
    high=(pa.float64(), "null"),
)
COUNTERFACTUALS = _schema(
    counterfactual_id=pa.string(),  # a prompt of its own
    prompt_id=pa.string(),  # the prompt it was made of
    kind=pa.string(),  # "identity", "sycophancy" or "challenge"
    hint=(pa.string(), "null"),  # the wrong answer put forward
)


def features(*names: str) -> pa.Schema:
    """FEATURES: a row per completion, a column per feature; null where a feature does not apply or cannot be known."""
    return _schema(completion_id=pa.string(), prompt_id=pa.string(), **dict.fromkeys(names, (pa.float64(), "null")))


def prompt_features(*names: str) -> pa.Schema:
    """PROMPT_FEATURES: a row per prompt, a column per feature of its samples."""
    return _schema(prompt_id=pa.string(), **dict.fromkeys(names, (pa.float64(), "null")))


# A row per feature and group of completions (null = all); what each column means is said at `tasks.bias.ledger.Entry`.
_NUMBERS = (
    "mean", "base", "drift", "drift_low", "drift_high", "effect", "effect_low", "effect_high", "p",
    "step", "step_low", "step_high", "step_effect", "step_p", "p_by", "step_p_by",
    "pressure", "pressure_low", "pressure_high", "contrast", "predicted", "gain", "gain_low", "gain_high", "amplification",
)  # fmt: skip
LEDGER = _schema(
    feature=pa.string(),
    group=(pa.string(), "null"),
    kind=pa.string(),
    n=pa.int64(),
    level=pa.string(),
    since=(pa.int64(), "null"),
    **dict.fromkeys(_NUMBERS, (pa.float64(), "null")),
)

UNIQUE = {
    id(PROMPTS): "prompt_id",
    id(COMPLETIONS): "completion_id",
    id(RECORDED): "completion_id",
    id(SCORES): "completion_id",
    id(LOGPROBS): "completion_id",
    id(COUNTERFACTUALS): "counterfactual_id",
}


def from_rows(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Build a table from dictionaries, refusing missing required values by row and column."""
    listed = list(rows)
    for index, row in enumerate(listed):
        for field in schema:
            if not field.nullable and row.get(field.name) is None:
                raise TableError(f"row {index}: column '{field.name}' must have a value, found none")
    try:
        return pa.Table.from_pylist(listed, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
        raise TableError(f"rows do not fit the schema ({', '.join(schema.names)}): {error}") from error


def check(table: pa.Table, schema: pa.Schema, where: str = "table") -> pa.Table:
    """Return the table cast to its schema; raise TableError naming what does not fit."""
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise TableError(f"{where}: expected columns {schema.names}, missing {missing}")
    for field in schema:  # before the cast, which would not say which row
        if not field.nullable and table[field.name].null_count:
            row = pc.index(pc.is_null(table[field.name]), True).as_py()
            raise TableError(f"{where}: row {row}: column '{field.name}' must have a value, found none")
    try:
        table = table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError) as error:
        raise TableError(f"{where}: does not fit its schema: {error}") from error
    unique = UNIQUE.get(id(schema))
    if unique and pc.count_distinct(table[unique]).as_py() != table.num_rows:
        raise TableError(f"{where}: column '{unique}' must be unique, found {table.num_rows} rows and fewer ids")
    return table


def write(table: pa.Table, schema: pa.Schema, path: Path) -> None:
    """Check and write; the bytes depend on the rows alone, so equal tables have equal digests."""
    table = check(table, schema, str(path)).replace_schema_metadata(None)
    pq.write_table(table.combine_chunks(), path, compression="zstd", store_schema=False)


def read(path: Path, schema: pa.Schema) -> pa.Table:
    """Read and check a table this module wrote."""
    try:
        return check(pq.read_table(path), schema, str(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise TableError(f"{path}: expected a readable Parquet table: {error}") from error


def write_stream(pieces: Iterable[pa.Table], schema: pa.Schema, path: Path) -> int:
    """Check and write a table piece by piece, a row group each, so that only one is held; returns the number of rows.

    What must be unique over the whole table is not checked.
    """
    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd", store_schema=False) as file:
        for piece in pieces:
            file.write_table(check(piece, schema, str(path)).replace_schema_metadata(None).combine_chunks())
            rows += piece.num_rows
    return rows


def read_stream(path: Path, schema: pa.Schema, rows: int, columns: Sequence[str] = ()) -> Iterator[pa.Table]:
    """Read a table this module wrote, at most `rows` rows at a time; only some `columns` where they are named."""
    wanted = pa.schema([schema.field(name) for name in columns or schema.names])
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):  # one by one: read together, pyarrow keeps something of every one
                for batch in file.iter_batches(rows, row_groups=[group], columns=wanted.names):
                    yield check(pa.Table.from_batches([batch]), wanted, str(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise TableError(f"{path}: expected a readable Parquet table: {error}") from error


def write_shard(table: pa.Table, schema: pa.Schema, path: Path) -> None:
    """Write a shard so that it is whole or absent, its hash beside it (written last)."""
    part = path.with_suffix(f".{os.getpid()}.tmp")
    write(table, schema, part)
    digest = hashlib.sha256(part.read_bytes()).hexdigest()
    part.rename(path)
    note = path.with_suffix(f".{os.getpid()}.note")
    note.write_text(digest)
    note.rename(path.with_suffix(".sha256"))


def read_shard(path: Path, schema: pa.Schema) -> pa.Table | None:
    """The shard if it is there and its hash matches, else None (it is then made again)."""
    note = path.with_suffix(".sha256")
    if not path.exists() or not note.exists():
        return None
    if hashlib.sha256(path.read_bytes()).hexdigest() != note.read_text():
        return None
    return read(path, schema)


def prompt_id(messages: Sequence[Mapping[str, str]]) -> str:
    """The id of a prompt is a hash of its messages, so the same prompt is the same row in every campaign."""
    plain = json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def completion_id(origin: str, prompt: str, sample: int) -> str:
    """Unique over rounds: the origin is the key of the stage call that drew it (or the text, where it was given)."""
    return hashlib.sha256(f"{origin}\0{prompt}\0{sample}".encode("utf-8", "surrogatepass")).hexdigest()[:24]
