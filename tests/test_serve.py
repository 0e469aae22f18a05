"""Server, worker and campaigns for real, on loopback: schedule, kill, retry, cancel. `bench kills_prefect` kills more often."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from data.store.campaign import Campaign
from flows.service.access import credentials
from tasks.score.scorers import Score
from tests.bench_kill import left_over
from tests.bench_kills_prefect import OVERRIDES, ROOT, Calm, Stand, digests, metrics, moments, scenario, until
from tests.micro import Row, ends_even

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with Stand(tmp_path_factory.mktemp("served")).running() as standing:
        yield standing


@pytest.fixture(scope="module")
def calm(stand: Stand, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    home = tmp_path_factory.mktemp("calm")
    run = stand.order(home)
    assert stand.ended(run) == "COMPLETED", stand.state(run)
    assert stand.state(run)["name"] == "Done"
    return Calm(home)


def test_a_schedule_that_is_switched_on_makes_runs(stand: Stand) -> None:
    # Claim: the schedule of prefect.yaml is off at first; switched on, runs are planned (with SQLAlchemy 2.1 none would be).
    deployment = stand.ask("GET", "/deployments/name/campaign/ratchet")
    (schedule,) = deployment["schedules"]
    assert not schedule["active"]

    def planned() -> int:
        wanted = {
            "deployments": {"id": {"any_": [deployment["id"]]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        }
        return int(stand.ask("POST", "/flow_runs/count", **wanted))

    assert planned() == 0
    for active in (True, False):
        answer = stand.api.patch(f"/deployments/{deployment['id']}/schedules/{schedule['id']}", json={"active": active})
        answer.raise_for_status()
        until(planned if active else lambda: not planned(), "the scheduler")


@pytest.mark.parametrize(
    ("bad", "why"),
    [({"name": "../x"}, "does not match"), ({"overrides": ["x"]}, "does not match"), ({"recipes": "x"}, "unexpected")],
)
def test_a_form_that_does_not_fit_makes_no_run(bad: dict[str, object], why: str, stand: Stand) -> None:
    # Claim: the server itself refuses it (409), with the field.
    deployment = stand.ask("GET", "/deployments/name/campaign/ratchet")["id"]
    form = {"recipe": "tiny_raft", "name": "x", **bad}
    answer = stand.api.post(f"/deployments/{deployment}/create_flow_run", json={"parameters": {"order": form}})
    assert answer.status_code == 409
    assert why in answer.text


@pytest.mark.parametrize(
    ("victim", "stage", "retries"),
    [("flow", "train", 1), ("worker", "generate", 0), ("server", "evaluate", 0), ("everything", "sync", 1)],
)
def test_what_is_killed_goes_on(victim: str, stage: str, retries: int, stand: Stand, calm: Calm) -> None:
    # Claim: digests as if nothing had happened, every metric in MLflow once, nothing left; worker and server may go unnoticed.
    outcome = scenario(stand, calm, victim, stage, random.Random(0))
    assert outcome.good, outcome
    assert outcome.retries <= retries, outcome


def test_the_worker_runs_nothing_but_campaigns(stand: Stand, tmp_path: Path) -> None:
    # Claim: with the password too, a run with job variables is not started; it ends as Crashed and says why.
    deployment = stand.ask("GET", "/deployments/name/campaign/ratchet")["id"]
    order = {"recipe": "tiny_raft", "name": "k", "home": str(tmp_path)}
    attack = {"job_variables": {"command": f"touch {tmp_path}/owned"}, "enforce_parameter_schema": False}
    run = stand.ask("POST", f"/deployments/{deployment}/create_flow_run", parameters={"order": order}, **attack)["id"]
    assert stand.ended(run) == "CRASHED"
    assert "expected a run without job variables, found command" in stand.state(run)["message"]
    assert list(tmp_path.iterdir()) == []


def fragile(prompts: Sequence[Row], completions: Sequence[Row], *, flag: str) -> list[Score]:
    """A scorer that cannot work while a file is there."""
    if Path(flag).exists():
        raise RuntimeError("the flag is up")
    return ends_even(prompts, completions)


def test_a_failed_run_can_be_retried(stand: Stand, calm: Calm, tmp_path: Path) -> None:
    # Claim: a stage that raises ends its run as Failed, with the cause; a retry goes on from what was finished before it.
    calm.prepare(tmp_path, "sync")
    flag = tmp_path / "flag"
    flag.touch()
    score = f'score=[{{scorer="tests.test_serve:fragile", settings={{flag="{flag}"}}}}]'
    run = stand.order(tmp_path, overrides=[*OVERRIDES, score])
    assert stand.ended(run) == "FAILED"
    assert "the flag is up" in stand.state(run)["message"]
    flag.unlink()
    stand.retry(run)
    until(lambda: stand.state(run)["type"] != "FAILED", "the retry to count")
    assert stand.ended(run) == "COMPLETED"
    assert stand.ask("GET", f"/flow_runs/{run}")["run_count"] == 2
    (finished,) = Campaign.open(tmp_path, "k").rounds()[1:]
    assert finished.artifacts["generate"] == calm.round.artifacts["generate"]
    assert set(metrics(tmp_path).values()) == {1}


def test_a_cancelled_run_frees_its_locks_and_can_be_retried(stand: Stand, calm: Calm, tmp_path: Path) -> None:
    # Claim: cancelled in a stage it ends as Cancelled, holds no lock, and a retry ends with equal digests.
    calm.prepare(tmp_path, "train")
    run = stand.order(tmp_path)
    until(moments(tmp_path, calm, "train")[0], "train to start", pause=0.001)
    stand.cancel(run)
    assert stand.ended(run) in ("CANCELLED", "COMPLETED")  # it may have been through
    assert not [what for what in left_over(tmp_path / "store") if what.startswith("locked")]
    if stand.state(run)["type"] == "CANCELLED":
        stand.retry(run)
        until(lambda: stand.state(run)["type"] != "CANCELLED", "the retry to count")
        assert stand.ended(run) == "COMPLETED"
    assert digests(tmp_path) == calm.digests
    assert metrics(tmp_path) == calm.metrics


def test_a_run_of_the_command_line_shows_on_the_standing_server(stand: Stand, calm: Calm, tmp_path: Path) -> None:
    # Claim: PREFECT_API_URL of the user's environment is honoured: no server of its own, the run is there, by name.
    calm.prepare(tmp_path, "sync")
    sets = [part for item in OVERRIDES for part in ("--set", item)]
    command = [sys.executable, "-m", "flows.cli", "run", "tiny_raft", "--name", "from-shell", "--home", str(tmp_path), *sets]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    named = {"PREFECT_API_URL": str(stand.api.base_url).rstrip("/"), "PREFECT_API_AUTH_STRING": credentials(stand.home)}
    environment = kept | {"PYTHONPATH": str(ROOT)} | named
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = stand.ask("POST", "/flow_runs/filter", flow_runs={"name": {"any_": ["from-shell"]}})
    assert run["state"]["type"] == "COMPLETED"
    assert not list((tmp_path / "prefect").glob("*.db*"))
    assert not (tmp_path / "prefect" / "server.log").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_of_the_command_line_takes_its_server_with_it(number: signal.Signals, calm: Calm, tmp_path: Path) -> None:
    # Claim: without a standing server a run has its own, which ends with it however it ends, and no lock stays.
    calm.prepare(tmp_path, "train")
    sets = [part for item in OVERRIDES for part in ("--set", item)]
    command = [sys.executable, "-m", "flows.cli", "run", "tiny_raft", "--name", "k", "--home", str(tmp_path), *sets]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "PYTHONPATH": str(ROOT)
    }
    with psutil.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        until(moments(tmp_path, calm, "train")[0], "train to start", pause=0.001)
        children = run.children(recursive=True)
        assert children
        run.send_signal(number)
        assert run.wait(30) == (-number if number == signal.SIGKILL else 130)
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert not [what for what in left_over(tmp_path / "store") if what.startswith("locked")]


def test_sigterm_ends_everything_and_the_run_can_be_retried(stand: Stand, calm: Calm, tmp_path: Path) -> None:
    # Claim: SIGTERM of `serve` ends every process it started, flow runs too, with exit code 0, no lock and no run left running.
    assert stand.serve is not None
    calm.prepare(tmp_path, "train")
    run = stand.order(tmp_path)
    until(moments(tmp_path, calm, "train")[0], "train to start", pause=0.001)
    children = stand.serve.children(recursive=True)
    assert len(children) >= 4
    stand.serve.terminate()
    assert stand.serve.wait(60) == 0
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert not [what for what in left_over(tmp_path / "store") if what.startswith("locked")]
    stand.start()
    assert stand.ended(run) == "CRASHED"
    stand.retry(run)
    until(lambda: stand.state(run)["type"] != "CRASHED", "the retry to count")
    assert stand.ended(run) == "COMPLETED"
    assert digests(tmp_path) == calm.digests
