"""`ratchet demo`: RAFT and iterative DPO on the tiny world, each with a control that trains as much on seed data."""

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

WITHOUT_LEDGER = ("probe.samples=0",)  # only the accuracy of a control matters; the ledger would take a fifth more time


def demo(
    home: Home = None, seed: Annotated[int, typer.Option(help="Seed of the prompts, the model and the sampling.")] = 0
) -> None:
    """Run RAFT and iterative DPO on built-in addition problems, each next to a control trained on given solutions.

    Needs no model and no GPU. Exit codes are those of `ratchet run`.

    Example: ratchet demo --home /tmp/try
    """
    folder = environment.home_of(home)
    environment.prepare(folder)
    started = campaigns(folder, seed)
    states = [run_to_end(campaign, []) if campaign.state != "done" else "done" for campaign in started]
    links(started)
    summary(started)
    raise typer.Exit(max(EXIT[state] for state in states))


def campaigns(home: Path, seed: int, sets: tuple[str, ...] = ()) -> list[Campaign]:
    """Start the four campaigns. Equal stages (seed model, round 0, the first sampling) are computed once."""
    recipes_by_name = {
        "raft": ("tiny_raft", ()),
        "raft-control": ("tiny_control", WITHOUT_LEDGER),
        "dpo": ("tiny_dpo", ()),
        "dpo-control": ("tiny_control", (*DPO_CONTROL, *WITHOUT_LEDGER)),
    }
    return [
        Campaign.start(home, f"demo-{name}-{seed}", recipes.load(source, [f"seed={seed}", *changes, *sets]))
        for name, (source, changes) in recipes_by_name.items()
    ]
