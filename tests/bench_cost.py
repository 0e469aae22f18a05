"""What the machinery costs: the same rounds as (a) a plain TRL script, (b) our stages in a plain loop, (c) a campaign.

    ./ratchet bench cost [--method raft|dpo] [--repeats 5] [--rounds 3]

Interleaved a b c a b c ...; CPU seconds of the whole process tree (Prefect's server too), per round and fixed per campaign,
as ratios with a 95% interval over the repeats. All three start from the same checkpoint 0 and the same prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from data.statistics import t_interval

ROOT = Path(__file__).parent.parent
SAME_WORK = ("prompts.test=0", "prompts.ood=0", "probe.samples=0")  # the plain script has no test split and no bias ledger


# -- the parent: interleave and compare -------------------------------------------------------------------------------
def main() -> int:
    parser = argparse.ArgumentParser(prog="ratchet bench cost", description=__doc__.split("\n")[0])
    parser.add_argument("--method", choices=("raft", "dpo"), default="raft")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=("loop", "campaign"), help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        (child_loop if options.child == "loop" else child_campaign)(options.home, options.method, options.rounds)
        return 0
    work = Path(tempfile.mkdtemp(prefix="ratchet-cost-"))
    try:
        origin = prepare(work, options.method)
        results: dict[str, list[dict[str, float]]] = {"plain": [], "loop": [], "campaign": []}
        for repeat in range(options.repeats):
            for kind in results:
                results[kind].append(measure(kind, work, origin, options.method, options.rounds, repeat))
                print(f"{repeat} {kind:<9} {json.dumps(results[kind][-1])}", flush=True)
        report(results)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def prepare(work: Path, method: str) -> dict[str, Path]:
    """Checkpoint 0 and the prompts, once, in a store that each repeat copies; the plain script gets them as JSONL."""
    from data.recipe import recipe as recipes
    from data.rows import tables
    from data.store.campaign import Campaign
    from flows.round.stages import Stages
    from tasks.run.stage import perform

    recipe = recipes.load(f"tiny_{method}", SAME_WORK)
    campaign = Campaign(work / "origin", "bench", recipe)
    stages = Stages(
        campaign, 0, lambda _, s, c, i, seed, around: perform(campaign.store, s, c, i, seed=seed, hardware=recipe.hardware)
    )
    prompts = stages.prepare()
    base = stages.base(prompts)
    given = {
        row["prompt_id"]: row["text"] for row in tables.read(prompts.file("given.parquet"), tables.COMPLETIONS).to_pylist()
    }
    for split in ("rounds", "held_out", "seed"):
        rows = tables.read(prompts.file(f"{split}.parquet"), tables.PROMPTS).to_pylist()
        lines = [
            json.dumps({"prompt": r["messages"][0]["content"], "answer": r["answer"], "completion": given.get(r["prompt_id"])})
            for r in rows
        ]
        (work / f"{split}.jsonl").write_text("\n".join(lines))
    return {"home": work / "origin", "base": base.path}


def measure(kind: str, work: Path, origin: dict[str, Path], method: str, rounds: int, repeat: int) -> dict[str, float]:
    """Run one of the three in a process of its own; CPU seconds per round (mean) and fixed (all the rest)."""
    out = work / f"{kind}-{repeat}"
    if kind == "plain":
        files = {"prompts": "rounds", "held-out": "held_out", "seed-data": "seed"}
        arguments = [part for flag, name in files.items() for part in (f"--{flag}", str(work / f"{name}.jsonl"))]
        command = ["tests/plain_trl.py", "--method", method, "--model", str(origin["base"]), "--out", str(out), *arguments]
    else:
        shutil.copytree(origin["home"], out)
        command = ["-m", "tests.bench_cost", "--child", kind, "--home", str(out), "--method", method]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    before = os.times()
    done = subprocess.run(
        [sys.executable, *command, "--rounds", str(rounds)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    after = os.times()
    shutil.rmtree(out, ignore_errors=True)
    if done.returncode:
        raise RuntimeError(f"{kind} failed:\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"round"')]
    each = [line["cpu_seconds"] for line in lines if line["round"] > 0]
    total = after.children_user + after.children_system - before.children_user - before.children_system
    return {"per_round": float(np.mean(each)), "fixed": total - sum(each), "accuracy": lines[-1]["accuracy"]}


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Low, geometric mean and high of a ratio: Student's t interval (95%) of its logarithm."""
    logs = np.log(np.array(ratios))
    ends = t_interval(logs)
    low, middle, high = np.exp([ends[0], logs.mean(), ends[1]])
    return float(low), float(middle), float(high)


