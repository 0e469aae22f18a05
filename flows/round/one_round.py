"""One round on a page: prompts and a checkpoint in, better data, a measured checkpoint and a verdict out."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data import labels
from data.alarm import Alarm, by_gravity
from data.recipe.recipe import Recipe
from data.rows import tables
from data.store.campaign import Metric, Ref, Round, Verdict
from data.store.store import Artifact
from flows.round import gold
from flows.round.artifacts import read_metrics, ref
from flows.round.history import History
from flows.round.judging import judge_metrics
from flows.round.probe import compare_with_round_zero, ledger_alarms, ledger_facts, ledger_metrics, ledger_of_round_zero
from flows.round.stages import Stages
from flows.round.suites import suite_metrics
from flows.round.training_data import TrainingData, skip_reason, too_long, training_data, truncated
from flows.service.environment import ratchet_version
from tasks.gate import kl_budget
from tasks.gate.gate import decide, gate_facts
from tasks.gate.judge_alarms import biased_judges
from tasks.gate.spending import error_of_round
from tasks.gate.training_alarms import forgetting, training_alarms, uninformative_judges

LIBRARIES = ("torch", "transformers", "trl", "tokenizers", "datasets", "pyarrow", "math-verify", "prefect", "mlflow")
COMPARED = {"base": "base", "champion": "best", "previous": "previous"}  # metric accuracy_vs_<name> -> role of the checkpoint


def round_zero(stages: Stages) -> Round:
    """Measure checkpoint 0, and sample it a second time: the difference between the two is noise (A/A check)."""
    began = time.time()
    prompts = stages.prepare()
    if stages.recipe.recorded:
        stages.import_completions()
    base = stages.base(prompts)
    metrics = read_metrics(stages.evaluate(prompts, base, against={}, again=True).metrics)
    metrics |= suite_metrics(stages, prompts, base)
    ledger = ledger_of_round_zero(stages, prompts, base)
    start = ref(base)
    return _record(
        stages,
        began,
        checkpoints={"head_before": start, "checkpoint": start, "head": start, "champion": start},
        metrics=metrics | ledger_metrics(ledger),
        verdict=Verdict(decision="start", reason="checkpoint 0, measured before any training"),
        facts={"gold": "nothing"} | ledger_facts(ledger),
        alarms=ledger_alarms(ledger),
    )


def one_round(stages: Stages, history: History, resolve_verdict: Callable[[Verdict], Verdict]) -> Round:
    """Turn the head into checkpoint k, measure it, and let the gate decide. `resolve_verdict` answers a gate that asks."""
    began, last, recipe = time.time(), history.last, stages.recipe
    prompts = history.of_first(labels.PREPARE)  # as they were when the campaign began; the file may have changed since

    data = training_data(stages, history, prompts)
    skipped = skip_reason(stages, data)
    start = history.checkpoints_by_role[recipe.train.start_from]
    reference = named_reference(stages, history) if recipe.loss.needs_reference and not skipped else None
    checkpoint = history.load(last.head) if skipped else trained(stages, history, prompts, start, reference, data)

    evaluated = stages.evaluate(prompts, checkpoint, compared_with(history), sampled=sampled_of_champion(stages, history))
    metrics = read_metrics(evaluated.metrics)
    metrics |= suite_metrics(stages, prompts, checkpoint, history)
    metrics |= judge_metrics(stages, history, prompts, data.samples)
    ledger = compare_with_round_zero(stages, history, prompts, checkpoint, last.head if skipped else start, data.samples)
    log = None if skipped else stages.training_log(checkpoint)
    alarms = alarms_of_training(stages, history, start, log, metrics, data.facts) if log else []
    alarms += forgetting(metrics, last.metrics) + uninformative_judges(metrics, last.metrics, recipe.score)
    alarms += biased_judges(metrics, last.metrics, recipe.score)
    alarms = by_gravity(with_full_kl(recipe, alarms, ledger) + ledger_alarms(ledger))
    error = error_of_round(recipe.rounds, [past.facts for past in history.rounds])
    verdict = resolve_verdict(decide(recipe.gate, metrics, error, skipped, alarms))

    metrics |= choice_metrics(data)
    new, promoted = ref(checkpoint), verdict.decision == "promote"
    checkpoints = {
        "head_before": last.head,
        "checkpoint": new,
        "head": last.champion if verdict.decision in ("roll_back", "stop") else new,
        "champion": new if promoted else last.champion,
        "reference": reference,
        "start_from": None if skipped else start,
    }
    return _record(
        stages, began, checkpoints=checkpoints, metrics=metrics | ledger_metrics(ledger), verdict=verdict,
        facts={"gold": gold.in_words(recipe)} | gate_facts(recipe.gate, metrics, error, skipped) | data.facts
        | training_facts(log) | ledger_facts(ledger), alarms=alarms,
    )  # fmt: skip


def trained(
    stages: Stages, history: History, prompts: Artifact, start: Ref, reference: Ref | None, data: TrainingData
) -> Artifact:
    """The round's checkpoint."""
    seed_data = {"seed_data": prompts} if stages.recipe.train.replay else {}
    train = stages.online if stages.recipe.online else stages.train
    return train(history.load(start), history.load(reference) if reference else None, {**data.inputs, **seed_data})


