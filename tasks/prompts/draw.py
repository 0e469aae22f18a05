"""Choose the prompts of a round from a split. No prompt repeats while one that the round offers was never used."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.rows import tables
from tasks.run.work import StageSettings, Work

VERSION = 2
LIBRARIES = ()


class Settings(StageSettings):
    count: int  # 0 = the whole split
    split: str  # "rounds" or "seed"


def draw(work: Work) -> None:
    """PROMPTS of the round: those drawn in the smallest share of the rounds that offered them, equal shares at random.

    A round offers the prompts of its pool, which are the split or what the curators left of it. So two promises hold. No
    prompt of the pool is drawn again while another one of it was never drawn: a pool that stays the same is used up before
    it repeats. Where curators change the pool, a prompt is drawn in proportion to the rounds in which they kept it. A curator
    that asks for hard prompts more often therefore gets them more often.

    Inputs: `prompts`, and per earlier round `drawn/<n>` and, if it had curators, `offered/<n>`. A round without the latter
    offered every prompt. Nothing depends on the number of rounds, so a longer campaign reuses its first rounds.
    """
    s: Settings = work.settings
    pool = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS)
    ids: list[str] = pool["prompt_id"].to_pylist()
    chosen = sorted(_by_turn(ids, work.inputs, work.seed)[: s.count or len(ids)])
    tables.write(pool.take(chosen), tables.PROMPTS, work.out / "rounds.parquet")


def _by_turn(ids: Sequence[str], inputs: Mapping[str, Path], seed: int) -> list[int]:
    """The positions of the prompts, those whose turn it is first."""
    drawn, offered = _earlier(ids, inputs)
    places = {times: _places(seed, times, len(ids)) for times in set(drawn.values()) | {0}}

    def turn(position: int) -> tuple[float, int]:
        times = drawn[ids[position]]
        return times / (offered[ids[position]] + 1), places[times][position]  # + 1: this round offers it too

    return sorted(range(len(ids)), key=turn)


def _earlier(ids: Sequence[str], inputs: Mapping[str, Path]) -> tuple[Counter[str], Counter[str]]:
    """How many earlier rounds drew each prompt, and how many offered it."""
    drawn: Counter[str] = Counter()
    offered: Counter[str] = Counter()
    for number in (name.partition("/")[2] for name in inputs if name.startswith("drawn/")):
        drawn.update(_ids(inputs[f"drawn/{number}"]))
        offered.update(_ids(inputs[f"offered/{number}"]) if f"offered/{number}" in inputs else ids)
    return drawn, offered


def _ids(folder: Path) -> list[str]:
    ids: list[str] = tables.read(folder / "rounds.parquet", tables.PROMPTS)["prompt_id"].to_pylist()
    return ids


def _places(seed: int, times: int, size: int) -> list[int]:
    """Each position's place in the random order of the prompts that were drawn `times` times."""
    order = list(range(size))
    random.Random(f"draw/{seed}/{times}").shuffle(order)
    places = [0] * size
    for place, position in enumerate(order):
        places[position] = place
    return places
