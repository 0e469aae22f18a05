"""Biases of a judge, from its verdicts on pairs in both orders: position, verbosity, self-preference, length-controlled wins.

A comparison is a row {prompt_id, first_id, second_id, first_wins}. Ids name completions. `first_wins` is from 0.0 to 1.0, or
None if the verdict is unreadable. `comparisons` in tasks/score/scorers/judge.py makes them from a campaign's scores.

A pair counts only if both of its orders are known, by the mean of the two, so that position bias does not affect other
estimates. The unit is the prompt: its pairs are averaged first, and intervals are over prompts. NaN = unknown.
`./ratchet audit-judge` tells all of it about a file of verdicts, and a campaign's judge health about its judges.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.statistics import difference_interval, share_interval
from tasks.bias.effects import Array
from tasks.bias.pressure import estimate

Row = Mapping[str, Any]
Values = Mapping[str, float | None]  # by completion_id
RESAMPLES = 400
HALF = (-0.5, 0.5)  # bounds of a share minus one half


@dataclass(frozen=True)
class Measured:
    """A number over prompts with its 95% interval; NaN = unknown."""

    value: float
    low: float
    high: float
    n: int  # prompts


NOTHING = Measured(math.nan, math.nan, math.nan, 0)


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
def position_bias(comparisons: Iterable[Row]) -> Measured:
    """P(the first wins) - .5 over pairs judged in both orders: above 0 the judge prefers the text it reads first."""
    return over_prompts(pairs(comparisons), lambda pair: (pair.as_first - pair.as_second) / 2, HALF)


def position_consistency(comparisons: Iterable[Row]) -> Measured:
    """Share of pairs with the same winner in both orders ("position consistency" of Shi et al., arXiv 2406.07791); a tie in
    both orders counts as the same winner."""
    return over_prompts(pairs(comparisons), lambda pair: float(np.sign(pair.as_first - 0.5) == np.sign(pair.as_second - 0.5)))


# -- properties of completions -------------------------------------------------------------------------------------------
def preference_for(comparisons: Iterable[Row], marked: Collection[str], gold: Values | None = None) -> Measured:
    """P(the marked one wins) - .5 over pairs of which one is marked; with `gold`, only pairs of equal gold.

    With the judge's own completions marked this is self-preference. With a style marked (the same content with and without
    bold) it is format bias. Gold is the verifier's verdict.
    """
    return over_prompts(marked_first(pairs(comparisons), marked, gold), lambda pair: pair.wins - 0.5, HALF)


def verbosity_bias(
    comparisons: Iterable[Row], lengths: Mapping[str, float], gold: Values
) -> tuple[Measured, Measured, Measured]:
    """P(longer wins | gold says shorter) and P(shorter wins | gold says longer), and the first minus the second.

    Above 0 the judge's errors favour the longer one (equal opportunity, as Saito et al., arXiv 2310.10076, measure it).
    """
    return errors_in_favour(longer_first(pairs(comparisons), lengths), gold)


def self_preferring_errors(
    comparisons: Iterable[Row], own: Collection[str], gold: Values
) -> tuple[Measured, Measured, Measured]:
    """P(own wins | gold says the other) and P(the other wins | gold says own), and the first minus the second.

    Above 0 the judge's errors favour its own texts (equal opportunity, as Wataoka et al., arXiv 2410.21819, measure it). Better
    texts of its own, or a judge that often errs, do not move the difference.
    """
    return errors_in_favour(marked_first(pairs(comparisons), own, None), gold)


def errors_in_favour(oriented: Sequence[Pair], gold: Values) -> tuple[Measured, Measured, Measured]:
    """P(a wins | gold says b) and P(b wins | gold says a) of pairs (a, b), and the first minus the second.

    The interval of the difference takes the two as independent. Prompts with pairs of both kinds make it a little too wide.
    """
    known = [(pair, x - y) for pair in oriented if (x := gold.get(pair.a)) is not None and (y := gold.get(pair.b)) is not None]
    favour = over_prompts([pair for pair, difference in known if difference < 0], lambda pair: pair.wins)
    against = over_prompts([pair for pair, difference in known if difference > 0], lambda pair: 1 - pair.wins)
    return _with_difference(favour, against, len({pair.prompt_id for pair, difference in known if difference}))


def length_controlled_wins(comparisons: Iterable[Row], ours: Collection[str], lengths: Mapping[str, float]) -> Measured:
    """The win rate of `ours` at equal length: logit P = theta + phi tanh(d / sd(d)) at d = 0.

    d is our length minus theirs, in characters. Source: AlpacaEval's length-controlled win rate (arXiv 2404.04475) without its
    difficulty term, which needs all models' outputs. Interval: bootstrap over prompts.
    """
    ours_first = marked_first(pairs(comparisons), ours, None)
    if len({pair.prompt_id for pair in ours_first}) < 2:
        return NOTHING
    d = np.array([lengths[pair.a] - lengths[pair.b] for pair in ours_first], dtype=float)
    won = np.array([pair.wins for pair in ours_first])
    x = np.tanh(d / (d.std() or 1.0))
    names = {prompt: i for i, prompt in enumerate(dict.fromkeys(pair.prompt_id for pair in ours_first))}
    prompt = np.array([names[pair.prompt_id] for pair in ours_first])
    rng = np.random.default_rng(0)
    resamples = [np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[prompt] for _ in range(RESAMPLES)]
    low, high = np.quantile([_at_zero(x, won, weight.astype(float)) for weight in resamples], (0.025, 0.975))
    return Measured(_at_zero(x, won, np.ones(len(won))), float(low), float(high), len(names))


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


# -- agreement ------------------------------------------------------------------------------------------------------------
def kappa(one: Mapping[str, float], other: Mapping[str, float], prompts: Mapping[str, str]) -> tuple[Measured, Measured]:
    """Share of pairs with the same verdict (first, second or tie), and Cohen's kappa, of two sets of verdicts.

    Kappa is (agreement - chance) / (1 - chance) (Cohen 1960). Pairs of one prompt share its weight. The interval of kappa is
    that of the agreement, with the chance as it is found. NaN if both always say the same, so that chance alone agrees.

    Args:
        one, other: how far the first text wins, by pair.
        prompts: prompt by pair.
    """
    both = [pair for pair in one if pair in other]
    if not both:
        return NOTHING, NOTHING
    labels = [tuple(int(np.sign(verdicts[pair] - 0.5)) for verdicts in (one, other)) for pair in both]
    count = Counter(prompts[pair] for pair in both)
    weight = [1 / count[prompts[pair]] for pair in both]
    shares = [Counter[int](), Counter[int]()]
    same: Counter[str] = Counter()
    for pair, ours, w in zip(both, labels, weight, strict=True):
        same[prompts[pair]] += w * (ours[0] == ours[1])  # type: ignore[assignment]
        for side, label in zip(shares, ours, strict=True):
            side[label] += w / len(count)  # type: ignore[assignment]
    means = np.array([same[prompt] for prompt in count], dtype=float)
    agreed = Measured(float(means.mean()), *share_interval(means), len(means))
    chance = sum(shares[0][label] * shares[1][label] for label in (-1, 0, 1))
    if chance >= 1:
        return agreed, NOTHING
    beyond = [(x - chance) / (1 - chance) for x in (agreed.value, agreed.low, agreed.high)]
    return agreed, Measured(beyond[0], beyond[1], beyond[2], agreed.n)


# -- scores instead of comparisons --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Rated:
    """The texts of one prompt: a judge's scores, gold of 1.0 or 0.0, and their lengths."""

    scores: Array
    gold: Array
    lengths: Array


