"""Choose the prompts of one round from the rounds split: without repeats until the split is used up, then anew."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from data import tables
from tasks.work import Work

VERSION = 1
LIBRARIES = ()


class Settings(BaseModel):
    round: int  # from 1
    count: int  # 0 = the whole split
    split: str = "rounds"  # or "seed"


def draw(work: Work) -> None:
    """The round's PROMPTS. The number of rounds does not matter, so a longer campaign shares the first ones.

    Inputs: `prompts`; where the pool may change from round to round, `drawn/<n>` of the rounds before: then those come first
    that were drawn least.
    """
    s: Settings = work.settings
    pool = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS)
    count = min(s.count or pool.num_rows, pool.num_rows)
    earlier = [path / "rounds.parquet" for name, path in work.inputs.items() if name.startswith("drawn/")]
    chosen = (
        _least_drawn(pool["prompt_id"].to_pylist(), earlier, work.seed)[:count]
        if earlier
        else _in_turn(pool.num_rows, count, work)
    )
    tables.write(pool.take(sorted(chosen)), tables.PROMPTS, work.out / "rounds.parquet")


def _in_turn(size: int, count: int, work: Work) -> set[int]:
    """Lap after lap through the pool, each in an order of its own."""
    start = (work.settings.round - 1) * count
    laps = range(start // size, (start + count - 1) // size + 1)
    order = [row for lap in laps for row in _order(work.seed, lap, size)]
    first = start - laps.start * size
    return set(order[first : first + count])  # where two laps meet, a prompt drawn twice counts once


def _least_drawn(pool: Sequence[str], earlier: Sequence[Path], seed: int) -> list[int]:
    times = Counter(known for path in earlier for known in tables.read(path, tables.PROMPTS)["prompt_id"].to_pylist())
    return sorted(_order(seed, len(earlier), len(pool)), key=lambda row: times[pool[row]])


def _order(seed: int, lap: int, size: int) -> list[int]:
    order = list(range(size))
    random.Random(f"draw/{seed}/{lap}").shuffle(order)
    return order
