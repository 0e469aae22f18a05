"""`ratchet lineage`: what an artifact was made of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from data.errors import CampaignError
from data.store.campaign import Campaign, names
from data.store.store import Store
from flows.commands.options import Home, Json, out
from flows.service import environment

if TYPE_CHECKING:
    from rich.tree import Tree

    from data.store.lineage import Node


def lineage(
    what: Annotated[str, typer.Argument(metavar="ARTIFACT|NAME", help="A campaign, or the beginning of a key or digest.")],
    number: Annotated[int | None, typer.Option("--round", help="Which round's checkpoint (default: the last).")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show what an artifact, or a round's checkpoint, was made of: models, data and settings, back to the prompts.

    Examples:

      ratchet lineage first --round 2

      ratchet lineage 3fa9c2d1 --json
    """
    from data.store.lineage import lineage as trace
    from data.store.lineage import resolve

    place = environment.home_of(home)
    if what in names(place):
        campaign = Campaign.open(place, what)
        rounds = {finished.round: finished for finished in campaign.rounds()}
        wanted = max(rounds, default=0) if number is None else number
        if wanted not in rounds:
            raise CampaignError(f"campaign '{what}' has no finished round {wanted}; it has {len(rounds)} (0 is the base)")
        store, key, name = campaign.store, rounds[wanted].checkpoint.key, f"{what} round {wanted}"
    else:
        if not (place / "store").exists():
            raise CampaignError(f"nothing stored below {place} yet; try: ratchet run tiny_raft")
        store = Store(place / "store")
        key, name = resolve(store, what), ""
    found = trace(store, key, name)
    if as_json:
        print(json.dumps(found.plain(), indent=1))
    else:
        out.print(_tree(found))


def _tree(node: Node, parent: Tree | None = None) -> Tree:
    from rich.markup import escape
    from rich.tree import Tree

    also = " [dim](above)[/dim]" if node.again else f" [yellow]{node.absent}[/yellow]" if node.absent else ""
    title = f"{escape(node.name)}  [bold]{node.stage}[/bold] [dim]{node.key[:12]}[/dim] {node.digest[:12]}{also}".lstrip()
    branch = parent.add(title) if parent is not None else Tree(title)
    if node.settings:
        branch.add(f"[dim]{escape(_short(node))}[/dim]")
    for inner in node.made_of:
        _tree(inner, branch)
    return branch


def _short(node: Node) -> str:
    told = [f"{name}={json.dumps(value)}" for name, value in node.settings.items() if value not in ("", None, {}, [], False)]
    return ", ".join([*told, f"seed={node.seed}"])
