"""`ratchet lineage`: what an artifact was made from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from data.errors import CampaignError
from data.store.campaign import Campaign, names
from data.store.store import Store
from flows.commands.options import Home, Json
from flows.commands.show import no_such_round
from flows.service import environment
from flows.terminal import line, out

if TYPE_CHECKING:
    from rich.tree import Tree

    from data.store.lineage import Node


def lineage(
    what: Annotated[
        str, typer.Argument(metavar="ARTIFACT|NAME", help="Name of a campaign, or the first characters of a key or digest.")
    ],
    number: Annotated[
        int | None, typer.Option("--round", help="Round whose checkpoint to trace (default: the last finished one).")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show what an artifact or a round's checkpoint was made from: models, data and settings, back to the prompts.

    Examples:

      ratchet lineage first --round 2

      ratchet lineage 3fa9c2d1 --json
    """
    from data.store.lineage import lineage as trace
    from data.store.lineage import resolve

    folder = environment.home_of(home)
    if what in names(folder):
        campaign = Campaign.open(folder, what)
        rounds = {finished.round: finished for finished in campaign.rounds()}
        number = max(rounds, default=0) if number is None else number
        if number not in rounds:
            raise CampaignError(no_such_round(campaign, number))
        store, key, name = campaign.store, rounds[number].checkpoint.key, f"{what} round {number}"
    else:
        if not (folder / "store").exists():
            raise CampaignError(f"nothing is stored in {folder} yet; start with: ratchet run tiny_raft")
        store = Store(folder / "store")
        key, name = resolve(store, what), ""
    node = trace(store, key, name)
    if as_json:
        print(json.dumps(node.plain(), indent=1))
    else:
        out.print(_tree(node))


def _tree(node: Node, parent: Tree | None = None) -> Tree:
    from rich.tree import Tree

    note = (" (above)", "dim") if node.again else (f" {node.absent}", "yellow") if node.absent else ""
    name = f"{node.name}  " if node.name else ""
    title = line(name, (node.stage, "bold"), (f" {node.key[:12]} ", "dim"), node.digest[:12], note)
    branch = parent.add(title) if parent is not None else Tree(title)
    if node.settings:
        branch.add(line((_short(node), "dim")))
    for inner in node.made_of:
        _tree(inner, branch)
    return branch


def _short(node: Node) -> str:
    """The settings that are not empty, on one line."""
    settings = [
        f"{name}={json.dumps(value)}" for name, value in node.settings.items() if value not in ("", None, {}, [], False)
    ]
    return ", ".join([*settings, f"seed={node.seed}"])
