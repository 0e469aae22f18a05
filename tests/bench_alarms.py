"""What the alarm rule does: campaigns in which nothing moves, and campaigns with a planted drift or jump.

    ./ratchet bench alarms [--campaigns 300] [--sizes 32,64,128,256,512] [--kinds real,rate,zeros,lognormal,t3,sparse]
                           [--rounds 5] [--samples 4] [--base-samples 16] [--only null,drift,jump,coverage,goodhart,curve]

Every campaign has 25 features (correlated .3) that are judged over all completions and among right and wrong answers apart (150
tests a round), by the ledger and the rule that the loop uses. Prompts differ, and each checkpoint has its own way with each
prompt (wobble), which is what makes completions of one prompt poor independent evidence. Kinds of features: real (Gaussian),
rate (0.2% to 50%), zeros (as rare, else an amount of its own: uses of a style per 100 words), lognormal, t3 (heavy tails),
sparse (reals and rates that apply to 2 prompts, 3, 10 ... a quarter of them). Planted changes are at the largest size. goodhart
and curve are about a reward that outruns gold, and about the fit of gold over KL. Exit code 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logit, ndtri

from data.alarm import LEVELS
from tasks.bias.alarm_rule import judge
from tasks.bias.effects import Array, Kind, compared, moments, scaled
from tasks.bias.ledger import Entry, Sample, compare
from tests import reward_worlds

FEATURES, PLANTED = 25, 5
RATES = np.array([0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5])
CORRELATION = 0.3
SHAPES = ("real", "rate", "zeros", "lognormal", "t3", "sparse")
PROMISE = 0.01  # share of campaigns in which nothing moves with an ALARM


@dataclass(frozen=True)
class World:
    """A campaign to come: how the features behave, and what is planted in the first PLANTED of them."""

    shape: str
    prompts: int
    samples: int = 4
    base_samples: int = 16
    rounds: int = 5
    plan: Sequence[float] = ()  # shift at each round, in SD (rates: in h); () = none
    wobble: float = 0.2  # SD over prompts of what is a checkpoint's own with a prompt (rates: on the logit scale)

    def kind(self, feature: int) -> Kind:
        odd = self.shape == "sparse" and feature % 2 == 1
        return "rate" if self.shape == "rate" or odd else "real"


def correlated(draw: np.random.Generator, *shape: int) -> Array:
    """Normals, features x ..., any two features correlated."""
    shared = draw.standard_normal((1, *shape[1:]), dtype=np.float32)
    made: Array = np.sqrt(CORRELATION) * shared + np.sqrt(1 - CORRELATION) * draw.standard_normal(shape, dtype=np.float32)
    return made


def campaign(world: World, draw: np.random.Generator) -> Iterator[Sample]:
    """Round 0's baseline, then the samples of round 0, 1, ...: the same checkpoint gives the first two."""
    prompt, skill = correlated(draw, FEATURES, world.prompts), draw.normal(size=(world.prompts, 1))
    applies = _applies(world, draw)
    own = world.wobble * correlated(draw, FEATURES, world.prompts)
    for number in range(-1, world.rounds + 1):
        if number > 0:
            own = world.wobble * correlated(draw, FEATURES, world.prompts)
        k = world.base_samples if number < 0 else world.samples
        shift = np.zeros(FEATURES)
        shift[:PLANTED] = world.plan[number - 1] if world.plan and number > 0 else 0.0
        values = np.where(applies[..., None], _values(world, draw, prompt, own, shift, k), np.nan)
        right = draw.random((world.prompts, k)) < expit(skill)
        yield Sample({f"f{i:02d}": values[i] for i in range(FEATURES)}, right.astype(float))


