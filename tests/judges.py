"""Judges for studies: one that knows nothing, and one whose quality is planted. Neither is self-rewarding, and both say so."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le

from data.rows.completions import Values, by_prompt
from tasks.choose.pairers.rewards import best_vs_worst
from tasks.choose.selectors import selected_row
from tasks.score.scorers import Score

Row = dict[str, Any]


def random_judge(prompts: Sequence[Row], completions: Sequence[Row], *, seed: int = 0) -> list[Score]:
    """Noise: its favourite is a random sample of the prompt."""
    return [Score(float(noise)) for noise in _noise(completions, seed)]


def planted_judge(
    prompts: Sequence[Row],
    completions: Sequence[Row],
    *,
    verdicts: Sequence[float | None],
    auroc: Annotated[float, Ge(0.5), Le(1)],
    seed: int = 0,
) -> list[Score]:
    """The verifier's verdict under so much normal noise that right beats wrong with probability `auroc`, within a prompt too.

    A verifier made worse, for the dose-response curve: it says which quality would be enough, not that a policy has it.
    """
    from scipy.stats import norm

    gap = 1e6 if auroc == 1 else float(np.sqrt(2) * norm.ppf(auroc))
    return [
        Score(gap * (verdict == 1.0) + float(noise)) for verdict, noise in zip(verdicts, _noise(completions, seed), strict=True)
    ]


def sure_pairs(
    completions: Sequence[Row],
    reward: Values,
    scores: Mapping[str, Values],
    *,
    after: str,
    count: Annotated[int, Ge(1)],
    low: Annotated[float, Ge(0), Le(1)] = 0.3,
    high: Annotated[float, Ge(0), Le(1)] = 0.9,
) -> list[Row]:
    """best_vs_worst on the disputed prompts, and of those the `count` whose chosen text the judge scores highest.

    Disputed: the most frequent answer holds a share from `low` to `high` of the samples, a pass-rate band without gold,
    the same prompts whatever the judge. No verifier is asked, and `count` makes the number of pairs the same in every arm.
    """
    pairs = best_vs_worst(_disputed(completions, after, low, high), reward, scores, allow_wrong_chosen=True)
    return sorted(pairs, key=lambda pair: -(reward[pair["chosen_id"]] or 0.0))[:count]


def sure_best(
    completions: Sequence[Row],
    reward: Values,
    scores: Mapping[str, Values],
    *,
    after: str,
    count: Annotated[int, Ge(1)],
    low: Annotated[float, Ge(0), Le(1)] = 0.3,
    high: Annotated[float, Ge(0), Le(1)] = 0.9,
) -> list[Row]:
    """The chosen texts of those pairs."""
    pairs = sure_pairs(completions, reward, scores, after=after, count=count, low=low, high=high)
    rows = {row["completion_id"]: row for row in completions}
    return [selected_row(rows[pair["chosen_id"]]) for pair in pairs]


def _disputed(completions: Sequence[Row], after: str, low: float, high: float) -> list[Row]:
    kept: list[Row] = []
    for rows in by_prompt(completions).values():
        answers = Counter(row["text"].rpartition(after)[2] for row in rows if after in row["text"])
        if answers and low <= max(answers.values()) / len(rows) <= high:
            kept += rows
    return kept


def _noise(completions: Sequence[Row], seed: int) -> list[float]:
    """A standard normal number per sample: the best by it is a random sample of the prompt, not a random distinct text."""
    keys = [f"{seed}\0{row['prompt_id']}\0{row['sample']}" for row in completions]
    digests = [int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) for key in keys]
    return [float(np.random.default_rng(digest).standard_normal()) for digest in digests]
