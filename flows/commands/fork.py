"""`ratchet fork`: go on from a round of a campaign with other settings."""

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
    at: Annotated[int, typer.Option("--at", help="The last round the two share.", metavar="K")],
    new: Annotated[str, typer.Option("--name", help="Name of the fork (default: NAME-at-K).")] = "",
    home: Home = None,
    sets: Sets = None,
) -> None:
    """Go on from round K of a campaign with other settings; rounds 0 to K are shared, nothing of them is computed again.

    Examples:

      ratchet fork first --at 2 --set loss.beta=0.5

      ratchet fork first --at 3 --name longer --set rounds=6
    """
    place = environment.home_of(home)
    campaign = Campaign.open(place, name)
    recipe = recipes.forked(campaign.recipe, at, sets or [])
    environment.prepare(place)
    finish_and_show(campaign.fork(at, new or f"{name}-at-{at}", recipe), [])
