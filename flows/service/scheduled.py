"""The flow that a deployment runs: a checked form in, a campaign begun or resumed by the code the command line uses."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict, Field

from flows.commands.run import begin, nothing_to_run
from flows.round.improve import improve
from flows.service import environment

Override = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+=")]


class Order(BaseModel):
    """What Prefect's UI asks for. Values that do not fit are refused before there is a run."""

    model_config = ConfigDict(extra="forbid")

    recipe: str = Field(min_length=1, description="a shipped recipe (tiny_raft, ...) or the whole path of a TOML file")
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="the campaign; one that exists goes on where it stopped"
    )
    home: str = Field(
        "", pattern="^(/.*)?$", description="where runs live, a whole path; empty: the home of `ratchet serve`, else runs/"
    )
    overrides: list[Override] = Field(default_factory=list, description="settings to change, each as a.b=value, e.g. rounds=2")


@flow(name="campaign", flow_run_name="{order.name}", persist_result=False)
def campaign(order: Order) -> State[str]:
    """Run a campaign, or go on with it from its last finished artifact; its progress is in the campaign's folder, in `log`."""
    home = environment.home_of(Path(order.home) if order.home else None)
    begun = begin(order.recipe, order.name, home, order.overrides)
    state: str = begun.state
    if not nothing_to_run(begun):
        with (begun.folder / "log").open("a", buffering=1) as log, contextlib.redirect_stderr(log):
            state = improve.fn(begun.name, str(begun.home))
    return Completed(name=state.capitalize(), data=state)
