"""How often the interval of every number that a person is shown holds the truth.

    ./ratchet bench coverage [--draws 1000] [--only accuracy,gain]

Each number is made by the function that makes it in a round, from drawn data whose truth is known: rates near 0 and 1, skewed
lengths, samples of one prompt that are alike, 32 to 1,000 prompts, and 3 or 5 seeds. Prints the coverage with its exact 95%
interval over the draws, beside the promise. Exit code 1 where the coverage is surely below its promise.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from data.statistics import Ends, share_interval, t_interval
from tasks.bias import pressure
from tasks.bias.effects import changes
from tasks.evaluate import judge_bias, judge_health, measure

Draw = np.random.Generator
Row = dict[str, Any]
SIZES = (32, 50, 100, 200, 1000)


@dataclass(frozen=True)
class Case:
    """A number on drawn data."""

    number: str  # as it is shown
    world: str  # what the data are like
    truth: float
    ends: Callable[[Draw, int], Ends]  # its interval, from so many prompts or seeds
    sizes: tuple[int, ...] = SIZES
    promise: float = 0.93  # least coverage


# Every number with an interval, and the case that stands for it: numbers of one row are made by the same functions.
SHOWN = {
    "accuracy": "accuracy, suite/*/accuracy, test and out-of-distribution accuracy",
    "finished": "finished; in `data measure`: mixed, majority@n, best@n",
    "finished, 4 samples": "in `data measure`: finished and agreement over all samples of a prompt",
    "mean_tokens": "mean_tokens; in `data measure`: characters",
    "logprob": "suite/*/logprob",
    "logprob_vs": "suite/*/logprob_vs_base",
    "accuracy_vs": "accuracy_vs_base, _champion and _previous, aa_difference, points over base of sweep and test (the gate's)",
    "pass@1": "pass@1",
    "pass@4": "pass@k",
    "judge/within_prompt_auroc": "judge/*/within_prompt_auroc, consistency_with_*, order_consistency",
    "judge/selection_gain": "judge/*/selection_gain",
    "judge/brier": "judge/*/brier, parse_failures, tied_prompts, saturated",
    "judge/prefers": "judge/*/prefers_*",
    "judge/mean_score": "judge/*/mean_score, shift_from_*",
    "judge bias": "position bias and consistency, preference for, verbosity bias, self-preference",
    "length-controlled wins": "length-controlled wins",
    "bias/d0": "bias/*/d0, bias/*/step, the audit's effects (the ledger's)",
    "bias/pressure": "bias/*/pressure",
    "bias/gain": "bias/*/gain",
    "bias/kl": "bias/kl_*/mean, the KL over budget",
    "gold rise": "bias/proxy_gap, gold_rise, answer collapse",
    "seeds": "every study's change over seeds, and its difference from the control",
}


def ends_of(row: Row) -> Ends:
    low, high = row["low"], row["high"]
    return (math.nan, math.nan) if low is None or high is None else (low, high)


# -- held-out -----------------------------------------------------------------------------------------------------------
def accuracy(p: float) -> Case:
    def ends(draw: Draw, n: int) -> Ends:
        return ends_of(measure._accuracy("s", {str(i): [float(x)] for i, x in enumerate(draw.random(n) < p)}))

    return Case("accuracy", f"p = {p}", p, ends)


def completions(lengths: np.ndarray, finished: np.ndarray, samples: int = 1) -> list[Row]:
    reasons = np.where(finished, "stop", "length")
    return [
        {"prompt_id": str(i // samples), "token_ids": range(int(length)), "finish_reason": str(reason)}
        for i, (length, reason) in enumerate(zip(lengths, reasons, strict=True))
    ]


def finished(p: float) -> Case:
    def ends(draw: Draw, n: int) -> Ends:
        return ends_of(measure._lengths("s", completions(np.ones(n), draw.random(n) < p))[1])

    return Case("finished", f"p = {p}", p, ends)


def finished_of_four(a: float, b: float) -> Case:
    def ends(draw: Draw, n: int) -> Ends:
        ended = draw.random((n, 4)) < draw.beta(a, b, (n, 1))
        return ends_of(measure._lengths("s", completions(np.ones(4 * n), ended.ravel(), 4))[1])

    return Case("finished, 4 samples", f"prompts differ: Beta({a}, {b})", a / (a + b), ends)


def mean_tokens(sigma: float) -> Case:
    def ends(draw: Draw, n: int) -> Ends:
        return ends_of(measure._lengths("s", completions(draw.lognormal(5, sigma, n), np.ones(n)))[0])

    # whole tokens: half a token less than the mean of the lognormal
    return Case("mean_tokens", f"lognormal, sigma {sigma}", math.exp(5 + sigma**2 / 2) - 0.5, ends, promise=0.915)


def logprob() -> Case:
    def ends(draw: Draw, n: int) -> Ends:
        return ends_of(measure.mean("logprob", "s", list(-draw.gamma(1.0, 0.5, n))))

    return Case("logprob", "exponential", -0.5, ends, promise=0.925)


def logprob_vs() -> Case:
    def ends(draw: Draw, n: int) -> Ends:
        ours = draw.normal(-0.5, 0.3, n)
        theirs = ours + draw.normal(0.05, 0.05, n)
        sides = [{str(i): [float(x)] for i, x in enumerate(side)} for side in (ours, theirs)]
        return ends_of(measure.paired("s", "logprob_vs_base", *sides))

    return Case("logprob_vs", "normal differences", -0.05, ends)


def accuracy_vs(p: float, wins: float, losses: float) -> Case:
    def ends(draw: Draw, n: int) -> Ends:
        u, theirs = draw.random(n), draw.random(n) < p
        ours = np.where(theirs, u >= losses / p, u < wins / (1 - p))
        sides = [{str(i): [float(x)] for i, x in enumerate(side)} for side in (ours, theirs)]
        compare = getattr(measure, "paired_shares", measure.paired)
        return ends_of(compare("s", "accuracy_vs_base", *sides))

    return Case("accuracy_vs", f"{wins:.1%} won, {losses:.1%} lost", wins - losses, ends)


def pass_at(k: int, a: float, b: float) -> Case:
    missed = math.prod((b + i) / (a + b + i) for i in range(k))

    def ends(draw: Draw, n: int) -> Ends:
        right = (draw.random((n, 4)) < draw.beta(a, b, (n, 1))).astype(float)
        rows = {row["metric"]: row for row in measure.pass_at_k("s", {str(i): list(r) for i, r in enumerate(right)})}
        return ends_of(rows[f"pass@{k}"])

    return Case(f"pass@{k}", f"Beta({a}, {b}), 4 samples", 1 - missed, ends)


# -- judges -------------------------------------------------------------------------------------------------------------
def judged(name: str, world: str, truth: float, pairs: Callable[[Draw, int], list[list[tuple[float, float]]]]) -> Case:
    def ends(draw: Draw, n: int) -> Ends:
        rows = judge_health.agreement({str(i): group for i, group in enumerate(pairs(draw, n))})
        return ends_of({row["metric"]: row for row in rows}[name])

    return Case(f"judge/{name}", world, truth, ends, sizes=(32,))  # an AUROC of every prompt takes a millisecond


def two_of_each(better: float) -> Callable[[Draw, int], list[list[tuple[float, float]]]]:
    def pairs(draw: Draw, n: int) -> list[list[tuple[float, float]]]:
        values = ndtr(draw.normal(size=(n, 4)) + np.array([better, better, 0, 0]))
        return [list(zip(map(float, v), (1.0, 1.0, 0.0, 0.0), strict=True)) for v in values]

    return pairs


def sure(right: float) -> Callable[[Draw, int], list[list[tuple[float, float]]]]:
    return lambda draw, n: [[(right, float(x)) for x in group] for group in draw.random((n, 2)) < right]


def prefers(p: float) -> Case:
    def ends(draw: Draw, n: int) -> Ends:
        wins = draw.random((n, 2)) < p
        rows = [
            {"prompt_id": str(i), "value": float(v)}
            for i, (a, b) in enumerate(wins)
            for v in (0, 0, 1 if a else -1, 1 if b else -1)
        ]
        return ends_of(judge_health.probes(rows, ["bold"])[0])

    return Case("judge/prefers", f"the edit wins {p:.0%}", p - 0.5, ends, sizes=(32, 100, 1000))


def mean_score() -> Case:
    def ends(draw: Draw, n: int) -> Ends:
        return ends_of(judge_health._average("mean_score", list(draw.gamma(2.0, 1.0, n))))

    return Case("judge/mean_score", "gamma(2)", 2.0, ends, promise=0.925)


def position(first: float) -> Case:
    def ends(draw: Draw, n: int) -> Ends:
        told = []
        for i, (ab, ba) in enumerate(draw.random((n, 2)) < first):
            told += [{"prompt_id": i, "first_id": f"{i}a", "second_id": f"{i}b", "first_wins": float(ab)}]
            told += [{"prompt_id": i, "first_id": f"{i}b", "second_id": f"{i}a", "first_wins": float(ba)}]
        found = judge_bias.position_bias(told)
        return found.low, found.high

    return Case("judge bias", f"the first wins {first:.0%}", first - 0.5, ends, sizes=(32, 200), promise=0.92)


def length_controlled(p: float) -> Case:
    def ends(draw: Draw, n: int) -> Ends:
        told, lengths = list[Row](), dict[str, float]()
        for i, (won, length) in enumerate(zip(draw.random(n) < p, draw.normal(size=n), strict=True)):
            lengths |= {f"{i}a": length, f"{i}b": 0.0}
            told += [{"prompt_id": i, "first_id": f"{i}a", "second_id": f"{i}b", "first_wins": float(won)}]
            told += [{"prompt_id": i, "first_id": f"{i}b", "second_id": f"{i}a", "first_wins": float(not won)}]
        found = judge_bias.length_controlled_wins(told, {key for key in lengths if key.endswith("a")}, lengths)
        return found.low, found.high

    return Case("length-controlled wins", f"p = {p}", p, ends, sizes=(100,), promise=0.90)


# -- the ledger ---------------------------------------------------------------------------------------------------------
def drift(rate: float) -> Case:
    def ends(draw: Draw, n: int) -> Ends:
        now, then = (draw.random((n, k)) < rate for k in (4, 16))
        change = changes([now.astype(float)], [then.astype(float)], ["rate"], [1.0])
        return float(change.low[0]), float(change.high[0])

    return Case("bias/d0", f"rate {rate}, 4 samples", 0.0, ends, sizes=(64, 512))


def chosen(values: np.ndarray) -> Ends:
    """The interval of the pressure where the first sample of every prompt is chosen."""
    first = np.zeros(values.shape)
    first[:, 0] = 1
    found = pressure.estimate(pressure.pressure(values, first), pressure.DIFFERENCE)
    return found.low, found.high


def pressure_of_rate(rate: float) -> Case:
    ends = lambda draw, n: chosen((draw.random((n, 4)) < rate).astype(float))  # noqa: E731
    return Case("bias/pressure", f"rate {rate}, no pressure", 0.0, ends)


def gain(standard_errors: float) -> Case:
    def ends(draw: Draw, n: int) -> Ends:
        size = standard_errors / math.sqrt(n)
        found = pressure.gain(draw.normal(size, 0.3, n), draw.normal(size, 1, n))
        return found.low, found.high

    return Case("bias/gain", f"pressure at {standard_errors} SE", 1.0, ends, sizes=(32, 200))


def estimated(
    number: str, world: str, truth: float, values: Callable[[Draw, int], np.ndarray], promise: float, bounds: Ends | None = None
) -> Case:
    def ends(draw: Draw, n: int) -> Ends:
        found = pressure.estimate(values(draw, n), bounds)
        return found.low, found.high

    return Case(number, world, truth, ends, promise=promise)


def rise(draw: Draw, n: int) -> np.ndarray:
    difference: np.ndarray = (draw.binomial(4, 0.5, n) - draw.binomial(4, 0.5, n)) / 4
    return difference


def seeds(n: int) -> Case:
    return Case("seeds", "normal", 1.8, lambda draw, n: t_interval(draw.normal(1.8, 4, n)), sizes=(n,))


def cases() -> Iterator[Case]:
    yield from map(accuracy, (0.01, 0.5, 0.99))
    yield finished(0.99)
    yield from (finished_of_four(a, b) for a, b in ((0.5, 0.5), (2.97, 0.03)))
    yield from map(mean_tokens, (0.6, 1.0))
    yield from (logprob(), logprob_vs())
    yield from (accuracy_vs(0.5, *change) for change in ((0.02, 0.01), (0.10, 0.05)))
    yield from (pass_at(k, a, b) for k in (1, 4) for a, b in ((2.97, 0.03), (0.3, 0.3), (0.02, 1.98)))
    yield judged("within_prompt_auroc", "a good judge", float(ndtr(2 / math.sqrt(2))), two_of_each(2.0))
    yield judged("selection_gain", "a blind judge", 0.0, two_of_each(0.0))
    yield judged("brier", "right 90%, said .9", 0.09, sure(0.9))
    yield from (prefers(0.98), mean_score(), position(0.6), position(0.98), length_controlled(0.6))
    yield from map(drift, (0.01, 0.2))
    yield from map(pressure_of_rate, (0.01, 0.5))
    yield from map(gain, (0.0001, 1.0, 2.0, 5.0))
    yield estimated("bias/kl", "gamma(0.5)", 0.5, lambda draw, n: draw.gamma(0.5, 1.0, n), 0.92)
    yield estimated("gold rise", "4 samples each", 0.0, rise, 0.93, pressure.DIFFERENCE)
    yield from (seeds(3), seeds(5))


# -- measuring ----------------------------------------------------------------------------------------------------------
def covered(case: Case, n: int, draws: int, seed: int = 0) -> float:
    """The share of draws whose interval holds the truth; an unknown interval does not."""
    draw = np.random.default_rng([seed, n])
    found = (case.ends(draw, n) for _ in range(draws))
    return float(np.mean([low <= case.truth <= high for low, high in found]))


def told(case: Case, n: int, draws: int) -> bool:
    """Print the coverage; whether it may be what is promised."""
    share = covered(case, n, draws)
    low, high = share_interval(np.repeat([1.0, 0.0], [round(share * draws), draws - round(share * draws)]))
    kept = high >= case.promise
    text = f"{case.number:<26}{case.world:<34}{n:>5}  {share:.1%} [{low:.1%}, {high:.1%}]  at least {case.promise:.1%}"
    print(f"{text}  {'kept' if kept else 'BROKEN'}", flush=True)
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(prog="ratchet bench coverage", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--only", default="", help="of the numbers below, these, with commas between")
    o = parser.parse_args()
    began, wanted = time.time(), [name for name in o.only.split(",") if name]
    for number, where in SHOWN.items():
        print(f"{number:<26}stands for {where}")
    print(f"\n{'number':<26}{'data':<34}{'n':>5}  coverage of 95% intervals")
    tried = [(case, n) for case in cases() if not wanted or case.number in wanted for n in case.sizes]
    kept = [told(case, n, o.draws) for case, n in tried]
    print(f"{time.time() - began:.0f} s; {sum(kept)} of {len(kept)} promises kept")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
