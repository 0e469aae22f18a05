"""Draw completions from a checkpoint, shard by shard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.errors import StageFailed
from data.rows import tables
from data.store.store import derive_seed
from tasks.generate import warm
from tasks.generate.engines import Batch, Decoding, Engine, EngineLost, Row
from tasks.run.work import StageSettings, Work, chunks

VERSION = 4
LIBRARIES = ("torch", "transformers", "tokenizers")  # the engine's own come with it
ATTEMPTS = 4  # each with batches of half the size
SHARDS = "completions-*.parquet"  # in scratch


class Settings(StageSettings):
    engine: str
    settings: dict[str, Any]  # the engine's own
    split: str  # which file of the prompts artifact
    n: int
    temperature: float
    top_p: float
    max_tokens: int
    batch: int  # sequences decoded together
    shard: int  # completions committed together
    dtype: str
    trust_remote_code: bool


def parts(settings: Settings) -> list[tuple[str, str]]:
    return [("engines", settings.engine)]


def generate(work: Work) -> None:
    """COMPLETIONS: n rows per prompt of `inputs["prompts"]/<split>.parquet`, drawn from `inputs["checkpoint"]`.

    A shard is a fixed run of prompts with seeds of its own, so a second attempt draws only the missing ones and draws the same.
    Prompts are sharded from the shortest to the longest, which is what keeps a batch from waiting for its one long member; the
    table is in the prompts' own order.

    Raises:
        StageFailed: the engine ran out of memory or died, with smaller batches too, or returned too few rows.
    """
    s: Settings = work.settings
    given = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS).to_pylist()
    order = sorted(range(len(given)), key=lambda i: (_characters(given[i]), given[i]["prompt_id"]))
    prompts = [given[i] for i in order]
    shards = dict(enumerate(chunks(len(prompts), max(1, s.shard // s.n))))
    made = {index: tables.read_shard(_file(work, index), tables.COMPLETIONS) for index in shards}
    _draw_missing(work, prompts, shards, made)
    table = pa.concat_tables(list(made.values()) or [tables.COMPLETIONS.empty_table()])
    table = table.take([place * s.n + sample for place in np.argsort(order) for sample in range(s.n)])
    tables.write(table, tables.COMPLETIONS, work.out / "completions.parquet")
    work.tick(len(prompts) * s.n, len(prompts) * s.n)


def _file(work: Work, index: int) -> Path:
    return work.scratch / SHARDS.replace("*", f"{index:05d}")


def _draw_missing(work: Work, prompts: list[Row], shards: Mapping[int, range], made: dict[int, pa.Table | None]) -> None:
    """Fill in the shards that are None, each written the moment it is there."""
    s: Settings = work.settings
    for attempt in range(ATTEMPTS):
        missing = {index: rows for index, rows in shards.items() if made[index] is None}
        if not missing:
            return
        size = max(1, (s.batch >> attempt) // s.n)  # prompts
        try:
            with warm.engine(work) as engine:
                for index, rows in missing.items():
                    table = tables.from_rows(_shard(work, engine, index, prompts, rows, size), tables.COMPLETIONS)
                    tables.write_shard(table, tables.COMPLETIONS, _file(work, index))
                    made[index] = table
                    work.tick(sum(t.num_rows for t in made.values() if t is not None), len(prompts) * s.n)
            return
        except EngineLost as error:
            work.record(f"engine lost with {size * s.n} sequences at a time: {error}")
            last = str(error)
    raise StageFailed(
        f"engine '{s.engine}' was lost {ATTEMPTS} times, at last with {size * s.n} sequences at a time: {last}. Finished "
        f"shards are kept. Set a smaller batch or max_tokens in [generate], or give the engine more memory (README, Engines)"
    )


def _shard(work: Work, engine: Engine, index: int, prompts: list[Row], rows: range, size: int) -> list[Row]:
    """The rows of a shard in prompt order, drawn on its own, so that they depend on nothing outside it.

    Batches hold prompts of like length and are of even size: a small last one would cost as many steps.
    """
    s: Settings = work.settings
    order = sorted(rows, key=lambda i: (engine.length(prompts[i]), prompts[i]["prompt_id"]))
    even = math.ceil(len(order) / math.ceil(len(order) / size))
    places = [[order[i] for i in part] for part in chunks(len(order), even)]
    batches = [
        Batch(
            prompts=[prompts[i] for i in members],
            seed=derive_seed(work.seed, f"batch/{index}", number * even),
            seeds=[work.seed + i * s.n for i in members],
        )
        for number, members in enumerate(places)
    ]
    drawn: dict[int, list[Row]] = {}
    for number, finished in engine.sample(batches, Decoding(s.n, s.temperature, s.top_p, s.max_tokens)):
        if len(finished) != len(places[number]) * s.n:
            raise StageFailed(
                f"engine '{s.engine}': expected {len(places[number])} prompts x {s.n} rows, found {len(finished)}; "
                "see tasks/engines"
            )
        drawn |= {place: finished[i * s.n : (i + 1) * s.n] for i, place in enumerate(places[number])}
    return [
        {
            **row,
            "completion_id": tables.completion_id(work.key, prompts[i]["prompt_id"], sample),
            "prompt_id": prompts[i]["prompt_id"],
            "sample": sample,
            "engine": s.engine,
        }
        for i in rows
        for sample, row in enumerate(drawn[i])
    ]


def _characters(prompt: Row) -> int:
    """Length of a prompt as far as it is known before a tokenizer is loaded (and none is, if all shards are there)."""
    return sum(len(message["content"]) for message in prompt["messages"])
