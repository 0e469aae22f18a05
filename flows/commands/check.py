"""`ratchet check`: everything that can be known before a campaign runs. Parts, prompts, the model, and what it will cost."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from data.errors import HomeError, RecipeError
from data.recipe import recipe as recipes
from data.recipe.notes import notes
from data.recipe.recipe import Recipe
from data.rows import prompts, records, sources
from data.store.campaign import free_bytes
from flows.commands.estimate import judge_tokens, sampled_to_train_on, seven_b
from flows.commands.options import Columns, Home, Json, Model, Prompts, Sets, Source, overrides
from flows.commands.part_rules import check_parts
from flows.round import gold
from flows.round.resolve import accumulation, checkpointing, decoded_together, precision
from flows.service import environment
from flows.terminal import line, out
from tasks.gate.spending import error_of_round, expected_spread, smallest_difference
from tasks.models.models import inspect_checkpoint, load_tokenizer, render

TINY_MODEL_BYTES = 500_000  # weights, tokenizer and configuration of the built-in model
LOOKED_AT = 2000  # prompts whose tokens are counted: splits are drawn by hash, so the first ones are a sample
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
    """Check a recipe, its parts, its prompts and its model, and estimate what a campaign costs. Nothing is run or written.

    All estimates are upper bounds: completions, tokens, training steps, MB on
    disk. With a model of your own it also estimates GPU hours and memory for
    a 7B model on one 80 GB GPU.

    A note says what the recipe does that is easily overlooked, e.g. that it
    adds scores of unlike scales.

    Exit code 0: the recipe can run. 2: it cannot, with all reasons.

    Examples:

      ratchet check tiny_dpo --set loss.beta=0.2

      ratchet check raft --model ./my-model --prompts questions.jsonl
    """
    recipe = recipes.load(source, sets or [], overrides(model, prompts, columns))
    estimate = checked(recipe, environment.home_of(home))
    may, touches = gold_of(recipe)
    told = estimate.pop("notes")
    if as_json:
        seven = dataclasses.asdict(estimate.pop("seven_b"))
        shown = {
            "recipe": recipe.plain(),
            "gold": {"may": may, "touches": touches},
            "estimate": estimate | {"seven_b": seven},
            "notes": told,
        }
        print(json.dumps(shown, indent=1))
        return
    out.print(line(("ok", "green"), f"  {recipe.description}"))
    out.print(f"prompts     {', '.join(f'{split} {count:,}' for split, count in estimate['prompts'].items() if count)}")
    to_train_on = f"{estimate['completions_per_round']:,} per round to train on, the others to measure"
    out.print(f"completions at most {estimate['completions']:,} ({to_train_on})")
    out.print(f"{'':<12}{estimate['batch']} sampled at the same time")
    out.print(f"tokens      at most {estimate['tokens_at_most']:,} to sample")
    out.print(f"training    {recipe.loss.name}, {estimate['steps_per_round']} steps per round, batch {recipe.train.batch}")
    if "smallest_gain" in estimate:
        out.print(f"gate        {gate_line(estimate)}", soft_wrap=True)
    by_place = "; ".join(f"{place} ({', '.join(readers)})" for place, readers in touches.items()) or "nothing"
    out.print(f"gold        {', '.join(may)}: verdicts touch {by_place}", soft_wrap=True)
    recomputed = ", activations recomputed" if estimate["checkpointing"] else ""
    out.print(f"{'':<12}{estimate['precision']}, micro-batches of {estimate['micro_batch']}{recomputed}")
    out.print(f"disk        at most {estimate['disk_bytes'] / 1e6:,.0f} MB")
    if recipe.model.path:
        first, second = estimate["seven_b"].lines()
        out.print(f"on a 7B model and one 80 GB GPU: {first}\n{'':<12}{second}", soft_wrap=True)
    for note in told:
        out.print(line(("note", "yellow"), f"        {note}"), soft_wrap=True)


def gate_line(estimate: Mapping[str, Any]) -> str:
    """How small a gain the gate can detect with the recipe's held-out prompts."""
    gain, held_out = estimate["smallest_gain"], estimate["prompts"]["held_out"]
    return f"finds a gain of {100 * gain:.1f} points or more in 80% of cases, on {held_out:,} held-out prompts"


