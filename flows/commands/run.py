"""`ratchet run` and `ratchet resume`: run a campaign to its end, then print its tables and links, and set the exit code."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from data.errors import CampaignError
from data.recipe import recipe as recipes
from data.store.campaign import Campaign, names
from flows.commands.options import Columns, Home, Model, Name, Prompts, Refresh, Sets, Source, overrides
from flows.round.deliver import deliver
from flows.service import environment
from flows.terminal import line, out
from registry.client import has_mlflow

EXIT = {"done": 0, "stopped": 3, "waiting": 4}


def run(
    source: Source,
    name: Annotated[str, typer.Option(help="Name of the campaign (default: the recipe's name).")] = "",
    model: Model = None,
    prompts: Prompts = None,
    columns: Columns = "",
    home: Home = None,
    sets: Sets = None,
    refresh: Refresh = None,
) -> None:
    """Run a recipe as a campaign. The same command resumes a campaign that was interrupted.

    Exit code 0: all rounds are done.
    1: a stage or a service failed.
    2: wrong use; nothing was started.
    3: the gate stopped the campaign.
    4: the gate waits for your decision (see `ratchet resume`).
    130: interrupted; finished artifacts are kept.

    Examples:

      ratchet run tiny_raft

      ratchet run tiny_dpo --name low-beta --set loss.beta=0.2

      ratchet run raft --model ./my-model --prompts questions.jsonl --set generate.max_tokens=512
    """
    campaign = begin(source, name, environment.home_of(home), sets or [], overrides(model, prompts, columns))
    finish_and_show(campaign, refresh or [])


def resume(
    name: Name,
    home: Home = None,
    decide: Annotated[
        str, typer.Option(help="Your answer to a gate that waits for it: promote, hold, roll_back or stop.", metavar="DECISION")
    ] = "",
    refresh: Refresh = None,
) -> None:
    """Resume a campaign from its last finished artifact. If its gate waits for a decision, answer it with --decide.

    Exit codes are those of `ratchet run`.

    Examples:

      ratchet resume first

      ratchet resume careful --decide promote
    """
    folder = environment.home_of(home)
    campaign = Campaign.open(folder, name)
    environment.prepare(folder)
    if decide:
        campaign.decide(decide)
    finish_and_show(campaign, refresh or [])


def begin(source: str, name: str, home: Path, sets: Sequence[str], overrides: Mapping[str, Any] = {}) -> Campaign:
    """Start a campaign, or open the one with this name. Everything is checked before anything is written.

    Raises:
        WrongUse: the recipe, its parts, prompts, model or home cannot be used, or another recipe has the name.
    """
    from flows.commands.check import checked

    recipe = recipes.load(source, sets, overrides)
    name = name or recipes.find(source).stem
    if name not in names(home):
        for note in checked(recipe, home)["notes"]:
            say(f"note: {note}")
    environment.prepare(home)
    return Campaign.start(home, name, recipe)


def finish_and_show(campaign: Campaign, refresh: list[str]) -> None:
    """Run a campaign to its end, print its tables, and exit with the code of its state."""
    state: str = campaign.state
    if not nothing_to_run(campaign):
        state = run_to_end(campaign, refresh)
        links([campaign])
    summary([campaign])
    if state == "waiting":
        question = campaign.pending() or {}
        out.print(f"The gate waits for your decision: {question.get('reason', '')}", soft_wrap=True)
        out.print(f"Answer it with: ratchet resume {campaign.name} --decide promote|hold|roll_back|stop", soft_wrap=True)
    raise typer.Exit(EXIT[state])


def nothing_to_run(campaign: Campaign) -> bool:
    """Whether the gate waits for a decision, or all rounds are done and in MLflow. Checked before Prefect starts."""
    return campaign.state == "waiting" or (campaign.over and campaign.delivered and has_mlflow(campaign.home))


def run_to_end(campaign: Campaign, refresh: list[str]) -> str:
    """Run the rest of a campaign, with Prefect unless the recipe switches it off, and return its state."""
    with interruptible():
        from flows.round.improve import improve
        from flows.service.services import prefect_api

        if not campaign.recipe.hardware.prefect:
            return improve.fn(campaign.name, str(campaign.home), tuple(refresh))
        with prefect_api(campaign.home):
            return improve(campaign.name, str(campaign.home), tuple(refresh))


def summary(campaigns: list[Campaign]) -> None:
    """Print the tables of rounds and of the test split, the folder of all outputs, and how to open the UIs."""
    from flows.commands.report import final_table, gate_sees, gold_line, reads_in_words, reward_shares, rounds_table
    from flows.round.reporter import alarm_lines, left_out

    out.print(rounds_table(campaigns))
    for campaign in campaigns:
        if touched := gold_line(campaign):
            out.print(f"{campaign.name}: {touched}", soft_wrap=True)
        for finished in campaign.rounds()[-1:]:
            for text in [*left_out(finished), *alarm_lines(finished)]:
                out.print(line(f"{campaign.name}, round {finished.round}: ", text), soft_wrap=True)
            if sees := gate_sees(finished):
                out.print(f"{campaign.name}, round {finished.round}: {sees}", soft_wrap=True)
            if shares := reward_shares(finished):
                out.print(f"{campaign.name}, round {finished.round}: {shares}", soft_wrap=True)
    final = final_table(campaigns)
    if final is not None:
        out.print(final)
    for told in reads_in_words(campaigns):
        out.print(told, soft_wrap=True)
    home = campaigns[0].home
    out.print(f"Files:   {home} (campaigns/, store/, mlflow.db, prefect/)", soft_wrap=True)
    out.print(f"UIs:     {shlex.join(['./ratchet', 'serve', '--home', str(home)])} (MLflow, Prefect)", soft_wrap=True)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """End at Ctrl-C or SIGTERM with a plain message and exit code 130, without waiting for Prefect's threads.

    Child processes end too: the code that started them stops them, and the kernel kills the others. A second Ctrl-C does not
    wait for that.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for signal_number in handlers:
            signal.signal(signal_number, signal.SIG_DFL)
        raise KeyboardInterrupt

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in handlers:
            signal.signal(number, stop)
        yield
    except KeyboardInterrupt:
        print("Interrupted. Finished artifacts are kept; the same command resumes here.", file=sys.stderr, flush=True)
        os._exit(130)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def links(campaigns: list[Campaign]) -> None:
    """Print where MLflow shows these campaigns. Only after a run, since MLflow takes seconds to import."""
    from registry.compare import links as addresses

    try:
        address_of = deliver(lambda: addresses(campaigns[0].home, [campaign.name for campaign in campaigns]), say)
    except CampaignError as error:
        address_of = None
        say(f"no MLflow links: {error}")
    for page, address in (address_of or {}).items():
        out.print(f"{page}: {address}", soft_wrap=True, style="dim")


def say(text: str) -> None:
    out.print(text, soft_wrap=True)
