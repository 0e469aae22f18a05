"""Rounds of a policy whose pass rates are given, through the real stages `curate` and `draw`. Nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.recipe.settings import Hardware
from data.rows import tables
from tasks.prompts import curate, draw
from tasks.run.work import Work

Rates = Callable[[int], np.ndarray]  # round -> the true pass rate of each prompt


def prompt(number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"question {number}"}]
    return {"prompt_id": f"p{number:05d}", "messages": messages, "answer": "1", "source": "test"}


def ids_of(folder: Path) -> list[str]:
    ids: list[str] = tables.read(folder / "rounds.parquet", tables.PROMPTS)["prompt_id"].to_pylist()
    return ids


class Rounds:
    """After `run`, `offered[k]` and `drawn[k]` are the numbers of the prompts of round k + 1."""

    def __init__(self, home: Path, rates: Rates, samples: int, per_round: int = 0, seed: int = 0) -> None:
        self.home, self.rates, self.samples, self.per_round, self.seed = home, rates, samples, per_round, seed
        self.rng = np.random.default_rng(seed)
        self.offered: list[list[int]] = []
        self.drawn: list[list[int]] = []
        self.sampled: dict[str, Path] = {}
        self.earlier: dict[str, Path] = {}
        self.prompts = self.folder("prepare")
        self.write(self.prompts / "rounds.parquet", tables.PROMPTS, [prompt(n) for n in range(len(rates(1)))])
        for split in ("held_out", "test"):
            self.write(self.prompts / f"{split}.parquet", tables.PROMPTS, [])

    def run(self, rounds: int, *curators: tuple[str, dict[str, Any]]) -> Rounds:
        for _ in range(rounds):
            pool = self.curated([curate.Curator(curator=name, settings=settings) for name, settings in curators])
            self.sample(self.draw(pool))
        return self

    def curated(self, curators: list[curate.Curator]) -> Path:
        if not curators:
            self.offered.append(self.numbers(self.prompts))
            return self.prompts
        out = self.folder("curate")
        inputs = {"prompts": self.prompts, **self.sampled}
        curate.curate(Work("key", curate.Settings(curate=curators), inputs, 0, out, out, Hardware()))
        self.offered.append(self.numbers(out))
        return out

    def draw(self, pool: Path) -> Path:
        out, number = self.folder("draw"), len(self.drawn) + 1
        settings = draw.Settings(count=self.per_round, split="rounds")
        draw.draw(Work("key", settings, {"prompts": pool, **self.earlier}, self.seed, out, out, Hardware()))
        self.earlier |= {f"drawn/{number}": out} | ({f"offered/{number}": pool} if pool != self.prompts else {})
        self.drawn.append(self.numbers(out))
        return out

    def sample(self, drawn: Path) -> None:
        number = len(self.drawn)
        completions, scores = [], []
        for prompt_id, rate in zip(ids_of(drawn), self.rates(number)[self.drawn[-1]], strict=True):
            for sample, value in enumerate(self.rng.random(self.samples) < rate):
                name = {"completion_id": f"{prompt_id}/{sample}", "prompt_id": prompt_id}
                completions.append(name | {"sample": sample, "text": "", "engine": "test"})
                scores.append(name | {"value": float(value), "status": "ok"})
        for what, schema, rows in (("completions", tables.COMPLETIONS, completions), ("scores", tables.SCORES, scores)):
            self.sampled[f"{what}/{number}"] = self.folder(what)
            self.write(self.sampled[f"{what}/{number}"] / f"{what}.parquet", schema, rows)

    def draws(self, rounds: Sequence[list[int]]) -> np.ndarray:
        """How often each prompt is in these rounds."""
        return np.bincount([number for numbers in rounds for number in numbers], minlength=len(self.rates(1)))

    def folder(self, name: str) -> Path:
        folder = self.home / f"{name}-{len(self.drawn)}"
        folder.mkdir()
        return folder

    @staticmethod
    def numbers(folder: Path) -> list[int]:
        return [int(prompt_id[1:]) for prompt_id in ids_of(folder)]

    @staticmethod
    def write(path: Path, schema: Any, rows: list[dict[str, Any]]) -> None:
        tables.write(tables.from_rows([dict.fromkeys(schema.names) | row for row in rows], schema), schema, path)