def report(results: dict[str, list[dict[str, float]]]) -> None:
    print(f"\n{'':<10}{'CPU s per round':>18}{'fixed CPU s':>14}{'last accuracy':>16}")
    for kind, runs in results.items():
        row = [np.median([run[key] for run in runs]) for key in ("per_round", "fixed", "accuracy")]
        print(f"{kind:<10}{row[0]:>18.2f}{row[1]:>14.2f}{row[2]:>16.3f}")
    for other, target in (("loop", 1.05), ("plain", 1.10)):
        ratios = [c["per_round"] / o["per_round"] for c, o in zip(results["campaign"], results[other], strict=True)]
        low, middle, high = interval(ratios)
        print(
            f"campaign / {other:<6} per round: {middle:.3f} [{low:.3f}, {high:.3f}] over {len(ratios)} pairs (target {target})"
        )


# -- the children -----------------------------------------------------------------------------------------------------
def tree_cpu() -> float:
    """CPU seconds of this process and every descendant, the dead ones too."""
    import psutil

    me = psutil.Process()
    own = me.cpu_times()
    living = [child.cpu_times() for child in me.children(recursive=True)]
    return sum(t.user + t.system + t.children_user + t.children_system for t in [own, *living])


def said(number: int, accuracy: float | None, seconds: float) -> None:
    print(json.dumps({"round": number, "accuracy": accuracy, "cpu_seconds": seconds}), flush=True)


def child_loop(home: Path, method: str, rounds: int) -> None:
    """(b) Our stage functions called one after another on plain folders: no store, no Prefect, no MLflow."""
    from data import labels
    from data.labels import Label
    from data.recipe import recipe as recipes
    from data.store.campaign import Campaign
    from data.store.store import Artifact
    from flows.round.artifacts import read_metrics
    from flows.round.scoring import scores_of_round
    from flows.round.stages import Stages
    from tasks.run.work import Stage, Work

    recipe = recipes.load(f"tiny_{method}", [f"rounds={rounds}", *SAME_WORK])
    campaign = Campaign(home, "bench", recipe)
    bare = home / "bare"

    def call(label: Label, stage: Stage, settings: Any, inputs: Any, seed: int, around: Any) -> Artifact:
        known = [m for k in campaign.store.keys() if (m := campaign.store.manifest(k))["job"]["stage"] == stage.__name__]
        if label in (labels.PREPARE, labels.TINY_MODEL, labels.BASE):
            artifact = campaign.store.find(known[-1]["key"])
            assert artifact is not None
            return artifact
        out, scratch = (bare / kind / label.text / str(number) for kind in ("out", "scratch"))
        out.mkdir(parents=True)
        scratch.mkdir(parents=True)
        paths = {name: artifact.path for name, artifact in inputs.items()}
        stage(Work(label.text, settings, paths, seed, out, scratch, recipe.hardware))
        return Artifact(key=f"{label}/{number}", digest="", stage=stage.__name__, path=out)

    number, head = 0, None
    for number in range(rounds + 1):
        began = tree_cpu()
        stages = Stages(campaign, number, call)
        prompts = stages.prepare()
        if head is None:
            head = base = stages.base(prompts)
            against: dict[str, Artifact] = {}
            earlier: dict[str, Artifact] = {}
        else:
            drawn = stages.draw(prompts, earlier)
            earlier[f"drawn/{number}"] = drawn
            completions = stages.generate(drawn, head, recipe.generate.max_tokens)
            judged = scores_of_round(stages, drawn, completions, {}).by_label
            data = {"prompts": drawn, "completions": completions, **stages.choose(completions, stages.reward(judged), judged)}
            replayed = {"seed_data": prompts} if recipe.train.replay else {}
            head = stages.train(head, head if recipe.pair else None, data | replayed)
        evaluated = stages.evaluate(prompts, head, against, again=number == 0)
        metrics, scored = read_metrics(evaluated.metrics), evaluated.greedy_scores
        against = {"base": against.get("base", scored), "champion": scored, "previous": scored}
        said(number, metrics["accuracy"].value, tree_cpu() - began)
    assert base is not None


def child_campaign(home: Path, method: str, rounds: int) -> None:
    """(c) The campaign as a user runs it, under Prefect with MLflow."""
    from flows.service import environment

    environment.prepare(home)
    from data.recipe import recipe as recipes
    from data.store.campaign import Campaign, Round
    from flows.round import improve as flow

    campaign = Campaign.start(home, "bench", recipes.load(f"tiny_{method}", [f"rounds={rounds}", *SAME_WORK]))
    last = tree_cpu()
    original: Any = vars(flow)["finish"]

    def finish(*args: Any) -> Round:
        nonlocal last
        finished: Round = original(*args)
        now = tree_cpu()
        said(finished.round, finished.metrics["accuracy"].value, now - last)
        last = now
        return finished

    vars(flow)["finish"] = finish  # the only thing added: a clock at the end of each round
    flow.improve(campaign.name, str(home))


if __name__ == "__main__":
    sys.exit(main())