def named_reference(stages: Stages, history: History) -> Ref:
    """The recipe's reference. With "ema" it is the moving average of the heads of all earlier rounds."""
    loss = stages.recipe.loss
    if loss.reference != "ema":
        return history.checkpoints_by_role[loss.reference]
    average = history.load(history.first.head)
    for finished in history.rounds[1:]:
        average = stages.average(labels.moving_average(finished.round), average, history.load(finished.head))
    return ref(average)


def compared_with(history: History) -> dict[str, Artifact]:
    """Greedy held-out scores of the checkpoints to compare with, from the rounds that measured them."""
    scores = labels.HELD_OUT.scores("greedy")
    roles = history.checkpoints_by_role
    return {name: history.artifact(history.measured(roles[role].digest), scores) for name, role in COMPARED.items()}


def sampled_of_champion(stages: Stages, history: History) -> dict[str, Artifact]:
    """Sampled held-out scores of the champion, from the round that measured it; empty if checkpoints only answer greedily."""
    if not stages.first.evaluate.samples:
        return {}
    measured = history.measured(history.last.champion.digest)
    return {"champion": history.artifact(measured, labels.HELD_OUT.scores("sampled"))}


def alarms_of_training(
    stages: Stages, history: History, start: Ref, log: Artifact, metrics: Mapping[str, Metric], chosen: Mapping[str, Any]
) -> list[Alarm]:
    """Alarms from the training log, from the metrics before and after training, and from facts about what was chosen."""
    before, rows = history.measured(start.digest).metrics, tables.read(log.file("training.parquet"), tables.TRAINING)
    facts = training_facts(log)["trained"] | chosen
    return training_alarms(rows.to_pylist(), stages.recipe.loss, before, metrics, stages.recipe.gate.kl_budget, facts)


def with_full_kl(recipe: Recipe, alarms: Sequence[Alarm], ledger: Artifact | None) -> list[Alarm]:
    """The alarms, with the KL budget judged by the ledger's KL."""
    kl = kl_budget.from_reference(ledger_metrics(ledger), recipe.loss.reference, recipe.train.start_from)
    return kl_budget.by_full_kl(alarms, kl, recipe.gate.kl_budget)


def training_facts(log: Artifact | None) -> dict[str, Any]:
    """What the trainer read: its rows, those it validated on, those it left out (longer given solutions), and its steps."""
    return {"trained": json.loads(log.file("training.json").read_text())} if log else {}


def choice_metrics(data: TrainingData) -> dict[str, Metric]:
    """Metrics of the training data: shares of truncated and of too long samples, and chosen minus other length."""
    metrics: dict[str, Metric] = {}
    if data.samples:
        metrics = {"truncated": truncated(data.samples.own), "too_long": too_long(data.samples, data.facts["too_long"])}
    if data.facts.get("length_gap") is not None:
        n = data.facts.get("pairs", data.facts.get("rows", 0))
        gap = Metric(value=data.facts["length_gap"], n=n, split="rounds")
        if data.facts["length_unit"] == "characters":
            metrics["length_gap_characters"] = gap
        else:
            metrics["length_gap"] = gap
    return metrics


def _record(
    stages: Stages, began: float, *, checkpoints: Mapping[str, Ref | None], metrics: dict[str, Metric], verdict: Verdict,
    facts: dict[str, Any], alarms: Sequence[Alarm],
) -> Round:  # fmt: skip
    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return Round(
        round=stages.number,
        **checkpoints,
        artifacts={label.text: ref(artifact) for label, artifact in stages.made.items()},
        metrics=metrics,
        facts=facts,
        alarms=tuple(alarms),
        verdict=verdict,
        versions={"ratchet": ratchet_version(), "python": platform.python_version(), **libraries},
        seconds=time.time() - began,
    )
