"""`ratchet parts` and `ratchet recipes`: the parts that a recipe can name, and the recipes that come with Ratchet."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from data.errors import PartError
from data.recipe import recipe as recipes
from flows.commands.options import Json
from flows.terminal import line, out


def list_parts(
    family: Annotated[
        str, typer.Argument(metavar="[FAMILY]", help="A kind of part, e.g. scorers or features (default: all).")
    ] = "",
    as_json: Json = False,
) -> None:
    """List the parts that a recipe can name (scorers, pairers, engines, ...), with settings, defaults and source.

    Examples:

      ratchet parts

      ratchet parts scorers --json
    """
    from tasks.run import parts

    if family and family not in parts.FAMILIES:
        raise PartError(f"no family of parts '{family}': expected one of {', '.join(parts.FAMILIES)}")
    listing = {name: parts.listing(name) for name in ([family] if family else parts.FAMILIES)}
    if as_json:
        print(json.dumps(listing, indent=1))
        return
    for name, rows in listing.items():
        out.print(line((name, "bold")))
        for row in rows:
            settings = f"({row['settings']})" if row["settings"] else ""
            out.print(line(f"  {row['name']}{settings}  ", (row["source"], "dim"), f"\n      {row['about']}"), soft_wrap=True)


def list_recipes(as_json: Json = False) -> None:
    """List the shipped recipes, with a line about each.

    Example: ratchet recipes --json
    """
    import tomllib

    rows = [
        {"name": n, "about": tomllib.loads(p.read_text())["description"], "path": str(p)} for n, p in recipes.shipped().items()
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        out.print(line((f"{row['name']:<16}", "bold"), row["about"]), soft_wrap=True)
