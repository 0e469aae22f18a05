"""`ratchet gc`: delete what no campaign refers to."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Annotated

import typer

from data.errors import CampaignError
from flows.commands.options import Home, out
from flows.service import environment


def gc(
    home: Home = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
) -> None:
    """Delete what no campaign refers to: first say what and how much, then ask.

    A campaign refers to everything it asked for, finished or not. To let go of one, delete its folder below campaigns/.

    Examples:

      ratchet gc

      ratchet gc --yes
    """
    from data.store import garbage

    place = environment.home_of(home)
    if not (place / "store").exists():
        raise CampaignError(f"nothing stored below {place} yet")
    with garbage.at_rest(place) as campaigns:
        found = garbage.find(place, campaigns)
        for what, count in sorted(Counter(what for _, what, _ in (*found.artifacts, *found.attempts)).items()):
            size = sum(size for _, name, size in (*found.artifacts, *found.attempts) if name == what)
            out.print(f"  {count:>5} {what:<20} {size / 1e6:>10,.1f} MB")
        out.print(
            f"{len(found.artifacts) + len(found.attempts)} folders that no campaign refers to, {found.size / 1e6:,.1f} MB"
        )
        if found.quarantine:
            out.print(f"kept as evidence: {place / 'store' / 'quarantine'}, {found.quarantine / 1e6:,.1f} MB", soft_wrap=True)
        if not (found.artifacts or found.attempts):
            return
        if not yes and not sys.stdin.isatty():
            raise CampaignError("nobody is there to ask; pass --yes to delete")
        if not yes and not typer.confirm("delete them?"):
            raise typer.Exit(1)
        garbage.delete(place, found)
        out.print(f"deleted, {found.size / 1e6:,.1f} MB freed")
