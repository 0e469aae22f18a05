"""The tables that stages pass on: pyarrow schemas, checked when written and when read, stored as Parquet.

`datasets.load_dataset("parquet", data_files=...)` reads every file. Null means "does not apply"; 0.0 means "wrong".
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
    """A column given as a type is required; one given as (type, "null") may hold nulls."""
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
    token_ids=(pa.list_(pa.int32()), "null"),  # with the end-of-sequence token, where it was sampled; null where unknown
    logprobs=(pa.list_(pa.float32()), "null"),  # per token, from the sampler, at temperature 1; null where unknown
    finish_reason=(pa.string(), "null"),  # "stop", "length", "given" or "error" (no text); null where unknown
    seed=(pa.int64(), "null"),  # null where it was not sampled with a seed of ours
    engine=pa.string(),  # "given" = not sampled, "recorded" = sampled elsewhere
)
RECORDED = _schema(
    completion_id=pa.string(),
    record=pa.string(),  # JSON: the columns of a recorded completion's file besides prompt and text
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
    label=(pa.float64(), "null"),  # probability that chosen is the better one (CREAM's consistency); null = not estimated
)
LOGPROBS = _schema(
    completion_id=pa.string(),
    prompt_id=pa.string(),
    logprobs=pa.list_(pa.float32()),
    total=pa.float64(),
)
KL = _schema(
    completion_id=pa.string(),
    prompt_id=pa.string(),
    kl=(pa.list_(pa.float32()), "null"),  # per token; null = the two checkpoints have different vocabularies
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
    kind=pa.string(),  # "identity", "sycophancy", "challenge" or "neutral", which a challenge is compared with
    hint=(pa.string(), "null"),  # the wrong answer put forward
)
MARKS = _schema(
    prompt_id=pa.string(),
    answer=pa.int64(),  # a hash of the first sample's text, up to case and white space
    opening=pa.string(),  # its first characters, without those that Markdown or a terminal would read
    sketch=(pa.binary(), "null"),  # MinHash of its first characters: 32-bit numbers; null beyond 2,048 prompts
)


def features(*names: str) -> pa.Schema:
    """FEATURES: a row per completion, a column per feature; null where a feature does not apply or is unknown."""
    return _schema(completion_id=pa.string(), prompt_id=pa.string(), **dict.fromkeys(names, (pa.float64(), "null")))


def prompt_features(*names: str) -> pa.Schema:
    """PROMPT_FEATURES: a row per prompt, a column per feature of its samples."""
    return _schema(prompt_id=pa.string(), **dict.fromkeys(names, (pa.float64(), "null")))


# A row per feature and group of completions (null = all). `tasks.bias.ledger.Entry` documents each column.
_NUMBERS = (
    "mean", "base", "drift", "drift_low", "drift_high", "effect", "effect_low", "effect_high", "p",
    "step", "step_low", "step_high", "step_effect", "step_p", "p_by", "step_p_by",
    "pressure", "pressure_low", "pressure_high", "contrast", "predicted", "gain", "gain_low", "gain_high", "amplification",
    "mean_low", "mean_high",
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
    id(KL): "completion_id",
    id(COUNTERFACTUALS): "counterfactual_id",
    id(MARKS): "prompt_id",
}


def from_rows(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Build a table from dictionaries.

    Raises:
        TableError: a required value is missing, or one does not fit its column.
    """
    all_rows = list(rows)
    for index, row in enumerate(all_rows):
        for field in schema:
            if not field.nullable and row.get(field.name) is None:
                raise TableError(f"row {index}: column '{field.name}' must have a value, found none")
    try:
        return pa.Table.from_pylist(all_rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
        raise TableError(f"rows do not fit the schema ({', '.join(schema.names)}): {error}") from error


def check(table: pa.Table, schema: pa.Schema, where: str = "table") -> pa.Table:
    """The table, cast to its schema.

    Raises:
        TableError: a column is missing, a required value is null, a type does not fit, or an id repeats.
    """
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise TableError(f"{where}: expected the columns {', '.join(schema.names)}, missing {', '.join(missing)}")
    for field in schema:  # before the cast, whose error would not name the row
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
    """Check and write. The bytes depend on the rows alone, so equal tables have equal digests."""
    table = check(table, schema, str(path)).replace_schema_metadata(None)
    pq.write_table(table.combine_chunks(), path, compression="zstd", store_schema=False)


def read(path: Path, schema: pa.Schema) -> pa.Table:
    """Read and check a table that this module wrote.

    Raises:
        TableError: the file is not a readable Parquet table, or breaks its schema.
    """
    try:
        return check(pq.read_table(path), schema, str(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise TableError(f"{path}: expected a readable Parquet table: {error}") from error


def write_stream(pieces: Iterable[pa.Table], schema: pa.Schema, path: Path) -> int:
    """Check and write a table piece by piece, so that only one piece is in memory; returns the number of rows.

    Each piece becomes a row group. Ids must be unique over the whole table; that is not checked here.
    """
    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd", store_schema=False) as file:
        for piece in pieces:
            file.write_table(check(piece, schema, str(path)).replace_schema_metadata(None).combine_chunks())
            rows += piece.num_rows
    return rows


def read_stream(path: Path, schema: pa.Schema, rows: int, columns: Sequence[str] = ()) -> Iterator[pa.Table]:
    """Read a table that this module wrote, at most `rows` rows at a time; all columns, or only `columns`."""
    read_schema = pa.schema([schema.field(name) for name in columns or schema.names])
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):  # one by one: pyarrow holds memory for every group it reads together
                for batch in file.iter_batches(rows, row_groups=[group], columns=read_schema.names):
                    yield check(pa.Table.from_batches([batch]), read_schema, str(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise TableError(f"{path}: expected a readable Parquet table: {error}") from error


def write_shard(table: pa.Table, schema: pa.Schema, path: Path) -> None:
    """Write a shard so that it is either complete or absent. Its hash goes into a second file, written last."""
    part = path.with_suffix(f".{os.getpid()}.tmp")
    write(table, schema, part)
    digest = hashlib.sha256(part.read_bytes()).hexdigest()
    part.rename(path)
    hash_file = path.with_suffix(f".{os.getpid()}.note")
    hash_file.write_text(digest)
    hash_file.rename(path.with_suffix(".sha256"))


def read_shard(path: Path, schema: pa.Schema) -> pa.Table | None:
    """The shard if it exists and its hash matches, else None, and the caller computes it again."""
    hash_file = path.with_suffix(".sha256")
    if not path.exists() or not hash_file.exists():
        return None
    if hashlib.sha256(path.read_bytes()).hexdigest() != hash_file.read_text():
        return None
    return read(path, schema)


def prompt_id(messages: Sequence[Mapping[str, str]]) -> str:
    """The hash of a prompt's messages, so that the same prompt has the same id in every campaign."""
    plain = json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def completion_id(origin: str, prompt: str, sample: int) -> str:
    """An id that is unique over rounds. The origin is the key of the stage call that sampled it, or the text of a given one."""
    return hashlib.sha256(f"{origin}\0{prompt}\0{sample}".encode("utf-8", "surrogatepass")).hexdigest()[:24]
