"""Prefect runs whose process is gone: SIGKILL of a run and its worker leaves them Running until somebody says Crashed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from data.campaign import Campaign, names
from data.errors import CampaignError
from data.store import write_atomic


@contextlib.contextmanager
def noted(campaign: Campaign) -> Iterator[None]:
    """Note which Prefect run holds the campaign's lock. Whoever the note named before is dead: the lock is ours now."""
    from prefect.runtime import flow_run

    if flow_run.id is None:  # without Prefect there is nothing to note, and no server to tell about the dead
        yield
        return
    mine = UUID(flow_run.id)
    bury(campaign, but=mine)
    write_atomic(note_of(campaign), str(mine))
    yield
    note_of(campaign).unlink()


def reap(home: Path) -> list[str]:
    """Mark the runs of this home that died without saying so; returns the campaigns they ran."""
    dead = []
    for name in names(home):
        campaign = Campaign.open(home, name)
        with contextlib.suppress(CampaignError), campaign.running():  # it is running: alive
            if bury(campaign):
                dead.append(name)
    return dead


def bury(campaign: Campaign, but: UUID | None = None) -> bool:
    """Mark the run named by the note, and its stages, as Crashed where they still count as running; whether the run did.

    Call it with the campaign's lock held. `but` is the caller's own run: retried, it has the id its dead attempt had, so that
    only the stages of that attempt are marked.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, TaskRunFilter, TaskRunFilterState
    from prefect.client.schemas.filters import TaskRunFilterStateType as Types
    from prefect.client.schemas.objects import State, StateType
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    if not note_of(campaign).exists():
        return False
    noted = UUID(note_of(campaign).read_text())
    crashed: State[None] = Crashed(message="its process is gone")
    running = TaskRunFilter(state=TaskRunFilterState(type=Types(any_=[StateType.RUNNING]), name=None))
    with get_client(sync_client=True) as client:
        for stage in client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[noted])), task_run_filter=running
        ):
            client.set_task_run_state(stage.id, crashed, force=True)
        try:
            state = client.read_flow_run(noted).state
        except ObjectNotFound:  # it was another server's
            state = None
        dead = noted != but and state is not None and (state.is_running() or state.is_cancelling())
        if dead:
            client.set_flow_run_state(noted, crashed, force=True)
    note_of(campaign).unlink()
    return dead


def note_of(campaign: Campaign) -> Path:
    return campaign.folder / "prefect-run"
