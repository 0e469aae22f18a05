"""The bias ledger in a round: sample the probe, compute features of the samples, and record how they drifted.

The probe is a fixed set of prompts that no round trains on. Round 0 samples it several times, as the baseline and as a check.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data import labels
from data.alarm import LEVELS, Alarm
from data.recipe.settings import Reward
from data.rows import tables
from data.store.campaign import Metric, Ref
from data.store.store import Artifact
from flows.round.history import History
from flows.round.resolve import precision
from flows.round.scoring import Models, score_one
from flows.round.stages import Stages
from flows.round.training_data import RoundSamples
from tasks.bias import bias, counterfactual_features, observe
from tasks.generate import generate
from tasks.prompts import counterfactual_prompts
from tasks.run.parts import needs

SHOWN = {  # metric of a feature -> columns of the LEDGER with its value and interval
    "mean": ("mean", "mean_low", "mean_high"),
    "d0": ("effect", "effect_low", "effect_high"),
    "step": ("step", "step_low", "step_high"),
    "pressure": ("pressure", "pressure_low", "pressure_high"),
    "gain": ("gain", "gain_low", "gain_high"),
}


def ledger_of_round_zero(stages: Stages, prompts: Artifact, base: Artifact) -> Artifact | None:
    """Sample checkpoint 0 several times and compare it with itself: an ALARM here means that the probe is broken."""
    if not stages.recipe.watched:
        return None
    samples = sample_probe(stages, prompts, base)
    inputs = {"prompts": prompts, **samples.observed}
    reward_on_probe(stages, prompts, samples, {"policy": base, "base": base})
    for number in range(1, stages.recipe.probe.baseline + 1):
        inputs |= prefixed(f"base/{number}/", sample_probe(stages, prompts, base, number).observed)
    return write_ledger(stages, inputs)


def compare_with_round_zero(
    stages: Stages, history: History, prompts: Artifact, checkpoint: Artifact, start: Ref, data: RoundSamples | None
) -> Artifact | None:
    """Compare a round's checkpoint with round 0, with the checkpoint it was trained from, and with its training data.

    If nothing was trained, the ledger of `start` is used again: the same samples are no second evidence.
    """
    if not stages.recipe.watched:
        return None
    before = history.measured(start.digest, labels.probe().observed)
    if checkpoint.digest == start.digest:
        return stages.record(labels.BIAS, history.artifact(before, labels.BIAS))

    others = {"base": history.load(history.first.checkpoint), "previous": history.load(before.checkpoint)}
    samples = sample_probe(stages, prompts, checkpoint, others=others)
    inputs = {"prompts": prompts, **samples.observed}
    for name in observed_names(stages):
        inputs[f"previous/{name}"] = history.artifact(before, probe_label(name))
        for number in range(1, stages.recipe.probe.baseline + 1):
            inputs[f"base/{number}/{name}"] = history.of_first(probe_label(name, number))
    if reward := reward_on_probe(stages, prompts, samples, history.judge_models):
        inputs |= {"proxy": reward, "base/proxy": history.of_first(labels.PROBE_REWARD)}
        inputs["base/verdicts"] = history.of_first(probe_label("verdicts"))  # of the samples that base/proxy scores
    if before.round > 0:
        inputs["earlier"] = history.artifact(before, labels.BIAS)
    if data:  # a control and an online loss have none
        inputs |= observed_training_data(stages, data)
    return write_ledger(stages, inputs, on_policy=start.digest == history.last.head.digest)


def observed_names(stages: Stages) -> tuple[str, ...]:
    """Names of the artifacts that the ledger reads of a set of probe samples."""
    return ("observed", "verdicts", *(("counterfactuals",) if stages.recipe.probe.counterfactuals else ()))


def probe_label(name: str, number: int = 0) -> labels.Label:
    samples = labels.probe(number)
    by_name = {"observed": samples.observed, "verdicts": samples.verdicts, "counterfactuals": samples.counterfactuals}
    return by_name[name]


@dataclass(frozen=True)
class ProbeSamples:
    """A set of samples of the probe: completions, the verifier's SCORES, and what the ledger reads of them by name."""

    completions: Artifact
    verdicts: Artifact
    observed: dict[str, Artifact]


