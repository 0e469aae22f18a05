"""Data parallel drawing: copies of an engine in processes of their own, each on its own GPUs, batches dealt to them in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from data.errors import StageFailed
from tasks.generate.engines import Batch, Decoding, Engine, EngineLost, Row, Texts
from tasks.run.work import gpus
from tasks.run.worker import die_with_parent

NOT_PARTS = ("Replicas",)
Load = Callable[[Path], Engine]
_mine: list[Engine] = []  # in a replica's process: its engine


class Replicas(Texts):
    """`count` engines made by `load`, which must be picklable. Seeds come with the batches, so the count changes no draw.

    They are not kept warm: each call has processes of its own, which give all memory back.

    Raises:
        StageFailed: fewer GPUs than count * gpus_each, or an engine that does not load.
    """

    def __init__(self, load: Load, checkpoint: Path, count: int, gpus_each: int, device: str, trust_remote_code: bool) -> None:
        super().__init__(checkpoint, trust_remote_code)
        places = [""] * count
        if device == "cuda":
            names = gpus()
            if len(names) < count * gpus_each:
                raise StageFailed(f"{count} replicas of {gpus_each} GPUs need {count * gpus_each}, found {len(names)}")
            places = [",".join(names[i * gpus_each : (i + 1) * gpus_each]) for i in range(count)]
        self.pools = [ProcessPoolExecutor(1, mp_context=get_context("spawn")) for _ in range(count)]
        try:
            ready = [
                p.submit(_begin, os.getpid(), where, load, checkpoint) for p, where in zip(self.pools, places, strict=True)
            ]
            for future in ready:
                future.result()
        except BrokenProcessPool as error:
            self.close()
            raise StageFailed("a replica's process died while it loaded the model; its last words are above") from error
        except BaseException:
            self.close()
            raise

    def sample(self, batches: Sequence[Batch], decoding: Decoding) -> Iterator[tuple[int, list[Row]]]:
        """Each replica has as many sequences in flight as the largest batch holds."""
        asked: dict[Future[list[tuple[int, list[Row]]]], range] = {}
        for number, pool in enumerate(self.pools):
            mine = range(number, len(batches), len(self.pools))
            if mine:
                asked[pool.submit(_sample, [batches[i] for i in mine], decoding)] = mine
        try:
            for future in as_completed(asked):
                for index, rows in future.result():
                    yield asked[future][index], rows
        except BrokenProcessPool as error:
            raise EngineLost("a replica's process died, its last words are above (out of memory?)") from error

    def close(self) -> None:
        for pool in self.pools:
            pool.shutdown(cancel_futures=True)


def _begin(parent: int, visible: str, load: Load, checkpoint: Path) -> None:
    die_with_parent(parent)
    if visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    _mine.append(load(checkpoint))


def _sample(batches: list[Batch], decoding: Decoding) -> list[tuple[int, list[Row]]]:
    return list(_mine[0].sample(batches, decoding))
