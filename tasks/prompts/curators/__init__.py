"""Curators choose which prompts rounds may use: `(prompts, history, *, settings) -> kept prompts`.

They run one after the other before a round's prompts are chosen. `prompts` are rows of PROMPTS. `history` has an entry per
finished round: prompt_id -> the share of the policy's samples that the verifier judged correct. A prompt without an entry has
not been sampled yet and should be kept. A curator with a parameter `against` gets the prompts of the held-out and test splits.
The kept prompts stay in order.

A file lists in NEEDS_GOLD those that read `history` or gold answers. Where the recipe's `gold` keeps verdicts out of training,
`check` refuses them, and the history of any other is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import regex

from data.rows.completions import Row

NOT_PARTS = ("latest", "text_of", "word_runs")

History = Sequence[Mapping[str, float]]


def latest(history: History) -> dict[str, float]:
    """The newest pass rate of every prompt that has one."""
    return {prompt: rate for rates in history for prompt, rate in rates.items()}


def text_of(prompt: Row) -> str:
    """The texts of the user's messages."""
    return "\n".join(message["content"] for message in prompt["messages"] if message["role"] == "user")


def word_runs(text: str, n: int, signs: bool = False) -> set[tuple[str, ...]]:
    """Every run of `n` words, in lower case and without punctuation. A shorter text is one run of all its words.

    With `signs`, mathematical signs are words too, so that 7-3 differs from 7+3.
    """
    words = regex.findall(r"\w+|[-+*/^=<>%×÷·]" if signs else r"\w+", text.casefold())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}
