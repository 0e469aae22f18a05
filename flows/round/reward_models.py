"""The reward model of a round, fitted on the verifier's pairs; and one per fold of prompts, to judge it on other prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping

from data import labels
from data.recipe.loss import Loss
from data.recipe.settings import Score
from data.rows import tables
from data.rows.folds import FOLDS, fold_of
from data.store.store import Artifact
from flows.round.artifacts import read_facts
from flows.round.resolve import micro_batches
from flows.round.stages import Stages
from tasks.choose import pair
from tasks.score import out_of_fold
from tasks.train import fit_reward

Inputs = Mapping[str, Artifact]


def fit_reward_model(stages: Stages, prompts: Artifact, completions: Artifact, verdicts: Artifact, base: Artifact) -> Inputs:
    """The round's reward model as `trained`; empty if the verdicts give fewer than train.minimum pairs."""
    recipe = stages.recipe
    f, verifier = recipe.fit_reward, recipe.score[0].label
    pairing = pair.Settings(pairer=f.pairer, settings=f.settings, scorers=[verifier], mitigations=[], **stages.counting())
    verified = {"completions": completions, "reward": verdicts, labels.score(verifier).text: verdicts}
    counted = {"prompts": prompts, "tokenizer": base}
    pairs = stages.do(labels.FIT_REWARD_PAIRS, pair.pair, pairing, verified | counted)
    if read_facts({"pairs": pairs})["pairs"] < recipe.train.minimum:
        return {}
    inputs = {"checkpoint": base, "prompts": prompts, "completions": completions, "pairs": pairs}
    return {"trained": stages.do(labels.FIT_REWARD, fit_reward.fit_reward, fit_settings(stages), inputs, _seed(stages))}


def fit_settings(stages: Stages, fold: int | None = None) -> fit_reward.Settings:
    """How a reward model is fitted; with a `fold`, on the prompts of the others, and on each as often as without."""
    recipe, f = stages.recipe, stages.recipe.fit_reward
    shared = ("weight_decay", "max_length", "precision", "checkpointing", "save_every", "split", "trust_remote_code")
    steps = f.steps if fold is None else math.ceil(f.steps * (FOLDS - 1) / FOLDS)
    return fit_reward.Settings(
        **stages.train_settings(recipe.train, Loss()).model_dump(include=set(shared)),
        **f.model_dump(exclude={"pairer", "settings", "accumulate", "steps"}),
        steps=steps,
        accumulate=f.accumulate or micro_batches(recipe, f.batch, 2 * recipe.train.max_length),
        schedule="cosine",
        warmup=0.0,
        fold=fold,
    )


def scores_out_of_fold(stages: Stages, prompts: Artifact, completions: Artifact, models: Inputs, entry: Score) -> Artifact:
    """SCORES by reward models that were fitted as the round's own is, but not on the prompt that they score."""
    pairs = stages.made[labels.FIT_REWARD_PAIRS]
    inputs = {"checkpoint": models["base"], "prompts": prompts, "completions": completions, "pairs": pairs}
    fitted = {
        f"checkpoint/{fold}": stages.do(
            labels.fit_reward_fold(fold), fit_reward.fit_reward, fit_settings(stages, fold), inputs, _seed(stages)
        )
        for fold in range(FOLDS)
        if _has_pairs_elsewhere(pairs, fold)
    }
    settings = stages.score_settings(entry, "rounds").model_copy(update={"loading": stages.loading()})
    sources = {"prompts": prompts, "completions": completions, **fitted}
    return stages.do(labels.out_of_fold(entry.label), out_of_fold.out_of_fold, settings, sources)


def _has_pairs_elsewhere(pairs: Artifact, fold: int) -> bool:
    """Whether there is a pair to fit on in the other folds."""
    prompts = tables.read(pairs.file("pairs.parquet"), tables.PAIRS)["prompt_id"].to_pylist()
    return any(fold_of(prompt) != fold for prompt in prompts)


def _seed(stages: Stages) -> int:
    return stages.seed("fit_reward")
