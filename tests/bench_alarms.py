"""What the alarm rule does: campaigns in which nothing moves, and campaigns with a planted drift or jump.

    ./ratchet bench alarms [--campaigns 1000] [--prompts 512] [--samples 4] [--base-samples 16]

Every campaign has 5 rounds and 25 features (correlated .3) that are judged over all completions and among right and wrong
answers apart (200 tests a round), by the rule the loop uses (tasks/bias/alarm_rule.py). Prompts differ, and each checkpoint has
its own way with each prompt (wobble), which is what makes completions of one prompt poor independent evidence. Rates run from
0.2% to 50%. The intervals of the ledger are checked for coverage. Exit code 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit, logit

from data.alarm import LEVELS
from tasks.bias.alarm_rule import judge
from tasks.bias.effects import Array, Kind, changes, cohens_h, paired_t, prompt_means, resamples
from tasks.bias.ledger import Entry

FEATURES, ROUNDS, PLANTED = 25, 5, 5
RATES = np.array([0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5])
CORRELATION = 0.3


@dataclass(frozen=True)
class World:
    """A campaign to come: how the features behave, and what is planted in the first PLANTED of them."""

    kind: Kind
    prompts: int
    samples: int
    base_samples: int
    plan: Sequence[float] = (0.0,) * ROUNDS  # shift at each round, in SD (rates: in h)
    wobble: float = 0.2  # SD over prompts of what is a checkpoint's own with a prompt (rates: on the logit scale)
    groups: bool = True


def correlated(draw: np.random.Generator, *shape: int) -> Array:
    """Normals, features x ..., any two features correlated."""
    shared = draw.standard_normal((1, *shape[1:]), dtype=np.float32)
    made: Array = np.sqrt(CORRELATION) * shared + np.sqrt(1 - CORRELATION) * draw.standard_normal(shape, dtype=np.float32)
    return made


def campaign(world: World, draw: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """(values, right) of round 0, 1, ...: features x prompts x samples, and prompts x samples."""
    rates = RATES[np.arange(FEATURES) % len(RATES)]
    prompt = correlated(draw, FEATURES, world.prompts)
    skill = draw.normal(size=(world.prompts, 1))
    for number in range(ROUNDS + 1):
        k = world.samples if number else world.base_samples
        own = world.wobble * correlated(draw, FEATURES, world.prompts)
        shift = np.zeros(FEATURES)
        shift[:PLANTED] = world.plan[number - 1] if number else 0.0
        right = draw.random((world.prompts, k)) < expit(skill)
        if world.kind == "rate":
            moved = np.sin(np.arcsin(np.sqrt(rates)) + shift / 2) ** 2  # Cohen's h of the shift
            p = _rates(moved, prompt + own)
            yield (draw.random((FEATURES, world.prompts, k)) < p[..., None]).astype(np.float32), right
        else:
            noise = correlated(draw, FEATURES, world.prompts, k)
            yield (0.5 * prompt + own + shift[:, None])[..., None] + np.sqrt(0.75) * noise, right


def _rates(mean: Array, deviate: Array) -> Array:
    """Rates of prompts around a mean, spread on the logit scale, rescaled so that the mean over prompts' population is kept."""
    points, weights = np.polynomial.hermite_e.hermegauss(41)
    spread = float(np.sqrt(1 + 0.04))
    raw = logit(mean)[:, None]
    for _ in range(20):  # the logit whose population mean is `mean`
        now = (expit(raw + spread * points) * weights).sum(-1, keepdims=True) / weights.sum()
        raw = raw + logit(mean)[:, None] - logit(now)
    spread_out: Array = expit(raw + deviate)
    return spread_out


