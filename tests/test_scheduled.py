"""The deployment's form and the reaping of dead runs, on the session's Prefect; `test_serve.py` has the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml

from data.store.campaign import Campaign
from tests.micro import SETS, micro

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("prefect")


def test_the_deployment_agrees_with_the_code() -> None:
    # Claim: prefect.yaml names the flow, the pool and the deployment that `serve` looks for; its parameters fit the form.
    from prefect.utilities.importtools import import_object

    from flows.service.scheduled import Order
    from flows.service.serve import DEPLOYMENT, POOL

    (deployment,) = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    flow = import_object(deployment["entrypoint"])
    assert f"{flow.name}/{deployment['name']}" == DEPLOYMENT
    assert deployment["work_pool"]["name"] == POOL
    assert Order.model_validate(deployment["parameters"]["order"]).recipe == "tiny_raft"
    assert [schedule["active"] for schedule in deployment["schedules"]] == [False]


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "../escape"},
        {"name": ""},
        {"recipe": ""},
        {"overrides": ["no value"]},
        {"home": "here"},
        {"hom": "/tmp"},
        {"name": None},
    ],
)
def test_a_form_that_does_not_fit_is_refused(bad: dict[str, Any]) -> None:
    # Claim: a name that could leave the home, an override without a value, an unknown field: none becomes a campaign.
    from pydantic import ValidationError

    from flows.service.scheduled import Order

    with pytest.raises(ValidationError):
        Order.model_validate({"recipe": "tiny_raft", "name": "good", **bad})


def test_an_ordered_campaign_is_the_command_lines(run_micro: Callable[..., Campaign], home: Path) -> None:
    # Claim: what a deployment starts is found finished by the command line's code, and the other way round.
    from flows.service.scheduled import Order, campaign

    done = run_micro("tiny_raft", "rounds=1")
    before = {key: (done.store.folder(key) / "manifest.json").stat().st_mtime_ns for key in done.store.keys()}
    order = Order(recipe="tiny_raft", name="micro", home=str(home), overrides=[*SETS, "rounds=1", "hardware.prefect=false"])
    assert campaign.fn(order).name == "Done"
    assert {key: (done.store.folder(key) / "manifest.json").stat().st_mtime_ns for key in done.store.keys()} == before


def dead_run(parameters: dict[str, Any]) -> UUID:
    """A flow run that is Running in Prefect, with nobody behind it."""
    from prefect.client.orchestration import get_client
    from prefect.states import Running

    from flows.round.improve import improve

    with get_client(sync_client=True) as client:
        return client.create_flow_run(improve, parameters=parameters, state=Running()).id


def state_of(run: UUID) -> str:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run).state
    assert state is not None
    return str(state.name)


def test_a_run_whose_process_is_gone_is_marked_crashed(home: Path) -> None:
    # Claim: a run that Prefect shows as running while nobody holds its campaign is dead: it becomes Crashed, once.
    from flows.service.orphaned_runs import mark_runs_without_process

    campaign = Campaign.start(home, "k", micro())
    run = dead_run({"order": {"name": "k", "home": str(home), "recipe": "tiny_raft"}})
    unborn = dead_run({"order": {"name": "unborn", "home": str(home), "recipe": "tiny_raft"}})
    (home / "campaigns" / "k" / "recipe.json").write_text(
        "{}"
    )  # of another version, say: that it cannot be read does not matter
    foreign = dead_run({"name": 7})
    with campaign.running():
        assert mark_runs_without_process() == [
            "unborn"
        ]  # it died before it had a campaign; the other one's lock is held: it lives
    assert state_of(foreign) == "Running"  # a flow of somebody else's that happens to be called improve
    assert (state_of(run), state_of(unborn)) == ("Running", "Crashed")
    assert mark_runs_without_process() == ["k"]
    assert state_of(run) == "Crashed"
    assert mark_runs_without_process() == []


@pytest.mark.minutes
def test_a_resumed_campaign_marks_its_dead_predecessor(run_micro: Callable[..., Campaign], home: Path) -> None:
    # Claim: who gets a campaign's lock under Prefect says Crashed of the run that held it; other campaigns' runs are let be.
    from flows.round.improve import improve
    from flows.service.orphaned_runs import mark_runs_without_process

    done = run_micro("tiny_raft", "rounds=1", "hardware.prefect=true")
    own, other = (dead_run({"name": name, "home": str(home)}) for name in (done.name, "other"))
    assert improve(done.name, str(home)) == "done"
    assert (state_of(own), state_of(other)) == ("Crashed", "Running")
    assert mark_runs_without_process() == ["other"]


def test_a_stage_whose_end_was_lost_ends_as_its_run_did(home: Path) -> None:
    # Claim: it becomes Completed where its run completed, else Crashed, once; of a living run or a stranger's it is let be.
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import State
    from prefect.states import Completed, Crashed, Failed, Pending, Running

    from flows.round.calls import _task
    from flows.round.improve import improve
    from flows.service.orphaned_runs import close_orphaned_runs

    cases: list[tuple[Any, State[None], State[None]]] = [  # whose run it is, the stage's state, and the run's in the end
        ("a", Running(), Completed()),
        ("b", Pending(), Failed()),
        ("c", Running(), Running()),
        (7, Running(), Completed()),
    ]
    runs, stages = [], []
    with get_client(sync_client=True) as client:
        for name, state, end in cases:
            runs.append(client.create_flow_run(improve, parameters={"name": name, "home": str(home)}, state=Running()).id)
            stages.append(client.create_task_run(_task, runs[-1], dynamic_key="0", state=state).id)
            client.set_flow_run_state(runs[-1], end, force=True)
        assert close_orphaned_runs(quiet=3600) == 0  # their reports may still be under way
        assert close_orphaned_runs(quiet=0) == 2
        assert close_orphaned_runs(quiet=0) == 0
        found = [client.read_task_run(stage).state for stage in stages]
        client.set_flow_run_state(runs[2], Crashed(), force=True)
    assert [state.name for state in found if state] == ["Completed", "Crashed", "Running", "Running"]


def test_a_cancelled_run_that_nobody_reports_is_cancelled(home: Path) -> None:
    # Claim: a run asked to stop a while ago, whose campaign nobody holds, becomes Cancelled; while somebody does it is let be.
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling, Crashed

    from flows.service.orphaned_runs import close_orphaned_runs

    held = Campaign.start(home, "slow", micro())
    orders: list[dict[str, Any]] = [{"name": "gone", "home": str(home)}, {"name": "slow", "home": str(home)}]
    gone, slow, foreign = (dead_run({"order": order}) for order in (*orders, {"name": "x", "home": 5}))
    with get_client(sync_client=True) as client, held.running():
        for run in (gone, slow, foreign):
            client.set_flow_run_state(run, Cancelling(), force=True)
        assert close_orphaned_runs(patience=3600) == 0
        assert close_orphaned_runs(patience=0) == 1
        assert [state_of(run) for run in (gone, slow, foreign)] == ["Cancelled", "Cancelling", "Cancelling"]
        for run in (slow, foreign):
            client.set_flow_run_state(run, Crashed(), force=True)


def test_what_settles_goes_on_after_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # Claim: whatever goes wrong in one look is said, and the next look comes.
    from flows.service import orphaned_runs, serve

    stop, looks = threading.Event(), []

    def close_orphaned_runs() -> int:
        looks.append(0)
        if len(looks) == 1:
            raise OSError("the home is gone")
        stop.set()
        return 0

    monkeypatch.setattr(orphaned_runs, "close_orphaned_runs", close_orphaned_runs)
    serve._close_orphaned_runs(stop, every=0.01)
    assert len(looks) == 2
    assert "Could not check for orphaned runs (the home is gone)" in capsys.readouterr().out


def test_an_older_form_becomes_the_flows() -> None:
    # Claim: a deployment that this checkout made before its form changed gets the new one; a schedule stays switched on.
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.utilities.callables import parameter_schema

    from flows.service.environment import CHECKOUT
    from flows.service.scheduled import campaign
    from flows.service.serve import DEPLOYMENT, POOL, deploy

    with get_client(sync_client=True) as client:
        name = DEPLOYMENT.partition("/")[2]
        daily = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 2 * * *", timezone="UTC"), active=True)
        flow = client.create_flow(campaign)
        variables, old = {"working_dir": str(CHECKOUT)}, {"type": "object", "properties": {}}
        client.create_deployment(flow, name, schedules=[daily], job_variables=variables, parameter_openapi_schema=old)
        deploy()
        known = client.read_deployment_by_name(DEPLOYMENT)
        assert client.read_work_pool(POOL).type == "process"
        assert known.parameter_openapi_schema == parameter_schema(campaign).model_dump_for_openapi()
        assert [schedule.active for schedule in known.schedules] == [True]
        unchanged = known.updated
        deploy()
        assert client.read_deployment_by_name(DEPLOYMENT).updated == unchanged
