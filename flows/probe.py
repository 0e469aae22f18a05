"""The bias ledger in a round: sample the probe, observe it, write down what moved. Round 0 makes the baseline and checks it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from data import tables
from data.campaign import Metric, Round
from data.store import Artifact, Store
from flows.stages import Stages, held
from tasks.alarms import LEVELS, Alarm

Data = Mapping[str, Artifact]
SHOWN = {
    "mean": ("mean", None, None),
    "d0": ("effect", "effect_low", "effect_high"),
    "step": ("step", "step_low", "step_high"),
    "pressure": ("pressure", "pressure_low", "pressure_high"),
    "gain": ("gain", "gain_low", "gain_high"),
}


def baseline(stages: Stages, prompts: Artifact, base: Artifact) -> Artifact | None:
    """Sample checkpoint 0 several times over, and compare it with itself: an ALARM here means that the probe is broken."""
    if not stages.recipe.watched:
        return None
    inputs = {"prompts": prompts, **named("", stages.probe(prompts, base))}
    for number in range(1, stages.recipe.probe.baseline + 1):
        inputs |= named(f"base/{number}/", stages.probe(prompts, base, number))
    return stages.bias(inputs)


def compared(
    stages: Stages, store: Store, so_far: list[Round], prompts: Artifact, checkpoint: Artifact, data: Data
) -> Artifact | None:
    """The ledger of a round's checkpoint: against round 0, against the checkpoint it came from, and with what it trained on."""
    if not stages.recipe.watched:
        return None
    first, last = so_far[0], so_far[-1]
    came_from = next(r for r in reversed(so_far) if r.checkpoint.digest == last.head.digest)

    drawn = ("observed", "verdicts", *(("twins",) if stages.recipe.probe.twins else ()))

    def past(finished: Round, label: str) -> Artifact:
        return held(store, finished.artifacts[label])

    inputs = {"prompts": prompts, **named("", stages.probe(prompts, checkpoint, base=past(first, "base")))}
    inputs |= {f"previous/{what}": past(came_from, f"probe/{what}") for what in drawn}
    for number in range(1, stages.recipe.probe.baseline + 1):
        inputs |= {f"base/{number}/{what}": past(first, f"probe/{number}/{what}") for what in drawn}
    if came_from.round > 0:
        inputs["earlier"] = past(came_from, "bias")
    if "completions" in data:  # a control and an online loss have none
        inputs |= stages.trained_on(data)
    return stages.bias(inputs)


def named(place: str, drawn: Data) -> dict[str, Artifact]:
    return {f"{place}{what}": artifact for what, artifact in drawn.items()}


def said(ledger: Artifact | None) -> dict[str, Any]:
    """The ledger's facts for the Round: its alarms as lines, the gravest level, and what it knows of the pairs."""
    if ledger is None:
        return {}
    known: dict[str, Any] = json.loads(ledger.file("alarms.json").read_text())
    return {"bias_level": known.pop("level"), **known, "alarms": [str(alarm) for alarm in read_alarms(ledger)]}


def read_alarms(ledger: Artifact | None) -> list[Alarm]:
    return [Alarm(**alarm) for alarm in json.loads(ledger.file("alarms.json").read_text())["alarms"]] if ledger else []


def read_bias(ledger: Artifact | None) -> dict[str, Metric]:
    """`bias/<feature>/{mean,d0,step,pressure,gain,level}` over all completions; level: the gravest group's, watch = 1."""
    if ledger is None:
        return {}
    rows = tables.read(ledger.file("ledger.parquet"), tables.LEDGER).to_pylist()
    levels = {row["feature"]: 0 for row in rows}
    for row in rows:
        levels[row["feature"]] = max(levels[row["feature"]], LEVELS.index(row["level"]))
    metrics: dict[str, Metric] = {}
    for row in (row for row in rows if row["group"] is None):
        place = f"bias/{row['feature']}"
        for name, (value, low, high) in SHOWN.items():
            ends = {"low": row[low] if low else None, "high": row[high] if high else None}
            metrics[f"{place}/{name}"] = Metric(value=row[value], n=row["n"], split="probe", **ends)
        metrics[f"{place}/level"] = Metric(value=float(levels[row["feature"]]), n=row["n"], split="probe")
    auc = said(ledger).get("surface_auc")
    return metrics | ({"bias/surface_auc": Metric(value=auc, split="rounds")} if auc is not None else {})
