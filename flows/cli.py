"""The command line. Everything heavy is imported inside a command, so that `--help` and `check` answer at once."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from data.errors import CampaignError, PartError, RatchetError
from data.recipe import recipe as recipes
from data.store.campaign import Campaign, names
from flows.commands.audit import audit
from flows.commands.conduct import EXIT, begin, carry_out, conduct, links, summary
from flows.commands.data import data
from flows.commands.history import gc, lineage
from flows.commands.options import Columns, Home, Json, Model, Name, Prompts, Refresh, Sets, Source, out, overrides
from flows.commands.variants import fork, sweep
from flows.service import environment
from flows.service.serve import serve

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False)


@app.callback(epilog="Also: [bold]ratchet setup[/bold], [bold]ratchet test [--all][/bold], [bold]ratchet bench NAME[/bold].")
def main() -> None:
    """Ratchet: let a language model improve itself in rounds, safely and repeatably.

    Examples:

      ratchet demo

      ratchet run tiny_raft --name first --set rounds=2

      ratchet run iterative_dpo --model ./Qwen2.5-0.5B --prompts train.jsonl.gz

      ratchet show first --round 1
    """


@app.command()
def run(
    source: Source,
    name: Annotated[str, typer.Option(help="Name of the campaign (default: the recipe's).")] = "",
    model: Model = None,
    prompts: Prompts = None,
    columns: Columns = "",
    home: Home = None,
    sets: Sets = None,
    refresh: Refresh = None,
) -> None:
    """Run a recipe as a campaign; the same command again resumes it.

    Examples:

      ratchet run tiny_raft

      ratchet run tiny_dpo --name low-beta --set loss.beta=0.2

      ratchet run raft --model ./my-model --prompts questions.jsonl --set generate.max_tokens=512
    """
    given = overrides(model, prompts, columns)
    conduct(begin(source, name, environment.home_of(home), sets or [], given), refresh or [])


@app.command()
def resume(
    name: Name,
    home: Home = None,
    decide: Annotated[str, typer.Option(help="Answer a gate that asks: promote, hold, roll_back or stop.")] = "",
    refresh: Refresh = None,
) -> None:
    """Go on with a campaign from its last finished artifact, or answer its gate.

    Examples:

      ratchet resume first

      ratchet resume careful --decide promote
    """
    place = environment.home_of(home)
    campaign = Campaign.open(place, name)
    environment.prepare(place)
    if decide:
        campaign.decide(decide)
    conduct(campaign, refresh or [])


@app.command()
def runs(home: Home = None, as_json: Json = False) -> None:
    """List campaigns and their state.

    Example: ratchet runs --json
    """
    from rich import box
    from rich.table import Table

    place = environment.home_of(home)
    rows = [row_of(Campaign.open(place, name)) for name in names(place)]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(pad_edge=False, box=box.SIMPLE_HEAD, collapse_padding=True)
    for column in ("name", "state", "rounds", "accuracy", "about"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        value = "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f}"
        table.add_row(row["name"], row["state"], f"{row['rounds_done']}/{row['rounds']}", value, row["about"][:36])
    out.print(table if rows else f"no campaigns below {place} yet; try: ratchet run tiny_raft")


def row_of(campaign: Campaign) -> dict[str, Any]:
    finished = campaign.rounds()
    accuracy = finished[-1].metrics.get("accuracy") if finished else None
    return {
        "name": campaign.name,
        "state": campaign.state,
        "rounds_done": finished[-1].round if finished else 0,
        "rounds": campaign.recipe.rounds,
        "accuracy": accuracy.value if accuracy else None,
        "about": campaign.recipe.description,
    }


@app.command()
def show(
    name: Name,
    number: Annotated[
        int | None, typer.Option("--round", help="One round in full: which model, reference and data made it.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show a campaign's rounds, or one round in full.

    Examples:

      ratchet show first

      ratchet show first --round 2 --json
    """
    campaign = Campaign.open(environment.home_of(home), name)
    finished = campaign.rounds()
    if number is not None:
        finished = [r for r in finished if r.round == number]
        if not finished:
            raise CampaignError(
                f"campaign '{name}' has no finished round {number}; it has {len(campaign.rounds())} (0 is the base)"
            )
    if as_json:
        print(json.dumps(described(campaign, finished), indent=1))
    elif number is None:
        summary([campaign])
    else:
        out.print_json(json.dumps({**finished[0].model_dump(mode="json"), "paths": paths(campaign, finished[0].artifacts)}))


