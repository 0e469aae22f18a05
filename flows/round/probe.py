"""The bias ledger in a round: sample the probe, observe it, write down what moved. Round 0 makes the baseline and checks it."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from typing import Any

from data.rows import tables
from data.store.campaign import Metric, Ref, Round
from data.store.store import Artifact, Store
from flows.round.artifacts import held
from flows.round.resolve import precision
from flows.round.scoring import score_one
from flows.round.stages import Stages
from tasks.bias import observe
from tasks.bias.alarm_rule import LEVELS, Alarm
from tasks.bias.twin_features import COLUMNS
from tasks.run.parts import wants

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
    inputs = {"prompts": prompts, **named("", drawing(stages, prompts, base))}
    proxy(stages, prompts, {"policy": base, "base": base})
    for number in range(1, stages.recipe.probe.baseline + 1):
        inputs |= named(f"base/{number}/", drawing(stages, prompts, base, number))
    return ledger(stages, inputs)


def compared(
    stages: Stages,
    store: Store,
    so_far: list[Round],
    prompts: Artifact,
    checkpoint: Artifact,
    start: Ref,
    data: Data,
    judges: Data,
) -> Artifact | None:
    """The ledger of a round's checkpoint: against round 0, against the one it was trained from, and with what it trained on.

    Where nothing was trained the ledger of `start` stands: the same checkpoint, drawn by the same seed, is no second evidence.
    `judges` are the models that the round's scorers asked.
    """
    if not stages.recipe.watched:
        return None
    first = so_far[0]
    came_from = next(r for r in reversed(so_far) if r.checkpoint.digest == start.digest and "probe/observed" in r.artifacts)
    if checkpoint.digest == start.digest:
        return stages.made.setdefault("bias", held(store, came_from.artifacts["bias"]))

    drawn = ("observed", "verdicts", *(("twins",) if stages.recipe.probe.twins else ()))

    def past(finished: Round, label: str) -> Artifact:
        return held(store, finished.artifacts[label])

    others = {"base": past(first, "base"), "previous": held(store, came_from.checkpoint)}
    inputs = {"prompts": prompts, **named("", drawing(stages, prompts, checkpoint, others=others))}
    inputs |= {f"previous/{what}": past(came_from, f"probe/{what}") for what in drawn}
    for number in range(1, stages.recipe.probe.baseline + 1):
        inputs |= {f"base/{number}/{what}": past(first, f"probe/{number}/{what}") for what in drawn}
    if reward := proxy(stages, prompts, judges):
        inputs |= {"proxy": reward, "base/proxy": past(first, "probe/reward")}
    if came_from.round > 0:
        inputs["earlier"] = past(came_from, "bias")
    if "completions" in data:  # a control and an online loss have none
        inputs |= trained_on(stages, data)
    return ledger(stages, inputs, copies=start.digest == so_far[-1].head.digest)


def drawing(
    stages: Stages, prompts: Artifact, checkpoint: Artifact, number: int = 0, others: Data = types.MappingProxyType({})
) -> dict[str, Artifact]:
    """A drawing of the probe split: its features and verdicts. Drawing 0 has the same seed in every round.

    `others` are checkpoint 0 ("base") and the one before ("previous"), for the distance to them; round 0 has none.
    """
    place, split = f"probe/{number}" if number else "probe", {"split": "probe"}
    decoding = {**stages.decoding(stages.first), **split, "n": stages.recipe.probe.samples}
    sources = {"prompts": prompts, "checkpoint": checkpoint}
    drawn = stages.do(f"{place}/completions", "generate", decoding, sources, stages.seed(f"probe/{number}", 0))
    verdicts = stages.verify(f"{place}/verdicts", "probe", prompts, drawn)
    inputs = {"prompts": prompts, "completions": drawn, "verdicts": verdicts}
    if others and precision(stages.recipe) != "float32":
        others = {"own": checkpoint, **others}
    for name, other in others.items():
        settings = {**split, "limit": 0, "trust_remote_code": stages.recipe.model.trust_remote_code}
        sources = {"checkpoint": other, "prompts": prompts, "completions": drawn}
        inputs[f"{name}_logprobs"] = stages.do(f"{place}/{name}_logprobs", "logprobs", settings, sources)
    observed = stages.do(f"{place}/observed", "observe", {**features(stages), **split}, inputs)
    drawn_twins = {"twins": twins(stages, place, number, prompts, checkpoint, inputs)} if stages.recipe.probe.twins else {}
    return {"observed": observed, "verdicts": verdicts, **drawn_twins}


def twins(
    stages: Stages, place: str, number: int, prompts: Artifact, checkpoint: Artifact, answered: Mapping[str, Artifact]
) -> Artifact:
    """Draw the probe's twins as the probe is drawn, and compare how both were answered."""
    probe = stages.recipe.probe
    how = {"split": "probe", "kinds": probe.twins, "hint": probe.hint}
    made_of = {"prompts": prompts}
    if "challenge" in probe.twins:  # what doubts an answer is made of it: other twins for every drawing
        how["challenge"], made_of["completions"] = probe.challenge, answered["completions"]
    twins = stages.do(f"{place}/twins/asked", "twins", how, made_of)
    decoding = {**stages.decoding(stages.first), "split": "twins", "n": probe.samples}
    seed = stages.seed(f"probe/{number}", 0)
    drawn = stages.do(f"{place}/twins/drawn", "generate", decoding, {"prompts": twins, "checkpoint": checkpoint}, seed)
    inputs = {name: answered[name] for name in ("completions", "verdicts")}
    inputs |= {"twins": twins, "twin_completions": drawn}
    inputs["twin_verdicts"] = stages.verify(f"{place}/twins/judged", "twins", twins, drawn)
    return stages.do(f"{place}/twins", "twin_features", {"kinds": probe.twins}, inputs)