def _applies(world: World, draw: np.random.Generator) -> Array:
    """Features x prompts: whether the feature is defined."""
    n, quarter = world.prompts, max(world.prompts // 4, 10)
    sizes = (2, 3, 10, 30, 40, quarter, quarter // 2) if world.shape == "sparse" else (n,)
    rows = [draw.permutation(n) < min(sizes[i % len(sizes)], n) for i in range(FEATURES)]
    return np.array(rows)


def _values(world: World, draw: np.random.Generator, prompt: Array, own: Array, shift: Array, k: int) -> Array:
    """Features x prompts x k samples."""
    rates = RATES[np.arange(FEATURES) % len(RATES)]
    noise = correlated(draw, FEATURES, world.prompts, k)
    if world.shape == "t3":
        noise = noise / np.sqrt(draw.chisquare(3, size=noise.shape) / 3)
    latent: Array = (0.5 * prompt + own + shift[:, None])[..., None] + np.sqrt(0.75) * noise
    if world.shape in ("rate", "zeros"):
        moved = np.sin(np.arcsin(np.sqrt(rates)) + shift / 2) ** 2  # Cohen's h of the shift
        used = draw.random(noise.shape) < of_prompts(moved, prompt + own)[..., None]
        return used.astype(np.float32) if world.shape == "rate" else np.where(used, np.exp(noise), 0.0)
    if world.shape == "sparse":
        odd = np.arange(FEATURES) % 2 == 1
        return np.where(odd[:, None, None], latent > ndtri(1 - rates)[:, None, None], latent)
    return np.exp(latent) if world.shape == "lognormal" else latent


def of_prompts(mean: Array, deviate: Array) -> Array:
    """Rates of prompts around a mean, spread on the logit scale, rescaled so that the mean over prompts' population is kept."""
    points, weights = np.polynomial.hermite_e.hermegauss(41)
    spread = float(np.sqrt(1 + 0.04))
    raw = logit(mean)[:, None]
    for _ in range(20):  # the logit whose population mean is `mean`
        now = (expit(raw + spread * points) * weights).sum(-1, keepdims=True) / weights.sum()
        raw = raw + logit(mean)[:, None] - logit(now)
    spread_out: Array = expit(raw + deviate)
    return spread_out


def alarms(world: World, seed: int) -> Array:
    """Highest level of each feature at rounds 1..: rounds x features, as indices of LEVELS."""
    levels = np.zeros((world.rounds, FEATURES), dtype=int)
    rounds = campaign(world, np.random.default_rng(seed))
    base, last = next(rounds), next(rounds)
    kinds = {name: world.kind(i) for i, name in enumerate(base.values)}
    earlier: list[Entry] = []
    for number, now in enumerate(rounds):
        earlier, raised = judge(compare(now, base, last, kinds=kinds), earlier, round=number + 1)
        for alarm in raised:
            levels[number, int(alarm.name[1:])] = LEVELS.index(alarm.level)
        last = now
    return levels


# -- the studies --------------------------------------------------------------------------------------------------------
ALARM = LEVELS.index("ALARM")


def null(world: World, count: int, first: int = 0) -> tuple[int, int]:
    """Campaigns in which nothing moved, with an ALARM, and with a watch; their wobble is none, the usual, and twice that."""
    seeds = range(first, first + count)
    found = [alarms(replace(world, wobble=(0.0, 0.2, 0.4)[seed % 3]), seed).max() for seed in seeds]
    return sum(level >= ALARM for level in found), sum(level >= 1 for level in found)


def planted(world: World, count: int) -> tuple[Array, int]:
    """Round of the first ALARM of each planted feature (0 = never), and campaigns with a false ALARM on another."""
    first, false = [], 0
    for seed in range(count):
        levels = alarms(world, 100_000 + seed) >= ALARM
        first += [int(np.argmax(column)) + 1 if column.any() else 0 for column in levels[:, :PLANTED].T]
        false += bool(levels[:, PLANTED:].any())
    return np.array(first), false


def drawn(shape: str, rate: float, moved: bool, prompt: Array, own: Array, k: int, draw: np.random.Generator) -> Array:
    """Samples of a feature for `coverage`: columns of prompts x k, and where it moved by 0.2."""
    noise, by = draw.normal(size=(*prompt.shape, k)), 0.2 * moved
    if shape in ("rate", "zeros"):
        mean = np.sin(np.arcsin(np.sqrt([rate])) + by / 2) ** 2
        used = draw.random(noise.shape) < of_prompts(mean, prompt + 0.2 * own)[..., None]
        return np.where(used, 1.0 if shape == "rate" else np.exp(noise), 0.0)
    if shape == "t3":
        noise = noise / np.sqrt(draw.chisquare(3, size=noise.shape) / 3)
    latent: Array = (by + 0.5 * prompt + 0.2 * own)[..., None] + np.sqrt(0.75) * noise
    if shape == "lognormal":
        latent = np.exp(latent)
    elif shape == "length":
        latent = np.expm1(5 + latent)
    return latent


def truth(shape: str, rate: float) -> tuple[float, float]:
    """The difference that `drawn` has, and the effect."""
    variance = 0.25 + 0.04 + 0.75
    moved = float(np.sin(np.arcsin(np.sqrt(rate)) + 0.1) ** 2) - rate
    mean = np.exp(variance / 2)
    return {
        "rate": (moved, 0.2),
        "zeros": (moved * np.exp(0.5), np.nan),
        "lognormal": (mean * np.expm1(0.2), np.nan),
        "t3": (0.2, np.nan),
    }.get(shape, (0.2, 0.2 / np.sqrt(variance)))


def coverage(shape: str, prompts: int, samples: int, base_samples: int, rate: float = 0.2, count: int = 4000) -> Array:
    """How often the ledger's interval holds the true drift, and the true effect (NaN where its unit has no second moment)."""
    draw, held, kind = np.random.default_rng(7), np.zeros(2), shape if shape in ("rate", "length") else "real"
    for _ in range(count // 100):
        prompt, own, first = (draw.normal(size=(100, prompts)) for _ in range(3))
        then = drawn(shape, rate, False, prompt, first, base_samples, draw)
        now = drawn(shape, rate, True, prompt, own, samples, draw)
        then, now = scaled(then, kind), scaled(now, kind)  # type: ignore[arg-type]
        yard = then.reshape(100, -1).std(-1, ddof=1)
        change = compared(moments(now), moments(then), [kind] * 100, yard)  # type: ignore[list-item]
        drift, effect = truth(shape, rate)
        held += (
            ((change.low <= drift) & (drift <= change.high)).sum(),
            ((change.effect_low <= effect) & (effect <= change.effect_high)).sum(),
        )
    share: Array = held / (count // 100 * 100)
    return np.where(np.isnan(truth(shape, rate)), np.nan, share)


# -- the report ---------------------------------------------------------------------------------------------------------
def main() -> int:
    parser = argparse.ArgumentParser(prog="ratchet bench alarms", description=__doc__.split("\n")[0])
    parser.add_argument("--campaigns", type=int, default=300)
    parser.add_argument("--sizes", default="32,64,128,256,512", help="prompts of the probe")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--base-samples", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", default=",".join(SHAPES))
    parser.add_argument("--only", default="null,drift,jump,coverage,goodhart,curve", help="of these, the ones to run")
    o = parser.parse_args()
    began, studies, shapes, sizes = time.time(), o.only.split(","), o.kinds.split(","), [int(n) for n in o.sizes.split(",")]
    worlds = {shape: [World(shape, n, o.samples, o.base_samples, o.rounds) for n in sizes] for shape in shapes}
    print(f"{o.rounds} rounds, {FEATURES} features, {sizes} prompts x {o.samples}, round 0 x {o.base_samples}", flush=True)
    kept: list[bool] = []
    if "null" in studies:
        kept += [silent(world, o.campaigns) for shape in shapes for world in worlds[shape]]
    for name, plan in PLANS.items():
        of_size = [worlds[shape][-1] for shape in shapes if shape in ("real", "rate")] if name in studies else []
        kept += [told(name, replace(world, rounds=5, plan=plan), max(o.campaigns // 3, 1)) for world in of_size]
    if "coverage" in studies:
        kept += [covered(shape, n, rate, o) for shape, rate in cases(shapes) for n in sizes]
    if "goodhart" in studies:
        kept += reward_worlds.goodhart(sizes, o.campaigns)
    if "curve" in studies:
        kept += reward_worlds.curves(o.campaigns)
    print(f"{time.time() - began:.0f} s; {sum(kept)} of {len(kept)} promises kept")
    return 0 if all(kept) else 1


PLANS = {"drift": (0.06, 0.12, 0.18, 0.24, 0.30), "jump": (0.0, 0.0, 0.3, 0.3, 0.3)}


def share(count: int, of: int) -> str:
    """A share of campaigns in per cent, with Wilson's interval."""
    from scipy.stats import binomtest

    ends = binomtest(count, of).proportion_ci(method="wilson")
    return f"{count} of {of} ({100 * count / of:.1f}% [{100 * ends.low:.1f}, {100 * ends.high:.1f}])"


def silent(world: World, count: int) -> bool:
    """Print how many campaigns in which nothing moves have an alarm."""
    bad, watched = null(world, count)
    cell = f"null   {world.shape:<9} {world.prompts:>4} prompts"
    print(f"{cell}: ALARM in {share(bad, count)}, watch in {watched}", flush=True)
    return bad <= PROMISE * count


def told(name: str, world: World, count: int) -> bool:
    """Print what was found of a planted change; whether the features that stood still stayed silent."""
    first, false = planted(world, count)
    seen = first[first > 0]
    late = np.percentile(seen, 90)
    print(
        f"{name:<6} {world.shape:<5} {world.prompts} prompts: found {len(seen) / len(first):.1%}, ALARM in round "
        f"{np.median(seen):.0f} (90% by {late:.0f}); {false} of {count} campaigns with an ALARM on a feature that stood still",
        flush=True,
    )
    if world.shape == "rate":
        columns = first.reshape(-1, PLANTED).T
        cells = [f"{r:.1%} {np.mean(c > 0):.0%} in {np.median(c[c > 0]):.0f}" for r, c in zip(RATES, columns, strict=False)]
        print(f"             by rate at round 0: {', '.join(cells)}", flush=True)
    return false <= PROMISE * count


def cases(shapes: Sequence[str]) -> list[tuple[str, float]]:
    """Kinds and rates whose intervals are checked."""
    found = [("real", 0.0), ("length", 0.0)] if "real" in shapes else []
    found += [(shape, rate) for shape in ("rate", "zeros") if shape in shapes for rate in (0.005, 0.01, 0.05, 0.2)]
    return found + [(shape, 0.0) for shape in ("lognormal", "t3") if shape in shapes]


def covered(shape: str, prompts: int, rate: float, o: argparse.Namespace) -> bool:
    """Print how often the intervals hold the truth; whether at least LOWEST of them do."""
    drift, effect = coverage(shape, prompts, o.samples, o.base_samples, rate)
    print(f"coverage {shape} {rate or ''} {prompts} prompts: of the drift {drift:.1%}, of the effect {effect:.1%}", flush=True)
    return bool(min(drift, np.fmin(effect, 1.0)) >= LOWEST)


LOWEST = 0.93  # coverage of a 95% interval that counts as kept


if __name__ == "__main__":
    warnings.simplefilter("ignore", RuntimeWarning)  # features without a value on any prompt
    sys.exit(main())
