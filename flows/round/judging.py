"""Judge health in a round: every scorer is compared with the verifier on the round's completions.

A scorer with a model is also compared with itself, on anchors: texts that stay the same in all rounds.
"""

from __future__ import annotations

from data import labels
from data.recipe.settings import Score
from data.store.campaign import Metric
from data.store.store import Artifact
from flows.round.artifacts import read_metrics
from flows.round.history import History
from flows.round.reward_models import scores_out_of_fold
from flows.round.scoring import Models, score_one
from flows.round.stages import Stages
from flows.round.training_data import RoundSamples
from tasks.evaluate import anchors, judge_health
from tasks.generate import generate
from tasks.run.parts import needs


def judge_metrics(stages: Stages, history: History, prompts: Artifact, samples: RoundSamples | None) -> dict[str, Metric]:
    """`judge/<label>/...` for every scorer but the verifier; empty if there is none, or nothing was scored."""
    if samples is None:
        return {}
    metrics: dict[str, Metric] = {}
    for entry in stages.recipe.score[1:]:
        health = read_metrics(health_of(stages, history, prompts, samples, entry))
        metrics |= {f"judge/{entry.label}/{name}": metric for name, metric in health.items()}
    return metrics


def health_of(stages: Stages, history: History, prompts: Artifact, samples: RoundSamples, entry: Score) -> Artifact:
    """METRICS of one scorer."""
    inputs = {
        "judged": judged_scores(stages, samples, entry),
        "verified": samples.scores.verdicts,
        "completions": samples.completions,
    }
    if "checkpoint" in needs("scorers", entry.scorer):
        inputs |= anchor_scores(stages, history, prompts, samples.scores.models, entry)
    edits = list(stages.first.health.edits) if "anchors_now" in inputs else []
    settings = judge_health.Settings(split="rounds", edits=edits, compares=entry.scorer == "judge", own=own_texts(entry))
    return stages.do(labels.judge_health(entry.label), judge_health.judge_health, settings, inputs)


def own_texts(entry: Score) -> str:
    """The origin in [pool] of the texts that the scorer's model wrote; empty if it has no model of this campaign."""
    origin = {"policy": "policy", "base": "base"}.get(entry.checkpoint, "")
    return origin if "checkpoint" in needs("scorers", entry.scorer) else ""


def judged_scores(stages: Stages, samples: RoundSamples, entry: Score) -> Artifact:
    """The scorer's SCORES to compare with verdicts: the round's, or of a reward model that did not see the prompts it scores.

    The round's own reward model was fitted on these very verdicts, so its agreement with them shows what it memorised.
    """
    models = samples.scores.models
    if entry.checkpoint == "trained" and "trained" in models:
        return scores_out_of_fold(stages, samples.prompts, samples.completions, models, entry)
    return samples.scores.by_label[labels.score(entry.label).text]


def anchor_scores(stages: Stages, history: History, prompts: Artifact, models: Models, entry: Score) -> dict[str, Artifact]:
    """The judge's scores of the anchors: now, in the first round and in the round before."""
    if not stages.first.health.samples or not stages.first.prompts.probe:
        return {}
    texts, label = anchor_texts(stages, prompts, models["base"]), labels.anchor_scores(entry.label)
    scores = {"anchors_now": score_one(stages, label, entry, "probe", prompts, texts, models, {})}
    earlier = [history.artifact(finished, label) for finished in history.with_labels(label)]
    return scores | ({"anchors_first": earlier[0], "anchors_previous": earlier[-1]} if earlier else {})


def anchor_texts(stages: Stages, prompts: Artifact, base: Artifact) -> Artifact:
    """Completions of checkpoint 0 on the probe split, as they are and edited. `[[at]]` does not change them."""
    health = stages.first.health
    settings = stages.sampling(stages.first, split="probe", n=health.samples)
    sources, seed = {"prompts": prompts, "checkpoint": base}, stages.seed("anchors", 0)
    sampled = stages.do(labels.ANCHOR_COMPLETIONS, generate.generate, settings, sources, seed)
    return stages.do(labels.ANCHORS, anchors.anchors, anchors.Settings(edits=health.edits), {"completions": sampled})
