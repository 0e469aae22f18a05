"""Scoring a round's completions: every scorer with what it asks for, a reward model fitted first, solutions sampled on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import RecipeError
from data.recipe.loss import Loss
from data.recipe.settings import Score
from data.store.store import Artifact
from flows.round.artifacts import external_model, read_audit
from flows.round.resolve import micro_batches
from flows.round.stages import Stages
from tasks.run.parts import check_settings, supply, wants


def scores(stages: Stages, prompts: Artifact, completions: Artifact, standing: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """SCORES of every scorer. One that takes `verdicts` stands on the first one's, one with a model on the checkpoint that
    its `checkpoint` names: `standing` holds policy and base."""
    made: dict[str, Artifact] = {}
    for score in stages.recipe.score:
        verdicts = {"verdicts": next(iter(made.values()))} if made else {}
        if score.checkpoint == "trained" and standing:
            fit_reward(stages, prompts, completions, verdicts["verdicts"], standing)
        made[f"score/{score.label}"] = score_one(
            stages, f"score/{score.label}", score, "rounds", prompts, completions, standing, verdicts
        )
    return made


def score_one(
    stages: Stages,
    label: str,
    score: Score,
    split: str,
    prompts: Artifact,
    completions: Artifact,
    standing: Mapping[str, Artifact],
    available: Mapping[str, Artifact],
) -> Artifact:
    """SCORES of one scorer, with what else it asks for."""
    settings: dict[str, Any] = {"scorer": score.scorer, "settings": score.settings, "split": split}
    asked = wants("scorers", score.scorer)
    if "checkpoint" in asked:
        settings["loading"] = stages.loading()
        available = {**available, **model_of(stages, score, standing)}
    if "rollouts" in asked:
        available = {**available, "rollouts": rollouts(stages, score, split, prompts, completions, standing)}
    inputs = {"prompts": prompts, "completions": completions, **supply("scorers", score.scorer, available)}
    return stages.do(label, "score", settings, inputs, around=stages.ahead.scoring)


def model_of(stages: Stages, score: Score, standing: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """The model a scorer asks: one of the campaign's, a directory's copy, or none (an endpoint holds it; none was fitted).

    Raises:
        RecipeError: it asks the policy or the base, and there is none (`ratchet data`).
    """
    if not score.checkpoint:
        return {}
    if score.checkpoint in ("policy", "base", "trained"):
        if not standing:
            raise RecipeError(
                f"score '{score.label}' asks the {score.checkpoint}, and without rounds there is none; "
                "set its checkpoint to a model's directory"
            )
        if score.checkpoint == "trained":
            return {"checkpoint": stages.made["fit_reward"]} if "fit_reward" in stages.made else {}
        return {"checkpoint": standing[score.checkpoint]}
    model = external_model(Path(score.checkpoint))
    return {"checkpoint": stages.do(f"judge/{score.label}", "import_model", {}, {"model": model})}


def rollouts(
    stages: Stages, score: Score, split: str, prompts: Artifact, completions: Artifact, standing: Mapping[str, Artifact]
) -> Artifact:
    """The verifier's SCORES of solutions sampled on from every step of the completions, by the start they go on from.

    Raises:
        RecipeError: no model is there to go on.
    """
    model = model_of(stages, score, standing).get("checkpoint")
    if model is None:
        raise RecipeError(f"score '{score.label}' samples on from solutions: set its checkpoint to policy, base or a directory")
    how = check_settings("scorers", score.scorer, score.settings)
    place = f"rollouts/{score.label}"
    sources = {"prompts": prompts, "completions": completions}
    starts = stages.do(
        f"{place}/prefixes", "prefixes", {"split": split, **{k: how[k] for k in ("separator", "steps")}}, sources
    )
    decoding = {
        **stages.decoding(stages.recipe),
        "n": how["samples"],
        "max_tokens": stages.recipe.generate.longest,
        "split": split,
    }
    drawn = stages.do(
        f"{place}/drawn", "generate", decoding, {"prompts": starts, "checkpoint": model}, stages.seed(f"{place}/drawn")
    )
    whole = stages.do(f"{place}/continued", "continued", {"split": split}, {"prefixes": starts, "drawn": drawn})
    return stages.verify(f"{place}/verdicts", split, starts, whole)


def fit_reward(
    stages: Stages, prompts: Artifact, completions: Artifact, verdicts: Artifact, standing: Mapping[str, Artifact]
) -> None:
    """The round's reward model, where the verifier's word gives at least train.minimum pairs."""
    f, verifier = stages.recipe.fit_reward, stages.recipe.score[0].label
    how = {"pairer": f.pairer, "settings": f.settings, "scorers": [verifier]}
    judged = {"completions": completions, "reward": verdicts, f"score/{verifier}": verdicts}
    pairs = stages.do("fit_reward/pairs", "pair", how, judged)
    if read_audit({"pairs": pairs})["pairs"] < stages.recipe.train.minimum:
        return
    settings = {
        **stages.train_settings(stages.recipe.train, Loss()),
        **f.model_dump(exclude={"pairer", "settings"}),
        "accumulate": f.accumulate or micro_batches(stages.recipe, f.batch, 2 * stages.recipe.train.max_length),
        "schedule": "cosine",
        "warmup": 0.0,
    }
    inputs = {"checkpoint": standing["base"], "prompts": prompts, "completions": completions, "pairs": pairs}
    stages.do("fit_reward", "fit_reward", settings, inputs, stages.seed("fit_reward"))
