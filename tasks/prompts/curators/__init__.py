"""The shelf of curators: `(prompts, history, *, settings) -> kept prompts`, applied one after the other before a round draws.

`prompts` are rows of PROMPTS; `history` has one entry per finished round, prompt_id -> the share of the policy's samples that
the verifier called right. A prompt without a record is new to the policy and says nothing against itself. `against`, where a
curator asks for it, are the prompts of the held-out and test splits. What is kept stays in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import regex

from data.rows.completions import Row

NOT_PARTS = ("latest", "text_of", "word_runs")

History = Sequence[Mapping[str, float]]


def latest(history: History) -> dict[str, float]:
    """The newest known pass rate of every prompt."""
    return {prompt: rate for rates in history for prompt, rate in rates.items()}


def text_of(prompt: Row) -> str:
    """What the user says."""
    return "\n".join(message["content"] for message in prompt["messages"] if message["role"] == "user")


def word_runs(text: str, n: int, signs: bool = False) -> set[tuple[str, ...]]:
    """Every run of `n` words, in lower case without punctuation; a shorter text is one run of all its words.

    With `signs` those of mathematics are words too: 7-3 is not 7+3.
    """
    words = regex.findall(r"\w+|[-+*/^=<>%×÷·]" if signs else r"\w+", text.casefold())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}
