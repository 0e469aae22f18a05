"""Features: `(completions, *, settings) -> list[float | None]`, one number per completion.

A part's name in a recipe is the name of a public function here. Keyword-only parameters are its settings, except those that
the stage supplies, row for row with the completions: `prompts` (rows of PROMPTS), `verdicts` (the verifier's values), and
`own_logprobs`, `base_logprobs`, `previous_logprobs` (per token, by the checkpoint that sampled, by checkpoint 0 and by the one
before; None for a row that was not measured), `base_kl` and `previous_kl` (per token, over the whole vocabulary). The stage
writes nulls for a feature whose parameters are not available. None means "unknown" or "does not apply", never 0. Features of
all samples of a prompt are in prompt_features.

Completions are untrusted: patterns are RE2's (pyarrow), whose time is linear in the text.
KINDS of a file lists its features that are a "rate" (0 or 1 per completion) or a "length" (a count that the ledger compares on
the log scale). All others are plain real numbers.
Pattern definitions: code of the format-bias study (arXiv 2409.11704). Code fences are cut out first, since `!=` is no emphasis.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Row = dict[str, Any]
Values = list[float | None]
NOT_PARTS = ("Batch", "count", "density", "listed", "matches", "opening", "present", "units")

FENCE = r"(?s)```.*?(?:```|\z)"
OPENING = 200  # characters in which a refusal or a praise counts as the reply's opening


class Batch(list[Row]):
    """Completions, with caches of what several features need. Any sequence of rows can become one."""

    @staticmethod
    def of(completions: Sequence[Row]) -> Batch:
        return completions if isinstance(completions, Batch) else Batch(completions)

    @functools.cached_property
    def texts(self) -> pa.Array:
        return pa.array([row["text"] for row in self], pa.string())

    @functools.cached_property
    def prose(self) -> pa.Array:
        """The texts without their code fences."""
        return pc.replace_substring_regex(self.texts, pattern=FENCE, replacement=" ")

    @functools.cached_property
    def words(self) -> np.ndarray:
        """Whitespace words of each text."""
        return np.array([len(row["text"].split()) for row in self], dtype=float)

    @functools.cached_property
    def prose_words(self) -> np.ndarray:
        fenced = np.asarray(pc.match_substring(self.texts, "```"), dtype=bool)
        words = self.words.copy()
        for i in np.flatnonzero(fenced):
            words[i] = len(self.prose[i].as_py().split())
        return words


def count(completions: Sequence[Row], pattern: str) -> np.ndarray:
    """How often a pattern (RE2) matches each text outside code fences."""
    return np.asarray(pc.count_substring_regex(Batch.of(completions).prose, pattern=pattern), dtype=float)


def present(completions: Sequence[Row], pattern: str) -> Values:
    """1.0 where a pattern matches outside code fences, else 0.0."""
    return matches(Batch.of(completions).prose, pattern)


def density(completions: Sequence[Row], pattern: str) -> Values:
    """Matches per 100 words outside code fences; None for a text without words."""
    batch = Batch.of(completions)
    counts, words = count(batch, pattern), batch.prose_words
    return [float(100 * n / w) if w else None for n, w in zip(counts, words, strict=True)]


def matches(texts: pa.Array, pattern: str) -> Values:
    """1.0 where a pattern (RE2) matches, else 0.0."""
    return listed(pc.match_substring_regex(texts, pattern=pattern))


def listed(values: np.ndarray | pa.Array) -> Values:
    """An array as the plain numbers of a feature."""
    numbers: Values = np.asarray(values, dtype=float).tolist()
    return numbers


def opening(completions: Sequence[Row]) -> pa.Array:
    """The first 200 characters of each text."""
    return pc.utf8_slice_codeunits(Batch.of(completions).texts, 0, OPENING)


def units(row: Row) -> Sequence[Any]:
    """The units of repetition: sampled tokens if they are known, else whitespace words."""
    sequence: Sequence[Any] = row.get("token_ids") or row["text"].split()
    return sequence
