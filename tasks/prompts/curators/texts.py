"""Curators by what prompts say: guessable answers, near-duplicates, overlap with what is measured."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Annotated

import regex
from annotated_types import Ge, Gt, Le

from data.rows.completions import Row
from tasks.prompts.curators import History, text_of, word_runs

VERSIONS = {"no_near_duplicates": 2}

_GUESSED = regex.compile(r"\(?[A-J]\)?\.?|true|false|yes|no", regex.IGNORECASE)
_PROOF = regex.compile(r"\b(?:prove|show)\s+that\b", regex.IGNORECASE)


def not_guessable(prompts: Sequence[Row], history: History) -> list[Row]:
    """Prompts whose answer cannot be hit by chance: no choice among letters, no yes or no, no proof without an answer.

    Kimi k1.5, https://arxiv.org/abs/2501.12599, which also drops what the policy answers right without reasoning; that would
    take samples of their own.
    """
    return [p for p in prompts if not _GUESSED.fullmatch((p["answer"] or "").strip()) and not _PROOF.search(text_of(p))]


def no_near_duplicates(
    prompts: Sequence[Row], history: History, *, likeness: Annotated[float, Gt(0), Le(1)], n: Annotated[int, Ge(1)] = 3
) -> list[Row]:
    """The first of all prompts that share at least `likeness` of their runs of `n` words (Jaccard), exactly counted."""
    kept: list[Row] = []
    sizes: list[int] = []
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)  # run of words -> which of the kept have it
    for prompt in prompts:
        runs = word_runs(text_of(prompt), n, signs=True)
        shared = Counter(place for run in runs for place in holders[run])
        if any(count >= likeness * (sizes[place] + len(runs) - count) for place, count in shared.items()):
            continue
        for run in runs:
            holders[run].append(len(kept))
        kept.append(prompt)
        sizes.append(len(runs))
    return kept


def decontaminated(
    prompts: Sequence[Row], history: History, *, n: Annotated[int, Ge(1)] = 8, against: Sequence[Row]
) -> list[Row]:
    """Prompts without a run of `n` words that stands in a held-out or test prompt (open-r1 takes 8).

    Runs that half of those prompts have are the template's, and do not count. A shorter prompt is compared as a whole.
    https://github.com/huggingface/open-r1 (scripts/decontaminate.py).
    """
    seen = Counter(run for prompt in against for run in word_runs(text_of(prompt), n))
    measured = {run for run, count in seen.items() if count == 1 or count < len(against) / 2}
    return [prompt for prompt in prompts if not word_runs(text_of(prompt), n) & measured]