def sample_probe(
    stages: Stages, prompts: Artifact, checkpoint: Artifact, number: int = 0, others: Models | None = None
) -> ProbeSamples:
    """A set of samples of the probe split, with their features and verdicts. Set 0 has the same seed in every round.

    `others` are checkpoint 0 ("base") and the one before ("previous"), for the distance to them; round 0 has none.
    """
    samples, seed = labels.probe(number), stages.seed(f"probe/{number}", 0)
    settings = stages.sampling(stages.first, split="probe", n=stages.recipe.probe.samples)
    sources = {"prompts": prompts, "checkpoint": checkpoint}
    completions = stages.do(samples.completions, generate.generate, settings, sources, seed)
    verdicts = stages.verify(samples.verdicts, "probe", prompts, completions)
    inputs = {"prompts": prompts, "completions": completions, "verdicts": verdicts}
    own = {"own": checkpoint} if others and precision(stages.recipe) != "float32" else {}
    for name, other in {**own, **(others or {})}.items():
        sources = {"checkpoint": other, "prompts": prompts, "completions": completions}
        sources |= {"own": checkpoint} if name != "own" else {}
        inputs[f"{name}_logprobs"] = stages.logprobs(samples.logprobs(name), "probe", sources)  # type: ignore[arg-type]
    settings_of_features = observe.Settings(**features(stages), split="probe")
    observed = stages.do(samples.observed, observe.observe, settings_of_features, inputs)
    artifacts = {"observed": observed, "verdicts": verdicts}
    if stages.recipe.probe.counterfactuals:
        artifacts["counterfactuals"] = sample_counterfactuals(stages, number, prompts, checkpoint, inputs)
    return ProbeSamples(completions, verdicts, artifacts)


def sample_counterfactuals(
    stages: Stages, number: int, prompts: Artifact, checkpoint: Artifact, originals: Mapping[str, Artifact]
) -> Artifact:
    """Sample the counterfactual copies of the probe prompts like the originals, and compare the answers to both."""
    probe, samples = stages.recipe.probe, labels.probe(number)
    challenged = "challenge" in probe.counterfactuals  # doubts a sampled answer, so every set of samples has its own
    copying = counterfactual_prompts.Settings(
        split="probe",
        kinds=probe.counterfactuals,
        hint=probe.hint,
        challenge=probe.challenge if challenged else "",
        neutral=probe.neutral if challenged else "",
    )
    sources = {"prompts": prompts, **({"completions": originals["completions"]} if challenged else {})}
    label = samples.of_counterfactuals("prompts")
    copies = stages.do(label, counterfactual_prompts.counterfactual_prompts, copying, sources)
    settings = stages.sampling(stages.first, split=counterfactual_prompts.SPLIT, n=probe.samples)
    inputs = {"prompts": copies, "checkpoint": checkpoint}
    # Not the seed of the originals: answers that share random numbers differ less than independent ones, and the squared
    # differences would come out below 0 by twice the covariance.
    seed = stages.seed(f"probe/{number}/counterfactuals", 0)
    sampled = stages.do(samples.of_counterfactuals("completions"), generate.generate, settings, inputs, seed)
    label = samples.of_counterfactuals("verdicts")
    compared = {
        "completions": originals["completions"],
        "verdicts": originals["verdicts"],
        "counterfactuals": copies,
        "counterfactual_completions": sampled,
        "counterfactual_verdicts": stages.verify(label, counterfactual_prompts.SPLIT, copies, sampled),
    }
    columns = counterfactual_features.Settings(kinds=probe.counterfactuals)
    return stages.do(samples.counterfactuals, counterfactual_features.counterfactual_features, columns, compared)


def reward_on_probe(stages: Stages, prompts: Artifact, samples: ProbeSamples, models: Models) -> Artifact | None:
    """The reward as round 0 defines it, on set 0 of the probe samples, by the current judges.

    None if the reward is the verifier alone. None, too, if a scorer only scores the texts of a round: a reward model that is
    fitted to the round, a process scorer with its own samples, a column of a file; or if it only compares a prompt's samples.

    It is the weighted sum of the scores as they are, whatever [reward] says: what is standardised within a prompt cannot rise.
    """
    verifier, *others = stages.first.score
    weighted = [entry for entry in others if entry.weight]
    tied_to_round = any(e.checkpoint == "trained" or "rollouts" in needs("scorers", e.scorer) for e in weighted)
    tied_to_round |= any(e.scorer == "ensemble" for e in weighted)
    if not weighted or tied_to_round or stages.first.recorded:
        return None
    completions, verdicts = samples.completions, samples.verdicts
    scores = {f"score/{verifier.label}": verdicts}
    for entry in weighted:
        label, available = labels.probe_score(entry.label), {"verdicts": verdicts}
        scores[f"score/{entry.label}"] = score_one(stages, label, entry, "probe", prompts, completions, models, available)
    return stages.combine(labels.PROBE_REWARD, stages.first, Reward(), scores)


