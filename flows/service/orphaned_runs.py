"""Orphaned runs and stages: their process ended without a report to Prefect, which shows them as Running until marked here."""

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
    """Mark earlier runs of this campaign as Crashed. Call it while holding the campaign's lock, so that no other run is alive.

    A retry has the id of the attempt that died, so only the stages of the caller's own run are marked. Does nothing if the
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
    """Mark as Crashed every run that Prefect shows as Running while no process holds its campaign's lock.

    Returns the names of the campaigns. Call it before a worker starts, as `serve` does: a run that has just begun does not hold
    the lock yet.
    """
    from prefect.client.orchestration import get_client

    campaigns = []
    with get_client(sync_client=True) as client:
        for run in _running(client):
            campaign = campaign_of(run)
            if campaign and not Campaign.runs(*campaign):
                _crash(client, run)
                campaigns.append(campaign[1])
    return campaigns


def close_orphaned_runs(quiet: float = 60.0, patience: float = 90.0) -> int:
    """Report to Prefect the end of runs and stages that ended without a report. Returns how many.

    Args:
        quiet: seconds after the end of a run. Stages of it that Prefect still shows as Running get the state of their run:
            completed if it completed, else crashed. Their own reports travel as events, and a killed server loses those that
            it holds in memory.
        patience: seconds after a request to cancel. If no process holds the campaign's lock then, its run is Cancelled. The
            worker should report that, but gives up after a minute if the database is too busy.
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
        cancelling = run.state is not None and run.state.type == StateType.CANCELLING and run.state.timestamp <= before
        campaign = campaign_of(run) if cancelling else None
        if campaign and not Campaign.runs(*campaign):
            client.set_flow_run_state(run.id, Cancelled(message="Its process has ended."), force=True)
            closed += 1
    return closed


def _end_stages(client: SyncPrefectClient, before: datetime) -> int:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterEndTime
    from prefect.states import Completed

    done: State[None] = Completed(message="Its run completed. The report of its own end was lost when the server ended.")
    closed = 0
    for stage in _unfinished(client, FlowRunFilter(end_time=FlowRunFilterEndTime(before_=before))):
        assert stage.flow_run_id is not None  # the filter selects stages by their run
        run = client.read_flow_run(stage.flow_run_id)
        if campaign_of(run) and run.state is not None and run.state.is_final():
            client.set_task_run_state(stage.id, done if run.state.is_completed() else _crashed(), force=True)
            closed += 1
    return closed


def campaign_of(run: FlowRun) -> tuple[Path, str] | None:
    """Home and name of the campaign of a run; None if the run is of another flow with the same name."""
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

    return Crashed(message="Its process has ended.")


def _crash(client: SyncPrefectClient, run: FlowRun, stages_only: bool = False) -> None:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    for stage in _unfinished(client, FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))):
        client.set_task_run_state(stage.id, _crashed(), force=True)
    if not stages_only:
        client.set_flow_run_state(run.id, _crashed(), force=True)
