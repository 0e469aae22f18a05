"""Self-rewarding, honestly: judge-only campaigns against random-judge campaigns at equal pair counts, on the tiny worlds.

    ./ratchet bench judge [--world addition|countdown] [--arms likelihood,consensus,...] [--seeds 11,12,13] [--rounds 2]
                          [--method raft|dpo] [--home DIR]

Only the judge makes the reward; the verifier watches, and the gate lets every checkpoint pass, so that no verdict leaks into
training. Every arm pairs its best text with its worst on prompts whose samples disagree, and keeps the pairs it is surest of,
equally many in every arm (tests/judges.py). dpo trains on the pairs, raft on the best texts and the seed's solutions. Arms:

    random             noise: what training on pairs does by itself
    likelihood         mean log-probability per token under the head: the policy is its own judge
    cream              dpo: the same, each pair's label softened by how far the checkpoint before ranks its prompt alike
                       (CREAM; that checkpoint is the base, so in two rounds at most)
    consensus          share of the prompt's samples with the same answer: self-consistency as reward
    taught             a reward model that has seen right and wrong solutions of the seed's problems (tests/judge_worlds.py)
    taught-3           three of them, each of samples of its own: the mean of what they say less its standard deviation
    planted-0.7 ...    PLANTED: the verifier under noise, right beats wrong with that probability; not self-rewarding

Prints greedy held-out accuracy and judge health by round, and over seeds the difference to random with a 95% t interval.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.recipe import recipe as recipes
from data.rows import tables
from data.store.campaign import Campaign, Round
from tests.judge_worlds import WORLDS, settings_of, taught

ARMS = ("random", "likelihood", "consensus", "taught", "planted-0.7", "planted-0.85", "planted-1.0")
SETS = (
    "prompts.per_round=1000",
    "prompts.rounds=2000",
    "prompts.probe=0",
    "prompts.test=0",
    "prompts.ood=0",
    "train.steps=60",
    "evaluate.samples=0",
    "gate.rule=always_promote",
    "hardware.prefect=false",
)
PAIRS = 300  # pairs (or selected texts) a round, in every arm
Row = dict[str, Any]


def judges_of(arm: str, world: str) -> list[Row]:
    """The `[[score]]` entries that make the reward of an arm; a taught one's checkpoint is made in its home."""
    name, _, number = arm.partition("-")
    entries: dict[str, Row] = {
        "random": {"scorer": "tests.judges:random_judge"},
        "likelihood": {"scorer": "mean_logprob", "checkpoint": "policy"},
        "cream": {"scorer": "mean_logprob", "checkpoint": "policy"},
        "consensus": {"scorer": "votes", "settings": {"after": WORLDS[world].after}},
        "taught": {"scorer": "reward_model"},
        "planted": {"scorer": "tests.judges:planted_judge", "settings": {"auroc": float(number or 1)}},
    }
    count = int(number or 1) if name == "taught" else 1
    before = [{"scorer": "mean_logprob", "checkpoint": "base", "name": "before", "weight": 0.0}] if name == "cream" else []
    return [{**entries[name], "name": f"judge{place or ''}"} for place in range(count)] + before


def campaign(home: Path, world: str, method: str, arm: str, seed: int, rounds: int, sets: Sequence[str]) -> Campaign:
    from flows.round.improve import improve

    settings = {"after": WORLDS[world].after, "count": PAIRS}
    choice: Row = {
        "dpo": {"pair": {"pairer": "tests.judges:sure_pairs", "settings": settings}},
        "raft": {"select": {"selector": "tests.judges:sure_best", "settings": settings}},
    }[method]
    verifier, judges = WORLDS[world].verifier, judges_of(arm, world)
    given = settings_of(world, home, [*SETS, *sets, f"seed={seed}", f"rounds={rounds}"])
    for place, judge in enumerate(judges):
        if judge["scorer"] == "reward_model":
            judge["checkpoint"] = str(taught(home, recipes.load("tiny_raft", given, {"score": [verifier]}), place))
    several = sum(judge.get("weight", 1.0) > 0 for judge in judges) > 1
    how: Row = {"score": [{**verifier, "weight": 0.0}, *judges], "reward": {"how": "pessimistic" if several else "sum"}}
    if arm.startswith("planted"):
        how["gold"] = "train"  # it is made from verdicts
    if arm == "cream":
        choice["mitigate"] = [{"mitigation": "agreed", "settings": {"one": "judge", "other": "before"}}]
    recipe = recipes.load(f"tiny_{method}", given, {**how, "health": {"samples": 0}, **choice})
    name = f"{method}-{arm}-{seed}-{rounds}"
    started = Campaign.start(home, name if world == "addition" else f"{world}-{name}", recipe)
    if started.state != "done":
        improve.fn(started.name, str(home))
    return started


