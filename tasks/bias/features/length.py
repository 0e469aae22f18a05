"""The length of a completion in several units, and whether the token limit truncated it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc

from tasks.bias.features import Batch, Row, Values, listed

SENTENCE_END = r"[.!?]+[\"')\]]*(?:\s|\z)|[。！？]"
CLOSED = "</think>"
OPENED = "<think>"
KINDS = dict.fromkeys(("tokens", "words", "characters", "sentences", "think_words", "answer_words"), "length") | {
    "truncated": "rate"
}


def tokens(completions: Sequence[Row]) -> Values:
    """Sampled tokens; None if unknown."""
    return [None if row.get("token_ids") is None else float(len(row["token_ids"])) for row in completions]


def words(completions: Sequence[Row]) -> Values:
    """Whitespace words."""
    return listed(Batch.of(completions).words)


def characters(completions: Sequence[Row]) -> Values:
    """Unicode characters, as the published average lengths of AlpacaEval count them."""
    return listed(pc.utf8_length(Batch.of(completions).texts))


def sentences(completions: Sequence[Row]) -> Values:
    """Sentence ends (a full stop, ! or ? before white space or at the end); at least 1 for a text that is not blank."""
    batch = Batch.of(completions)
    ends = np.asarray(pc.count_substring_regex(batch.texts, pattern=SENTENCE_END), dtype=float)
    return listed(np.maximum(ends, batch.words > 0))


def think_words(completions: Sequence[Row]) -> Values:
    """Whitespace words before the first </think> (all words if <think> is never closed); None without either."""
    return [float(len(parts[0].split())) if parts else None for parts in map(_parts, completions)]


def answer_words(completions: Sequence[Row]) -> Values:
    """Whitespace words after the first </think> (0 if <think> is never closed); None without either."""
    return [float(len(parts[1].split())) if parts else None for parts in map(_parts, completions)]


def _parts(row: Row) -> tuple[str, str] | None:
    before, closed, after = row["text"].partition(CLOSED)
    opened, thought = OPENED in before, before.replace(OPENED, " ", 1)
    return (thought, after) if closed or opened else None


def truncated(completions: Sequence[Row]) -> Values:
    """1.0 if the token limit cut the completion, 0.0 if it ended by itself; None if that was not recorded."""
    truncated_by_reason = {"length": 1.0, "stop": 0.0}
    return [truncated_by_reason.get(row.get("finish_reason") or "") for row in completions]
