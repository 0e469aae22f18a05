"""Prefect runs and stages whose end nobody reported: they stay Running until somebody says what became of them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from data.store.campaign import Campaign
from flows.service import environment

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.objects import FlowRun, State, TaskRun

FLOWS = ["campaign", "improve"]  # the flows that run a campaign, by their names in Prefect


def mark_crashed_runs(campaign: Campaign) -> None:
    """Mark the runs of this campaign that died: call it with the campaign's lock held, which no other living run has then.

    A retry has the id of the attempt that died, so of the caller's own run only the stages are marked. Does nothing where the
    caller runs without Prefect.
    """
    from prefect.client.orchestration import get_client
    from prefect.runtime import flow_run

    if flow_run.id is None:
        return
    with get_client(sync_client=True) as client:
        for run in _running(client):
            if campaign_of(run) == (campaign.home, campaign.name):
                _crash(client, run, stages_only=run.id == UUID(flow_run.id))


def mark_runs_without_process() -> list[str]:
    """Mark every run of this server that Prefect shows as running while nobody holds its campaign; returns the campaigns.

    For a server without a worker, as at the start of `serve`: a run that has just begun does not hold its campaign yet.
    """
    from prefect.client.orchestration import get_client

    dead = []
    with get_client(sync_client=True) as client:
        for run in _running(client):
            found = campaign_of(run)
            if found and not Campaign.runs(*found):
                _crash(client, run)
                dead.append(found[1])
    return dead


def close_orphaned_runs(quiet: float = 60.0, patience: float = 90.0) -> int:
    """Say the end of what ended and could not say so itself; returns how many runs and stages.

    A run that was asked to stop `patience` seconds ago, and whose campaign nobody holds, is Cancelled: its worker reports that
    and tries for a minute, and gives up where the database is too busy. Stages that still run in a run that ended `quiet`
    seconds ago end with it: a run waits for the server's answer to its end, but its stages' ends travel as events, and what a
    server holds in memory when it is killed is lost. Stages of a run that completed had completed; others died with theirs.
    """
    from prefect.client.orchestration import get_client

    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        ended = _end_stages(client, now - timedelta(seconds=quiet))
        return ended + _cancel(client, now - timedelta(seconds=patience))


def _cancel(client: SyncPrefectClient, before: datetime) -> int:
    from prefect.client.schemas.objects import StateType
    from prefect.states import Cancelled

    closed = 0
    for run in _running(client):
        asked = run.state is not None and run.state.type == StateType.CANCELLING and run.state.timestamp <= before
        found = campaign_of(run) if asked else None
        if found and not Campaign.runs(*found):
            client.set_flow_run_state(run.id, Cancelled(message="its process is gone"), force=True)
            closed += 1
    return closed


def _end_stages(client: SyncPrefectClient, before: datetime) -> int:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterEndTime
    from prefect.states import Completed

    done: State[None] = Completed(message="its run completed; the report of its own end was lost with the server")
    closed = 0
    for stage in _unfinished(client, FlowRunFilter(end_time=FlowRunFilterEndTime(before_=before))):
        assert stage.flow_run_id is not None  # the filter is about its run
        run = client.read_flow_run(stage.flow_run_id)
        if campaign_of(run) and run.state is not None and run.state.is_final():
            client.set_task_run_state(stage.id, done if run.state.is_completed() else _crashed(), force=True)
            closed += 1
    return closed


def campaign_of(run: FlowRun) -> tuple[Path, str] | None:
    """Home and name of the campaign that a run runs; None for a flow of somebody else's that bears the same name."""
    order: Any = run.parameters.get("order", run.parameters)
    if not isinstance(order, dict) or not isinstance(order.get("name"), str) or not isinstance(order.get("home", ""), str):
        return None
    return environment.home_of(Path(order["home"]) if order.get("home") else None), order["name"]


def _running(client: SyncPrefectClient) -> Iterator[FlowRun]:
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterState
    from prefect.client.schemas.filters import FlowRunFilterStateType as Types
    from prefect.client.schemas.objects import StateType

    state = FlowRunFilterState(type=Types(any_=[StateType.RUNNING, StateType.CANCELLING]))
    ours = FlowFilter(name=FlowFilterName(any_=FLOWS))
    yield from client.read_flow_runs(flow_filter=ours, flow_run_filter=FlowRunFilter(state=state))


def _unfinished(client: SyncPrefectClient, runs: FlowRunFilter) -> list[TaskRun]:
    """The stages of our runs that Prefect shows as running or about to run."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, TaskRunFilter, TaskRunFilterState
    from prefect.client.schemas.filters import TaskRunFilterStateType as Types
    from prefect.client.schemas.objects import StateType

    state = TaskRunFilterState(type=Types(any_=[StateType.RUNNING, StateType.PENDING]), name=None)
    ours = FlowFilter(name=FlowFilterName(any_=FLOWS))
    return client.read_task_runs(flow_filter=ours, flow_run_filter=runs, task_run_filter=TaskRunFilter(state=state))


def _crashed() -> State[None]:
    from prefect.states import Crashed

    return Crashed(message="its process is gone")


def _crash(client: SyncPrefectClient, run: FlowRun, stages_only: bool = False) -> None:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    for stage in _unfinished(client, FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))):
        client.set_task_run_state(stage.id, _crashed(), force=True)
    if not stages_only:
        client.set_flow_run_state(run.id, _crashed(), force=True)
