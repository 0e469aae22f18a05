"""The deployment's form and the reaping of dead runs, on the session's Prefect; `test_serve.py` has the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml

from data.campaign import Campaign
from tests.micro import SETS, micro

ROOT = Path(__file__).parent.parent


def test_the_deployment_agrees_with_the_code() -> None:
    # Claim: prefect.yaml names the flow, the pool and the deployment that `serve` looks for; its parameters fit the form.
    from prefect.utilities.importtools import import_object

    from flows.scheduled import Order
    from flows.serve import DEPLOYMENT, POOL

    (deployment,) = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    flow = import_object(deployment["entrypoint"])
    assert f"{flow.name}/{deployment['name']}" == DEPLOYMENT
    assert deployment["work_pool"]["name"] == POOL
    assert Order.model_validate(deployment["parameters"]["order"]).recipe == "tiny_raft"
    assert [schedule["active"] for schedule in deployment["schedules"]] == [False]


@pytest.mark.parametrize(
    "bad",
    [{"name": "../escape"}, {"name": ""}, {"recipe": ""}, {"overrides": ["no value"]}, {"hom": "/tmp"}, {"name": None}],
)
def test_a_form_that_does_not_fit_is_refused(bad: dict[str, Any]) -> None:
    # Claim: a name that could leave the home, an override without a value, an unknown field: none becomes a campaign.
    from pydantic import ValidationError

    from flows.scheduled import Order

    with pytest.raises(ValidationError):
        Order.model_validate({"recipe": "tiny_raft", "name": "good", **bad})


def test_an_ordered_campaign_is_the_command_lines(run_micro: Callable[..., Campaign], home: Path) -> None:
    # Claim: what a deployment starts is found finished by the command line's code, and the other way round.
    from flows.scheduled import Order, campaign

    done = run_micro("tiny_raft", "rounds=1")
    before = {key: (done.store.folder(key) / "manifest.json").stat().st_mtime_ns for key in done.store.keys()}
    order = Order(recipe="tiny_raft", name="micro", home=str(home), overrides=[*SETS, "rounds=1", "hardware.prefect=false"])
    assert campaign.fn(order).name == "Done"
    assert {key: (done.store.folder(key) / "manifest.json").stat().st_mtime_ns for key in done.store.keys()} == before


@pytest.fixture
def running(home: Path) -> tuple[Campaign, Any]:
    """A campaign whose note names a flow run that is Running in Prefect, with a stage, while nobody holds the lock."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.states import Running

    @flow
    def dead() -> None:
        pass

    campaign = Campaign.start(home, "k", micro())
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(dead, state=Running())
    (campaign.folder / "prefect-run").write_text(str(run.id))
    return campaign, run.id


def state_of(run: UUID) -> str:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run).state
    assert state is not None
    return state.name


def test_a_run_whose_process_is_gone_is_marked_crashed(running: tuple[Campaign, UUID], home: Path) -> None:
    # Claim: a run that Prefect shows as running while its campaign's lock is free is dead: it becomes Crashed, once.
    from flows.reap import reap

    campaign, run = running
    with campaign.running():
        assert reap(home) == []  # its lock is held: it lives
    assert state_of(run) == "Running"
    assert reap(home) == ["k"]
    assert state_of(run) == "Crashed"
    assert reap(home) == []


def test_a_retried_run_does_not_bury_itself(running: tuple[Campaign, UUID]) -> None:
    # Claim: a retry has the id of the attempt that died; only that attempt's stages are dead, not the run.
    from flows.reap import bury

    campaign, run = running
    assert not bury(campaign, but=run)
    assert state_of(run) == "Running"


def test_a_run_of_another_server_is_let_be(home: Path) -> None:
    # Claim: a note that this server knows nothing of is dropped without a fuss.
    from flows.reap import reap

    campaign = Campaign.start(home, "k", micro())
    (campaign.folder / "prefect-run").write_text("00000000-0000-0000-0000-000000000001")
    assert reap(home) == []
    assert not (campaign.folder / "prefect-run").exists()
