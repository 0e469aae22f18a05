"""The shelf of engines: what draws completions from a checkpoint.

Signature: `(checkpoint: Path, *, settings, device: str, dtype: str, trust_remote_code: bool) -> Engine`. The settings are the
part's own; the stage gives the rest where the signature has it. Batches and seeds are given by the stage, so that what is drawn
never depends on what is left to do. A library that shapes what is drawn is named in the file's LIBRARIES, by part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tasks.models.models import load_tokenizer, render, stop_tokens

Row = dict[str, Any]
NOT_PARTS = ("Batch", "Decoding", "Engine", "EngineLost", "Texts", "WarmEngine")


@dataclass(frozen=True)
class Decoding:
    n: int
    temperature: float  # 0 = greedy
    top_p: float
    max_tokens: int


@dataclass(frozen=True)
class Batch:
    """Prompts decoded together.

    `seed` is for an engine that draws the whole batch from one stream of random numbers. `seeds`, one per prompt, are for one
    that gives each completion a stream of its own: sample j of prompt i draws from `seeds[i] + j`, no two equal in a stage.
    """

    prompts: Sequence[Row]
    seed: int
    seeds: Sequence[int]


class EngineLost(Exception):
    """The engine ran out of memory or died. What it had finished is kept; the stage tries again with smaller batches."""


class Engine(Protocol):
    def sample(self, batches: Sequence[Batch], decoding: Decoding) -> Iterator[tuple[int, list[Row]]]:
        """Each batch as it finishes, in any order: its index, and `decoding.n` rows per prompt, in order.

        A row has text, token_ids, logprobs (at temperature 1), finish_reason and the seed it was drawn with. An engine that
        decodes continuously has as many sequences in flight as the largest batch holds.

        Raises:
            EngineLost: out of memory, or its process died.
        """

    def length(self, prompt: Row) -> int:
        """Prompt length in tokens; the stage sorts by it so that batches waste little padding."""

    def close(self) -> None: ...


@runtime_checkable
class WarmEngine(Engine, Protocol):
    """An engine that can outlive a stage: see tasks/generate/warm.py, which proves each reload by `logprobs`."""

    def sleep(self) -> None:
        """Give back what it can while others use the device. Afterwards `holds` may be None."""

    def holds(self) -> Path | None:
        """The checkpoint whose weights are in memory now."""

    def reload(self, checkpoint: Path) -> None:
        """Take another checkpoint of the same shape; nothing remembered of the old one may be used again."""

    def logprobs(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """As `tasks.models.models.completion_logprobs`: per (prompt ids, completion ids), one number per completion token."""


class Texts:
    """Between messages, token ids and rows, the same way for every engine that holds a model."""

    def __init__(self, checkpoint: Path, trust_remote_code: bool) -> None:
        self.tokenizer = load_tokenizer(checkpoint, trust_remote_code)
        self.stops = stop_tokens(checkpoint, self.tokenizer, trust_remote_code)
        self.rendered: dict[str, list[int]] = {}

    def render(self, prompt: Row) -> list[int]:
        if prompt["prompt_id"] not in self.rendered:
            self.rendered[prompt["prompt_id"]] = render(self.tokenizer, prompt["messages"])
        return self.rendered[prompt["prompt_id"]]

    def length(self, prompt: Row) -> int:
        return len(self.render(prompt))

    def row(self, tokens: list[int], logprobs: list[float]) -> Row:
        """Cut at the first stop token, which belongs to the completion; a row without one was cut by the limit."""
        end = next((i + 1 for i, token in enumerate(tokens) if token in self.stops), None)
        tokens = tokens[:end]
        text = self.tokenizer.decode(tokens if end is None else tokens[:-1], skip_special_tokens=True)
        reason = "length" if end is None else "stop"
        return {"text": text, "token_ids": tokens, "logprobs": logprobs[: len(tokens)], "finish_reason": reason}
