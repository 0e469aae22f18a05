"""`ratchet fork`: continue a campaign from one of its rounds with other settings."""

from __future__ import annotations

from typing import Annotated

import typer

from data.recipe import recipe as recipes
from data.store.campaign import Campaign
from flows.commands.options import Home, Name, Sets
from flows.commands.run import finish_and_show
from flows.service import environment


def fork(
    name: Name,
    at: Annotated[int, typer.Option("--at", help="The last round that both campaigns share.", metavar="K")],
    new: Annotated[str, typer.Option("--name", help="Name of the fork (default: NAME-at-K).")] = "",
    home: Home = None,
    sets: Sets = None,
) -> None:
    """Continue a campaign from round K with other settings, as a campaign of its own.

    Rounds 0 to K are shared and not computed again. Exit codes are those of `ratchet run`.

    Examples:

      ratchet fork first --at 2 --set loss.beta=0.5

      ratchet fork first --at 3 --name longer --set rounds=6
    """
    folder = environment.home_of(home)
    campaign = Campaign.open(folder, name)
    recipe = recipes.forked(campaign.recipe, at, sets or [])
    environment.prepare(folder)
    finish_and_show(campaign.fork(at, new or f"{name}-at-{at}", recipe), [])
