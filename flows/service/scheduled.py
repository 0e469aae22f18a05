"""The flow of the Prefect deployment: checks the form, then starts or resumes a campaign as `ratchet run` does."""

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
    """The form in Prefect's UI. Values that do not fit are refused before a run is created."""

    model_config = ConfigDict(extra="forbid")

    recipe: str = Field(
        min_length=1, description="name of a shipped recipe, e.g. tiny_raft, or the absolute path of a TOML file"
    )
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="name of the campaign; an existing one is resumed"
    )
    home: str = Field(
        "",
        pattern="^(/.*)?$",
        description="absolute path of the folder of campaigns; empty = the home of `ratchet serve`, else runs/",
    )
    overrides: list[Override] = Field(
        default_factory=list, description="recipe settings to change, as a.b=value, e.g. rounds=2"
    )


@flow(name="campaign", flow_run_name="{order.name}", persist_result=False)
def campaign(order: Order) -> State[str]:
    """Run a campaign, or resume it from its last finished artifact. Its progress is in the file `log` of its folder."""
    home = environment.home_of(Path(order.home) if order.home else None)
    started = begin(order.recipe, order.name, home, order.overrides)
    state: str = started.state
    if not nothing_to_run(started):
        with (started.folder / "log").open("a", buffering=1) as log, contextlib.redirect_stderr(log):
            state = improve.fn(started.name, str(started.home))
    return Completed(name=state.capitalize(), data=state)
