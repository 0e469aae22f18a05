"""Run a campaign for a person: to its end, with Ctrl-C obeyed, then the tables, the links and the exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from rich.markup import escape

from data.errors import CampaignError
from data.recipe import recipe as recipes
from data.store.campaign import Campaign, names
from flows.commands.options import out
from flows.service import environment
from registry.client import remembered
from registry.compare import ui_command

EXIT = {"done": 0, "stopped": 3, "waiting": 4}


def begin(source: str, name: str, home: Path, sets: Sequence[str], overrides: Mapping[str, Any] = {}) -> Campaign:
    """Start a campaign, or open the one of this name; whatever is wrong is said before anything is written.

    Raises:
        WrongUse: the recipe, its parts, prompts, model or home will not do, or the name is another recipe's.
    """
    from flows.commands.check import check

    recipe = recipes.load(source, sets, overrides)
    name = name or recipes.find(source).stem
    if name not in names(home):
        check(recipe, home)
    environment.prepare(home)
    return Campaign.start(home, name, recipe)


def conduct(campaign: Campaign, refresh: list[str]) -> None:
    """Run a campaign to its end, show it, and exit with its code."""
    state: str = campaign.state
    if not settled(campaign):
        state = carry_out(campaign, refresh)
        links([campaign])
    summary([campaign])
    if state == "waiting":
        question = campaign.pending() or {}
        out.print(f"waiting for a person: {escape(str(question.get('reason', '')))}")
        out.print(f"answer with: ratchet resume {campaign.name} --decide promote|hold|roll_back|stop")
    raise typer.Exit(EXIT[state])


def settled(campaign: Campaign) -> bool:
    """Whether there is nothing to run: a person is asked, or all is done and delivered. Seen before Prefect starts."""
    return campaign.state == "waiting" or (campaign.final() is not None and campaign.delivered and remembered(campaign.home))


def carry_out(campaign: Campaign, refresh: list[str]) -> str:
    """Run what is left of a campaign, under Prefect or without; returns its state."""
    with interruptible():
        from flows.round.improve import improve
        from flows.service.services import prefect_api

        if not campaign.recipe.hardware.prefect:
            return improve.fn(campaign.name, str(campaign.home), tuple(refresh))
        with prefect_api(campaign.home):
            return improve(campaign.name, str(campaign.home), tuple(refresh))


def summary(campaigns: list[Campaign]) -> None:
    """The table of rounds, the test table, where everything lies and how to open the UIs."""
    from flows.commands.report import alarm_lines, final_table, rounds_table

    out.print(rounds_table(campaigns))
    for campaign in campaigns:
        for finished in campaign.rounds()[-1:]:
            for alarm in alarm_lines(finished):
                out.print(f"{campaign.name}, round {finished.round}: {alarm}", soft_wrap=True)
    final = final_table(campaigns)
    if final is not None:
        out.print(final)
    home = campaigns[0].home
    out.print(f"everything lies below {home}: campaigns/, store/, mlflow.db, prefect/", soft_wrap=True)
    out.print(f"MLflow:  {ui_command(home) or os.environ['MLFLOW_TRACKING_URI']}", soft_wrap=True)
    out.print(f"Prefect: PREFECT_HOME={home / 'prefect'} {sys.executable} -m prefect server start", soft_wrap=True)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end at once with a plain message and exit code 130; Prefect's threads must not hold up who wants out.

    Children end too: what runs them cleans up, and the kernel ends what is left. A second Ctrl-C does not wait for any of it.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        for each in before:
            signal.signal(each, stop)
        yield
    except KeyboardInterrupt:
        print("interrupted; nothing finished is lost: the same command goes on from here", file=sys.stderr, flush=True)
        os._exit(130)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def links(campaigns: list[Campaign]) -> None:
    """Where MLflow shows these campaigns; only after a run, since it takes MLflow seconds to start."""
    from registry.client import MemoryUnreachable
    from registry.compare import links as addresses

    try:
        for what, address in addresses(campaigns[0].home, [campaign.name for campaign in campaigns]).items():
            out.print(f"{what}: {address}", soft_wrap=True, style="dim")
    except (MemoryUnreachable, CampaignError) as error:
        out.print(f"no MLflow links: {escape(str(error))}", soft_wrap=True)
