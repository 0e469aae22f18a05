"""Curators that use the verifier's pass rates of earlier rounds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Gt, Le

from data.rows.completions import Row
from tasks.prompts.curators import History, latest

NEEDS_GOLD = ("pass_rate_band", "hard_first", "learnable")

Share = Annotated[float, Ge(0), Le(1)]


def pass_rate_band(prompts: Sequence[Row], history: History, *, low: Share, high: Share) -> list[Row]:
    """Keeps prompts whose newest pass rate is between `low` and `high`, and prompts that were never sampled.

    Prompts that are always or never solved teach nothing: Kimi k1.5, https://arxiv.org/abs/2501.12599 (rates from 10 samples).
    """
    rates = latest(history)
    return [prompt for prompt in prompts if low <= rates.get(prompt["prompt_id"], low) <= high]


def hard_first(prompts: Sequence[Row], history: History, *, share: Annotated[float, Gt(0), Le(1)]) -> list[Row]:
    """Keeps a `share` of the prompts, sampled in proportion to 1 - newest pass rate. Always solved ones never.

    Kimi k1.5's prioritised sampling, https://arxiv.org/abs/2501.12599. A prompt that was never sampled counts as unsolved. The
    random numbers depend only on the prompt and the number of finished rounds.
    """
    rates = latest(history)
    keys = {
        prompt["prompt_id"]: math.log(_uniform(prompt["prompt_id"], len(history))) / weight
        for prompt in prompts
        if (weight := 1.0 - rates.get(prompt["prompt_id"], 0.0)) > 0
    }  # the largest keys are a weighted sample without replacement (Efraimidis and Spirakis, 2006)
    chosen = set(sorted(keys, key=lambda prompt: -keys[prompt])[: math.ceil(share * len(prompts))])
    return [prompt for prompt in prompts if prompt["prompt_id"] in chosen]


def _uniform(prompt: str, rounds: int) -> float:
    """A pseudo-random number above 0 and at most 1."""
    digest = hashlib.sha256(f"hard_first/{rounds}/{prompt}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") + 1) / 2**64


def learnable(prompts: Sequence[Row], history: History, *, minimum: Annotated[float, Le(1)] = 0.6) -> list[Row]:
    """Keeps prompts whose pass rate rose like the average: those with a LIMR score of at least `minimum`.

    The score is 1 - sum_k (rate_k - mean_k)^2 / sum_k (1 - mean_k)^2 over the rounds k that sampled the prompt; mean_k is over
    all prompts of round k. Source: https://arxiv.org/abs/2502.11886 (its script has 0.6; there k counts 21 epochs). A prompt
    that fewer than two rounds sampled is kept.
    """
    rounds = [(rates, math.fsum(rates.values()) / len(rates)) for rates in history if rates]

    def score(prompt: str) -> float:
        sampled = [(rates[prompt], mean) for rates, mean in rounds if prompt in rates]
        largest = math.fsum((1.0 - mean) ** 2 for _, mean in sampled)
        if len(sampled) < 2 or not largest:
            return 1.0
        return 1.0 - math.fsum((rate - mean) ** 2 for rate, mean in sampled) / largest

    return [prompt for prompt in prompts if score(prompt["prompt_id"]) >= minimum]
