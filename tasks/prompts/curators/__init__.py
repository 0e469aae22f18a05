"""Curators choose which prompts rounds may use: `(prompts, history, *, settings) -> kept prompts`.

They run one after the other before a round's prompts are chosen. `prompts` are rows of PROMPTS. `history` has an entry per
finished round: prompt_id -> its PassRate, which counts the policy's samples and those that the verifier judged correct.
A prompt without an entry was not sampled in that round, and one that was never sampled should be kept. A curator with a
parameter `against` gets the prompts of the held-out and test splits. The kept prompts stay in order.

A file lists in NEEDS_GOLD those that read `history` or gold answers. Where the recipe's `gold` keeps verdicts out of training,
`check` refuses them, and the history of any other is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import regex

from data.rows.completions import Row

NOT_PARTS = ("PassRate", "latest", "text_of", "words_of", "is_sign", "word_runs")

_WORD = r"\w+"
_SIGN = r"[-+*/^=<>%×÷·]"


@dataclass(frozen=True)
class PassRate:
    """How many of a prompt's samples in one round were right. `samples` counts those with a verdict, at least one."""

    right: int
    samples: int

    @property
    def rate(self) -> float:
        return self.right / self.samples


History = Sequence[Mapping[str, PassRate]]


def latest(history: History) -> dict[str, float]:
    """The newest pass rate of every prompt that has one."""
    return {prompt: passed.rate for rates in history for prompt, passed in rates.items()}


def text_of(prompt: Row) -> str:
    """The texts of the user's messages."""
    return "\n".join(message["content"] for message in prompt["messages"] if message["role"] == "user")


def words_of(text: str, signs: bool = False) -> list[str]:
    """The words in lower case and without punctuation. With `signs`, mathematical signs are words too: 7-3 is not 7+3."""
    words: list[str] = regex.findall(f"{_WORD}|{_SIGN}" if signs else _WORD, text.casefold())
    return words


def is_sign(word: str) -> bool:
    """Whether a word that `words_of` read is a mathematical sign."""
    return regex.fullmatch(_SIGN, word) is not None


def word_runs(text: str, n: int, signs: bool = False) -> set[tuple[str, ...]]:
    """Every run of `n` words, as `words_of` reads them. A shorter text is one run of all its words."""
    words = words_of(text, signs)
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}