def proxy(stages: Stages, prompts: Artifact, judges: Data) -> Artifact | None:
    """The reward of round 0 on what was drawn of the probe, by the `judges` of now.

    None where it is the verifier's word alone, or cannot be asked about a text that no round trains on: a reward model fitted
    to the round, a process score's own samples, a column of a file.
    """
    verifier, *others = stages.first.score
    weighted = [score for score in others if score.weight]
    bound = any(score.checkpoint == "trained" or "rollouts" in wants("scorers", score.scorer) for score in weighted)
    if not weighted or bound or stages.first.recorded:
        return None
    drawn, verdicts = stages.made["probe/completions"], stages.made["probe/verdicts"]
    known = {f"score/{verifier.label}": verdicts}
    for score in weighted:
        place = f"probe/score/{score.label}"
        known[f"score/{score.label}"] = score_one(stages, place, score, "probe", prompts, drawn, judges, {"verdicts": verdicts})
    weights = {score.label: score.weight for score in stages.first.score if score.weight}
    inputs = {f"score/{name}": known[f"score/{name}"] for name in weights}
    return stages.do("probe/reward", "reward", {"weights": weights, **stages.first.reward.model_dump()}, inputs)


def trained_on(stages: Stages, data: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """What the ledger asks about the training data: features of the completions, their reward, and what was taken."""
    settings = {**features(stages), "prompt_features": {}, "split": "rounds"}
    verdicts = stages.made[f"score/{stages.recipe.score[0].label}"]
    inputs = {"prompts": data["prompts"], "completions": data["completions"], "verdicts": verdicts}
    observed = stages.do("pool/observed", "observe", settings, inputs)
    chosen = {name: data[name] for name in ("pairs", "selected") if name in data}
    return {"pool": observed, "pool_prompts": data["prompts"], "reward": stages.made["reward"], **chosen}


def ledger(stages: Stages, inputs: Mapping[str, Artifact], copies: bool = True) -> Artifact:
    """`copies`: training started from the checkpoint that drew its pool: its step can be held against what was chosen."""
    kinds = observe.kinds(observe.Settings.model_validate(features(stages)))
    of_prompts = {observe.column(name) for name in features(stages)["prompt_features"]}
    settings = {
        "round": stages.number,
        "baseline": stages.recipe.probe.baseline,
        "kinds": {name: kind for name, kind in kinds.items() if name not in of_prompts},
        "prompt_kinds": {name: kind for name, kind in kinds.items() if name in of_prompts},
        "twins": [column for kind in stages.recipe.probe.twins for column in COLUMNS[kind]],
        "copies": copies,
        "chosen": next((name for name in ("pairs", "selected") if name in inputs), ""),
    }
    return stages.do("bias", "bias", settings, inputs)


def features(stages: Stages) -> dict[str, dict[str, Any]]:
    """The features the recipe names, by shelf."""
    found: dict[str, dict[str, Any]] = {"features": {}, "prompt_features": {}}
    everything = observe.everything()
    for name in stages.recipe.probe.features:
        if name == "*":
            found = {family: {**found[family], **everything[family]} for family in found}
        else:
            found["prompt_features" if name in everything["prompt_features"] else "features"][name] = {}
    return found


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
    facts = json.loads(ledger.file("alarms.json").read_text())
    if (auc := facts.get("surface_auc")) is not None:
        metrics["bias/surface_auc"] = Metric(value=auc, split="rounds")
    if gap := facts["proxy_gap"]:
        metrics["bias/proxy_gap"] = Metric(**gap, split="probe")
    for name, value in (facts["overoptimisation"] or {}).items():
        metrics[f"bias/overoptimisation/{name}"] = Metric(value=value, split="probe")
    return metrics
