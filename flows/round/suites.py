"""Evaluation suites in a round: every checkpoint is measured on further files, to see what training costs elsewhere."""

from __future__ import annotations

from pathlib import Path

from data import labels
from data.labels import Label
from data.recipe.settings import Suite
from data.store.campaign import Metric
from data.store.store import Artifact
from flows.round.artifacts import external_file, read_metrics
from flows.round.history import History
from flows.round.stages import Stages
from tasks.evaluate import measure_logprob
from tasks.generate import import_completions
from tasks.prompts import read_prompts
from tasks.prompts.read_prompts import SPLIT
from tasks.run.stage import Input


def suite_metrics(stages: Stages, prompts: Artifact, checkpoint: Artifact, history: History | None = None) -> dict[str, Metric]:
    """`suite/<name>/{accuracy,logprob}` of a checkpoint, and from round 1 on `..._vs_base`. Empty if there are no suites.

    Args:
        history: None in round 0, which copies the files.
    """
    metrics: dict[str, Metric] = {}
    for suite in stages.recipe.suites:
        measure = _accuracy if suite.measure == "accuracy" else _logprob
        measured = read_metrics(measure(stages, suite, prompts, checkpoint, history))
        metrics |= {f"suite/{suite.name}/{name}": metric for name, metric in measured.items()}
    return metrics


def _accuracy(stages: Stages, suite: Suite, prompts: Artifact, checkpoint: Artifact, history: History | None) -> Artifact:
    names = labels.suite(suite.name)
    questions = history.of_first(names.prompts) if history else copy_prompts(stages, suite, prompts)
    against = _of_base(names.scores("greedy"), history)
    return stages.evaluate(questions, checkpoint, against, SPLIT, names=names, verifier=suite.score).metrics


def _logprob(stages: Stages, suite: Suite, prompts: Artifact, checkpoint: Artifact, history: History | None) -> Artifact:
    names = labels.suite(suite.name)
    questions = history.of_first(names.prompts) if history else copy_prompts(stages, suite, prompts)
    given = history.of_first(names.given) if history else copy_completions(stages, suite)
    inputs = {"prompts": questions, "completions": given, "checkpoint": checkpoint}
    against = _of_base(names.logprobs, history)
    logprobs = stages.logprobs(names.logprobs, SPLIT, inputs)
    settings = measure_logprob.Settings(split=SPLIT, against=sorted(against))
    compared: dict[str, Artifact] = {"logprobs": logprobs, **{f"logprobs/{name}": other for name, other in against.items()}}
    return stages.do(names.metrics, measure_logprob.measure_logprob, settings, compared)


def _of_base(label: Label, history: History | None) -> dict[str, Artifact]:
    return {"base": history.of_first(label)} if history else {}


def copy_prompts(stages: Stages, suite: Suite, prompts: Artifact) -> Artifact:
    """The prompts of a suite's file. The stage refuses prompts that rounds train on."""
    settings = read_prompts.Settings(
        map=suite.map,
        template=suite.template,
        answer_after=suite.answer_after,
        trained=stages.recipe.prompts.template,
    )
    inputs: dict[str, Input] = {"file": external_file(Path(suite.path)), "prompts": prompts}
    return stages.do(labels.suite(suite.name).prompts, read_prompts.read_prompts, settings, inputs)


def copy_completions(stages: Stages, suite: Suite) -> Artifact:
    """The completions of a suite's file."""
    settings = import_completions.Settings(map=suite.map, template=suite.template)
    file = {"file": external_file(Path(suite.path))}
    return stages.do(labels.suite(suite.name).given, import_completions.import_completions, settings, file)
