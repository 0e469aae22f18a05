"""Curators by what the policy has shown it can do: the verifier's pass rates of earlier rounds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Gt, Le

from data.rows.completions import Row
from tasks.prompts.curators import History, latest

Share = Annotated[float, Ge(0), Le(1)]


def pass_rate_band(prompts: Sequence[Row], history: History, *, low: Share, high: Share) -> list[Row]:
    """Prompts whose newest pass rate lies from `low` to `high`, and those never sampled.

    What is always or never solved teaches nothing: Kimi k1.5, https://arxiv.org/abs/2501.12599 (rates from 10 samples).
    """
    rates = latest(history)
    return [prompt for prompt in prompts if low <= rates.get(prompt["prompt_id"], low) <= high]


def hard_first(prompts: Sequence[Row], history: History, *, share: Annotated[float, Gt(0), Le(1)]) -> list[Row]:
    """A `share` of the prompts, drawn with probability proportional to 1 - newest pass rate; what is always solved never.

    Kimi k1.5's prioritised sampling, https://arxiv.org/abs/2501.12599; a prompt never sampled counts as unsolved. The draw
    depends on the prompt and the number of rounds behind it, on nothing else.
    """
    rates = latest(history)
    keys = {
        prompt["prompt_id"]: math.log(_uniform(prompt["prompt_id"], len(history))) / weight
        for prompt in prompts
        if (weight := 1.0 - rates.get(prompt["prompt_id"], 0.0)) > 0
    }  # the largest keys are a weighted draw without replacement (Efraimidis and Spirakis, 2006)
    taken = set(sorted(keys, key=lambda prompt: -keys[prompt])[: math.ceil(share * len(prompts))])
    return [prompt for prompt in prompts if prompt["prompt_id"] in taken]


def _uniform(prompt: str, rounds: int) -> float:
    """Above 0 and at most 1."""
    digest = hashlib.sha256(f"hard_first/{rounds}/{prompt}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") + 1) / 2**64


def learnable(prompts: Sequence[Row], history: History, *, minimum: Annotated[float, Le(1)] = 0.6) -> list[Row]:
    """Prompts whose pass rate rose as the average did: LIMR's score of at least `minimum`; unknown where rounds lack.

    1 - sum_k (rate_k - mean_k)^2 / sum_k (1 - mean_k)^2 over the rounds that sampled the prompt, mean_k over all prompts of
    round k: https://arxiv.org/abs/2502.11886 (0.6 is its script's; there k goes over 21 epochs). Fewer than two rounds say
    nothing, and the prompt is kept.
    """
    rounds = [(rates, math.fsum(rates.values()) / len(rates)) for rates in history if rates]

    def score(prompt: str) -> float:
        known = [(rates[prompt], mean) for rates, mean in rounds if prompt in rates]
        room = math.fsum((1.0 - mean) ** 2 for _, mean in known)
        if len(known) < 2 or not room:
            return 1.0
        return 1.0 - math.fsum((rate - mean) ** 2 for rate, mean in known) / room

    return [prompt for prompt in prompts if score(prompt["prompt_id"]) >= minimum]