def health(made: Campaign, finished: Round) -> Row:
    """What the judge of a round was worth, by the verifier's verdicts on the same completions."""
    from flows.round.artifacts import load
    from tasks.evaluate.judge_health import agreement

    judged, verified = (
        tables.read(load(made.store, finished.artifacts[name]).file("scores.parquet"), tables.SCORES).to_pylist()
        for name in ("reward", f"score/{made.recipe.score[0].label}")
    )
    pairs: dict[str, list[tuple[float, float]]] = {}
    for j, v in zip(judged, verified, strict=True):
        if j["value"] is not None:
            pairs.setdefault(j["prompt_id"], []).append((j["value"], float(v["value"])))
    found = {row["metric"]: row["value"] for row in agreement(pairs)}
    facts = finished.facts
    count = facts["pairs"] if "pairs" in facts else facts["rows"]
    wrong = facts["wrong_chosen"] if "pairs" in facts else facts["wrong_selected"]
    return {
        "sampled": float(np.mean([v["value"] for v in verified])),
        "auroc": found["auroc"],
        "within": found["within_prompt_auroc"],
        "gain": found["selection_gain"],
        "count": count,
        "wrong": wrong / max(1, count),
    }


def show(arm: str, seed: int, made: Campaign) -> list[float]:
    """Print a campaign round by round; returns its greedy accuracies, in points."""
    accuracy = []
    for finished in made.rounds():
        accuracy.append(100 * (finished.metrics["accuracy"].value or 0.0))
        line = f"{arm:<14}{seed:>5}{finished.round:>6}{accuracy[-1]:>8.1f}"
        if finished.round:
            h = health(made, finished)
            line += f"{100 * h['sampled']:>9.1f}{h['auroc']:>7.2f}{h['within']:>8.2f}{100 * h['gain']:>+7.1f}"
            line += f"{h['count']:>7}{h['wrong']:>14.2f}"
        print(line, flush=True)
    return accuracy


def report(accuracy: Mapping[str, Mapping[int, Sequence[float]]]) -> None:
    """Each arm's change of greedy accuracy by each round, and its difference to the random arm, seed by seed; CREAM's also to
    the judge whose labels it softens."""
    from data.statistics import holm, in_brackets, t_interval, t_test

    compared: dict[str, float] = {}
    rounds = min(len(line) for by_seed in accuracy.values() for line in by_seed.values())
    for number in range(1, rounds):
        for arm, by_seed in accuracy.items():
            change = np.array([line[number] - line[0] for line in by_seed.values()])
            line = f"round {number} {arm:<14}change {change.mean():+6.1f} "
            line += f"{in_brackets(t_interval(change))} over {len(change)} seeds"
            for rival in ("random", "likelihood") if arm == "cream" else ("random",):
                other = accuracy.get(rival, {})
                shared = sorted(by_seed.keys() & other.keys())
                if shared and arm != rival:
                    over = np.array([by_seed[seed][number] - other[seed][number] for seed in shared])
                    line += f"; over {rival} {over.mean():+6.1f} {in_brackets(t_interval(over))}"
                    compared[f"{arm} over {rival} in round {number}"] = t_test(over)
            print(line)
    print(f"corrected by Holm for {len(compared)} comparisons:")
    for comparison, p in zip(compared, holm(list(compared.values())), strict=True):
        print(f"  {comparison:<44} p = {p:.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="ratchet bench judge", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--world", choices=tuple(WORLDS), default="addition")
    parser.add_argument("--method", choices=("dpo", "raft"), default="raft")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default="11,12,13,14,15")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe, for every arm")
    parser.add_argument("--home", type=Path, help="goes on there, and shares what is stored")
    o = parser.parse_args()
    home = o.home or Path(tempfile.mkdtemp(prefix="ratchet-judge-"))
    from flows.service import environment

    environment.prepare(home)
    print("arm            seed round  greedy  sampled  auroc  within   gain  pairs  wrong chosen")
    accuracy: dict[str, dict[int, list[float]]] = {}
    for seed in (int(s) for s in o.seeds.split(",")):
        for arm in o.arms.split(","):
            made = campaign(home, o.world, o.method, arm, seed, o.rounds, o.set)
            accuracy.setdefault(arm, {})[seed] = show(arm, seed, made)
    report(accuracy)
    return 0


if __name__ == "__main__":
    sys.exit(main())
