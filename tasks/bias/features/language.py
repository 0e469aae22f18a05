"""The script of a completion compared with that of its prompt: an early sign of language mixing."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.bias.features import Batch, Row, Values

SCRIPTS = {  # a language that is written in several scripts counts as one
    "Latin": r"\p{Latin}",
    "East Asian": r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}",
    "Cyrillic": r"\p{Cyrillic}",
    "Arabic": r"\p{Arabic}",
    "Devanagari": r"\p{Devanagari}",
    "Greek": r"\p{Greek}",
    "Hebrew": r"\p{Hebrew}",
    "Thai": r"\p{Thai}",
}


def script_share(completions: Sequence[Row], *, prompts: Sequence[Row]) -> Values:
    """Share of a completion's letters in its prompt's script, code fences left out; None without letters on either side."""
    of_prompts = _letters(pa.array([prompt["messages"][-1]["content"] for prompt in prompts], pa.string()))
    of_completions = _letters(Batch.of(completions).prose)
    total, main = of_completions.sum(axis=0), of_prompts.argmax(axis=0)
    known = (total > 0) & (of_prompts.sum(axis=0) > 0)
    return [float(of_completions[main[i], i] / total[i]) if known[i] else None for i in range(len(completions))]


def _letters(texts: pa.Array) -> np.ndarray:
    """Letters per script (scripts x texts); the last row counts letters of other scripts."""
    rows = [_left(texts, rf"[^{script}]+") for script in SCRIPTS.values()]
    every = _left(texts, r"\P{L}+")
    return np.array([*rows, np.maximum(every - sum(rows), 0)])


def _left(texts: pa.Array, others: str) -> np.ndarray:
    return np.asarray(pc.utf8_length(pc.replace_substring_regex(texts, pattern=others, replacement="")), dtype=float)


def script_switches(completions: Sequence[Row]) -> Values:
    """How often the script changes from one run of letters to the next, per 100 words; None for a text without words."""
    batch = Batch.of(completions)
    switches = [0 if text.isascii() else _switches(text) for text in batch.prose.to_pylist()]
    return [100 * n / words if words else None for n, words in zip(switches, batch.words.tolist(), strict=True)]


def _switches(text: str) -> int:
    runs = [match.lastgroup for match in _runs().finditer(text)]
    return sum(a != b for a, b in itertools.pairwise(runs))


@functools.cache
def _runs() -> Any:
    import regex  # the standard library's `re` does not support scripts

    return regex.compile("|".join(f"(?P<{re.sub(' ', '_', name)}>[{script}]+)" for name, script in SCRIPTS.items()))
