"""Biases of a judge, from its verdicts on pairs in both orders: position, verbosity, self-preference, length-controlled wins.

A comparison is a row {prompt_id, first_id, second_id, first_wins}. Ids name completions. `first_wins` is from 0.0 to 1.0, or
None if the verdict is unreadable. `comparisons` in tasks/score/scorers/judge.py makes them from a campaign's scores.

A pair counts only if both of its orders are known, by the mean of the two, so that position bias does not affect other
estimates. The unit is the prompt: its pairs are averaged first, and intervals are over prompts. NaN = unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.bias.effects import Array
from tasks.bias.pressure import Estimate, estimate

Row = Mapping[str, Any]
Values = Mapping[str, float | None]  # by completion_id
RESAMPLES = 400


@dataclass(frozen=True)
class Pair:
    """A pair judged in both orders."""

    prompt_id: str
    a: str
    b: str
    as_first: float  # how far `a` won as the first text
    as_second: float  # how far `a` won as the second text

    @property
    def wins(self) -> float:
        return (self.as_first + self.as_second) / 2


def pairs(comparisons: Iterable[Row]) -> list[Pair]:
    """The pairs whose two orders are both known, each once."""
    won = {(row["first_id"], row["second_id"]): row for row in comparisons if row["first_wins"] is not None}
    return [
        Pair(row["prompt_id"], a, b, float(row["first_wins"]), 1.0 - float(won[b, a]["first_wins"]))
        for (a, b), row in won.items()
        if a < b and (b, a) in won
    ]


# -- position -----------------------------------------------------------------------------------------------------------
def position_bias(comparisons: Iterable[Row]) -> Estimate:
    """P(the first wins) - .5 over pairs judged in both orders: above 0 the judge prefers the text it reads first."""
    return _over_prompts(pairs(comparisons), lambda pair: (pair.as_first - pair.as_second) / 2)


def position_consistency(comparisons: Iterable[Row]) -> Estimate:
    """Share of pairs with the same winner in both orders ("position consistency" of Shi et al., arXiv 2406.07791); a tie in
    both orders counts as the same winner."""
    return _over_prompts(pairs(comparisons), lambda pair: float(np.sign(pair.as_first - 0.5) == np.sign(pair.as_second - 0.5)))


# -- properties of completions -------------------------------------------------------------------------------------------
def preference_for(comparisons: Iterable[Row], marked: Collection[str], gold: Values | None = None) -> Estimate:
    """P(the marked one wins) - .5 over pairs of which one is marked; with `gold`, only pairs of equal gold.

    With the judge's own completions marked this is self-preference. With a style marked (the same content with and without
    bold) it is format bias. Gold is the verifier's verdict.
    """
    return _over_prompts(_marked_first(pairs(comparisons), marked, gold), lambda pair: pair.wins - 0.5)


def verbosity_bias(comparisons: Iterable[Row], lengths: Mapping[str, float], gold: Values) -> tuple[Estimate, Estimate, float]:
    """P(longer wins | gold says shorter) and P(shorter wins | gold says longer), and the first minus the second.

    Above 0 the judge's errors favour the longer one (equal opportunity, as Saito et al., arXiv 2310.10076, measure it).
    """
    ordered = [_longer_first(pair, lengths) for pair in pairs(comparisons) if lengths[pair.a] != lengths[pair.b]]
    known = [(pair, x - y) for pair in ordered if (x := gold.get(pair.a)) is not None and (y := gold.get(pair.b)) is not None]
    longer = _over_prompts([pair for pair, difference in known if difference < 0], lambda pair: pair.wins)
    shorter = _over_prompts([pair for pair, difference in known if difference > 0], lambda pair: 1 - pair.wins)
    return longer, shorter, longer.value - shorter.value


def length_controlled_wins(comparisons: Iterable[Row], ours: Collection[str], lengths: Mapping[str, float]) -> Estimate:
    """The win rate of `ours` at equal length: logit P = theta + phi tanh(d / sd(d)) at d = 0.

    d is our length minus theirs, in characters. Source: AlpacaEval's length-controlled win rate (arXiv 2404.04475) without its
    difficulty term, which needs all models' outputs. Interval: bootstrap over prompts.
    """
    ours_first = _marked_first(pairs(comparisons), ours, None)
    if len({pair.prompt_id for pair in ours_first}) < 2:
        return estimate(np.zeros(0))
    d = np.array([lengths[pair.a] - lengths[pair.b] for pair in ours_first], dtype=float)
    won = np.array([pair.wins for pair in ours_first])
    x = np.tanh(d / (d.std() or 1.0))
    names = {prompt: i for i, prompt in enumerate(dict.fromkeys(pair.prompt_id for pair in ours_first))}
    prompt = np.array([names[pair.prompt_id] for pair in ours_first])
    rng = np.random.default_rng(0)
    resamples = [np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[prompt] for _ in range(RESAMPLES)]
    low, high = np.quantile([_at_zero(x, won, weight.astype(float)) for weight in resamples], (0.025, 0.975))
    return Estimate(_at_zero(x, won, np.ones(len(won))), float(low), float(high))


def _at_zero(x: Array, won: Array, weight: Array, ridge: float = 1e-3) -> float:
    """Logistic regression of `won` (0 to 1) on x by Newton's method, at x = 0; the ridge keeps one-sided data finite."""
    design, beta = np.stack([np.ones_like(x), x], axis=1), np.zeros(2)
    for _ in range(30):
        p = 1 / (1 + np.exp(-design @ beta))
        slope = design.T @ (weight * (won - p)) - ridge * beta
        curve = (design * (weight * p * (1 - p))[:, None]).T @ design + ridge * np.eye(2)
        move = np.linalg.solve(curve, slope)
        beta += np.clip(move, -2, 2)
        if np.abs(move).max() < 1e-9:
            break
    return float(1 / (1 + np.exp(-beta[0])))


