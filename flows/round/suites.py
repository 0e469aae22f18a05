"""Evaluation suites in a round: prompts of other files that every checkpoint answers, for what training may cost elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from data.recipe.settings import Suite
from data.store.campaign import Metric
from data.store.store import Artifact
from flows.round.artifacts import external_file, read_metrics
from flows.round.stages import Stages
from tasks.prompts.read_prompts import SPLIT

Past = Callable[[str], Artifact]  # an artifact of round 0 by its label


def suite_metrics(stages: Stages, prompts: Artifact, checkpoint: Artifact, past: Past | None = None) -> dict[str, Metric]:
    """`suite/<name>/{accuracy,logprob}` of a checkpoint, from round 1 on with `..._vs_base`; empty where there are no suites.

    Args:
        past: of round 0; None in round 0, which copies the files.
    """
    metrics: dict[str, Metric] = {}
    for suite in stages.recipe.suites:
        by = _accuracy if suite.measure == "accuracy" else _logprob
        found = read_metrics(by(stages, suite, prompts, checkpoint, past))
        metrics |= {f"suite/{suite.name}/{name}": metric for name, metric in found.items()}
    return metrics


def _accuracy(stages: Stages, suite: Suite, prompts: Artifact, checkpoint: Artifact, past: Past | None) -> Artifact:
    place = f"suite/{suite.name}"
    asked = _copied(stages, suite, "prompts", prompts, past)
    return stages.evaluate(asked, checkpoint, _base(f"{place}/greedy_score", past), SPLIT, place=place, verifier=suite.score)


def _logprob(stages: Stages, suite: Suite, prompts: Artifact, checkpoint: Artifact, past: Past | None) -> Artifact:
    place = f"suite/{suite.name}"
    given = {what: _copied(stages, suite, what, prompts, past) for what in ("prompts", "completions")}
    return likelihood(stages, place, given, checkpoint, _base(f"{place}/logprobs", past))


def _copied(stages: Stages, suite: Suite, what: str, prompts: Artifact, past: Past | None) -> Artifact:
    return past(f"suite/{suite.name}/{what}") if past else suite_file(stages, suite, what, prompts)


def _base(label: str, past: Past | None) -> Mapping[str, Artifact]:
    return {"base": past(label)} if past else {}


def suite_file(stages: Stages, suite: Suite, what: str, prompts: Artifact) -> Artifact:
    """The prompts of a suite's file, none of which rounds train on; or its completions."""
    settings, inputs = (
        {"map": suite.map.model_dump(), "template": suite.template},
        {"file": external_file(Path(suite.path))},
    )
    if what == "completions":
        return stages.do(f"suite/{suite.name}/completions", "import_completions", settings, inputs)
    settings |= {"answer_after": suite.answer_after, "trained": stages.recipe.prompts.template}
    return stages.do(f"suite/{suite.name}/prompts", "read_prompts", settings, {**inputs, "prompts": prompts})


def likelihood(
    stages: Stages, place: str, given: Mapping[str, Artifact], checkpoint: Artifact, against: Mapping[str, Artifact]
) -> Artifact:
    """METRICS of how likely a checkpoint finds given completions. `against` names the logprobs of other checkpoints."""
    settings = {"split": SPLIT, "limit": 0, "trust_remote_code": stages.recipe.model.trust_remote_code}
    found = stages.do(f"{place}/logprobs", "logprobs", settings, {**given, "checkpoint": checkpoint})
    inputs = {"logprobs": found, **{f"logprobs/{name}": other for name, other in against.items()}}
    return stages.do(f"{place}/metrics", "measure_logprob", {"split": SPLIT, "against": sorted(against)}, inputs)
