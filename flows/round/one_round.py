"""One round on a page: prompts and a checkpoint in, better data, a measured checkpoint and a verdict out."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable
from typing import Any

from data.store.campaign import Metric, Ref, Round, Verdict
from data.store.store import Artifact, Store
from flows.round.artifacts import held, read_audit, read_metrics, ref
from flows.round.judging import judge_metrics
from flows.round.probe import baseline, compared, read_alarms, read_bias, said
from flows.round.stages import Stages
from flows.round.suites import suite_metrics
from flows.round.training_data import take, too_little, truncated
from tasks.bias.alarm_rule import Alarm
from tasks.gate.gate import decide
from tasks.gate.training_alarms import blind_judges, forgetting, training_alarms

LIBRARIES = ("torch", "transformers", "trl", "tokenizers", "datasets", "pyarrow", "math-verify", "prefect", "mlflow")


def round_zero(stages: Stages) -> Round:
    """Measure checkpoint 0, and sample it a second time: what differs between the two is noise (A/A)."""
    began = time.time()
    prompts = stages.prepare()
    if stages.recipe.recorded:
        stages.import_completions()
    base = stages.base(prompts)
    metrics = read_metrics(stages.evaluate(prompts, base, against={}, again=True))
    metrics |= suite_metrics(stages, prompts, base)
    ledger = baseline(stages, prompts, base)
    start = ref(base)
    verdict = Verdict(decision="start", reason="checkpoint 0, measured before any training")
    return _record(
        stages, began, start, start, start, start, metrics=metrics | read_bias(ledger), verdict=verdict, facts=said(ledger)
    )


def one_round(stages: Stages, store: Store, so_far: list[Round], settle: Callable[[Verdict], Verdict]) -> Round:
    """Turn the head into checkpoint k, measure it, and let the gate decide. `settle` answers a gate that asks."""
    began, last = time.time(), so_far[-1]
    standing = {"previous": last.head, "base": so_far[0].checkpoint, "best": last.champion}
    recipe = stages.recipe

    prompts = held(store, so_far[0].artifacts["prepare"])  # as they were when the campaign began, whatever became of the file
    judges = {"policy": held(store, last.head), "base": held(store, so_far[0].checkpoint)}
    data = take(stages, store, so_far, prompts, judges)
    untrained = too_little(stages, data)
    reference = named_reference(stages, store, so_far, standing) if recipe.loss.needs_reference and not untrained else None
    start = standing[recipe.train.start_from]
    if untrained:
        checkpoint = held(store, last.head)
    else:
        seed_data = {"seed_data": prompts} if recipe.train.replay else {}
        train = stages.online if recipe.online else stages.train
        checkpoint = train(held(store, start), held(store, reference) if reference else None, data | seed_data)

    against = {name: greedy_score(store, so_far, standing[key]) for name, key in COMPARED.items()}
    metrics = read_metrics(stages.evaluate(prompts, checkpoint, against))
    metrics |= suite_metrics(stages, prompts, checkpoint, lambda label: held(store, so_far[0].artifacts[label]))
    metrics |= judge_metrics(stages, store, so_far, prompts, judges)
    ledger = compared(stages, store, so_far, prompts, checkpoint, last.head if untrained else start, data, judges)
    troubled = [] if untrained else troubles(stages, so_far, start, checkpoint, metrics)
    troubled += forgetting(metrics, last.metrics) + blind_judges(metrics, last.metrics, recipe.score)
    alarms = troubled + read_alarms(ledger)
    verdict = settle(decide(recipe.gate, metrics, untrained, alarms))

    k = ref(checkpoint)
    head = last.champion if verdict.decision in ("roll_back", "stop") else k
    champion = k if verdict.decision == "promote" else last.champion
    facts = read_audit(data)
    if "completions" in data:
        metrics["truncated"] = truncated(stages.made["generate"])
    if facts.get("length_gap") is not None:
        metrics["length_gap"] = Metric(value=facts["length_gap"], n=facts.get("pairs", facts.get("rows", 0)), split="rounds")
    facts |= said(ledger)
    if troubled:
        facts["training_alarms"] = [str(alarm) for alarm in troubled]
    return _record(
        stages, began, last.head, k, head, champion, metrics=metrics | read_bias(ledger), verdict=verdict, facts=facts,
        reference=reference, start_from=None if untrained else start,
    )  # fmt: skip


COMPARED = {"base": "base", "champion": "best", "previous": "previous"}


def named_reference(stages: Stages, store: Store, so_far: list[Round], standing: dict[str, Ref]) -> Ref:
    """The checkpoint the recipe calls the reference; the moving average goes over the heads of all rounds so far."""
    loss = stages.recipe.loss
    if loss.reference != "ema":
        return standing[loss.reference]
    average = held(store, so_far[0].head)
    for finished in so_far[1:]:
        average = stages.average(f"ema/{finished.round}", average, held(store, finished.head))
    return ref(average)


def troubles(stages: Stages, so_far: list[Round], start: Ref, checkpoint: Artifact, metrics: dict[str, Metric]) -> list[Alarm]:
    """What went wrong in training, by its log and by what was measured before and after it."""
    before = next(r for r in reversed(so_far) if r.checkpoint.digest == start.digest).metrics
    return training_alarms(stages.training_log(checkpoint), stages.recipe.loss, before, metrics, stages.recipe.gate.kl_budget)


def greedy_score(store: Store, so_far: list[Round], checkpoint: Ref) -> Artifact:
    """The greedy held-out scores of an earlier checkpoint, from the round that measured it."""
    measured = next(r for r in reversed(so_far) if r.checkpoint.digest == checkpoint.digest)
    return held(store, measured.artifacts["evaluate/greedy_score"])


def _record(
    stages: Stages, began: float, head_before: Ref, checkpoint: Ref, head: Ref, champion: Ref, *,
    metrics: dict[str, Metric], verdict: Verdict, facts: dict[str, Any] | None = None,
    reference: Ref | None = None, start_from: Ref | None = None,
) -> Round:  # fmt: skip
    return Round(
        round=stages.number,
        head_before=head_before,
        checkpoint=checkpoint,
        head=head,
        champion=champion,
        reference=reference,
        start_from=start_from,
        artifacts={label: ref(artifact) for label, artifact in stages.made.items()},
        metrics=metrics,
        facts=facts or {},
        verdict=verdict,
        versions={"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}},
        seconds=time.time() - began,
    )
