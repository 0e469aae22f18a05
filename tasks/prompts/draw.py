"""Choose the prompts of one round from the rounds split: without repeats until the split is used up, then anew."""

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
    """The round's PROMPTS. The number of rounds does not matter, so a longer campaign shares the first ones."""
    s: Settings = work.settings
    pool = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS)
    count = min(s.count or pool.num_rows, pool.num_rows)
    start = (s.round - 1) * count
    laps = range(start // pool.num_rows, (start + count - 1) // pool.num_rows + 1)
    order = [row for lap in laps for row in _order(work.seed, lap, pool.num_rows)]
    first = start - laps.start * pool.num_rows
    chosen = sorted(set(order[first : first + count]))  # where two laps meet, a prompt drawn twice counts once
    tables.write(pool.take(chosen), tables.PROMPTS, work.out / "rounds.parquet")


def _order(seed: int, lap: int, size: int) -> list[int]:
    order = list(range(size))
    random.Random(f"draw/{seed}/{lap}").shuffle(order)
    return order
