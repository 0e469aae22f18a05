"""`ratchet data`: score, choose from and measure completions that are there already. No model, no rounds, no gate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel

from data import labels
from data.errors import RecipeError
from data.labels import Label
from data.recipe import recipe as recipes
from data.recipe.dotted import flatten
from data.rows import sources
from data.store.campaign import Campaign, Metric
from flows.commands.options import Columns, Home, Json, Sets, Source, out, overrides
from flows.service import environment

if TYPE_CHECKING:
    from data.store.store import Artifact
    from tasks.run.stage import Around, Input
    from tasks.run.work import Stage

OFF = {"generate.engine": "recorded", "prompts.held_out": 0, "prompts.test": 0, "prompts.probe": 0}  # nothing is held back


def data(
    source: Source,
    prompts: Annotated[Path, typer.Option(help="Prompts, answers and (unless --completions) completions.")],
    completions: Annotated[Path | None, typer.Option(help="Completions, where they are in a file of their own.")] = None,
    columns: Columns = "",
    home: Home = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Score completions that somebody else produced, select or pair them as a recipe says, and measure them.

    Needs no model and trains nothing. The same artifacts serve a campaign that trains on them (`run` with
    generate.engine=recorded).

    Examples:

      ratchet data iterative_dpo --prompts outputs.jsonl.gz --map prompt=query,completion=response,answer=gold

      ratchet data raft --prompts questions.jsonl --completions outputs.parquet --json
    """
    from flows.commands.check import check_parts

    place = environment.home_of(home)
    given = {**overrides(None, prompts, columns), **OFF}
    if completions is not None:
        given["generate.path"] = sources.absolute(completions)
    recipe = recipes.load(source, sets or [], given).at_round(1)
    if not recipe.samples:
        raise RecipeError(f"{source}: expected a recipe that selects or pairs completions, found one of seed data only")
    check_parts(recipe)
    environment.prepare(place)
    made = run(place, recipe)
    _print(made, as_json)


def run(home: Path, recipe: recipes.Recipe) -> dict[Label, Artifact]:
    """Every artifact by its label, through the stages a round would use, in its order."""
    from flows.round.calls import watched_stage
    from flows.round.reporter import Reporter
    from flows.round.scoring import scores_of_round
    from flows.round.stages import Stages

    campaign = Campaign(home, "data", recipe)  # never written: there are no rounds to record
    with campaign.store.in_use(), Reporter("data") as report:

        def call(
            label: Label, stage: Stage, settings: BaseModel, inputs: Mapping[str, Input], seed: int, around: Around
        ) -> Artifact:
            return watched_stage(
                campaign.store, report, 1, label.text, stage, settings, inputs,
                hardware=recipe.hardware, seed=seed, around=around,
            )  # fmt: skip

        stages = Stages(campaign, 1, call)
        prompts = stages.prepare()
        completions = stages.recorded(prompts, stages.import_completions())
        scores = scores_of_round(stages, prompts, completions, {})
        rewards = stages.reward(scores)
        stages.choose(completions, rewards, scores)
        stages.measure_pool(completions, rewards, scores)
        return stages.made


def _print(made: Mapping[Label, Artifact], as_json: bool) -> None:
    from flows.commands.report import plain_table
    from flows.round.artifacts import read_facts, read_metrics
    from flows.round.reporter import percent

    metrics = read_metrics(made[labels.MEASURE_POOL])
    chosen = {name: made[label] for name, label in (("pairs", labels.PAIR), ("selected", labels.SELECT)) if label in made}
    chosen_facts = read_facts(chosen)
    imported: dict[str, Any] = json.loads(made[labels.GENERATE].file("facts.json").read_text())
    places = {label.text: str(artifact.path) for label, artifact in made.items()}
    if as_json:
        refs = {label.text: {"key": a.key, "digest": a.digest, "path": places[label.text]} for label, a in made.items()}
        shown = {name: metric.model_dump() for name, metric in metrics.items()}
        print(json.dumps({"completions": imported, "metrics": shown, "chosen": chosen_facts, "artifacts": refs}, indent=1))
        return
    table = plain_table(
        "measure", "value", "n", caption="with 95% intervals over prompts; all but characters and tokens in percent"
    )
    for name, metric in metrics.items():
        table.add_row(name, _plain(name, metric) if name in ("characters", "mean_tokens") else percent(metric), str(metric.n))
    out.print(table)
    for what, counts in (("completions", imported), ("chosen", flatten(chosen_facts))):
        known = [f"{name.replace('_', ' ')} {value}" for name, value in counts.items() if value]
        out.print(f"{what}: {', '.join(known)}", soft_wrap=True)
    for label in ("pair", "select"):
        if label in places:
            out.print(f"tables: {places[label]} and, for the texts, {places['generate']}", soft_wrap=True)


def _plain(name: str, metric: Metric) -> str:
    return "-" if metric.value is None else f"{metric.value:.1f}"
