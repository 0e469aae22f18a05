"""`ratchet run` and `ratchet resume`: a campaign to its end, then the tables, the links and the exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.markup import escape

from data.errors import CampaignError
from data.recipe import recipe as recipes
from data.store.campaign import Campaign, names
from flows.commands.options import Columns, Home, Model, Name, Prompts, Refresh, Sets, Source, out, overrides
from flows.round.deliver import deliver
from flows.service import environment
from registry.client import remembered
from registry.compare import ui_command

EXIT = {"done": 0, "stopped": 3, "waiting": 4}


def run(
    source: Source,
    name: Annotated[str, typer.Option(help="Name of the campaign (default: the recipe's).")] = "",
    model: Model = None,
    prompts: Prompts = None,
    columns: Columns = "",
    home: Home = None,
    sets: Sets = None,
    refresh: Refresh = None,
) -> None:
    """Run a recipe as a campaign; the same command again resumes it.

    Examples:

      ratchet run tiny_raft

      ratchet run tiny_dpo --name low-beta --set loss.beta=0.2

      ratchet run raft --model ./my-model --prompts questions.jsonl --set generate.max_tokens=512
    """
    given = overrides(model, prompts, columns)
    finish_and_show(begin(source, name, environment.home_of(home), sets or [], given), refresh or [])


def resume(
    name: Name,
    home: Home = None,
    decide: Annotated[str, typer.Option(help="Answer a gate that asks: promote, hold, roll_back or stop.")] = "",
    refresh: Refresh = None,
) -> None:
    """Go on with a campaign from its last finished artifact, or answer its gate.

    Examples:

      ratchet resume first

      ratchet resume careful --decide promote
    """
    place = environment.home_of(home)
    campaign = Campaign.open(place, name)
    environment.prepare(place)
    if decide:
        campaign.decide(decide)
    finish_and_show(campaign, refresh or [])


def begin(source: str, name: str, home: Path, sets: Sequence[str], overrides: Mapping[str, Any] = {}) -> Campaign:
    """Start a campaign, or open the one of this name; whatever is wrong is said before anything is written.

    Raises:
        WrongUse: the recipe, its parts, prompts, model or home will not do, or the name is another recipe's.
    """
    from flows.commands.check import checked

    recipe = recipes.load(source, sets, overrides)
    name = name or recipes.find(source).stem
    if name not in names(home):
        checked(recipe, home)
    environment.prepare(home)
    return Campaign.start(home, name, recipe)


def finish_and_show(campaign: Campaign, refresh: list[str]) -> None:
    """Run a campaign to its end, show it, and exit with its code."""
    state: str = campaign.state
    if not nothing_to_run(campaign):
        state = run_to_end(campaign, refresh)
        links([campaign])
    summary([campaign])
    if state == "waiting":
        question = campaign.pending() or {}
        out.print(f"waiting for a person: {escape(str(question.get('reason', '')))}")
        out.print(f"answer with: ratchet resume {campaign.name} --decide promote|hold|roll_back|stop")
    raise typer.Exit(EXIT[state])


def nothing_to_run(campaign: Campaign) -> bool:
    """Whether there is nothing to run: a person is asked, or all is done and delivered. Seen before Prefect starts."""
    return campaign.state == "waiting" or (campaign.final() is not None and campaign.delivered and remembered(campaign.home))


def run_to_end(campaign: Campaign, refresh: list[str]) -> str:
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
    from flows.commands.report import final_table, rounds_table
    from flows.round.reporter import alarm_lines

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
    from registry.compare import links as addresses

    try:
        found = deliver(lambda: addresses(campaigns[0].home, [campaign.name for campaign in campaigns]), say)
    except CampaignError as error:
        found = None
        say(f"no MLflow links: {error}")
    for what, address in (found or {}).items():
        out.print(f"{what}: {address}", soft_wrap=True, style="dim")


def say(text: str) -> None:
    out.print(text, soft_wrap=True, markup=False)
