"""Scoring during generation: each finished shard is scored while the next ones are sampled.

The key of a score artifact contains the digest of all completions, so no score can be stored before the last completion. The
early scores stay in memory, and are then written to the scratch folder of the score stage. The stage uses them for prompts
whose completions all have one, and scores the other prompts itself. So its output is the same as without early scores.

A thread is enough, because a GPU or a server samples in another process and math-verify runs in processes of its own. Only
shipped scorers that need no model and no other score are run early: their score depends only on the samples of a prompt.
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
    """The early scores of a round. `generating` is entered around a generate stage, `scoring` around a score stage."""

    def __init__(self, scorers: Sequence[score.Settings], workers: int) -> None:
        self.scorers = [settings for settings in scorers if can_run_early(settings)]
        self.workers = workers
        self.early: dict[str, list[Future[pa.Table]]] = {_name(settings): [] for settings in self.scorers}

    @contextmanager
    def generating(self, work: Work) -> Iterator[Work]:
        """The same work. Whenever it reports progress, its new shards are scored."""
        thread, submitted = ThreadPoolExecutor(1, thread_name_prefix="early-scores"), set[Path]()

        def tick(done: int, total: int) -> None:
            work.tick(done, total)
            for path in sorted(set(work.scratch.glob(generate.SHARDS)) - submitted):
                shard = tables.read_shard(path, tables.COMPLETIONS)
                if shard is not None:
                    submitted.add(path)
                    for settings in self.scorers:
                        future = thread.submit(self._score, settings, work.inputs["prompts"], shard)
                        self.early[_name(settings)].append(future)

        try:
            yield replace(work, tick=tick)
        except BaseException:
            thread.shutdown(wait=False, cancel_futures=True)
            raise
        thread.shutdown(wait=False)  # shards that wait are still scored

    def _score(self, settings: score.Settings, prompts: Path, shard: pa.Table) -> pa.Table:
        table = tables.read(prompts / f"{settings.split}.parquet", tables.PROMPTS)
        table = table.filter(pc.is_in(table["prompt_id"], value_set=shard["prompt_id"].combine_chunks()))
        by_id = {row["prompt_id"]: row for row in table.to_pylist()}
        scorer = all_parts.configure("scorers", settings.scorer, settings.settings, workers=self.workers)
        return tables.from_rows(score.scored(settings.scorer, scorer, by_id, shard.to_pylist(), None), tables.SCORES)

    @contextmanager
    def scoring(self, work: Work) -> Iterator[Work]:
        """The same work, with the early scores in its scratch folder.

        A shard on which the scorer failed is left out. The stage then scores it again and names the row.
        """
        futures = self.early.get(_name(work.settings), [])
        try:
            scored = [future.result() for future in futures if not future.cancelled() and future.exception() is None]
        except BaseException:  # interrupted: waiting shards would delay the end of the process
            for future in chain(*self.early.values()):
                future.cancel()
            raise
        if scored:
            tables.write_shard(pa.concat_tables(scored), tables.SCORES, work.scratch / score.EARLY_SCORES)
        yield work


def can_run_early(settings: score.Settings) -> bool:
    """Whether a scorer can run before all completions exist: it is shipped, and needs no input but workers and prompts."""
    used = all_parts.dependencies("scorers", settings.scorer, settings.settings)
    return not any(":" in name for _, name in used) and all_parts.needs("scorers", settings.scorer) <= {"workers", "prompts"}


def _name(settings: score.Settings) -> str:
    return canonical(settings.model_dump(mode="json"))
