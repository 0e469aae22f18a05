"""`ratchet sweep`: run a recipe once for every combination of settings."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from data.errors import RatchetError
from data.recipe import recipe as recipes
from data.store.campaign import Campaign
from flows.commands.options import Home, Json, Model, Prompts, Sets, Source, overrides
from flows.commands.run import EXIT, nothing_to_run, run_to_end
from flows.round.deliver import deliver
from flows.service import environment
from flows.terminal import err, line, out


def sweep(
    source: Source,
    over: Annotated[
        list[str],
        typer.Option("--over", help="A setting and its values, separated by commas. Can be repeated.", metavar="A.B=V,V"),
    ],
    name: Annotated[str, typer.Option(help="Name of the sweep (default: RECIPE-sweep).")] = "",
    model: Model = None,
    prompts: Prompts = None,
    home: Home = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Run a recipe once for every combination of settings. Stages that combinations share are computed once.

    If a campaign fails, its error is printed and the others go on. The same
    command resumes all that are not done. The exit code is the highest of all
    campaigns (see `ratchet run`).

    Examples:

      ratchet sweep tiny_dpo --over loss.beta=0.1,0.5 --over seed=0,1,2

      ratchet sweep raft --model ./my-model --prompts q.jsonl --over train.learning_rate=1e-6,5e-6 --name rates
    """
    from data.store.sweep import Sweep
    from flows.commands.check import checked
    from registry.sweeps import finish_sweep

    folder = environment.home_of(home)
    name = name or f"{recipes.find(source).stem}-sweep"
    changes = overrides(model, prompts)
    for recipe in Sweep.plan(name, over).recipes(source, sets or [], changes).values():
        checked(recipe, folder)  # every one of them, before anything is written
    environment.prepare(folder)
    planned = Sweep.start(folder, name, over)
    members = [planned.member(folder, campaign, r) for campaign, r in planned.recipes(source, sets or [], changes).items()]
    before = set(members[0].store.keys())
    codes = [_run_one(number, member, len(members)) for number, member in enumerate(members, 1)]
    results = [{"campaign": m.name, **planned.campaigns[m.name], **_result(m)} for m in members]
    deliver(lambda: finish_sweep(members[0].home, planned, results), lambda text: err.print(text, soft_wrap=True))
    keys = [member.used() for member in members]
    calls, distinct = sum(map(len, keys)), len(set().union(*keys))
    new = len(set(members[0].store.keys()) - before)
    if as_json:
        counts = {"stages_asked_for": calls, "distinct": distinct, "made_now": new}
        print(json.dumps({"name": name, "over": planned.over, "campaigns": results, **counts}, indent=1))
    else:
        _table(planned.over, results)
        out.print(f"The campaigns use {calls} artifacts, {distinct} of them distinct. {new} were computed now.")
    raise typer.Exit(max(codes))


def _run_one(number: int, member: Campaign, count: int) -> int:
    """Run one campaign of a sweep and return its exit code."""
    err.print(line((f"{number}/{count}", "bold"), f" {member.name}"))
    try:
        return EXIT[member.state if nothing_to_run(member) else run_to_end(member, [])]
    except RatchetError as error:
        err.print(line((type(error).__name__, "red"), f": {error}"), soft_wrap=True)
        return error.exit_code


def _result(campaign: Campaign) -> dict[str, Any]:
    """State of a campaign, held-out accuracy of its head, and the difference to checkpoint 0."""
    rounds = campaign.rounds()
    row: dict[str, Any] = {"state": campaign.state, "rounds": rounds[-1].round if rounds else None}
    head = next((r for r in reversed(rounds) if r.checkpoint == rounds[-1].head), None)
    for metric in ("accuracy", "accuracy_vs_base"):
        measured = head.metrics.get(metric) if head else None
        ends = {"": "value", "_low": "low", "_high": "high"}
        row |= {f"{metric}{end}": getattr(measured, field, None) for end, field in ends.items()}
    return row


def _table(over: dict[str, list[Any]], results: list[dict[str, Any]]) -> None:
    from data.store.campaign import Metric
    from flows.commands.report import plain_table
    from flows.round.reporter import percent

    caption = "greedy accuracy on held-out of the head (the checkpoint a next round would start from), with 95% intervals"
    table = plain_table("campaign", *over, "state", "accuracy %", "points over base", caption=caption)
    for row in results:
        pair = [
            percent(Metric(value=row[m], low=row[f"{m}_low"], high=row[f"{m}_high"])) for m in ("accuracy", "accuracy_vs_base")
        ]
        table.add_row(row["campaign"], *(str(row[path]) for path in over), row["state"], *pair)
    out.print(table)
