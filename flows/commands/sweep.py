"""`ratchet sweep`: run a recipe once for every combination of settings."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.markup import escape

from data.errors import RatchetError
from data.recipe import recipe as recipes
from data.store.campaign import Campaign
from flows.commands.options import Home, Json, Model, Prompts, Sets, Source, err, out, overrides
from flows.commands.run import EXIT, nothing_to_run, run_to_end
from flows.round.deliver import deliver
from flows.service import environment


def sweep(
    source: Source,
    over: Annotated[list[str], typer.Option("--over", help="A setting and its values.", metavar="A.B=V,V")],
    name: Annotated[str, typer.Option(help="Name of the sweep (default: the recipe's, with -sweep).")] = "",
    model: Model = None,
    prompts: Prompts = None,
    home: Home = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Run a recipe once for every combination of settings; what two of them have in common is computed once.

    One that fails is told and the others go on; the same command again resumes.

    Examples:

      ratchet sweep tiny_dpo --over loss.beta=0.1,0.5 --over seed=0,1,2

      ratchet sweep raft --model ./my-model --prompts q.jsonl --over train.learning_rate=1e-6,5e-6 --name rates
    """
    from data.store.sweep import Sweep
    from flows.commands.check import checked
    from registry.sweeps import finish_sweep

    place = environment.home_of(home)
    name = name or f"{recipes.find(source).stem}-sweep"
    given = overrides(model, prompts)
    for cell in Sweep.plan(name, over).recipes(source, sets or [], given).values():
        checked(cell, place)  # every one of them, before anything is written
    environment.prepare(place)
    planned = Sweep.start(place, name, over)
    members = [planned.member(place, each, r) for each, r in planned.recipes(source, sets or [], given).items()]
    before = set(members[0].store.keys())
    codes = [_run_one(number, member, len(members)) for number, member in enumerate(members, 1)]
    results = [{"campaign": m.name, **planned.campaigns[m.name], **_result(m)} for m in members]
    deliver(lambda: finish_sweep(members[0].home, planned, results), lambda text: err.print(text, soft_wrap=True, markup=False))
    asked = [member.used() for member in members]
    counts = {
        "stages_asked_for": sum(map(len, asked)),
        "distinct": len(set().union(*asked)),
        "made_now": len(set(members[0].store.keys()) - before),
    }
    if as_json:
        print(json.dumps({"name": name, "over": planned.over, "campaigns": results, **counts}, indent=1))
    else:
        _table(planned.over, results)
        out.print(", ".join(f"{count} {what.replace('_', ' ')}" for what, count in counts.items()))
    raise typer.Exit(max(codes))


def _run_one(number: int, member: Campaign, count: int) -> int:
    """Run one campaign of a sweep; returns its exit code."""
    err.print(f"[bold]{number}/{count}[/bold] {member.name}")
    try:
        return EXIT[member.state if nothing_to_run(member) else run_to_end(member, [])]
    except RatchetError as error:
        err.print(f"[red]{type(error).__name__}[/red]: {escape(str(error))}", soft_wrap=True)
        return error.exit_code


def _result(campaign: Campaign) -> dict[str, Any]:
    """State and held-out accuracy of what the gate left in front, and its difference to the base."""
    rounds = campaign.rounds()
    row: dict[str, Any] = {"state": campaign.state, "rounds": rounds[-1].round if rounds else None}
    head = next((r for r in reversed(rounds) if r.checkpoint == rounds[-1].head), None)
    for metric in ("accuracy", "accuracy_vs_base"):
        known = head.metrics.get(metric) if head else None
        row |= {
            f"{metric}{end}": getattr(known, field, None) for end, field in (("", "value"), ("_low", "low"), ("_high", "high"))
        }
    return row


def _table(over: dict[str, list[Any]], results: list[dict[str, Any]]) -> None:
    from data.store.campaign import Metric
    from flows.commands.report import plain_table
    from flows.round.reporter import percent

    table = plain_table("campaign", *over, "state", "accuracy %", "points over base", caption="the head, on held-out")
    for row in results:
        pair = [
            percent(Metric(value=row[m], low=row[f"{m}_low"], high=row[f"{m}_high"])) for m in ("accuracy", "accuracy_vs_base")
        ]
        table.add_row(row["campaign"], *(str(row[path]) for path in over), row["state"], *pair)
    out.print(table)