# -- scores instead of comparisons --------------------------------------------------------------------------------------
def self_preference(scores: Values, gold: Values, own: Collection[str], prompts: Mapping[str, str]) -> Estimate:
    """Mean score of a model's own texts minus that of others', for the same prompt and gold, in SD of all scores.

    For judges that rate one text at a time. `prompts` is prompt_id by completion_id; a prompt counts if it has both kinds.
    """
    known = {key: value for key, value in scores.items() if value is not None and gold.get(key) is not None}
    sd = float(np.std(list(known.values()))) if known else 0.0
    cells: dict[tuple[str, float], tuple[list[float], list[float]]] = {}
    for key, value in known.items():
        cells.setdefault((prompts[key], float(gold[key] or 0.0)), ([], []))[key in own].append(value)
    differences: dict[str, list[float]] = {}
    for (prompt, _), (others, mine) in cells.items():
        if mine and others and sd > 0:
            differences.setdefault(prompt, []).append((float(np.mean(mine)) - float(np.mean(others))) / sd)
    return estimate(np.array([float(np.mean(values)) for values in differences.values()]))


# -- helpers -------------------------------------------------------------------------------------------------------------
def _marked_first(judged: Sequence[Pair], marked: Collection[str], gold: Values | None) -> list[Pair]:
    """The pairs of which one is marked, that one as `a`; with gold, those of equal gold."""
    one = [pair for pair in judged if (pair.a in marked) != (pair.b in marked)]
    if gold is not None:
        one = [pair for pair in one if gold.get(pair.a) is not None and gold.get(pair.a) == gold.get(pair.b)]
    return [pair if pair.a in marked else _swapped(pair) for pair in one]


def _longer_first(pair: Pair, lengths: Mapping[str, float]) -> Pair:
    return pair if lengths[pair.a] > lengths[pair.b] else _swapped(pair)


def _swapped(pair: Pair) -> Pair:
    return Pair(pair.prompt_id, pair.b, pair.a, 1 - pair.as_second, 1 - pair.as_first)


def _over_prompts(judged: Sequence[Pair], value: Callable[[Pair], float]) -> Estimate:
    per_prompt: dict[str, list[float]] = {}
    for pair in judged:
        per_prompt.setdefault(pair.prompt_id, []).append(value(pair))
    means = np.array([float(np.mean(values)) for values in per_prompt.values()])
    return estimate(means) if len(means) > 1 else Estimate(float(means[0]) if len(means) else np.nan, np.nan, np.nan)
