"""Judge health in a round: every scorer beside the verifier on the round's completions, one with a model on anchors too"""

from __future__ import annotations

from collections.abc import Mapping

from data.recipe.settings import Score
from data.store.campaign import Metric, Round
from data.store.store import Artifact, Store
from flows.round.artifacts import held, read_metrics
from flows.round.scoring import score_one
from flows.round.stages import Stages
from tasks.run.parts import wants


def judge_metrics(
    stages: Stages, store: Store, so_far: list[Round], prompts: Artifact, standing: Mapping[str, Artifact]
) -> dict[str, Metric]:
    """`judge/<label>/...` for every scorer but the verifier; empty where there is none."""
    metrics: dict[str, Metric] = {}
    verifier, *others = stages.recipe.score
    for score in others if stages.recipe.samples else ():
        inputs = {name: stages.made[f"score/{s.label}"] for name, s in (("judged", score), ("verified", verifier))}
        inputs["completions"] = stages.made.get("pool", stages.made["generate"])
        if "checkpoint" in wants("scorers", score.scorer):
            inputs |= anchored(stages, store, so_far, prompts, standing, score)
        edits = list(stages.first.health.edits) if "anchors_now" in inputs else []
        settings = {"split": "rounds", "edits": edits, "compares": score.scorer == "judge"}
        found = read_metrics(stages.do(f"judge_health/{score.label}", "judge_health", settings, inputs))
        metrics |= {f"judge/{score.label}/{name}": metric for name, metric in found.items()}
    return metrics


def anchored(
    stages: Stages, store: Store, so_far: list[Round], prompts: Artifact, standing: Mapping[str, Artifact], score: Score
) -> dict[str, Artifact]:
    """The judge's scores of the anchors: now, in the first round and in the last one."""
    if not stages.first.health.samples or not stages.first.prompts.probe:
        return {}
    texts = anchors(stages, prompts, standing["base"])
    label = f"anchors/{score.label}"
    made = {"anchors_now": score_one(stages, label, score, "probe", prompts, texts, standing, {})}
    earlier = [r.artifacts[label] for r in so_far if label in r.artifacts]
    if earlier:
        made |= {"anchors_first": held(store, earlier[0]), "anchors_previous": held(store, earlier[-1])}
    return made


def anchors(stages: Stages, prompts: Artifact, base: Artifact) -> Artifact:
    """Texts of checkpoint 0 on the probe split, as they are and edited: the same in every round, whatever `[[at]]` says."""
    health = stages.first.health
    settings = {**stages.decoding(stages.first), "n": health.samples, "split": "probe"}
    drawn = stages.do(
        "anchors/drawn", "generate", settings, {"prompts": prompts, "checkpoint": base}, stages.seed("anchors", 0)
    )
    return stages.do("anchors", "anchors", {"edits": health.edits}, {"completions": drawn})