def described(campaign: Campaign, finished: list[Any]) -> dict[str, Any]:
    rounds = [{**r.model_dump(mode="json"), "verdict": r.verdict.decision, "reason": r.verdict.reason} for r in finished]
    final = {k: {n: m.model_dump() for n, m in v.items()} for k, v in (campaign.final() or {}).items()}
    return {"name": campaign.name, "state": campaign.state, "recipe": campaign.recipe.plain(), "rounds": rounds, "final": final}


def paths(campaign: Campaign, artifacts: dict[str, Any]) -> dict[str, str]:
    return {label: str(campaign.store.folder(ref.key) / "payload") for label, ref in artifacts.items()}


@app.command()
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
    from flows.commands.check import check as ready

    recipe = recipes.load(source, sets or [], overrides(model, prompts, columns))
    estimate = ready(recipe, environment.home_of(home))
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


@app.command(name="parts")
def list_parts(
    family: Annotated[str, typer.Argument(metavar="[FAMILY]", help="scorers, features, ... (all families by default).")] = "",
    as_json: Json = False,
) -> None:
    """List the parts a recipe can name, with their settings and where they are defined.

    Example: ratchet parts scorers
    """
    from tasks.run import parts

    if family and family not in parts.FAMILIES:
        raise PartError(f"no family '{family}': expected one of {', '.join(parts.FAMILIES)}")
    listing = {name: parts.listing(name) for name in ([family] if family else parts.FAMILIES)}
    if as_json:
        print(json.dumps(listing, indent=1))
        return
    for name, rows in listing.items():
        out.print(f"[bold]{name}[/bold]")
        for row in rows:
            settings = f"({row['settings']})" if row["settings"] else ""
            out.print(
                f"  {escape(row['name'] + settings)}  [dim]{row['source']}[/dim]\n      {escape(row['about'])}", soft_wrap=True
            )


@app.command(name="recipes")
def list_recipes(as_json: Json = False) -> None:
    """List the shipped recipes."""
    import tomllib

    rows = [
        {"name": n, "about": tomllib.loads(p.read_text())["description"], "path": str(p)} for n, p in recipes.shipped().items()
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        out.print(f"[bold]{row['name']:<16}[/bold]{row['about']}", soft_wrap=True)


@app.command()
def verify(home: Home = None) -> None:
    """Hash every stored artifact. Damage is named and set aside; the next run that needs it makes it again (exit code 1)."""
    from rich.progress import Progress

    from data.store.store import Store

    place = environment.home_of(home)
    if not (place / "store").exists():
        raise CampaignError(f"nothing stored below {place} yet")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("verify", total=None)
        store = Store(place / "store")
        damaged = store.verify(lambda done, total: progress.update(bar, completed=done, total=total))
    for line in damaged:
        out.print(f"[red]damaged[/red] {escape(line)}", soft_wrap=True)
    out.print(f"{len(store.keys())} artifacts checked, {len(damaged)} damaged")
    raise typer.Exit(1 if damaged else 0)


@app.command()
def demo(home: Home = None, seed: Annotated[int, typer.Option(help="Seed of world, model and sampling.")] = 0) -> None:
    """Run the main job on the built-in tiny world: RAFT, iterative DPO, and a control beside each.

    Example: ratchet demo --home /tmp/try
    """
    from flows.commands.demo import campaigns

    place = environment.home_of(home)
    environment.prepare(place)
    started = campaigns(place, seed)
    states = [carry_out(campaign, []) if campaign.state != "done" else "done" for campaign in started]
    links(started)
    summary(started)
    raise typer.Exit(max(EXIT[state] for state in states))


app.command()(data)
app.command()(fork)
app.command()(sweep)
app.command()(lineage)
app.command()(gc)
app.command()(serve)
app.command()(audit)


def entry() -> None:
    """Run the app; every error of ours is one clear line and an exit code."""
    try:
        app(prog_name="ratchet")
    except RatchetError as error:
        Console(stderr=True, highlight=False).print(f"[red]{type(error).__name__}[/red]: {escape(str(error))}", soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    entry()