def entries(world: World, now: tuple[Array, Array], base: tuple[Array, Array], last: tuple[Array, Array]) -> list[Entry]:
    """What `tasks.bias.ledger.compare` gives, with t intervals in place of its bootstrap: that is what takes the time."""
    made: list[Entry] = []
    yard = [float(v.std(ddof=1)) for v in base[0]]
    for group in (None, "right", "wrong") if world.groups else (None,):
        ours, first, before = (_means(sample, group) for sample in (now, base, last))
        drift, p, n = paired_t(ours, first)
        step, step_p, _ = paired_t(ours, before)
        both = ~np.isnan(ours - first)
        mean, then = (prompt_means(np.where(both, side, np.nan)) for side in (ours, first))
        if world.kind == "rate":
            effect, step_effect = cohens_h(mean, then), cohens_h(prompt_means(ours), prompt_means(before))
        else:
            effect, step_effect = drift / yard, step / yard
        half = 1.96 * np.nanstd(ours - first, axis=-1) / np.sqrt(n)
        for i in range(FEATURES):
            numbers = [mean[i], then[i], drift[i], drift[i] - half[i], drift[i] + half[i], effect[i], None, None, p[i],
                       step[i], None, None, step_effect[i], step_p[i]]  # fmt: skip
            known: list[Any] = [None if x is None or np.isnan(x) else float(x) for x in numbers]
            made.append(Entry(f"f{i:02d}", group, world.kind, int(n[i]), *known))
    return made


def _means(sample: tuple[Array, Array], group: str | None) -> Array:
    values, right = sample
    return prompt_means(values if group is None else np.where(right == (group == "right"), values, np.nan))


def alarms(world: World, seed: int) -> Array:
    """Highest level of each feature at rounds 1..: rounds x features, as indices of LEVELS."""
    levels = np.zeros((ROUNDS, FEATURES), dtype=int)
    rounds = campaign(world, np.random.default_rng(seed))
    base = last = next(rounds)
    earlier: list[Entry] = []
    for number, now in enumerate(rounds):
        earlier, raised = judge(entries(world, now, base, last), earlier, round=number + 1)
        for alarm in raised:
            levels[number, int(alarm.name[1:])] = LEVELS.index(alarm.level)
        last = now
    return levels


# -- the studies --------------------------------------------------------------------------------------------------------
ALARM = LEVELS.index("ALARM")


def null(world: World, count: int) -> tuple[int, int]:
    """Campaigns in which nothing moved, with an ALARM, and with a watch; their wobble is none, the usual, and twice that."""
    found = [alarms(replace(world, wobble=(0.0, 0.2, 0.4)[seed % 3]), seed).max() for seed in range(count)]
    return sum(level >= ALARM for level in found), sum(level >= 1 for level in found)


def planted(world: World, count: int) -> tuple[Array, int]:
    """Round of the first ALARM of each planted feature (0 = never), and campaigns with a false ALARM on another."""
    first, false = [], 0
    for seed in range(count):
        levels = alarms(world, 100_000 + seed) >= ALARM
        first += [int(np.argmax(column)) + 1 if column.any() else 0 for column in levels[:, :PLANTED].T]
        false += bool(levels[:, PLANTED:].any())
    return np.array(first), false


