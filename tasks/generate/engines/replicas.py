"""Data-parallel sampling: replicas of an engine, each in its own process on its own GPUs. They get batches in turn."""

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
_own_engine: list[Engine] = []  # in a replica's process: its engine


class Replicas(Texts):
    """`count` engines made by `load`, which must be picklable. Batches bring their seeds, so the count changes no sample.

    Replicas are not kept warm. Each generate call starts new processes, whose end frees all memory.

    Raises:
        StageFailed: fewer GPUs than count * gpus_each, or an engine that does not load.
    """

    def __init__(self, load: Load, checkpoint: Path, count: int, gpus_each: int, device: str, trust_remote_code: bool) -> None:
        super().__init__(checkpoint, trust_remote_code)
        visible = [""] * count  # the GPUs of each replica
        if device == "cuda":
            names = gpus()
            if len(names) < count * gpus_each:
                raise StageFailed(
                    f"expected {count * gpus_each} GPUs for {count} replicas of {gpus_each}, found {len(names)}; "
                    "lower data_parallel_size or tensor_parallel_size in generate.settings"
                )
            visible = [",".join(names[i * gpus_each : (i + 1) * gpus_each]) for i in range(count)]
        self.pools = [ProcessPoolExecutor(1, mp_context=get_context("spawn")) for _ in range(count)]
        try:
            ready = [
                p.submit(_begin, os.getpid(), of_replica, load, checkpoint)
                for p, of_replica in zip(self.pools, visible, strict=True)
            ]
            for future in ready:
                future.result()
        except BrokenProcessPool as error:
            self.close()
            raise StageFailed("a replica's process died while it loaded the model; see its output above") from error
        except BaseException:
            self.close()
            raise

    def sample(self, batches: Sequence[Batch], decoding: Decoding) -> Iterator[tuple[int, list[Row]]]:
        """Each replica decodes as many sequences at a time as the largest batch holds."""
        indices_of: dict[Future[list[tuple[int, list[Row]]]], range] = {}
        for number, pool in enumerate(self.pools):
            indices = range(number, len(batches), len(self.pools))
            if indices:
                indices_of[pool.submit(_sample, [batches[i] for i in indices], decoding)] = indices
        try:
            for future in as_completed(indices_of):
                for index, rows in future.result():
                    yield indices_of[future][index], rows
        except BrokenProcessPool as error:
            raise EngineLost("a replica's process died, see its output above") from error

    def close(self) -> None:
        for pool in self.pools:
            pool.shutdown(cancel_futures=True)


def _begin(parent: int, visible: str, load: Load, checkpoint: Path) -> None:
    die_with_parent(parent)
    if visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    _own_engine.append(load(checkpoint))


def _sample(batches: list[Batch], decoding: Decoding) -> list[tuple[int, list[Row]]]:
    return list(_own_engine[0].sample(batches, decoding))
