"""`ratchet runs` and `ratchet show`: the campaigns of a home, and the rounds of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from data.errors import CampaignError, DamagedCampaign
from data.store import test_reads
from data.store.campaign import Campaign, folders
from flows.commands.options import Home, Json, Name
from flows.commands.run import summary
from flows.service import environment
from flows.terminal import err, out


def runs(home: Home = None, as_json: Json = False) -> None:
    """List all campaigns: state, finished rounds, and held-out accuracy of the last round in percent.

    Examples:

      ratchet runs

      ratchet runs --home /data/runs --json
    """
    from rich import box
    from rich.table import Table

    folder = environment.home_of(home)
    rows = [row_of(folder, name) for name in folders(folder)]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(pad_edge=False, box=box.SIMPLE_HEAD, collapse_padding=True)
    for column in ("name", "state", "rounds", "accuracy %", "about"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        value = "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f}"
        done = "-" if row["rounds"] is None else f"{row['rounds_done']}/{row['rounds']}"
        table.add_row(row["name"], row["state"], done, value, row["about"][:36])
    out.print(table if rows else f"No campaigns in {folder} yet. Start one: ratchet run tiny_raft")
    for row in rows:
        if "error" in row:
            err.print(f"{row['name']}: {row['error']}", soft_wrap=True)


def row_of(home: Path, name: str) -> dict[str, Any]:
    """What `runs` says of a campaign. A damaged one is named, with what can be done, and hides no other."""
    try:
        return readable_row(Campaign.open(home, name))
    except DamagedCampaign as error:
        unknown = dict.fromkeys(("rounds_done", "rounds", "accuracy"))
        return {"name": name, "state": "damaged", **unknown, "about": "", "error": str(error)}


def readable_row(campaign: Campaign) -> dict[str, Any]:
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


def show(
    name: Name,
    number: Annotated[
        int | None,
        typer.Option(
            "--round", help="Print the record of this round as JSON: checkpoints, metrics, alarms, verdict, artifacts."
        ),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show a campaign's rounds: accuracy, length, alarms and verdicts. With --round, show one round in full.

    Examples:

      ratchet show first

      ratchet show first --round 2 --json
    """
    campaign = Campaign.open(environment.home_of(home), name)
    finished = campaign.rounds()
    if number is not None:
        finished = [r for r in finished if r.round == number]
        if not finished:
            raise CampaignError(no_such_round(campaign, number))
    if as_json:
        print(json.dumps(described(campaign, finished), indent=1))
    elif number is None:
        summary([campaign])
    else:
        record = {**finished[0].model_dump(mode="json"), "paths": paths(campaign, finished[0].artifacts)}
        out.print_json(json.dumps(record), ensure_ascii=True)


def no_such_round(campaign: Campaign, number: int) -> str:
    """The message about a round that is not there."""
    numbers = [finished.round for finished in campaign.rounds()]
    finished = f"its finished rounds are 0 to {numbers[-1]}" if numbers else "none is finished yet"
    return f"campaign '{campaign.name}' has no finished round {number}; {finished}"


def described(campaign: Campaign, finished: list[Any]) -> dict[str, Any]:
    rounds = [{**r.model_dump(mode="json"), "verdict": r.verdict.decision, "reason": r.verdict.reason} for r in finished]
    final = {k: {n: m.model_dump() for n, m in v.items()} for k, v in (campaign.final() or {}).items()}
    about = {"name": campaign.name, "state": campaign.state, "recipe": campaign.recipe.plain()}
    return about | {"rounds": rounds, "final": final, "test_reads": test_reads.in_words(campaign)}


def paths(campaign: Campaign, artifacts: dict[str, Any]) -> dict[str, str]:
    return {label: str(campaign.store.folder(ref.key) / "payload") for label, ref in artifacts.items()}