def verbosity_bias_of_scores(prompts: Iterable[Rated]) -> tuple[Measured, Measured, Measured]:
    """`verbosity_bias` of the pairs that scores decide: of every right and wrong text of a prompt the higher score wins."""
    favour, against = list[float](), list[float]()
    for rated in prompts:
        right, wrong = rated.gold == 1.0, rated.gold == 0.0
        wins = 0.5 + 0.5 * np.sign(rated.scores[wrong][:, None] - rated.scores[right])
        longer = np.sign(rated.lengths[wrong][:, None] - rated.lengths[right])
        for side, cells in ((favour, wins[longer > 0]), (against, wins[longer < 0])):
            side += [float(cells.mean())] if cells.size else []
    return _with_difference(_shares(favour), _shares(against), max(len(favour), len(against)))


def self_preference(scores: Values, gold: Values, own: Collection[str], prompts: Mapping[str, str]) -> Measured:
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
    found = estimate(np.array([float(np.mean(values)) for values in differences.values()]))
    return Measured(found.value, found.low, found.high, len(differences))


# -- helpers -------------------------------------------------------------------------------------------------------------
def marked_first(judged: Sequence[Pair], marked: Collection[str], gold: Values | None) -> list[Pair]:
    """The pairs of which one is marked, that one as `a`; with gold, those of equal gold."""
    one = [pair for pair in judged if (pair.a in marked) != (pair.b in marked)]
    if gold is not None:
        one = [pair for pair in one if gold.get(pair.a) is not None and gold.get(pair.a) == gold.get(pair.b)]
    return [pair if pair.a in marked else _swapped(pair) for pair in one]


def longer_first(judged: Sequence[Pair], lengths: Mapping[str, float]) -> list[Pair]:
    """The pairs of two lengths, the longer text as `a`."""
    unequal = [pair for pair in judged if lengths[pair.a] != lengths[pair.b]]
    return [pair if lengths[pair.a] > lengths[pair.b] else _swapped(pair) for pair in unequal]


def _swapped(pair: Pair) -> Pair:
    return Pair(pair.prompt_id, pair.b, pair.a, 1 - pair.as_second, 1 - pair.as_first)


def over_prompts(judged: Sequence[Pair], value: Callable[[Pair], float], bounds: tuple[float, float] = (0.0, 1.0)) -> Measured:
    """The mean over prompts of their pairs' mean value, which lies within the bounds."""
    per_prompt: dict[str, list[float]] = {}
    for pair in judged:
        per_prompt.setdefault(pair.prompt_id, []).append(value(pair))
    means = np.array([float(np.mean(values)) for values in per_prompt.values()])
    return _shares(means, bounds)


def _shares(per_prompt: Sequence[float] | Array, bounds: tuple[float, float] = (0.0, 1.0)) -> Measured:
    values = np.asarray(per_prompt, dtype=float)
    return Measured(float(values.mean()), *share_interval(values, *bounds), len(values)) if len(values) else NOTHING


def _with_difference(favour: Measured, against: Measured, prompts: int) -> tuple[Measured, Measured, Measured]:
    if not favour.n or not against.n:
        return favour, against, NOTHING
    ends = difference_interval(*((one.value, (one.low, one.high)) for one in (favour, against)))
    return favour, against, Measured(favour.value - against.value, *ends, prompts)
