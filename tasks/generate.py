"""Draw completions from a checkpoint, shard by shard."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from data import tables
from data.store import derive_seed
from tasks import parts as shelves
from tasks.engines import Decoding, Engine, Row
from tasks.work import Work, chunks, device_of

VERSION = 3
LIBRARIES = ("torch", "transformers", "tokenizers")


class Settings(BaseModel):
    engine: str
    split: str  # which file of the prompts artifact
    n: int
    temperature: float
    top_p: float
    max_tokens: int
    batch: int  # sequences decoded together
    shard: int  # completions committed together
    dtype: str
    trust_remote_code: bool = False


def parts(settings: Settings) -> list[tuple[str, str]]:
    return [("engines", settings.engine)]


def generate(work: Work) -> None:
    """COMPLETIONS: n rows per prompt of `inputs["prompts"]/<split>.parquet`, drawn from `inputs["checkpoint"]`.

    A shard is a fixed run of prompts with seeds of its own, so a second attempt draws only the missing ones and draws the same.
    Prompts are sharded from the shortest to the longest, which is what keeps a batch from waiting for its one long member; the
    table is in the prompts' own order.
    """
    s: Settings = work.settings
    given = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS).to_pylist()
    order = sorted(range(len(given)), key=lambda i: (_characters(given[i]), given[i]["prompt_id"]))
    prompts = [given[i] for i in order]
    shards = list(chunks(len(prompts), max(1, s.shard // s.n)))
    files = [work.scratch / f"completions-{index:05d}.parquet" for index in range(len(shards))]
    made: list[pa.Table] = []
    engine: Engine | None = None
    try:
        for index, (rows, file) in enumerate(zip(shards, files, strict=True)):
            work.tick(rows.start * s.n, len(prompts) * s.n)
            table = tables.read_shard(file, tables.COMPLETIONS)
            if table is None:
                engine = engine or _load(work)
                drawn = _shard(work, engine, [prompts[i] for i in rows], index)
                table = tables.from_rows(drawn, tables.COMPLETIONS)
                tables.write_shard(table, tables.COMPLETIONS, file)
            made.append(table)
    finally:
        if engine is not None:
            engine.close()
    table = pa.concat_tables(made or [tables.COMPLETIONS.empty_table()])
    table = table.take([place * s.n + sample for place in np.argsort(order) for sample in range(s.n)])
    tables.write(table, tables.COMPLETIONS, work.out / "completions.parquet")
    work.tick(len(prompts) * s.n, len(prompts) * s.n)


def _characters(prompt: Row) -> int:
    """Length of a prompt as far as it is known before a tokenizer is loaded (and none is, if all shards are there)."""
    return sum(len(message["content"]) for message in prompt["messages"])


def _load(work: Work) -> Engine:
    s: Settings = work.settings
    load = shelves.find("engines", s.engine)
    given = {"device": device_of(work.hardware), "dtype": s.dtype, "trust_remote_code": s.trust_remote_code}
    wanted = inspect.signature(load).parameters
    engine: Engine = load(work.inputs["checkpoint"], **{name: value for name, value in given.items() if name in wanted})
    return engine


def _shard(work: Work, engine: Engine, prompts: list[Row], index: int) -> list[Row]:
    """All rows of a shard in prompt order; decoded in batches of prompts of like length."""
    s: Settings = work.settings
    decoding = Decoding(s.n, s.temperature, s.top_p, s.max_tokens)
    order = sorted(range(len(prompts)), key=lambda i: (engine.length(prompts[i]), prompts[i]["prompt_id"]))
    drawn: dict[int, list[Row]] = {}
    batches = math.ceil(len(order) / max(1, s.batch // s.n))  # of even size: a small last one would cost as many steps
    for batch in chunks(len(order), math.ceil(len(order) / batches)):
        seed = derive_seed(work.seed, f"batch/{index}", batch.start)
        members = [order[i] for i in batch]
        rows = engine.sample([prompts[i] for i in members], decoding, seed)
        if len(rows) != len(members) * s.n:
            raise RuntimeError(f"engine '{s.engine}' returned {len(rows)} rows for {len(members)} prompts x {s.n}")
        for place, i in enumerate(members):
            drawn[i] = [{**row, "seed": seed} for row in rows[place * s.n : (place + 1) * s.n]]
    return [
        {
            **row,
            "completion_id": tables.completion_id(work.key, prompt["prompt_id"], sample),
            "prompt_id": prompt["prompt_id"],
            "sample": sample,
            "engine": s.engine,
        }
        for i, prompt in enumerate(prompts)
        for sample, row in enumerate(drawn[i])
    ]
