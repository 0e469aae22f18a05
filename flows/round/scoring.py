"""Score a round's completions: every scorer with the inputs it needs, after fitting a reward model if one is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data import labels
from data.errors import RecipeError
from data.labels import Label
from data.recipe.settings import Score
from data.store.store import Artifact
from flows.round.reward_models import fit_reward_model
from flows.round.stages import Stages
from tasks.generate import continued, generate, prefixes
from tasks.run.parts import check_settings, inputs_for, needs
from tasks.score import score

Models = Mapping[str, Artifact]  # the models of a campaign that a scorer can use, by score.checkpoint: policy, base, trained


@dataclass(frozen=True)
class RoundScores:
    """SCORES of every scorer by `score/<label>`, the verifier's first, and the models that scorers could use."""

    by_label: dict[str, Artifact]
    models: Models

    @property
    def verdicts(self) -> Artifact:
        """The SCORES of the verifier, which is the first scorer."""
        return next(iter(self.by_label.values()))


def scores_of_round(stages: Stages, prompts: Artifact, completions: Artifact, models: Models) -> RoundScores:
    """Score with every scorer. Scorers after the first may read its verdicts."""
    scores: dict[str, Artifact] = {}
    for entry in stages.recipe.score:
        verdicts = {"verdicts": next(iter(scores.values()))} if scores else {}
        if entry.checkpoint == "trained" and models and "trained" not in models:
            models = {**models, **fit_reward_model(stages, prompts, completions, verdicts["verdicts"], models["base"])}
        label = labels.score(entry.label)
        scores[label.text] = score_one(stages, label, entry, "rounds", prompts, completions, models, verdicts)
    return RoundScores(scores, models)


def score_one(
    stages: Stages,
    label: Label,
    entry: Score,
    split: str,
    prompts: Artifact,
    completions: Artifact,
    models: Models,
    available: Mapping[str, Artifact],
) -> Artifact:
    """SCORES of one scorer, with the further inputs that it needs."""
    settings = stages.score_settings(entry, split)
    needed = needs("scorers", entry.scorer)
    if "checkpoint" in needed:
        settings = settings.model_copy(update={"loading": stages.loading()})
        available = {**available, **model_of(stages, entry, models)}
    if "rollouts" in needed:
        available = {**available, "rollouts": rollouts(stages, entry, split, prompts, completions, models)}
    inputs = {"prompts": prompts, "completions": completions, **inputs_for("scorers", entry.scorer, available)}
    return stages.do(label, score.score, settings, inputs, around=stages.scoring.scoring)


def model_of(stages: Stages, entry: Score, models: Models) -> dict[str, Artifact]:
    """The model that a scorer uses: a checkpoint of the campaign, or a copy of a directory.

    Empty if a server has the model, or if there were too few pairs to fit a reward model.

    Raises:
        RecipeError: it uses the policy or the base, and there is none (`ratchet data`).
    """
    if not entry.checkpoint:
        return {}
    if entry.checkpoint not in ("policy", "base", "trained"):
        return {"checkpoint": stages.import_model(labels.judge_model(entry.label), Path(entry.checkpoint))}
    if not models:
        raise RecipeError(
            f"score '{entry.label}' needs checkpoint = '{entry.checkpoint}', which exists only in a campaign; set its "
            "checkpoint to a model's directory"
        )
    if entry.checkpoint == "trained" and "trained" not in models:
        return {}
    return {"checkpoint": models[entry.checkpoint]}


def rollouts(stages: Stages, entry: Score, split: str, prompts: Artifact, completions: Artifact, models: Models) -> Artifact:
    """The verifier's SCORES of continuations, which are sampled from every step of the completions.

    Raises:
        RecipeError: there is no model to continue with.
    """
    model = model_of(stages, entry, models).get("checkpoint")
    if model is None:
        raise RecipeError(
            f"score '{entry.label}' samples continuations of solutions with a model, found none; set its checkpoint to "
            "policy, base or a directory"
        )
    own, label = check_settings("scorers", entry.scorer, entry.settings), labels.rollouts
    cutting = prefixes.Settings(split=split, separator=own["separator"], steps=own["steps"])
    sources = {"prompts": prompts, "completions": completions}
    starts = stages.do(label(entry.label, "prefixes"), prefixes.prefixes, cutting, sources)
    settings = stages.sampling(stages.recipe, split=split, n=own["samples"], max_tokens=stages.recipe.generate.longest)
    drawn = label(entry.label, "drawn")
    sampled = stages.do(drawn, generate.generate, settings, {"prompts": starts, "checkpoint": model}, stages.seed(drawn.text))
    inputs = {"prefixes": starts, "drawn": sampled}
    solutions = stages.do(label(entry.label, "continued"), continued.continued, continued.Settings(split=split), inputs)
    return stages.verify(label(entry.label, "verdicts"), split, starts, solutions)
