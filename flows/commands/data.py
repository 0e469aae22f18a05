"""`ratchet data`: score, select or pair, and measure completions from a file. No model, no rounds, no gate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel

from data import labels
from data.labels import Label
from data.recipe import recipe as recipes
from data.recipe.dotted import flatten
from data.rows import sources
from data.store.campaign import Campaign, Metric
from flows.commands.options import Columns, Home, Json, Sets, Source, overrides
from flows.service import environment
from flows.terminal import out

if TYPE_CHECKING:
    from data.store.store import Artifact
    from tasks.run.stage import Around, Input
    from tasks.run.work import Stage

OFF = {  # every prompt is used, and there is no gate
    "generate.engine": "recorded",
    "gate.rule": "always_promote",
    "prompts.held_out": 0,
    "prompts.test": 0,
    "prompts.probe": 0,
}


def data(
    source: Source,
    prompts: Annotated[
        Path, typer.Option(help="File of prompts and answers, and of completions unless --completions names it.")
    ],
    completions: Annotated[
        Path | None, typer.Option(help="File of completions, if they are not in the file of prompts.")
    ] = None,
    columns: Columns = "",
    home: Home = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Score completions from a file, select or pair them as a recipe says, and measure them. Needs no model, trains nothing.

    To train on the result, use `ratchet run` with the same recipe, file and
    --set generate.engine=recorded. It scores nothing again.

    Examples:

      ratchet data iterative_dpo --prompts outputs.jsonl.gz --map prompt=query,completion=response,answer=gold

      ratchet data raft --prompts questions.jsonl --completions outputs.parquet --json
    """
    from flows.commands.part_rules import check_parts

    folder = environment.home_of(home)
    changes = {**overrides(None, prompts, columns), **OFF}
    if completions is not None:
        changes["generate.path"] = sources.absolute(completions)
    recipe = recipes.load(source, sets or [], changes).at_round(1)
    check_parts(recipe)
    environment.prepare(folder)
    _print(run(folder, recipe), as_json)


@dataclass(frozen=True)
class Results:
    """What the command made: the completions, the chosen rows (by "pairs" or "selected"), METRICS, and every artifact."""

    completions: Artifact
    chosen: Mapping[str, Artifact]
    metrics: Artifact
    artifacts: Mapping[Label, Artifact]


def run(home: Path, recipe: recipes.Recipe) -> Results:
    """Run the stages of a round that need no model, in the order of a round."""
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
        scores = scores_of_round(stages, prompts, completions, {}).by_label
        reward = stages.reward(scores)
        chosen = stages.choose(completions, reward, scores)
        return Results(completions, chosen, stages.measure_pool(completions, reward, scores), stages.made)


def _print(made: Results, as_json: bool) -> None:
    from flows.commands.report import plain_table
    from flows.round.artifacts import facts_of, read_facts, read_metrics
    from flows.round.reporter import percent

    metrics = read_metrics(made.metrics)
    chosen_facts = read_facts(made.chosen) | facts_of(made.artifacts[labels.REWARD])
    imported: dict[str, Any] = json.loads(made.completions.file("facts.json").read_text())
    if as_json:
        artifacts = {label.text: {"key": a.key, "digest": a.digest, "path": str(a.path)} for label, a in made.artifacts.items()}
        shown = {name: metric.model_dump() for name, metric in metrics.items()}
        print(json.dumps({"completions": imported, "metrics": shown, "chosen": chosen_facts, "artifacts": artifacts}, indent=1))
        return
    table = plain_table(
        "metric",
        "value",
        "n",
        caption="with 95% intervals over prompts. In percent, except characters and tokens per completion",
    )
    for name, metric in metrics.items():
        table.add_row(name, _plain(name, metric) if name in ("characters", "mean_tokens") else percent(metric), str(metric.n))
    out.print(table)
    for title, counts in (("completions", imported), ("chosen", flatten(chosen_facts))):
        nonzero = [f"{name.replace('_', ' ')} {value}" for name, value in counts.items() if value]
        out.print(f"{title}: {', '.join(nonzero)}", soft_wrap=True)
    for rows in made.chosen.values():
        out.print(f"tables: {rows.path}, and {made.completions.path} with the texts", soft_wrap=True)


def _plain(name: str, metric: Metric) -> str:
    return "-" if metric.value is None else f"{metric.value:.1f}"
