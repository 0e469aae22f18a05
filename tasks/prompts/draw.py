"""Choose the prompts of a round from a split. No prompt repeats until all have been used."""

from __future__ import annotations

import random

from data.rows import tables
from tasks.run.work import StageSettings, Work

VERSION = 1
LIBRARIES = ()


class Settings(StageSettings):
    round: int  # from 1
    count: int  # 0 = the whole split
    split: str  # "rounds" or "seed"


def draw(work: Work) -> None:
    """PROMPTS of the round. They do not depend on the number of rounds, so a longer campaign reuses its first rounds."""
    s: Settings = work.settings
    pool = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS)
    count = min(s.count or pool.num_rows, pool.num_rows)
    start = (s.round - 1) * count
    passes = range(start // pool.num_rows, (start + count - 1) // pool.num_rows + 1)
    order = [row for number in passes for row in _order(work.seed, number, pool.num_rows)]
    first = start - passes.start * pool.num_rows
    chosen = sorted(set(order[first : first + count]))  # a prompt chosen at the end of a pass and in the next one counts once
    tables.write(pool.take(chosen), tables.PROMPTS, work.out / "rounds.parquet")


def _order(seed: int, number: int, size: int) -> list[int]:
    """The order of the prompts in the pass `number` over the split."""
    order = list(range(size))
    random.Random(f"draw/{seed}/{number}").shuffle(order)
    return order
