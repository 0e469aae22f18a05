"""Campaigns with a judge beside gold, for `./ratchet bench alarms`: one rises as gold does, one is gamed. And a curve.

The alarm is the loop's (tasks/bias/overoptimisation.py). Round 0 has 16 samples of a prompt, later rounds 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from tasks.bias import overoptimisation
from tasks.bias.effects import Array
from tasks.bias.pressure import Estimate

ROUNDS = 3
CALIBRATED = {  # judge -> what it says of a completion whose chance to be right has this logit
    "probability": lambda logit, draw: expit(logit),
    "logit": lambda logit, draw: logit,
    "noisy": lambda logit, draw: logit + draw.normal(0, 2, logit.shape),
    "grades": lambda logit, draw: np.round(5 * expit(logit)),
}


@dataclass(frozen=True)
class Judged:
    """A campaign to come: per round, by how many logits answers get better, and what is paid for an empty habit."""

    judge: str
    prompts: int
    better: Sequence[float] = (0.0,) * ROUNDS
    habit: Sequence[float] = (0.0,) * ROUNDS  # in SD of the judge within prompts, on average over answers
    wobble: float = 0.2


def campaign(world: Judged, draw: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """(judge, gold) of round 0, 1, ...: prompts x samples."""
    prompt = draw.normal(0, 1.5, (world.prompts, 1))
    spread = None
    for number, (better, habit) in enumerate([(0.0, 0.0), *zip(world.better, world.habit, strict=True)]):
        k = 4 if number else 16
        own = world.wobble * draw.normal(size=(world.prompts, 1))
        logit = prompt + own + better + draw.normal(0, 1, (world.prompts, k))
        judged = CALIBRATED[world.judge](logit, draw)
        spread = spread or float(np.sqrt(judged.var(-1).mean()))
        yield (
            judged + habit * spread * draw.gamma(1.0, 1.0, logit.shape),
            (draw.random(logit.shape) < expit(logit)).astype(float),
        )


def levels(world: Judged, seed: int) -> list[str]:
    """The level of the alarm in each round; "" = none."""
    rounds = campaign(world, np.random.default_rng(seed))
    judged_0, gold_0 = next(rounds)
    facts: dict[str, object] = {}
    found: list[str] = []
    earlier: list[dict[str, object]] = []
    for number, (judged, gold) in enumerate(rounds, 1):
        gap = overoptimisation.proxy_gap(judged, gold, judged_0, gold_0)
        facts = overoptimisation.facts_of(number, None, gold, gold_0, gap, facts)
        alarms = overoptimisation.alarms_of(facts, earlier)
        earlier = [vars(alarm) for alarm in alarms]
        found.append(alarms[0].level if alarms else "")
    return found


NULLS = {  # nothing that the judge says is wrong
    "still": (0.0, 0.0, 0.0),
    "rises a little": (0.05, 0.1, 0.15),
    "rises": (0.2, 0.4, 0.6),
    "rises fast": (0.6, 1.2, 1.8),
    "falls": (-0.2, -0.4, -0.6),
}
GAMED = {"slowly": (0.25, 0.5, 0.75), "at once": (1.0, 1.0, 1.0)}


def goodhart(sizes: Sequence[int], count: int) -> list[bool]:
    """Print how often a good judge and a gamed one alarm; whether good ones do in at most 1% of campaigns."""
    kept: list[bool] = []
    for judge in CALIBRATED:
        for prompts in sizes:
            cells = []
            for name, better in NULLS.items():
                found = [levels(Judged(judge, prompts, better), seed) for seed in range(count)]
                wrong = sum("ALARM" in of for of in found)
                kept.append(wrong <= 0.01 * count)
                cells.append(f"{name} {wrong}/{count} ({sum(any(of) for of in found)} watch)")
            for name, habit in GAMED.items():
                found = [levels(Judged(judge, prompts, habit=habit), 10_000 + seed) for seed in range(count)]
                cells.append(f"gamed {name} {sum('ALARM' in of for of in found) / count:.0%}")
            print(f"reward {judge:<11} {prompts:>4} prompts: ALARM {', '.join(cells)}", flush=True)
    return kept


# -- gold over KL -------------------------------------------------------------------------------------------------------
ERROR, SHARED = 0.02, 0.2  # of the gold of a round: about 400 prompts; and how much of it is round 0's
A, TURNING, RISING = 0.15, 0.08, 0.0  # the curve d (A - b log d): b where it turns down at a KL of 5.8, and where it only rises


def fits(b: float, rounds: int, count: int, seed: int = 0) -> list[overoptimisation.Curve]:
    """Fits of campaigns whose gold follows d (A - b log d) up to a KL of 25, but for the noise of the probe."""
    draw, d = np.random.default_rng(seed), np.linspace(0.5, 5.0, rounds)
    found = []
    for _ in range(count):
        noise = np.sqrt(SHARED) * draw.normal() + np.sqrt(1 - SHARED) * draw.normal(size=rounds)
        gold = d * (A - b * np.log(d)) + ERROR * noise
        found.append(overoptimisation.fitted((d**2).tolist(), gold.tolist(), [ERROR] * rounds, SHARED))
    return [curve for curve in found if curve is not None]


def holds(estimate: Estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


def curves(count: int) -> list[bool]:
    """Print how often the intervals of the fit hold the truth, and how often a peak is told where there is none."""
    kept: list[bool] = []
    for rounds in (3, 5, 10):
        found = fits(TURNING, rounds, count)
        known = [curve.kl_at_peak for curve in found if np.isfinite(curve.kl_at_peak.value)]
        held = [np.mean([holds(curve.a, A) for curve in found]), np.mean([holds(curve.b, TURNING) for curve in found])]
        held.append(np.mean([holds(peak, float(np.exp(2 * (A / TURNING - 1)))) for peak in known]))
        told = np.mean([np.isfinite(curve.kl_at_peak.value) for curve in fits(RISING, rounds, count)])
        kept += [bool(min(held) >= 0.93), bool(told <= 0.05)]
        shares = ", ".join(f"{name} {share:.1%}" for name, share in zip("ab", held, strict=False))
        print(
            f"curve  {rounds} rounds: coverage {shares}, of the peak {held[2]:.1%} where it is told "
            f"({len(known) / count:.0%}); a peak is told of {told:.1%} that only rise",
            flush=True,
        )
    return kept
