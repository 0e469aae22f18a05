"""Curators that use the verifier's pass rates of earlier rounds.

The policy changes from round to round, and a rate of few samples is noisy. A prompt that is dropped is not sampled, so it
cannot show that its rate was bad luck or has changed. Each curator here says how it deals with that.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge, Gt, Le

from data.rows.completions import Row
from tasks.prompts.curators import History

VERSIONS = {"pass_rate_band": 2, "hard_first": 2, "learnable": 2}
LIBRARIES = {"pass_rate_band": ("scipy",)}

SURE = 0.95  # the probability from which a rate counts as surely outside a band
FORGET = 0.8  # how much the samples of a round count once a later round has sampled the prompt again

NEEDS_GOLD = ("pass_rate_band", "hard_first", "learnable")

Share = Annotated[float, Ge(0), Le(1)]


def pass_rate_band(
    prompts: Sequence[Row], history: History, *, low: Share, high: Share, again: Annotated[int, Ge(1)] = 5
) -> list[Row]:
    """Drops prompts whose pass rate is surely outside `low` to `high`, and tries them again after `again` or more rounds.

    Prompts that are always or never solved teach nothing: Kimi k1.5, https://arxiv.org/abs/2501.12599 (rates from 10 samples),
    and DAPO, https://arxiv.org/abs/2503.14476. Surely means with a posterior probability of 0.95 (Jeffreys' prior). The samples
    of all rounds count; those of a round count 0.8 times as much after each later round that sampled the prompt. So a few
    unlucky samples do not drop a prompt. Online difficulty filtering, https://arxiv.org/abs/2504.03380, samples every prompt
    anew in each step. Here a dropped prompt is tried again after `again` to 2 `again` - 1 rounds, not all at once. These
    numbers are our choice. If none of 4, 8 or 16 samples is right, a prompt is dropped where `low` is above 0.36, 0.21 or 0.11.
    """
    return [prompt for prompt in prompts if not _outside(prompt["prompt_id"], history, low, high, again)]


def _outside(prompt: str, history: History, low: float, high: float, again: int) -> bool:
    sampled = [number for number, rates in enumerate(history) if prompt in rates]
    if not sampled or len(history) - sampled[-1] > again + int(again * _uniform(f"again/{sampled[-1]}/{prompt}")):
        return False
    right, samples = _counted(prompt, history)
    return _probability_below(low, right, samples) >= SURE or 1.0 - _probability_below(high, right, samples) >= SURE


def _counted(prompt: str, history: History) -> tuple[float, float]:
    """How many samples of the prompt were right, and how many there were. Each later round that sampled it discounts them."""
    right = samples = 0.0
    for passed in (rates[prompt] for rates in history if prompt in rates):
        right = FORGET * right + passed.right
        samples = FORGET * samples + passed.samples
    return right, samples


def _probability_below(rate: float, right: float, samples: float) -> float:
    """The posterior probability that the rate is below `rate`, with Jeffreys' prior, Beta(1/2, 1/2)."""
    from scipy.special import betainc

    return float(betainc(right + 0.5, samples - right + 0.5, rate))


def hard_first(prompts: Sequence[Row], history: History, *, share: Annotated[float, Gt(0), Le(1)]) -> list[Row]:
    """Keeps about a `share` of the prompts, each with a probability in proportion to 1 - pass rate.

    Kimi k1.5's prioritised sampling, https://arxiv.org/abs/2501.12599. The rate is of all rounds; the samples of a round count
    0.8 times as much after each later round that sampled the prompt (our choice). A prompt that was never sampled counts as
    unsolved. One whose n samples were all right gets the weight 1 / (n + 2) instead of 0 (Laplace's rule of succession), since
    it need not always be solved. The probabilities are exact (systematic sampling in random order, Madow 1949). None exceeds 1:
    where the hardest prompts reach it, fewer are kept than the share. Prompts that cannot be solved keep the largest weight;
    put `pass_rate_band` before this curator to drop them. Random numbers depend only on the prompts and the number of rounds.
    """
    weights = {prompt["prompt_id"]: _unsolved(*_counted(prompt["prompt_id"], history)) for prompt in prompts}
    scale = math.ceil(share * len(prompts)) / (math.fsum(weights.values()) or 1.0)
    chances = {prompt: min(1.0, scale * weight) for prompt, weight in weights.items()}
    chosen = _systematic(chances, f"hard_first/{len(history)}")
    return [prompt for prompt in prompts if prompt["prompt_id"] in chosen]


def _unsolved(right: float, samples: float) -> float:
    """The weight of a prompt: the share of its samples that were wrong."""
    return max(1.0 - right / samples, 1.0 / (samples + 2)) if samples else 1.0


def _systematic(chances: Mapping[str, float], seed: str) -> set[str]:
    """A sample that holds each name with exactly its probability in `chances`. Its size is their sum, rounded up or down."""
    chosen, total = set(), _uniform(seed)
    for name in sorted(chances, key=lambda name: _uniform(f"{seed}/{name}")):
        before, total = total, total + chances[name]
        if math.floor(total) > math.floor(before):
            chosen.add(name)
    return chosen


def _uniform(text: str) -> float:
    """A pseudo-random number of at least 0 and below 1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def learnable(
    prompts: Sequence[Row],
    history: History,
    *,
    minimum: Annotated[float, Le(1)] = 0.6,
    rounds: Annotated[int, Ge(2)] = 5,
) -> list[Row]:
    """Keeps prompts whose pass rates stay near the average's curve: those with a LIMR score of at least `minimum`.

    The score is 1 - sum_k (rate_k - mean_k)^2 / sum_k (1 - mean_k)^2 over the rounds k that sampled the prompt; mean_k is over
    all prompts of round k. Source: https://arxiv.org/abs/2502.11886 (its script has 0.6). It drops prompts that are always
    solved, whose score is 0, and those that are never solved once the mean exceeds 0.4. It is no test of improvement: a prompt
    whose rate stays near the average is kept whether it rises or not, with any number of rounds and samples. A prompt that
    fewer than `rounds` rounds sampled is kept, since two rounds of 4 samples would drop 1 of 5 prompts that follow the average.
    The paper has 21 epochs, and drops for good as this curator does.
    """
    means = [math.fsum(passed.rate for passed in rates.values()) / len(rates) if rates else 0.0 for rates in history]

    def score(prompt: str) -> float:
        sampled = [(rates[prompt].rate, mean) for rates, mean in zip(history, means, strict=True) if prompt in rates]
        largest = math.fsum((1.0 - mean) ** 2 for _, mean in sampled)
        if len(sampled) < rounds or not largest:
            return 1.0
        return 1.0 - math.fsum((rate - mean) ** 2 for rate, mean in sampled) / largest

    return [prompt for prompt in prompts if score(prompt["prompt_id"]) >= minimum]