def observed_training_data(stages: Stages, data: RoundSamples) -> dict[str, Artifact]:
    """What the ledger needs of the training data: features of the completions, their reward, and what was chosen."""
    settings = observe.Settings(features=features(stages)["features"], prompt_features={}, split="rounds")
    inputs = {"prompts": data.prompts, "completions": data.completions, "verdicts": data.scores.verdicts}
    observed = stages.do(labels.POOL_OBSERVED, observe.observe, settings, inputs)
    return {"pool": observed, "pool_prompts": data.prompts, "reward": data.reward, **data.chosen}


def write_ledger(stages: Stages, inputs: Mapping[str, Artifact], on_policy: bool = True) -> Artifact:
    """Write the ledger.

    Args:
        on_policy: training started from the checkpoint that sampled its data. Only then can the change of a feature in this
            round be compared with the choice of training data.
    """
    named = features(stages)
    kinds = observe.kinds(observe.Settings(**named, split=""))
    of_prompts = {observe.column(name) for name in named["prompt_features"]}
    settings = bias.Settings(
        round=stages.number,
        baseline=stages.recipe.probe.baseline,
        kinds={name: kind for name, kind in kinds.items() if name not in of_prompts},
        prompt_kinds={name: kind for name, kind in kinds.items() if name in of_prompts},
        counterfactuals=counterfactual_features.columns(stages.recipe.probe.counterfactuals),
        on_policy=on_policy,
        chosen=next((name for name in ("pairs", "selected") if name in inputs), ""),
    )
    return stages.do(labels.BIAS, bias.bias, settings, inputs)


def features(stages: Stages) -> dict[str, dict[str, Any]]:
    """The features the recipe names, by family."""
    named: dict[str, dict[str, Any]] = {"features": {}, "prompt_features": {}}
    built_in = observe.everything()
    for name in stages.recipe.probe.features:
        if name == "*":
            named = {family: {**named[family], **built_in[family]} for family in named}
        else:
            named[observe.family_of(name)][name] = {}
    return named


def prefixed(prefix: str, artifacts: Mapping[str, Artifact]) -> dict[str, Artifact]:
    return {f"{prefix}{name}": artifact for name, artifact in artifacts.items()}


# -- reading the ledger -------------------------------------------------------------------------------------------------
def ledger_facts(ledger: Artifact | None) -> dict[str, Any]:
    """The ledger's facts for the Round, without its alarms: about the pairs, the reward and the KL."""
    if ledger is None:
        return {}
    facts: dict[str, Any] = _alarms_file(ledger)
    return {name: value for name, value in facts.items() if name not in ("level", "alarms")}


def ledger_alarms(ledger: Artifact | None) -> list[Alarm]:
    return [Alarm(**alarm) for alarm in _alarms_file(ledger)["alarms"]] if ledger else []


def ledger_metrics(ledger: Artifact | None) -> dict[str, Metric]:
    """`bias/<feature>/{mean,d0,step,pressure,gain,level}` over all completions.

    The level is the highest among the feature's groups: 0 = none, 1 = watch, 2 = ALARM, 3 = STOP.
    """
    if ledger is None:
        return {}
    rows = tables.read(ledger.file("ledger.parquet"), tables.LEDGER).to_pylist()
    levels = {row["feature"]: 0 for row in rows}
    for row in rows:
        levels[row["feature"]] = max(levels[row["feature"]], LEVELS.index(row["level"]))
    metrics: dict[str, Metric] = {}
    for row in (row for row in rows if row["group"] is None):
        prefix = f"bias/{row['feature']}"
        for name, (value, low, high) in SHOWN.items():
            metrics[f"{prefix}/{name}"] = Metric(value=row[value], n=row["n"], split="probe", low=row[low], high=row[high])
        metrics[f"{prefix}/level"] = Metric(value=float(levels[row["feature"]]), n=row["n"], split="probe")
    return metrics | _whole_ledger_metrics(_alarms_file(ledger))


def _whole_ledger_metrics(facts: Mapping[str, Any]) -> dict[str, Metric]:
    """Metrics of the ledger as a whole, not of single features."""
    metrics: dict[str, Metric] = {}
    if (auc := facts.get("surface_auc")) is not None:
        metrics["bias/surface_auc"] = Metric(value=auc, split="rounds")
    for name in ("proxy_gap", "predicted_rise"):
        if facts[name]:
            metrics[f"bias/{name}"] = Metric(**facts[name], split="probe")
    for name, value in (facts["overoptimisation"] or {}).items():
        metrics[f"bias/overoptimisation/{name}"] = Metric(**(value or {"value": None}), split="probe")
    return metrics


def _alarms_file(ledger: Artifact) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(ledger.file("alarms.json").read_text())
    return facts
