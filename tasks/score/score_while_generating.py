"""Scoring beside generation: shards are scored as they land, while the rest is drawn.

A score's key holds the digest of all completions, so nothing can be stored before the last one is drawn. What is scored ahead
waits in memory and is put into the score stage's scratch; the stage takes from there the prompts all of whose completions were
scored ahead, and scores the others itself. So its output is the same with and without.

A thread is enough: a GPU or a server draws in another process, and math-verify judges in processes of its own. Only the shelf's
own scorers that need no model and no other score are run: what they say of a prompt depends on its samples alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data.rows import tables
from data.store.store import canonical
from tasks.generate import generate
from tasks.run import parts as all_parts
from tasks.run.work import Work
from tasks.score import score


class ScoreWhileGenerating:
    """The scores of a round so far. `generating` goes around a generate stage, `scoring` around a score stage."""

    def __init__(self, scorers: Sequence[score.Settings], workers: int) -> None:
        self.scorers = [settings for settings in scorers if stands_alone(settings)]
        self.workers = workers
        self.said: dict[str, list[Future[pa.Table]]] = {_name(settings): [] for settings in self.scorers}

    @contextmanager
    def generating(self, work: Work) -> Iterator[Work]:
        """The same work, looked at whenever it tells how far it is."""
        thread, seen = ThreadPoolExecutor(1, thread_name_prefix="ahead"), set[Path]()

        def tick(done: int, total: int) -> None:
            work.tick(done, total)
            for path in sorted(set(work.scratch.glob(generate.SHARDS)) - seen):
                shard = tables.read_shard(path, tables.COMPLETIONS)
                if shard is not None:
                    seen.add(path)
                    for settings in self.scorers:
                        future = thread.submit(self._score, settings, work.inputs["prompts"], shard)
                        self.said[_name(settings)].append(future)

        try:
            yield replace(work, tick=tick)
        except BaseException:
            thread.shutdown(wait=False, cancel_futures=True)
            raise
        thread.shutdown(wait=False)  # what is waiting is still scored

    def _score(self, settings: score.Settings, prompts: Path, shard: pa.Table) -> pa.Table:
        table = tables.read(prompts / f"{settings.split}.parquet", tables.PROMPTS)
        table = table.filter(pc.is_in(table["prompt_id"], value_set=shard["prompt_id"].combine_chunks()))
        by_id = {row["prompt_id"]: row for row in table.to_pylist()}
        scorer = all_parts.configure("scorers", settings.scorer, settings.settings, workers=self.workers)
        return tables.from_rows(score.scored(settings.scorer, scorer, by_id, shard.to_pylist(), None), tables.SCORES)

    @contextmanager
    def scoring(self, work: Work) -> Iterator[Work]:
        """The same work, its scratch holding what was scored ahead. A shard on which the scorer failed is left to the stage,
        which names the row."""
        said = self.said.get(_name(work.settings), [])
        try:
            made = [future.result() for future in said if not future.cancelled() and future.exception() is None]
        except BaseException:  # interrupted: what still waits would hold the process up
            for future in chain(*self.said.values()):
                future.cancel()
            raise
        if made:
            tables.write_shard(pa.concat_tables(made), tables.SCORES, work.scratch / score.AHEAD)
        yield work


def stands_alone(settings: score.Settings) -> bool:
    """Whether a scorer can be run before all is drawn: it is the shelf's own, and the stage gives it nothing but workers."""
    bound = all_parts.dependencies("scorers", settings.scorer, settings.settings)
    return not any(":" in name for _, name in bound) and all_parts.needs("scorers", settings.scorer) <= {"workers", "prompts"}


def _name(settings: score.Settings) -> str:
    return canonical(settings.model_dump(mode="json"))
