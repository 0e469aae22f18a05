"""Curators that read the texts: guessable answers, near-duplicates, overlap with evaluation prompts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Annotated

import regex
from annotated_types import Ge, Gt, Le

from data.rows.completions import Row
from tasks.prompts.curators import History, text_of, word_runs

NEEDS_GOLD = ("not_guessable",)  # it reads the gold answer
VERSIONS = {"no_near_duplicates": 2}

_GUESSABLE = regex.compile(r"\(?[A-J]\)?\.?|true|false|yes|no", regex.IGNORECASE)
_PROOF = regex.compile(r"\b(?:prove|show)\s+that\b", regex.IGNORECASE)


def not_guessable(prompts: Sequence[Row], history: History) -> list[Row]:
    """Keeps prompts whose answer cannot be guessed: no letter of a choice, no yes or no, no true or false, no proof.

    Kimi k1.5, https://arxiv.org/abs/2501.12599. The paper also drops prompts that the policy solves without reasoning. That
    would need further samples, and is not done here.
    """
    return [p for p in prompts if not _GUESSABLE.fullmatch((p["answer"] or "").strip()) and not _PROOF.search(text_of(p))]


def no_near_duplicates(
    prompts: Sequence[Row], history: History, *, likeness: Annotated[float, Gt(0), Le(1)], n: Annotated[int, Ge(1)] = 3
) -> list[Row]:
    """Keeps the first of all prompts that share at least `likeness` of their runs of `n` words (exact Jaccard similarity)."""
    kept: list[Row] = []
    sizes: list[int] = []
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)  # run of words -> the positions in `kept` that have it
    for prompt in prompts:
        runs = word_runs(text_of(prompt), n, signs=True)
        shared = Counter(position for run in runs for position in holders[run])
        if any(count >= likeness * (sizes[position] + len(runs) - count) for position, count in shared.items()):
            continue
        for run in runs:
            holders[run].append(len(kept))
        kept.append(prompt)
        sizes.append(len(runs))
    return kept


def decontaminated(
    prompts: Sequence[Row], history: History, *, n: Annotated[int, Ge(1)] = 8, against: Sequence[Row]
) -> list[Row]:
    """Keeps prompts that share no run of `n` words with a held-out or test prompt.

    Runs in at least half of those prompts belong to the template and do not count. A shorter prompt is compared as a whole.
    Source: https://github.com/huggingface/open-r1 (scripts/decontaminate.py), with its `n` of 8.
    """
    counts = Counter(run for prompt in against for run in word_runs(text_of(prompt), n))
    measured = {run for run, count in counts.items() if count == 1 or count < len(against) / 2}
    return [prompt for prompt in prompts if not word_runs(text_of(prompt), n) & measured]