def smallest_gain(recipe: Recipe, held_out: int) -> dict[str, float]:
    """The smallest gain that the gate of a round detects in 80% of cases, by the expected spread; empty without a gate."""
    if not held_out or recipe.gate.rule == "always_promote":
        return {}
    error = error_of_round(recipe.rounds, [{}])
    return {"smallest_gain": smallest_difference(expected_spread(recipe.evaluate.samples), held_out, error.promote)}


def rounds_of(recipe: Recipe) -> list[Recipe]:
    """The recipe of every round that trains."""
    return [recipe.at_round(number) for number in range(1, recipe.rounds + 1)]


def checked(recipe: Recipe, home: Path) -> dict[str, Any]:
    """Check the parts of every round, read prompts and model, and return the estimate of the work.

    Raises:
        PartError, RecipeError, PromptsError, ModelError: what the recipe names does not exist or does not fit.
        HomeError: the home has too little free space.
    """
    if recipe.recorded:
        can_train(recipe)
        read_completions(recipe)
    rounds = rounds_of(recipe)
    check_parts(*rounds)
    counts = prompt_counts(recipe)
    estimate = cost(recipe, counts, suite_rows(recipe)) | {"notes": notes(rounds) + long_prompts(recipe, rounds)}
    estimate |= smallest_gain(recipe, counts["held_out"])
    if estimate["disk_bytes"] > free_bytes(home):
        raise HomeError(
            f"expected about {decimal(estimate['disk_bytes'])} of free space in {home}, found {decimal(free_bytes(home))}; "
            "pass another --home, or set keep.checkpoints = 'best+last'"
        )
    return estimate


def gold_of(recipe: Recipe) -> tuple[list[str], dict[str, list[str]]]:
    """What the rounds permit gold to decide (train, gate or never), and what it touches by place, with what reads it there."""
    rounds = rounds_of(recipe)
    touches: dict[str, list[str]] = {}
    for place, readers in (item for now in rounds for item in gold.touched(now).items()):
        touches[place] = list(dict.fromkeys([*touches.get(place, []), *readers]))
    return list(dict.fromkeys(map(gold.permission, rounds))), touches


def can_train(recipe: Recipe) -> None:
    """What a campaign on recorded completions needs and `ratchet data` does not.

    Raises:
        RecipeError: it has no model to train, no held-out prompts or no verifier.
    """
    if not recipe.model.path and recipe.prompts.source != "addition":
        raise RecipeError("training on recorded completions needs a model: pass --model DIR, or use `ratchet data` without one")
    if not recipe.prompts.held_out:
        raise RecipeError("the gate compares checkpoints on held-out prompts, found none; set prompts.held_out")
    if recipe.score[0].scorer == "imported":
        raise RecipeError(
            "the first [[score]] verifies the answers of every checkpoint, but 'imported' only has scores of recorded "
            "completions; put a verifier first"
        )


def read_completions(recipe: Recipe) -> None:
    """Read recorded completions to the end, so that a bad row is found before anything runs."""
    for row, record in sources.read(Path(recipe.generate.path or recipe.prompts.path)):
        records.completions_of(recipe.prompts, record, row)


def prompt_counts(recipe: Recipe) -> dict[str, int]:
    """Prompts per split; a user's file is read to the end, so that a bad row is found before anything runs."""
    settings = recipe.prompts
    if settings.source != "file":
        return {split: getattr(settings, split) for split in prompts.SPLITS}
    rows, _ = prompts.splits(settings, Path(settings.path), recipe.seed)
    counts: dict[str, int] = prompts.disjoint(rows)["prompts"]
    return counts


