from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import TableError
from data.rows import tables

TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    pa.string(): TEXT,
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    pa.bool_(): st.booleans(),
    pa.binary(): st.binary(max_size=6),
    pa.list_(pa.int32()): st.lists(st.integers(0, 99), max_size=3),
    pa.list_(pa.float32()): st.lists(st.floats(width=32, allow_nan=False), max_size=3),
    tables.MESSAGES: st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), max_size=2),
}
SCHEMAS = {name: value for name, value in vars(tables).items() if isinstance(value, pa.Schema)}
QUICK = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


def rows_of(schema: pa.Schema) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Rows that a schema accepts, nulls where it allows them, ids unique where it asks for it."""
    row = st.fixed_dictionaries({f.name: st.none() | VALUES[f.type] if f.nullable else VALUES[f.type] for f in schema})
    unique = tables.UNIQUE.get(id(schema))
    return st.lists(row, max_size=5, unique_by=(lambda r: r[unique]) if unique else None)


@st.composite
def filled(draw: st.DrawFn) -> tuple[pa.Schema, list[dict[str, Any]]]:
    schema = SCHEMAS[draw(st.sampled_from(sorted(SCHEMAS)))]
    return schema, draw(rows_of(schema))


def pairs(count: int = 3) -> list[dict[str, Any]]:
    return [{"prompt_id": f"p{i}", "chosen_id": "a", "rejected_id": "b", "margin": i / 3, "weight": 1.0} for i in range(count)]


def scores(*ids: str) -> list[dict[str, Any]]:
    return [{"completion_id": i, "prompt_id": "p", "value": None, "status": "no_answer", "detail": None} for i in ids]


@QUICK
@given(filled())
def test_what_is_written_is_read(tmp_path: Path, case: tuple[pa.Schema, list[dict[str, Any]]]) -> None:
    # every schema gives back every row, null as null and 0.0 as 0.0, and the schema itself
    schema, rows = case
    tables.write(tables.from_rows(rows, schema), schema, tmp_path / "t.parquet")
    read = tables.read(tmp_path / "t.parquet", schema)
    assert read.to_pylist() == rows
    assert read.schema == schema


@QUICK
@given(filled(), st.integers(0, 5))
def test_equal_rows_give_equal_bytes(tmp_path: Path, case: tuple[pa.Schema, list[dict[str, Any]]], cut: int) -> None:
    # how a table came about (in pieces, sliced, with metadata, extra or reordered columns) is not in its bytes
    schema, rows = case
    table = tables.from_rows(rows, schema)
    pieces = pa.concat_tables([tables.from_rows(rows[:cut], schema), tables.from_rows(rows[cut:], schema)])
    sliced = pa.concat_tables([table, table]).slice(len(rows), len(rows))
    dressed = table.replace_schema_metadata({"made": "today"}).select(schema.names[::-1])
    dressed = dressed.append_column("more", pa.nulls(len(rows)))
    contents = set()
    for index, other in enumerate((table, pieces, sliced, dressed, tables.from_rows(rows, schema))):
        tables.write(other, schema, tmp_path / f"{index}.parquet")
        contents.add((tmp_path / f"{index}.parquet").read_bytes())
    assert len(contents) == 1


def test_pieces_of_a_large_table_do_not_show(tmp_path: Path) -> None:
    # Parquet cuts its pages where the pieces end, from about a megabyte on: the shards' sizes must not reach the digest
    chance = random.Random(0)
    rows = [row | {"chosen_id": chance.randbytes(60).hex()} for row in pairs(20_000)]
    whole = tables.from_rows(rows, tables.PAIRS)
    for name, table in (("whole", whole), ("pieces", pa.concat_tables([whole.slice(0, 777), whole.slice(777)]))):
        tables.write(table, tables.PAIRS, tmp_path / name)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()


def test_other_rows_give_other_bytes(tmp_path: Path) -> None:
    # order counts, and so does a null that was a zero
    base = scores("a", "b")
    for index, rows in enumerate((base, base[::-1], [base[0] | {"value": 0.0}, base[1]])):
        tables.write(tables.from_rows(rows, tables.SCORES), tables.SCORES, tmp_path / f"{index}.parquet")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 3


REQUIRED = [(name, field.name) for name, schema in SCHEMAS.items() for field in schema if not field.nullable]


@pytest.mark.parametrize(("name", "column"), REQUIRED)
def test_required_columns_refuse_nulls(tmp_path: Path, name: str, column: str) -> None:
    # the row and the column are named, whether the null comes from our rows or from a file somebody else wrote
    schema = SCHEMAS[name]
    plain = {pa.bool_(): True, pa.binary(): b"x", tables.MESSAGES: [], pa.list_(pa.int32()): [], pa.list_(pa.float32()): []}
    rows = [{f.name: f"x{i}" if f.type == pa.string() else plain.get(f.type, 1) for f in schema} for i in range(3)]
    del rows[1][column]
    says = rf"row 1: column '{column}' must have a value, found none"
    with pytest.raises(TableError, match=says):
        tables.from_rows(rows, schema)
    with pytest.raises(TableError, match=says):
        tables.from_rows([rows[0], rows[1] | {column: None}], schema)
    loose = pa.schema([field.with_nullable(True) for field in schema])
    pq.write_table(pa.Table.from_pylist(rows, schema=loose), tmp_path / "t.parquet")
    with pytest.raises(TableError, match=says):
        tables.read(tmp_path / "t.parquet", schema)


@pytest.mark.parametrize("schema", [tables.PROMPTS, tables.COMPLETIONS, tables.SCORES, tables.LOGPROBS])
def test_each_kind_of_row_has_an_id(schema: pa.Schema) -> None:
    # the tables that others refer to have an id column, and it is a required one
    assert not schema.field(tables.UNIQUE[id(schema)]).nullable


def test_duplicate_ids_are_refused(tmp_path: Path) -> None:
    # two rows of one name would be joined twice; neither written nor read
    twice = tables.from_rows(scores("a", "b", "a"), tables.SCORES)
    with pytest.raises(TableError, match="column 'completion_id' must be unique, found 3 rows"):
        tables.write(twice, tables.SCORES, tmp_path / "t.parquet")
    pq.write_table(twice, tmp_path / "t.parquet")
    with pytest.raises(TableError, match=r"t\.parquet: column 'completion_id' must be unique"):
        tables.read(tmp_path / "t.parquet", tables.SCORES)


def test_a_missing_column_is_named() -> None:
    # the error names the expected columns and the missing one
    table = tables.from_rows(pairs(), tables.PAIRS).drop_columns(["margin", "weight"])
    with pytest.raises(TableError, match=r"here: expected the columns prompt_id, .*, missing margin, weight"):
        tables.check(table, tables.PAIRS, "here")


@pytest.mark.parametrize(
    ("column", "value"),
    [("margin", "high"), ("margin", [1.0]), ("prompt_id", 7), ("prompt_id", b"\xff"), ("prompt_id", "half a pair \ud800")],
)
def test_rows_of_another_type_are_refused(column: str, value: Any) -> None:
    # a value that does not fit never becomes something else on the way
    rows = pairs()
    rows[1][column] = value
    with pytest.raises(TableError, match="rows do not fit the schema"):
        tables.from_rows(rows, tables.PAIRS)


def test_a_table_of_another_type_is_refused() -> None:
    # a number that does not fit its column is an error, not a wrapped one
    table = pa.table({name: ["x"] for name in tables.PAIRS.names})
    with pytest.raises(TableError, match="does not fit its schema"):
        tables.check(table, tables.PAIRS)


def test_an_unreadable_file_is_a_table_error(tmp_path: Path) -> None:
    # missing, empty, cut anywhere or not Parquet at all: the path is named, no other exception comes through
    path = tmp_path / "t.parquet"
    tables.write(tables.from_rows(pairs(50), tables.PAIRS), tables.PAIRS, path)
    content = path.read_bytes()
    for cut in (b"", b"PAR1", b"\xff" * 100, *(content[: len(content) * part // 9] for part in range(9))):
        path.write_bytes(cut)
        with pytest.raises(TableError, match=r"t\.parquet: expected a readable Parquet table"):
            tables.read(path, tables.PAIRS)
    path.unlink()
    with pytest.raises(TableError, match=r"t\.parquet: expected a readable Parquet table"):
        tables.read(path, tables.PAIRS)


# -- shards -----------------------------------------------------------------------------------------------------------


def test_a_shard_is_read_where_its_hash_matches(tmp_path: Path) -> None:
    # what was committed before a crash is used after it, and nothing temporary is left
    table = tables.from_rows(pairs(), tables.PAIRS)
    tables.write_shard(table, tables.PAIRS, tmp_path / "pairs-00000.parquet")
    assert tables.read_shard(tmp_path / "pairs-00000.parquet", tables.PAIRS) == table
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs-00000.parquet", "pairs-00000.sha256"]


def torn(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def other_rows(path: Path) -> None:
    tables.write(tables.from_rows(pairs(2), tables.PAIRS), tables.PAIRS, path)


HARM = {
    "never written": lambda shard: (shard.unlink(), shard.with_suffix(".sha256").unlink()),
    "killed before the hash": lambda shard: shard.with_suffix(".sha256").unlink(),
    "torn": torn,
    "torn hash": lambda shard: torn(shard.with_suffix(".sha256")),
    "another shard's bytes": other_rows,
    "bytes gone": Path.unlink,
}


@pytest.mark.parametrize("harm", HARM)
def test_a_shard_that_is_not_whole_is_none(tmp_path: Path, harm: str) -> None:
    # it is made again, whatever a crash left of it; writing it again heals it
    shard = tmp_path / "s.parquet"
    table = tables.from_rows(pairs(), tables.PAIRS)
    tables.write_shard(table, tables.PAIRS, shard)
    HARM[harm](shard)
    assert tables.read_shard(shard, tables.PAIRS) is None
    tables.write_shard(table, tables.PAIRS, shard)
    assert tables.read_shard(shard, tables.PAIRS) == table


# -- ids --------------------------------------------------------------------------------------------------------------


@given(*[st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), max_size=2)] * 2)
def test_a_prompts_id_is_its_messages(one: list[dict[str, str]], two: list[dict[str, str]]) -> None:
    # the same prompt is the same row in every campaign, another prompt is another row, other keys of a message do not count
    assert (tables.prompt_id(one) == tables.prompt_id(two)) == (one == two)
    assert tables.prompt_id([m | {"name": "x"} for m in one]) == tables.prompt_id(one)


@given(*[st.tuples(TEXT.filter(lambda t: "\0" not in t), TEXT.filter(lambda t: "\0" not in t), st.integers(0, 99))] * 2)
def test_a_completions_id_is_its_origin_prompt_and_sample(one: tuple[str, str, int], two: tuple[str, str, int]) -> None:
    # completions of other rounds, prompts or samples never share an id
    assert (tables.completion_id(*one) == tables.completion_id(*two)) == (one == two)


# -- others read them -------------------------------------------------------------------------------------------------


def test_datasets_reads_what_we_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the tables are open: the usual library loads them as they are, messages and nulls included
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()
    messages = [{"role": "user", "content": "1+1?"}]
    rows: list[dict[str, Any]] = [
        {"prompt_id": "a", "messages": messages, "answer": "2", "source": "s", "stratum": None, "difficulty": 0.5},
        {"prompt_id": "b", "messages": messages * 2, "answer": None, "source": "s", "stratum": "x", "difficulty": None},
    ]
    path = tmp_path / "prompts.parquet"
    tables.write(tables.from_rows(rows, tables.PROMPTS), tables.PROMPTS, path)
    loaded = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == rows
    assert math.isclose(loaded[0]["difficulty"], 0.5)
