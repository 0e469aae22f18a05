"""`ratchet gc`: delete the artifacts that no campaign refers to."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Annotated

import typer

from data.errors import CampaignError
from flows.commands.options import Home
from flows.service import environment
from flows.terminal import out


def gc(
    home: Home = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
) -> None:
    """Delete the artifacts that no campaign refers to. Lists their number and size in MB first, then asks.

    A campaign refers to every artifact that it used, finished or not. To free
    the artifacts of a campaign, delete its folder in campaigns/ first.

    Exit code 1: you answered no.

    Examples:

      ratchet gc

      ratchet gc --yes
    """
    from data.store import garbage

    folder = environment.home_of(home)
    if not (folder / "store").exists():
        raise CampaignError(f"nothing is stored in {folder} yet")
    with garbage.at_rest(folder) as used:
        unused = garbage.find(folder, used)
        folders = [*unused.artifacts, *unused.attempts]
        for stage, count in sorted(Counter(stage for _, stage, _ in folders).items()):
            size = sum(size for _, name, size in folders if name == stage)
            out.print(f"  {count:>5} {stage:<20} {size / 1e6:>10,.1f} MB")
        out.print(f"{len(folders)} folders that no campaign refers to, {unused.size / 1e6:,.1f} MB")
        if unused.quarantine:
            quarantine = f"{folder / 'store' / 'quarantine'}, {unused.quarantine / 1e6:,.1f} MB"
            out.print(f"Damaged artifacts in quarantine are not deleted: {quarantine}", soft_wrap=True)
        if not folders:
            return
        if not yes and not sys.stdin.isatty():
            raise CampaignError("cannot ask before deleting, since input is not a terminal; pass --yes to delete")
        if not yes and not typer.confirm("Delete them?"):
            raise typer.Exit(1)
        garbage.delete(folder, unused)
        out.print(f"Deleted. {unused.size / 1e6:,.1f} MB freed.")
