"""`ratchet demo`: RAFT and iterative DPO on the tiny world, each beside a control with the same training on seed data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data.recipe import recipe as recipes
from data.store.campaign import Campaign
from flows.commands.options import Home
from flows.commands.run import EXIT, links, run_to_end, summary
from flows.service import environment

# A DPO step of 32 pairs passes 64 sequences forward and backward (3 units each) and 64 through the reference (1 each): 256
# units, or 85.3 supervised sequences. 80 steps of it equal 107 supervised steps of 64 sequences.
DPO_CONTROL = ("train.steps=107", "train.batch=64", "train.learning_rate=3e-4")

UNWATCHED = ("probe.samples=0",)  # a control is there for its accuracy; the ledger would cost it a fifth more


def demo(home: Home = None, seed: Annotated[int, typer.Option(help="Seed of world, model and sampling.")] = 0) -> None:
    """Run the main job on the built-in tiny world: RAFT, iterative DPO, and a control beside each.

    Example: ratchet demo --home /tmp/try
    """
    place = environment.home_of(home)
    environment.prepare(place)
    started = campaigns(place, seed)
    states = [run_to_end(campaign, []) if campaign.state != "done" else "done" for campaign in started]
    links(started)
    summary(started)
    raise typer.Exit(max(EXIT[state] for state in states))


def campaigns(home: Path, seed: int, sets: tuple[str, ...] = ()) -> list[Campaign]:
    """The four campaigns, started; equal stages (seed model, round 0, the first sampling) are computed once."""
    arms = {
        "raft": ("tiny_raft", ()),
        "raft-control": ("tiny_control", UNWATCHED),
        "dpo": ("tiny_dpo", ()),
        "dpo-control": ("tiny_control", (*DPO_CONTROL, *UNWATCHED)),
    }
    return [
        Campaign.start(home, f"demo-{name}-{seed}", recipes.load(source, [f"seed={seed}", *changes, *sets]))
        for name, (source, changes) in arms.items()
    ]
