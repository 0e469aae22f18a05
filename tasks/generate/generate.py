"""Sample completions from a checkpoint, shard by shard."""

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
from tasks.generate.engines import Batch, Decoding, Engine, EngineLost, OutOfMemory, Row
from tasks.run.work import StageSettings, Work, chunks

VERSION = 4
LIBRARIES = ("torch", "transformers", "tokenizers")  # the engine adds its own
ATTEMPTS = 4  # each with batches half as large as before, where memory runs out
RESTARTS = 1  # of an engine whose process was lost, with the same batches
SHARDS = "completions-*.parquet"  # in scratch


class Settings(StageSettings):
    engine: str
    settings: dict[str, Any]  # the settings of the engine
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
    """COMPLETIONS: n rows per prompt of `inputs["prompts"]/<split>.parquet`, sampled from `inputs["checkpoint"]`.

    A shard is a fixed range of prompts with seeds of its own. So a second attempt samples only the missing shards, and samples
    the same rows. Prompts are sharded from the shortest to the longest, so that no batch waits for one long prompt. The table
    is in the order of the prompts.

    Raises:
        StageFailed: the engine ran out of memory with smaller batches too, died twice, or returned too few rows.
    """
    s: Settings = work.settings
    in_order = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS).to_pylist()
    by_length = sorted(range(len(in_order)), key=lambda i: (_characters(in_order[i]), in_order[i]["prompt_id"]))
    prompts = [in_order[i] for i in by_length]
    shards = dict(enumerate(chunks(len(prompts), max(1, s.shard // s.n))))
    finished = {index: tables.read_shard(_file(work, index), tables.COMPLETIONS) for index in shards}
    _sample_missing(work, prompts, shards, finished)
    table = pa.concat_tables(list(finished.values()) or [tables.COMPLETIONS.empty_table()])
    table = table.take([position * s.n + sample for position in np.argsort(by_length) for sample in range(s.n)])
    tables.write(table, tables.COMPLETIONS, work.out / "completions.parquet")
    work.tick(len(prompts) * s.n, len(prompts) * s.n)


def _file(work: Work, index: int) -> Path:
    return work.scratch / SHARDS.replace("*", f"{index:05d}")


def _sample_missing(work: Work, prompts: list[Row], shards: Mapping[int, range], finished: dict[int, pa.Table | None]) -> None:
    """Sample the shards that are None in `finished`, with batches half as large each time that memory runs out.

    A lost process says nothing about memory. It is started again once, with the same batches, so that the samples are the same.
    """
    s: Settings = work.settings
    halvings = losses = 0
    while halvings < ATTEMPTS and losses <= RESTARTS:
        size = max(1, (s.batch >> halvings) // s.n)  # prompts
        try:
            _sample(work, prompts, {i: rows for i, rows in shards.items() if finished[i] is None}, finished, size)
            return
        except OutOfMemory as error:
            last = f"out of memory with {size * s.n} sequences at a time: {error}"
            halvings += 1
        except EngineLost as error:
            last = f"process lost with {size * s.n} sequences at a time: {error}"
            losses += 1
        work.record(last)
    raise _given_up(s.engine, last, losses)


def _sample(
    work: Work, prompts: list[Row], missing: Mapping[int, range], finished: dict[int, pa.Table | None], size: int
) -> None:
    """Sample shards, `size` prompts at a time. Each is written to scratch as soon as it is complete."""
    if not missing:
        return
    with warm.engine(work) as engine:
        for index, rows in missing.items():
            table = tables.from_rows(_shard(work, engine, index, prompts, rows, size), tables.COMPLETIONS)
            tables.write_shard(table, tables.COMPLETIONS, _file(work, index))
            finished[index] = table
            work.tick(sum(t.num_rows for t in finished.values() if t is not None), len(prompts) * work.settings.n)


def _given_up(engine: str, last: str, losses: int) -> StageFailed:
    if losses > RESTARTS:
        return StageFailed(
            f"engine '{engine}' died {losses} times with the same batches: {last}. Finished shards are kept: run the same "
            "command again. If the system killed it for its memory, set a smaller batch in [generate]"
        )
    return StageFailed(
        f"engine '{engine}' failed {ATTEMPTS} times: {last}. Finished shards are kept. Set a smaller batch or max_tokens in "
        "[generate], or give the engine more memory (tasks/README.md, Engines in detail)"
    )


def _shard(work: Work, engine: Engine, index: int, prompts: list[Row], rows: range, size: int) -> list[Row]:
    """The rows of a shard, in the order of its prompts. They depend on nothing outside the shard.

    A batch holds prompts of similar length. All batches have about the same size: a small last one would cost as many steps.
    """
    s: Settings = work.settings
    order = sorted(rows, key=lambda i: (engine.length(prompts[i]), prompts[i]["prompt_id"]))
    even = math.ceil(len(order) / math.ceil(len(order) / size))
    members_of_batch = [[order[i] for i in part] for part in chunks(len(order), even)]
    batches = [
        Batch(
            prompts=[prompts[i] for i in members],
            seed=derive_seed(work.seed, f"batch/{index}", number * even),
            seeds=[work.seed + i * s.n for i in members],
        )
        for number, members in enumerate(members_of_batch)
    ]
    rows_of_prompt: dict[int, list[Row]] = {}
    for number, sampled in engine.sample(batches, Decoding(s.n, s.temperature, s.top_p, s.max_tokens)):
        members = members_of_batch[number]
        if len(sampled) != len(members) * s.n:
            raise StageFailed(
                f"engine '{s.engine}': expected {len(members)} prompts x {s.n} rows, found {len(sampled)}; "
                "see Engine.sample in tasks/generate/engines/__init__.py"
            )
        rows_of_prompt |= {prompt: sampled[i * s.n : (i + 1) * s.n] for i, prompt in enumerate(members)}
    return [
        {
            **row,
            "completion_id": tables.completion_id(work.key, prompts[i]["prompt_id"], sample),
            "prompt_id": prompts[i]["prompt_id"],
            "sample": sample,
            "engine": s.engine,
        }
        for i in rows
        for sample, row in enumerate(rows_of_prompt[i])
    ]


def _characters(prompt: Row) -> int:
    """The length of a prompt in characters. Tokens would need a tokenizer, which is not loaded if all shards are finished."""
    return sum(len(message["content"]) for message in prompt["messages"])