def long_prompts(recipe: Recipe, rounds: Sequence[Recipe]) -> list[str]:
    """A note about prompts whose longest completions training would not read, by the tokenizer of a user's own model.

    Raises:
        RecipeError: no prompt that rounds sample leaves room for a completion.
    """
    choosing = [now for now in rounds if now.samples]
    if not choosing or not recipe.model.path or recipe.prompts.source != "file":
        return []
    lengths = prompt_tokens(recipe)
    limit, least = (f(now.train.max_length for now in choosing) for f in (max, min))
    if min(lengths, default=0) >= limit:
        raise RecipeError(f"every prompt has {min(lengths)} tokens or more, and train.max_length is {limit}; raise it")
    longest = max(now.generate.longest for now in choosing)
    long = sum(length + longest > least for length in lengths)
    if not long or longest >= least:  # data.recipe.notes tells that completions alone are too long
        return []
    return [
        f"{long} of {len(lengths)} prompts have more than train.max_length - {longest} = {least - longest} tokens (at most "
        f"{max(lengths)}), so that their longest completions are sampled and never trained on; raise train.max_length"
    ]


def prompt_tokens(recipe: Recipe) -> list[int]:
    """Tokens of the first prompts that rounds may sample, LOOKED_AT of them at most."""
    rows, _ = prompts.splits(recipe.prompts, Path(recipe.prompts.path), recipe.seed)
    tokenizer = load_tokenizer(Path(recipe.model.path), recipe.model.trust_remote_code)
    asked = rows["seed" if recipe.pool.given else "rounds"][:LOOKED_AT]
    return [len(render(tokenizer, row["messages"])) for row in asked]


def suite_rows(recipe: Recipe) -> int:
    """Number of suite prompts that a checkpoint answers. Every file is read to the end."""
    answered = 0
    for suite in recipe.suites:
        path, settings = Path(suite.path), suite.as_prompts()
        rows = prompts.distinct(settings, path)
        if suite.measure == "accuracy":
            answered += len(rows)
            continue
        for row, record in sources.read(path):
            records.completions_of(settings, record, row)
    return answered


def cost(recipe: Recipe, counts: dict[str, int], in_suites: int) -> dict[str, Any]:
    """Upper bounds: completions and tokens to sample, optimizer steps, bytes on disk."""
    e, rounds = recipe.evaluate, [recipe.at_round(number) for number in range(recipe.rounds + 1)]
    pool = counts["seed"] if recipe.pool.given else counts["rounds"]
    per_round = min(recipe.prompts.per_round or pool, pool)
    to_train_on = [sampled_to_train_on(now, per_round) for now in rounds[1:]]
    sampled, tokens = sum(count for count, _ in to_train_on), sum(count for _, count in to_train_on)

    longest = e.max_tokens or rounds[0].generate.max_tokens
    evaluations = (recipe.rounds + 1) * counts["held_out"] * (1 + e.samples) + counts["held_out"] * e.samples
    evaluations += 4 * (counts["test"] + counts["ood"]) + (recipe.rounds + 1) * in_suites
    probe = recipe.probe
    copies = len(probe.counterfactuals) + ("challenge" in probe.counterfactuals)  # at most; a challenge has a neutral copy too
    sets_of_samples = (1 + copies) * (recipe.rounds + 1 + probe.baseline)
    probes = counts["probe"] * probe.samples * sets_of_samples if recipe.watched else 0
    judging = sum(judge_tokens(score, probe.samples) for score in recipe.score if score.weight)  # of one set per round
    judging *= counts["probe"] * (recipe.rounds + 1) if recipe.watched else 0
    tokens += probes * rounds[0].generate.max_tokens + evaluations * longest + judging
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
        # While a round trains there are two saves, each with weights and two optimizer moments in float32.
        "disk_bytes": weights * (kept + 2 * 3) + tokens * BYTES_PER_TOKEN,
    }


def model_bytes(recipe: Recipe) -> int:
    if not recipe.model.path:
        return TINY_MODEL_BYTES
    return sum(path.stat().st_size for path in inspect_checkpoint(Path(recipe.model.path)))
