"""Which method helps on the tiny world? Gold accuracy on held-out, round 0 to round 3, over seeds, losers included.

    ./ratchet bench recipes [--size small|full] [--methods "raft;dpo;kto"] [--seeds 31,32,33] [--home DIR]

Every method starts from the same checkpoint 0 of its seed and trains the same number of steps on the same number of fresh
prompts a round; the gate is open, so that a method that harms is seen to harm. Campaigns already finished in --home are reused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from data.recipe import recipe as recipes
from data.statistics import holm, in_brackets, t_interval, t_test
from data.store.campaign import Campaign

FEW = ("prompts.per_round=200", "generate.n=4", "prompts.held_out=300", "train.steps=30", "train.batch=16", "train.minimum=1")
SIZES = {"small": FEW, "full": ("prompts.held_out=500",)}  # full: the tiny recipes' own, 1,000 prompts of 8, 80 steps of 32
ALONE = ("prompts.probe=0", "prompts.test=0", "prompts.ood=0", "evaluate.samples=0", "hardware.prefect=false")
OPEN = ("gate.rule=always_promote", *ALONE)
DPO = ("tiny_dpo", "loss.terms={}")
CHOSEN = ("tiny_raft", "train.replay=false", "train.learning_rate=3e-4")  # losses on selected completions, at DPO's rate
KTO = (*CHOSEN, "loss.name=kto", "loss.beta=0.5", "loss.desirable_weight=0.0", "select.selector=labelled")
RANKED = (*CHOSEN, "select.selector=ranked", "loss.terms={nll=1.0}", "train.batch=4")
ONLINE = (*CHOSEN, "loss.beta=0.0", "select=false", "train.batch=96")  # 12 prompts of 8 completions a step: 960 in 80
VOTES = 'score=[{scorer="exact_match", settings={after="#"}, weight=0.0}, {scorer="votes", settings={after="#"}}]'
METHODS: dict[str, tuple[str, ...]] = {
    "control": ("tiny_control",),
    "raft": ("tiny_raft",),
    "dpo": ("tiny_dpo",),  # beta 0.5, 2.0 * sft
    "dpo, beta 0.1, no NLL": (*DPO, "loss.beta=0.1"),
    "dpo, no NLL": DPO,
    "irpo": (*DPO, "loss.terms={nll=2.0}"),
    "kto": KTO,
    "kto, sides not balanced": (*KTO, "loss.desirable_weight=1.0"),
    "scpo": (*DPO, "loss.terms={nll=2.0}", "loss.weighted=true", "pair.pairer=most_vs_least_voted", "pair.settings={}", VOTES),
    "spin": (*DPO, "loss.terms={nll=2.0}", "pool.given=true", "pair.pairer=given_vs_sample", "pair.settings={}"),
    "simpo": (*DPO, "loss.name=simpo", "loss.beta=2.0", "loss.gamma=1.0"),
    "orpo": (*DPO, "loss.name=orpo"),
    "sppo_hard": (*DPO, "loss.name=sppo_hard", "loss.beta=0.5"),
    "rso": (*DPO, "loss.name=hinge", "loss.beta=0.5", "pair.pairer=rejection_sampled", "pair.settings={beta=0.5, count=4}"),
    "rrhf": (*RANKED, "loss.name=rrhf"),
    "grpo": (*ONLINE, "loss.name=grpo"),
    "rloo": (*ONLINE, "loss.name=rloo"),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="ratchet bench recipes", description=__doc__.split("\n")[0])
    parser.add_argument("--methods", default="", help="names with ; between them, all by default")
    parser.add_argument(
        "--size", choices=tuple(SIZES), default="full", help="small: a tenth of the compute, too little to gain"
    )
    parser.add_argument("--seeds", default="31,32,33")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--home", type=Path)
    options = parser.parse_args()
    home = options.home or Path(tempfile.mkdtemp(prefix="ratchet-recipes-"))
    wanted = [name.strip() for name in options.methods.split(";")] if options.methods else list(METHODS)
    curves: dict[str, list[list[float]]] = defaultdict(list)
    for name in wanted:  # so that what is cut short is whole for the methods it has
        for seed in map(int, options.seeds.split(",")):
            curve = run(home, name, seed, options.rounds, options.size)
            curves[name].append(curve)
            print(f"seed {seed}  {name:<24}" + "".join(f"{100 * value:>8.1f}" for value in curve), flush=True)
    report(curves)
    return 0


def run(home: Path, name: str, seed: int, rounds: int, size: str) -> list[float]:
    """Held-out accuracy of checkpoint 0, 1, 2, ..."""
    from flows.service import environment

    environment.prepare(home)
    from flows.round.improve import improve

    source, *sets = METHODS[name]
    plain = "".join(c if c.isalnum() else "-" for c in name)
    campaign = Campaign.start(
        home, f"{plain}-{seed}", recipes.load(source, [*SIZES[size], *OPEN, *sets, f"seed={seed}", f"rounds={rounds}"])
    )
    if campaign.state != "done":
        improve.fn(campaign.name, str(home))
    return [r.metrics["accuracy"].value or 0.0 for r in campaign.rounds()]


def report(curves: dict[str, list[list[float]]]) -> None:
    """Means over seeds, best first: the change, and the change less the control's of the same seed, with 95% t intervals.

    The p values of the latter are corrected by Holm.
    """
    change = {name: 100 * np.array([run[-1] - run[0] for run in runs]) for name, runs in curves.items()}
    control = curves.get("control", [])
    others = [name for name in curves if name != "control" and len(curves[name]) == len(control)]
    sure = dict(zip(others, holm([t_test(change[name] - change["control"]) for name in others]), strict=True))
    print("\n| method | seeds | round 0 | last round | change | change less the control's | p (Holm) |")
    print("|---|---|---|---|---|---|---|")
    for name in sorted(curves, key=lambda name: -change[name].mean()):
        first, last = 100 * np.array([[run[0], run[-1]] for run in curves[name]]).mean(0)
        against = f"{interval(change[name] - change['control'])} | {sure[name]:.3f}" if name in sure else "- | -"
        print(f"| {name} | {len(curves[name])} | {first:.1f} | {last:.1f} | {interval(change[name])} | {against} |")


def interval(values: np.ndarray) -> str:
    return f"{values.mean():+.1f} {in_brackets(t_interval(values))}"


if __name__ == "__main__":
    sys.exit(main())
