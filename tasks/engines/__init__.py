"""The shelf of engines: what draws completions from a checkpoint.

Signature: `(checkpoint: Path, *, device: str, dtype: str) -> Engine`, where an Engine has
`sample(prompts, decoding, seeds) -> rows of COMPLETIONS without ids`, and `close()`. Batches are given by the stage, one seed
each, so that what is drawn never depends on what is left to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Row = dict[str, Any]
NOT_PARTS = ("Decoding", "Engine")


@dataclass(frozen=True)
class Decoding:
    n: int
    temperature: float  # 0 = greedy
    top_p: float
    max_tokens: int


class Engine(Protocol):
    def sample(self, prompts: Sequence[Row], decoding: Decoding, seed: int) -> list[Row]:
        """`decoding.n` rows per prompt, in order: text, token_ids, logprobs, finish_reason. One batch, one seed."""

    def length(self, prompt: Row) -> int:
        """Prompt length in tokens; the stage sorts by it so that batches waste little padding."""

    def close(self) -> None: ...
