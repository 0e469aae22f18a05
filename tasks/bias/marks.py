"""What the ledger keeps of the answer to each prompt to compare prompts with each other: MARKS, in bounded memory.

Of a prompt with several samples the first is kept, so sets with other numbers of samples compare. White space and case do not
count. The sketches are MinHash (Broder 1997): two of them agree in each place with a chance equal to the Jaccard similarity of
the texts' shingles.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.rows import tables
from tasks.bias.effects import Array

FILE = "marks.parquet"
SHINGLE = 5  # characters; the size for short texts in Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.2
BUDGET = 300  # first characters that are compared: longer texts share more shingles by chance
PLACES = 128  # of a sketch
SKETCHED = 2048  # prompts with a sketch: those with the lowest hashes, so every source has the same ones
OPENING = 80  # characters of the answer that an alarm quotes
UNQUOTED = re.compile(r"[^\w .,;:!?'()%+=-]")  # an alarm is shown as Markdown and in a terminal, a completion may hold anything

Row = dict[str, Any]


@dataclass(frozen=True)
class Marks:
    """The answers to prompts, shortened; arrays over prompts."""

    prompts: list[str]
    answers: Array  # a number per answer, equal for equal ones
    openings: list[str]
    sketches: Array  # prompts x PLACES
    sketched: Array  # whether the prompt has a sketch

    def of(self, prompts: Sequence[str]) -> Marks:
        """Those of some prompts, in their order."""
        row = {prompt: i for i, prompt in enumerate(self.prompts)}
        rows = [row[prompt] for prompt in prompts]
        openings = [self.openings[i] for i in rows]
        return Marks(list(prompts), self.answers[rows], openings, self.sketches[rows], self.sketched[rows])


class Collector:
    """Collects the marks of groups of samples, batch by batch."""

    def __init__(self, most: int = SKETCHED) -> None:
        self.most = most
        self.rows: list[Row] = []
        self.sketches: dict[str, tuple[bytes, bytes]] = {}  # prompt -> its rank and its sketch

    def add(self, groups: Sequence[Sequence[Row]]) -> None:
        for prompt, text in ((group[0]["prompt_id"], group[0]["text"]) for group in groups):
            said = normalised(text)
            self.rows.append({"prompt_id": prompt, "answer": number_of(said), "opening": opening(text)})
            self._keep(prompt, said)

    def _keep(self, prompt: str, said: str) -> None:
        rank = hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        full = len(self.sketches) >= self.most
        last = max(self.sketches, key=lambda p: self.sketches[p][0]) if full else None
        if last is not None and self.sketches[last][0] < rank:
            return
        if last is not None:
            del self.sketches[last]
        self.sketches[prompt] = rank, sketch(said).tobytes()

    def write(self, path: Path) -> Marks:
        """MARKS, a row per prompt."""
        rows = ({**row, "sketch": self.sketches.get(row["prompt_id"], (b"", None))[1]} for row in self.rows)
        tables.write(tables.from_rows(rows, tables.MARKS), tables.MARKS, path)
        return read_marks(path)


def read_marks(path: Path) -> Marks:
    table = tables.read(path, tables.MARKS)
    blobs = table["sketch"].to_pylist()
    blank = bytes(4 * PLACES)
    sketches = np.frombuffer(b"".join(blob or blank for blob in blobs), dtype=np.uint32).reshape(-1, PLACES)
    sketched = np.array([blob is not None for blob in blobs], dtype=bool)
    answers = np.array(table["answer"].to_pylist(), dtype=np.int64)
    return Marks(table["prompt_id"].to_pylist(), answers, table["opening"].to_pylist(), sketches, sketched)


def normalised(text: str) -> str:
    """The text in lower case, with single spaces between its words."""
    return " ".join(text.split()).casefold()


def number_of(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def opening(text: str) -> str:
    """The beginning of an answer as an alarm may quote it."""
    plain = UNQUOTED.sub("", " ".join(text[: 4 * OPENING].split()))
    return plain if len(plain) <= OPENING else f"{plain[:OPENING].rstrip()} ..."


def sketch(text: str) -> Array:
    """The MinHash of the text's shingles: PLACES numbers."""
    codes = np.frombuffer(text[:BUDGET].encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    codes = np.pad(codes, (0, max(0, SHINGLE - len(codes))))
    hashes = np.zeros(len(codes) - SHINGLE + 1, dtype=np.uint64)
    for place in range(SHINGLE):
        hashes = _mixed(hashes + codes[place : place + len(hashes)])
    seeds = _mixed(np.arange(1, PLACES + 1, dtype=np.uint64))
    smallest: Array = (_mixed(hashes[:, None] ^ seeds) >> np.uint64(32)).min(axis=0).astype(np.uint32)
    return smallest


def _mixed(x: Array) -> Array:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit of the input changes half of the output's."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed
