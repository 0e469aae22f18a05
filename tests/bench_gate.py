"""What the gate does in whole campaigns: all checkpoints equal, and with a planted gain.

    ./ratchet bench gate [--campaigns 1000] [--sizes 32,100,200,500,1000] [--rounds 1,3,5,10,20] [--samples 4]

Every round is measured by the stage's own function (tasks/evaluate/measure.py) and decided by the real gate. A prompt has a
difficulty, each checkpoint its own way with it (wobble), and both decide the greedy and the sampled answers. Null campaigns mix
three worlds, one of them with checkpoints that hardly differ. Exit code 1 where a promise is broken: then even the lower end of
the rate's Wilson interval is above 5%.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binomtest, norm

from data.recipe.settings import Gate
from data.store.campaign import Metric
from tasks.evaluate.measure import versus_champion
from tasks.evaluate.paired_shares import Right
from tasks.gate.gate import DIFFERENCE, SPREAD, decide, gate_facts
from tasks.gate.spending import FACT, error_of_round, gain_to_count_on

PROMISE = 0.05
QUANTILES = norm.ppf((np.arange(4000) + 0.5) / 4000)


@dataclass(frozen=True)
class World:
    """How prompts and checkpoints differ, on the logit scale, and what the first round gains."""

    prompts: int
    rounds: int
    samples: int = 4
    difficulty: float = 2.0  # SD over prompts
    wobble: float = 0.5  # SD over prompts of what is a checkpoint's own with a prompt
    gain: float = 0.0  # of the share of right answers


NULL: tuple[dict[str, float], ...] = (
    {},
    {"difficulty": 6.0, "wobble": 0.1},
    {"wobble": 1.0},
)  # the usual world; few answers change; many change


def null_world(number: int, prompts: int, rounds: int, samples: int) -> World:
    """One of the worlds of null campaigns, in turn."""
    return replace(World(prompts, rounds, samples), **NULL[number % len(NULL)])  # type: ignore[arg-type]


@dataclass
class Played:
    """A campaign's decisions: the round of the first promotion, its shown gain, that to count on, and roll-backs."""

    promoted: list[int] = field(default_factory=list)
    shown: list[float] = field(default_factory=list)
    counted: list[float] = field(default_factory=list)
    smallest: list[float] = field(default_factory=list)
    rolled_back: int = 0


def accuracy(world: World, shift: float) -> float:
    """The share of right answers in the population, greedy and sampled ones alike."""
    logits = np.hypot(world.difficulty, world.wobble) * QUANTILES + shift
    return float(((logits > 0).mean() + world.samples * expit(logits).mean()) / (1 + world.samples))


def shift_of(world: World) -> float:
    """The shift of all logits that raises the share of right answers by the world's gain."""
    if not world.gain:
        return 0.0
    return float(brentq(lambda shift: accuracy(world, shift) - accuracy(world, 0.0) - world.gain, 0.0, 20.0))


def answers(world: World, draw: np.random.Generator) -> Iterator[Right]:
    """All answers of checkpoint 0, 1, ..., the greedy one first."""
    prompt, names = world.difficulty * draw.normal(size=world.prompts), list(map(str, range(world.prompts)))
    shift = shift_of(world)
    for number in range(world.rounds + 1):
        logits = prompt + world.wobble * draw.normal(size=world.prompts) + (shift if number else 0.0)
        sampled = draw.random((world.prompts, world.samples)) < expit(logits)[:, None]
        yield dict(zip(names, np.column_stack([logits > 0, sampled]).astype(float).tolist(), strict=True))


def play(world: World, seed: int) -> Played:
    """One campaign through the measuring function, the gate and its spending."""
    checkpoints, gate, played, size = answers(world, np.random.default_rng(seed)), Gate(), Played(), world.prompts
    champion, facts = next(checkpoints), list[dict[str, Any]]([{}])
    for number, checkpoint in enumerate(checkpoints, 1):
        rows = versus_champion("held_out", checkpoint, champion)
        metrics = {row["metric"]: Metric(**{k: row[k] for k in ("value", "low", "high", "n", "split")}) for row in rows}
        error = error_of_round(world.rounds, facts)
        verdict = decide(gate, metrics, error, None)
        facts.append(gate_facts(gate, metrics, error, None))
        played.smallest.append(facts[-1][FACT]["smallest_gain"])
        if verdict.decision == "promote":
            played.promoted.append(number)
            shown = metrics[DIFFERENCE].value or 0.0
            played.shown.append(shown)
            played.counted.append(gain_to_count_on(shown, metrics[SPREAD].value or 0.0, size, error))
            champion = checkpoint
        played.rolled_back += verdict.decision == "roll_back"
    return played


def rate(hits: int, n: int) -> tuple[str, bool]:
    """A rate with its Wilson interval in percent, and whether the promise can still hold."""
    interval = binomtest(hits, n).proportion_ci(method="wilson")
    return f"{100 * hits / n:4.1f}% [{100 * interval.low:.1f}, {100 * interval.high:.1f}]", interval.low <= PROMISE


def null(size: int, rounds: int, samples: int, campaigns: int) -> list[bool]:
    """Campaigns whose checkpoints are all equal: how many promote, and how many roll back."""
    worlds = [null_world(number, size, rounds, samples) for number in range(len(NULL))]
    played = [play(worlds[seed % len(worlds)], seed) for seed in range(campaigns)]
    promotions, kept = rate(sum(bool(p.promoted) for p in played), campaigns)
    roll_backs, also = rate(sum(p.rolled_back > 0 for p in played), campaigns)
    print(f"null     {size:>5} prompts {rounds:>3} rounds  promoted {promotions}  rolled back {roll_backs}", flush=True)
    return [kept, also]


def planted(size: int, gain: float, samples: int, campaigns: int, rounds: int = 3) -> list[bool]:
    """Campaigns whose first round gains `gain`, and whose later ones neither gain nor lose."""
    world = World(size, rounds, samples, gain=gain)
    played = [play(world, 100_000 + seed) for seed in range(campaigns)]
    first = [p for p in played if p.promoted]
    found = np.mean([p.promoted[:1] == [1] for p in played])
    above, kept = rate(sum(p.counted[0] > gain for p in first), campaigns)
    roll_backs, also = rate(sum(p.rolled_back > 0 for p in played), campaigns)
    shown, counted = (100 * np.mean([getattr(p, name)[0] for p in first]) if first else 0.0 for name in ("shown", "counted"))
    print(
        f"planted  {size:>5} prompts {100 * gain:+.1f} points  found at once {found:.2f}, in 3 {len(first) / campaigns:.2f}; "
        f"shown {shown:+.1f}, to count on {counted:+.1f}, too much {above}; rolled back {roll_backs}",
        flush=True,
    )
    return [kept, also]


def detectable(size: int, samples: int, campaigns: int, rounds: int = 3) -> list[bool]:
    """How often the gate finds a gain of just the size that it says it detects in 80% of cases."""
    gain = float(np.median([s for seed in range(20) for s in play(World(size, rounds, samples), seed).smallest]))
    played = [play(World(size, rounds, samples, gain=gain), 200_000 + seed) for seed in range(campaigns)]
    found, n = sum(p.promoted[:1] == [1] for p in played), len(played)
    interval = binomtest(found, n).proportion_ci(method="wilson")
    print(
        f"smallest {size:>5} prompts {100 * gain:+.1f} points  found {found / n:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
    )
    return [interval.high >= 0.75 and interval.low <= 0.85]


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(prog="ratchet bench gate", description=__doc__.split("\n")[0])
    parser.add_argument("--campaigns", type=int, default=1000)
    parser.add_argument("--sizes", type=numbers, default=[32, 100, 200, 500, 1000])
    parser.add_argument("--rounds", type=numbers, default=[1, 3, 5, 10, 20])
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--only", default="null,planted,smallest", help="of these, the ones to run")
    o = parser.parse_args()
    began, kept, studies = time.time(), [], o.only.split(",")
    for size in o.sizes:
        if "null" in studies:
            kept += [k for rounds in o.rounds for k in null(size, rounds, o.samples, o.campaigns)]
        if "planted" in studies:
            kept += [k for points in range(1, 6) for k in planted(size, points / 100, o.samples, o.campaigns // 2)]
        if "smallest" in studies:
            kept += detectable(size, o.samples, o.campaigns // 2)
    print(f"{time.time() - began:.0f} s; {sum(kept)} of {len(kept)} promises kept")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
