"""One round on a page: prompts and a checkpoint in, better data, a measured checkpoint and a verdict out."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

from data.campaign import Metric, Ref, Round, Verdict
from data.store import Artifact, Store
from flows.judging import judge_metrics
from flows.probe import baseline, compared, read_alarms, read_bias, said
from flows.stages import Stages, held, read_audit, read_metrics, ref
from tasks.gate import decide

LIBRARIES = ("torch", "transformers", "trl", "tokenizers", "datasets", "pyarrow", "math-verify", "prefect", "mlflow")


def round_zero(stages: Stages) -> Round:
    """Measure checkpoint 0, and sample it a second time: what differs between the two is noise (A/A)."""
    began = time.time()
    prompts = stages.prepare()
    if stages.recipe.recorded:
        stages.import_completions()
    base = stages.base(prompts)
    metrics = read_metrics(stages.evaluate(prompts, base, against={}, again=True))
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
    data = sample(stages, store, so_far, prompts, judges) if recipe.samples else {}
    untrained = too_little(stages, data)
    reference = standing[recipe.loss.reference] if "pairs" in data and not untrained else None
    start = standing[recipe.train.start_from]
    if untrained:
        checkpoint = held(store, last.head)
    else:
        seed_data = {"seed_data": prompts} if recipe.train.replay else {}
        checkpoint = stages.train(held(store, start), held(store, reference) if reference else None, data | seed_data)

    against = {name: greedy_score(store, so_far, standing[key]) for name, key in COMPARED.items()}
    metrics = read_metrics(stages.evaluate(prompts, checkpoint, against))
    metrics |= judge_metrics(stages, store, so_far, prompts, judges)
    ledger = compared(stages, store, so_far, prompts, checkpoint, data)
    alarms = read_alarms(ledger)
    verdict = settle(decide(recipe.gate, metrics, untrained, alarms))

    k = ref(checkpoint)
    head = last.champion if verdict.decision in ("roll_back", "stop") else k
    champion = k if verdict.decision == "promote" else last.champion
    facts = read_audit(data)
    if facts.get("length_gap") is not None:
        metrics["length_gap"] = Metric(value=facts["length_gap"], n=facts.get("pairs", facts.get("rows", 0)), split="rounds")
    facts |= said(ledger)
    return _record(
        stages, began, last.head, k, head, champion, metrics=metrics | read_bias(ledger), verdict=verdict, facts=facts,
        reference=reference, start_from=None if untrained else start,
    )  # fmt: skip


COMPARED = {"base": "base", "champion": "best", "previous": "previous"}


def source(stages: Stages, store: Store, so_far: list[Round]) -> Artifact:
    """Where the round's completions come from: the head, or the file as it was imported when the campaign began."""
    if not stages.recipe.recorded:
        return held(store, so_far[-1].head)
    known = so_far[0].artifacts.get("import_completions")
    return held(store, known) if known else stages.import_completions()


def sample(
    stages: Stages, store: Store, so_far: list[Round], prompts: Artifact, judges: Mapping[str, Artifact]
) -> dict[str, Artifact]:
    """Draw prompts, take completions of the source, score, and choose what to train on."""
    drawn = stages.draw(stages.curate(prompts, sampled_before(stages, store, so_far)))
    completions = stages.generate(drawn, source(stages, store, so_far))
    completions = stages.pool(drawn, completions, beside(stages, store, so_far, prompts, drawn))
    scores = stages.scores(drawn, completions, judges)
    reward = stages.reward(scores)
    return {"prompts": drawn, "completions": completions, **stages.choose(completions, reward, scores)}


def sampled_before(stages: Stages, store: Store, so_far: list[Round]) -> dict[str, Artifact]:
    """Each finished round's own samples and their verdicts: what curating stands on."""
    verdict, found = f"score/{stages.recipe.score[0].label}", {}
    for known in so_far:
        if {"generate", verdict} <= known.artifacts.keys():
            found[f"completions/{known.round}"] = held(store, known.artifacts["generate"])
            found[f"scores/{known.round}"] = held(store, known.artifacts[verdict])
    return found


def beside(stages: Stages, store: Store, so_far: list[Round], prompts: Artifact, drawn: Artifact) -> dict[str, Artifact]:
    """What the recipe's [pool] puts beside the round's own samples."""
    pool, found = stages.recipe.pool, {}
    if pool.given:
        found["given"] = prompts
    if pool.base:
        found["base"] = stages.generate(drawn, held(store, so_far[0].checkpoint), "base")
    if pool.contrast:
        found["contrast"] = stages.generate(stages.contrast(drawn), held(store, so_far[-1].head), "contrast")
    sampled = [finished.artifacts["generate"] for finished in so_far if "generate" in finished.artifacts]
    earlier = sampled[-pool.earlier :] if pool.earlier else []
    return found | {f"earlier/{number}": held(store, known) for number, known in enumerate(earlier)}


def too_little(stages: Stages, data: dict[str, Artifact]) -> str | None:
    """Why the round has nothing to train on, in words; None where it has enough."""
    if not data:
        return None  # a control trains on the seed split
    facts, minimum = read_audit(data), stages.recipe.train.minimum
    kind, unit = ("pairs", "pairs") if "pairs" in data else ("rows", "selected completions")
    if facts[kind] >= minimum:
        return None
    without = ", ".join(f"{count} {why}" for why, count in facts.get("prompts_without", {}).items() if count)
    said = f" (prompts without: {without})" if without else ""
    return f"{facts[kind]} {unit} from {facts['prompts']} prompts, {minimum} needed{said}"


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