def coverage(
    kind: Kind, prompts: int, samples: int, base_samples: int, rate: float = 0.2, count: int = 4000
) -> tuple[float, float]:
    """How often the ledger's bootstrap interval holds the true drift, and the true effect."""
    held = np.zeros(2)
    draw = np.random.default_rng(7)
    for _ in range(count // 100):
        resamples.cache_clear()
        prompt, own, first = (draw.normal(size=(100, prompts)) for _ in range(3))
        if kind == "rate":
            shifted = float(np.sin(np.arcsin(np.sqrt(rate)) + 0.1) ** 2)
            low, high = _rates(np.array([rate]), prompt + 0.2 * first), _rates(np.array([shifted]), prompt + 0.2 * own)
            then = (draw.random((100, prompts, base_samples)) < low[..., None]).astype(float)
            now = (draw.random((100, prompts, samples)) < high[..., None]).astype(float)
            true = (shifted - rate, 0.2)
        else:
            then = (0.5 * prompt + 0.2 * first)[..., None] + np.sqrt(0.75) * draw.normal(size=(100, prompts, base_samples))
            now = (0.2 + 0.5 * prompt + 0.2 * own)[..., None] + np.sqrt(0.75) * draw.normal(size=(100, prompts, samples))
            true = (0.2, 0.2 / np.sqrt(0.25 + 0.04 + 0.75))
            if kind == "length":
                then, now, true = np.expm1(5 + then), np.expm1(5 + now), true
        yard = [float(np.std(np.log1p(v) if kind == "length" else v)) for v in then]
        change = changes(list(now), list(then), [kind] * 100, yard)
        held += (
            ((change.low <= true[0]) & (true[0] <= change.high)).sum(),
            ((change.effect_low <= true[1]) & (true[1] <= change.effect_high)).sum(),
        )
    drift, effect = held / (count // 100 * 100)
    return drift, effect


def main() -> int:
    parser = argparse.ArgumentParser(prog="ratchet bench alarms", description=__doc__.split("\n")[0])
    parser.add_argument("--campaigns", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--base-samples", type=int, default=16)
    parser.add_argument("--kinds", default="real,rate")
    parser.add_argument("--only", default="null,drift,jump,coverage", help="of these, the ones to run")
    o = parser.parse_args()
    began, size, studies, kinds = time.time(), (o.prompts, o.samples, o.base_samples), o.only.split(","), o.kinds.split(",")
    print(f"{ROUNDS} rounds, {FEATURES} features, {o.prompts} prompts x {o.samples}, round 0 x {o.base_samples}")
    kept: list[bool] = []
    for kind in kinds:
        if "null" in studies:
            bad, watched = null(World(kind, *size), o.campaigns)
            kept.append(bad <= 3 * o.campaigns / 1000)
            print(f"null   {kind:<5} {bad} of {o.campaigns} campaigns with an ALARM, {watched} with a watch", flush=True)
        for name, plan in PLANS.items():
            if name in studies:
                kept.append(told(name, World(kind, *size, plan=plan), o.campaigns // 2))
    if "coverage" in studies:
        cases = [("real", 0.0), ("length", 0.0)] if "real" in kinds else []
        for kind, rate in [*cases, *((("rate", r) for r in RATES[1:7]) if "rate" in kinds else ())]:
            drift, effect = coverage(kind, *size, rate=rate)
            kept += [abs(drift - 0.95) <= 0.015, abs(effect - 0.95) <= 0.015]
            print(f"coverage {kind} {rate or ''}: of the drift {drift:.1%}, of the effect {effect:.1%}", flush=True)
    print(f"{time.time() - began:.0f} s; {sum(kept)} of {len(kept)} promises kept")
    return 0 if all(kept) else 1


PLANS = {"drift": (0.06, 0.12, 0.18, 0.24, 0.30), "jump": (0.0, 0.0, 0.3, 0.3, 0.3)}


def told(name: str, world: World, count: int) -> bool:
    """Print what was found of a planted change; whether the features that stood still stayed silent."""
    first, false = planted(world, count)
    seen = first[first > 0]
    late, kind = np.percentile(seen, 90), world.kind
    print(
        f"{name:<6} {kind:<5} found {len(seen) / len(first):.1%}, ALARM in round {np.median(seen):.0f} (90% by {late:.0f}); "
        f"{false} of {count} campaigns with an ALARM on a feature that stood still",
        flush=True,
    )
    if kind == "rate":
        columns = first.reshape(-1, PLANTED).T
        cells = [f"{r:.1%} {np.mean(c > 0):.0%} in {np.median(c[c > 0]):.0f}" for r, c in zip(RATES, columns, strict=False)]
        print(f"             by rate at round 0: {', '.join(cells)}", flush=True)
    return false <= 3 * count / 1000


if __name__ == "__main__":
    sys.exit(main())
