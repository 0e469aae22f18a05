"""Engines sample completions from a checkpoint.

Signature: `(checkpoint: Path, *, settings, device: str, dtype: str, trust_remote_code: bool) -> Engine`. The settings are the
part's own. The stage passes the other parameters to an engine that has them. The stage also chooses batches and seeds, so that
samples never depend on how much is left to sample. A file's LIBRARIES name, by part, the libraries that shape samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tasks.models.models import load_tokenizer, render, stop_tokens

Row = dict[str, Any]
NOT_PARTS = ("Batch", "Decoding", "Engine", "EngineLost", "OutOfMemory", "Texts", "WarmEngine")


@dataclass(frozen=True)
class Decoding:
    n: int
    temperature: float  # 0 = greedy
    top_p: float
    max_tokens: int


@dataclass(frozen=True)
class Batch:
    """Prompts decoded together.

    `seed` is for an engine that samples the whole batch from one stream of random numbers. `seeds`, one per prompt, are for an
    engine that gives each completion a stream of its own. Sample j of prompt i then has the seed `seeds[i] + j`, which is
    unique in a stage.
    """

    prompts: Sequence[Row]
    seed: int
    seeds: Sequence[int]


class OutOfMemory(Exception):
    """The engine ran out of memory. Finished shards are kept, and the stage tries again with smaller batches."""


class EngineLost(Exception):
    """The engine's process died. Finished shards are kept, and the stage tries once more with the same batches."""


class Engine(Protocol):
    def sample(self, batches: Sequence[Batch], decoding: Decoding) -> Iterator[tuple[int, list[Row]]]:
        """Yields each batch when it is finished, in any order: its index, and `decoding.n` rows per prompt, in order.

        A row has text, token_ids, logprobs (at temperature 1), finish_reason and the seed it was sampled with. An engine with
        continuous batching decodes as many sequences at a time as the largest batch holds.

        Raises:
            OutOfMemory: smaller batches may fit.
            EngineLost: its process died.
        """

    def length(self, prompt: Row) -> int:
        """The length of a prompt in tokens. The stage sorts prompts by it, so that batches need little padding."""

    def close(self) -> None:
        """Free the memory. The engine is not used again."""


@runtime_checkable
class WarmEngine(Engine, Protocol):
    """An engine that can be kept for the next stage. tasks/generate/warm.py checks each reload by `logprobs`."""

    def sleep(self) -> None:
        """Free as much device memory as possible until the next `reload`. Afterwards `loaded_checkpoint` may give None."""

    def loaded_checkpoint(self) -> Path | None:
        """The checkpoint whose weights are in memory now."""

    def reload(self, checkpoint: Path) -> None:
        """Load another checkpoint of the same shape. No cache of the old one may be used again."""

    def logprobs(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Log-probabilities as in `tasks.models.models.completion_logprobs`.

        Per pair (prompt ids, completion ids), one number per completion token.
        """


class Texts:
    """Turns messages into token ids and token ids into rows, in the same way for every engine that loads a model."""

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
        """A row from sampled tokens, cut after the first stop token. Without a stop token the finish reason is "length"."""
        end = next((i + 1 for i, token in enumerate(tokens) if token in self.stops), None)
        tokens = tokens[:end]
        text = self.tokenizer.decode(tokens if end is None else tokens[:-1], skip_special_tokens=True)
        reason = "length" if end is None else "stop"
        return {"text": text, "token_ids": tokens, "logprobs": logprobs[: len(tokens)], "finish_reason": reason}
