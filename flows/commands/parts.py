"""`ratchet parts` and `ratchet recipes`: what a recipe can name, and the recipes that come with Ratchet."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.markup import escape

from data.errors import PartError
from data.recipe import recipe as recipes
from flows.commands.options import Json, out


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
