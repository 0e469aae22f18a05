"""Score a round's completions: every scorer with the inputs it needs, after fitting a reward model if one is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data import labels
from data.errors import RecipeError
from data.labels import Label
from data.recipe.loss import Loss
from data.recipe.settings import Score
from data.store.store import Artifact
from flows.round.artifacts import read_facts
from flows.round.resolve import micro_batches
from flows.round.stages import Stages
from tasks.choose import pair
from tasks.generate import continued, generate, prefixes
from tasks.run.parts import check_settings, inputs_for, needs
from tasks.score import score
from tasks.train import fit_reward

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
            models = {**models, **fit_reward_model(stages, prompts, completions, verdicts["verdicts"], models)}
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


def fit_reward_model(
    stages: Stages, prompts: Artifact, completions: Artifact, verdicts: Artifact, models: Models
) -> dict[str, Artifact]:
    """The round's reward model as `trained`; empty if the verdicts give fewer than train.minimum pairs."""
    recipe = stages.recipe
    f, verifier = recipe.fit_reward, recipe.score[0].label
    pairing = pair.Settings(pairer=f.pairer, settings=f.settings, scorers=[verifier], mitigations=[])
    verified = {"completions": completions, "reward": verdicts, labels.score(verifier).text: verdicts}
    pairs = stages.do(labels.FIT_REWARD_PAIRS, pair.pair, pairing, verified)
    if read_facts({"pairs": pairs})["pairs"] < recipe.train.minimum:
        return {}
    shared = ("weight_decay", "max_length", "precision", "checkpointing", "save_every", "split", "trust_remote_code")
    settings = fit_reward.Settings(
        **stages.train_settings(recipe.train, Loss()).model_dump(include=set(shared)),
        **f.model_dump(exclude={"pairer", "settings", "accumulate"}),
        accumulate=f.accumulate or micro_batches(recipe, f.batch, 2 * recipe.train.max_length),
        schedule="cosine",
        warmup=0.0,
    )
    inputs = {"checkpoint": models["base"], "prompts": prompts, "completions": completions, "pairs": pairs}
    return {"trained": stages.do(labels.FIT_REWARD, fit_reward.fit_reward, settings, inputs, stages.seed("fit_reward"))}
